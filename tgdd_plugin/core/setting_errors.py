"""What the error of a setting says, in one line: "`key` must be X, got Y. Remedy." """

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pydantic
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tgdd_plugin.core.errors import InputError, shown


def explain(error: ValidationError, cls: type[Any], *, constructor: bool = False) -> str:
    """The first error of a validation in one line: the key with its sections, what it must be, and what came.

    Args:
        error: Pydantic's.
        cls: The settings class that was validated.
        constructor: Whether its constructor was called, whose values may have come by position.
    """
    first = error.errors(include_url=False)[0]
    path = _without_branch(_path(first, cls) if constructor else list(first["loc"]), cls)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # raised by a check of ours, which names the key without its sections
        named = re.match(r"`(\w+)", str(cause))
        sections = path[:-1] if named and path and path[-1] == named[1] else path
        return within(dotted(sections), str(cause))
    key = dotted(path)
    if first["type"] in ("unexpected_keyword_argument", "invalid_key"):
        return _unknown(path, _class_at(cls, path[:-1]))
    if first["type"] == "unexpected_positional_argument":
        return (
            f"{cls.__name__} must get at most {len(dataclasses.fields(cls))} values, got more. Name them as keywords."
        )
    schema, remedy = _field(cls, path)
    came = repr(first["input"])
    return f"`{key}` must be {expected(schema)}, got {shown(came)}. {remedy}"


def unknown_key(key: str, near: Sequence[str], known: Iterable[str]) -> str:
    """The message for a key that is not known, and what may have been meant."""
    meant = " or ".join(f"`{one}`" for one in near)
    return f"Unknown key `{shown(key)}`. Did you mean {meant}? The keys are {', '.join(known)}."


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like ``name``."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _unknown(path: list[Any], cls: type[Any]) -> str:
    names = _names(cls)
    key = str(path[-1])
    # A key without its section, as it is easily written on the command line, is named with it.
    sections = [name for name in names if get_origin(cls.__pydantic_fields__[name].annotation) is not list]
    inside = [[name, key] for name in sections if (section := _section(cls, name)) and key in _names(section)]
    near = [dotted([*path[:-1], *one]) for one in inside or [[nearest(key, names)]]]
    return unknown_key(dotted([*path[:-1], key]), near, names)


def _names(cls: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def dotted(path: Iterable[Any]) -> str:
    """A path of keys and positions as it is written: ``extra_networks[0].name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def within(section: str, message: str) -> str:
    """The message of an error with the key that it begins with, if it does, named as one of ``section``."""
    return f"`{section}.{message[1:]}" if section and message.startswith("`") else message


def _path(error: ErrorDetails, cls: type[Any]) -> list[Any]:
    path = list(error["loc"])
    if path and isinstance(path[0], int):  # a positional argument of the constructor
        names = _names(cls)
        path[0] = names[path[0]] if path[0] < len(names) else path[0]
    return path


def _without_branch(path: list[Any], cls: type[Any]) -> list[Any]:
    """Leaves out which of a value's types pydantic tried last, which it puts behind the value's key."""
    for length, part in enumerate(path[:-1], 1):
        if not isinstance(part, str) or part not in cls.__pydantic_fields__:
            return path
        section = _section(cls, part)
        if section is None:
            hint = cls.__pydantic_fields__[part].annotation
            several = get_origin(hint) in (Union, UnionType) and len(set(get_args(hint)) - {NoneType}) > 1
            return path[:length] if several else path
        cls = section
    return path


def _class_at(cls: type[Any], path: list[Any]) -> type[Any]:
    """The settings class that a path of sections leads to."""
    for part in path:
        if isinstance(part, str):
            cls = _section(cls, part) or cls
    return cls


def _section(cls: type[Any], name: str) -> type[Any] | None:
    """The settings class of a key that is a section, or a list of them; ``None`` for any other."""
    found = _types(cls.__pydantic_fields__[name].annotation)
    return next((one for one in found if isinstance(one, type) and dataclasses.is_dataclass(one)), None)


def _types(hint: Any) -> list[Any]:
    inner = getattr(hint, "__args__", ())
    return [hint] if not inner or isinstance(hint, str) else [found for one in inner for found in _types(one)]


def _field(cls: type[Any], path: list[Any]) -> tuple[dict[str, Any], str]:
    """The JSON schema of the value at a path, and what to do about a wrong one."""
    whole = pydantic.TypeAdapter(cls).json_schema()
    schema: dict[str, Any] = whole
    remedy = "Correct it there."
    for part in path:
        schema = _resolved(schema, whole)
        if isinstance(part, int):
            schema, remedy = schema.get("items", {}), "Correct it there."
            if schema.get("type") == "string" and "enum" not in schema:
                remedy = (
                    f"Write it in quotes, as in \"{dotted(path[:-1])}=['yes', 'no']\", since YAML reads some words, "
                    f"numbers and dates as values of another kind."
                )
        elif part in schema.get("properties", {}):
            schema = schema["properties"][part]
            if "default" in schema and not isinstance(schema["default"], dict):
                text = json.dumps(schema["default"])
                named = text != "null" and len(text) <= 60
                remedy = f"Leave it out for the default, {text}." if named else "Leave it out for the default."
        else:
            extra = schema.get("additionalProperties")
            schema, remedy = extra if isinstance(extra, dict) else {}, "Correct it there."
    return schema if "anyOf" in schema else _resolved(schema, whole), remedy


def _resolved(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Follows references, and of a value that may be null the other branch."""
    while "$ref" in schema or "anyOf" in schema:
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
        else:
            schema = next(one for one in schema["anyOf"] if one.get("type") != "null")
    return schema


_WORDS = {
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}


def expected(schema: dict[str, Any]) -> str:
    """What a value must be, in words, from its JSON schema."""
    if "anyOf" in schema:
        return ", or ".join(expected(one) for one in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        return ", ".join(_WORDS[one] for one in kind[:-1]) + f" or {_WORDS[kind[-1]]}"
    if kind == "array":
        return ("a non-empty" if schema.get("minItems") else "a") + f" list of {_several(schema.get('items', {}))}"
    if kind == "object":
        return ("a non-empty" if schema.get("minProperties") else "a") + " section of keys and values"
    return _WORDS[kind] + _range(schema)


def _several(schema: dict[str, Any]) -> str:
    """What each value of a list must be, in words."""
    if "enum" in schema:
        return f"values out of {', '.join(schema['enum'])}"
    words = {"integer": "whole numbers", "number": "finite numbers", "string": "texts"}
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        return "plain values (" + expected(schema) + ")"
    return words.get(kind, "sections of keys and values") + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    least = f"of at least {low:g}" if low is not None else f"above {above:g}" if above is not None else ""
    most = f"of at most {high:.10g}" if high is not None else f"below {below:g}" if below is not None else ""
    return f" {' and '.join(filter(None, (least, most)))}" if least or most else ""
