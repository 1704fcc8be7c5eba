"""Settings: frozen pydantic dataclasses whose errors are one line, "`key` must be X, got Y. Remedy."

A settings class declares each key once: its type, its range and its default, and in the docstring below it what it
means. Python, recipes, ``tgdd <step> --help`` and the JSON schema all follow from that declaration.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationError, WithJsonSchema
from pydantic_core import ArgsKwargs
from typing_extensions import dataclass_transform

from tgdd_plugin.core.errors import MOST_SEED, InputError
from tgdd_plugin.core.renamed_keys import RENAMED
from tgdd_plugin.core.setting_errors import explain

Class = TypeVar("Class", bound=type)
Settings = TypeVar("Settings")

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""Values are not converted where the types below say ``Strict``; sections may be mappings, and lists tuples."""


KEYS = "\n\nKeys:"
"""What stands between a class' docstring and its keys in ``help()``."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def settings_class(cls: Class) -> Class:
    """Decorator: makes a frozen pydantic dataclass whose constructor raises an :class:`InputError` in one line.

    A key by its old name (see :mod:`tgdd_plugin.core.renamed_keys`) is taken with a ``FutureWarning``. A class may
    change its JSON schema by a static method ``change_schema``.
    """
    made: Any = cls
    take_old_names: Any = classmethod(_take_old_names)
    made.take_old_names = pydantic.model_validator(mode="before")(take_old_names)
    config = CONFIG | {"json_schema_extra": functools.partial(_complete_schema, made)}
    built: Any = pydantic.dataclasses.dataclass(frozen=True, config=config)(made)
    construct = built.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise InputError(explain(error, built, constructor=True)) from None

    built.__init__ = __init__
    built.__doc__ = _with_keys(built)
    return built  # type: ignore[no-any-return]


def _with_keys(cls: Any) -> str:
    """The docstring of a class with those of its keys below it, for ``help()``."""
    told: dict[str, str] = {}
    for base in reversed(cls.__mro__):  # a class that gives an inherited key another default need not describe it again
        for name, field in vars(base).get("__pydantic_fields__", {}).items():
            told[name] = field.description or told.get(name, "")
    keys = [f"    {name}: {text}".replace("\n", "\n" + " " * 8) for name, text in told.items()]
    return inspect.cleandoc(cls.__doc__ or "") + "\n".join([KEYS, *keys])


def _complete_schema(cls: Any, schema: dict[str, Any]) -> None:
    """Adds what pydantic leaves out of a JSON schema: descriptions of inherited keys, and defaults that are made."""
    schema["description"] = schema["description"].partition(KEYS)[0]  # each key has its own there
    for base in cls.__mro__:
        for name, field in getattr(base, "__pydantic_fields__", {}).items():
            if field.description:
                schema["properties"][name].setdefault("description", field.description)
            if isinstance(value := field.get_default(call_default_factory=True), (list, dict)):
                schema["properties"][name].setdefault("default", value)
    if hasattr(cls, "change_schema"):
        cls.change_schema(schema)


def validate(cls: type[Any], content: Any) -> Any:
    """Builds nested settings from parsed YAML.

    Raises:
        InputError: For an unknown key, a value of the wrong type or out of range; the message names the key with its
            sections, such as ``distill.steps``.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(content)
    except ValidationError as error:
        raise InputError(explain(error, cls)) from None


def as_settings(cls: type[Settings], given: Settings | Mapping[str, Any] | None) -> Settings:
    """Returns settings that were given as such, as a mapping of their keys, or not at all.

    Raises:
        InputError: For a mapping as :func:`validate`; for anything else.
    """
    if isinstance(given, cls):
        return given
    if given is None or isinstance(given, Mapping):
        built: Settings = validate(cls, dict(given or {}))
        return built
    raise InputError(
        f"`settings` must be {cls.__name__} or a mapping of its keys, got {type(given).__name__}. Give, for example, "
        f"{cls.__name__}()."
    )


def _take_old_names(cls: type[Any], content: Any) -> Any:
    given = content.kwargs if isinstance(content, ArgsKwargs) else content
    if not isinstance(given, dict):
        return content
    known = {field.name for field in dataclasses.fields(cls)}
    current = dict(given)
    for old, new in RENAMED.items():
        if old in current and old not in known and new in known:
            if new in current:
                raise InputError(f"`{new}` must be given once, got it and its old name `{old}`. Leave `{old}` out.")
            warnings.warn(
                f"`{old}` is now called `{new}`; the old name will go with the next release", FutureWarning, 2
            )
            current[new] = current.pop(old)
    return ArgsKwargs(content.args, current) if isinstance(content, ArgsKwargs) else current


def _number(value: Any) -> Any:
    """YAML 1.1 takes ``1e-3`` for text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def check_once(key: str, values: Iterable[Any] | None) -> None:
    """Raises an InputError if a value stands twice in a list."""
    listed = list(values or ())
    if len(set(listed)) < len(listed):
        raise InputError(f"`{key}` must be a list with each value once, got {listed}. Leave the repeated one out.")


UNITS = ("ep", "ba", "sp", "tok", "sec", "dur")
"""Composer's units of time, without iterations: epochs, batches, samples, tokens, seconds, a share of the training."""


def check_time(key: str, value: str, units: Iterable[str] = UNITS) -> None:
    """Raises an InputError unless ``value`` is a Composer time string of one of the units, and above zero."""
    found = re.fullmatch(r"(.+?)(ep|ba|sp|tok|sec|dur|iter)", value, flags=re.IGNORECASE)
    if found and found[2].lower() in units:
        amount = _number(found[1].replace("_", ""))
        if isinstance(amount, float) and 0 < amount < math.inf and (found[2].lower() == "dur" or amount.is_integer()):
            return
    known = ", ".join(f"'50{unit}'" if unit != "dur" else "'0.1dur'" for unit in units)
    raise InputError(f"`{key}` must be a Composer time string above zero, got '{value}'. Write it like {known}.")


def as_read(value: Any) -> Any:
    """A value of a key of no type as a user means it: YAML 1.1 takes ``1e-3`` for text."""
    return _number(value) if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value) else value


def _plain(value: Any) -> Any:
    value = as_read(value)
    if type(value) not in (bool, int, float, str, type(None)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError("not a plain value")
    return value


def _text(value: Any) -> Any:
    """A shell takes the quotes off a name that is a number."""
    return str(value) if type(value) is int else value


Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
NonNegativeInt = Annotated[int, Strict(), Field(ge=0)]
Seed = Annotated[int, Strict(), Field(ge=0, le=MOST_SEED)]
# Finite numbers; text such as 1e-3 counts as one. The validator comes last, so that the range is in the JSON schema.
Number = Annotated[float, Strict(), BeforeValidator(_number)]
Positive = Annotated[float, Strict(), Field(gt=0), BeforeValidator(_number)]
NonNegative = Annotated[float, Strict(), Field(ge=0), BeforeValidator(_number)]
Share = Annotated[float, Strict(), Field(ge=0, le=1), BeforeValidator(_number)]
ProperShare = Annotated[float, Strict(), Field(gt=0, lt=1), BeforeValidator(_number)]
Holdout = Annotated[float, Strict(), Field(ge=0, lt=1), BeforeValidator(_number)]
Name = Annotated[str, BeforeValidator(_text)]
Plain = Annotated[Any, BeforeValidator(_plain), WithJsonSchema({"type": ["string", "number", "boolean", "null"]})]
"""A value that a study and a table can hold."""
