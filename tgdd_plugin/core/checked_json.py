"""Parsed JSON or YAML that is checked against the fields of a dataclass before it is used, by pydantic.

A field's annotation says what may stand there: types are not converted, numbers are finite, and text is bounded.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, GetPydanticSchema, Strict, TypeAdapter, ValidationError

from tgdd_plugin.core.errors import shown
from tgdd_plugin.core.setting_errors import dotted

Record = TypeVar("Record")

OPEN = ConfigDict(strict=True, extra="allow")
"""The ``__pydantic_config__`` of a mapping that may hold more keys than those that are read."""

MOST_COUNT = 2**53
"""The largest whole number that a file may hold, which a float still holds exactly."""

MOST_CLASSES = 10**6
"""The most classes of a card or a manifest; ImageNet's whole tree has 22 thousand."""

MOST_SIDE = 65_535
"""The largest height or width of an image, which is the largest that FFCV can store."""

MOST_TEXT = 4096
"""The most characters of a name or other text that a file may hold."""

Text = Annotated[str, Strict(), Field(max_length=MOST_TEXT)]
Whole = Annotated[int, Strict(), Field(ge=0, le=MOST_COUNT)]
Count = Annotated[int, Strict(), Field(ge=1, le=MOST_COUNT)]
Flag = Annotated[bool, Strict()]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
AnyFloat = Annotated[float, Strict(), Field(allow_inf_nan=True)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{64}$")]


def shaped(kind: Any) -> Any:
    """In ``Annotated[dict[str, Any], shaped(kind)]``: a mapping with the keys and values of a ``TypedDict``."""
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(kind))


def build_checked(cls: type[Record], content: Any) -> Record:
    """Builds an instance of a dataclass from parsed JSON; keys that the class does not have are left out.

    Raises:
        ValueError: If a field is missing, or is not what its annotation says. The message is one line.
    """
    try:
        built: Record = _adapter(cast(Any, cls)).validate_python(content)
        return built
    except ValidationError as error:
        raise ValueError(_in_words(error)) from None


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


_KINDS = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "text",
}


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = shown(dotted(first["loc"]), 120)
    if first["type"] in ("missing", "missing_argument"):
        return f"`{key}` is missing"
    if first["type"] == "extra_forbidden":
        return f"`{key}` is not known"
    kind = _KINDS.get(first["type"])
    must = f"must be {kind}" if kind else re.sub(r"^\w+ should ", "must ", first["msg"])
    return f"`{key}` {must}, got {shown(_repr(first['input']))}" if key else f"{must}, got {_repr(first['input'])}"


def _repr(value: Any) -> str:
    # The whole of a large value is not written out only to be cut.
    return f"{value[:80]!r}" if isinstance(value, str | list) else f"{value!r:.80}"
