"""Parsed JSON that is checked against a dataclass before it is used."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def build_checked(cls: type[Record], content: dict[str, Any]) -> Record:
    """Builds an instance of a dataclass from parsed JSON; keys that the class does not have are left out.

    Raises:
        TypeError: If a field is missing or not of its annotated type.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.40} is not a mapping")
    hints = get_type_hints(cls)
    for name, hint in hints.items():
        if name in content and not _is(content[name], hint):
            raise TypeError(f"{name} must be {_in_words(hint)}, got {content[name]!r:.40}")
    return cls(**{name: content[name] for name in hints if name in content})


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of parsed JSON, or a list or mapping of built instances, is of the annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_is(value, option) for option in inner)
    if origin is list:
        return isinstance(value, list) and all(_is(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, inner[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float)
    return hint is Any or (value is None if hint is NoneType else type(value) is hint)


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return " or ".join(map(_in_words, inner))
    if origin in (list, dict):
        kind, value = ("a list", inner[0]) if origin is list else ("a mapping", inner[1])
        return kind if value is Any else f"{kind} (each value {_in_words(value)})"
    return _WORDS.get(hint, "a mapping")  # what else there is are dataclasses
