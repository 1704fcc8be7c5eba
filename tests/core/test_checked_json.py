"""Parsed JSON as a dataclass: what fits is taken, all else named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tgdd_plugin.core.checked_json import build_checked


@dataclass
class Part:
    name: str


@dataclass
class Whole:
    count: int
    rates: list[float]
    note: str | None = None
    parts: list[Part] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


def test_known_keys_are_taken_and_unknown_ones_left_out() -> None:
    content = {"count": 2, "rates": [1, 0.5], "parts": [Part("a")], "more": {"x": None}, "later": "version"}
    assert build_checked(Whole, content) == Whole(2, [1, 0.5], None, [Part("a")], {"x": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": 2.0}, "count must be a whole number, got 2.0"),
        ({"rates": [0.5, "1"]}, r"rates must be a list \(each value a number\), got \[0.5, '1'\]"),
        ({"rates": None}, r"rates must be a list \(each value a number\), got None"),
        ({"note": 3}, "note must be text or null, got 3"),
        ({"parts": ["a"]}, r"parts must be a list \(each value a mapping\), got \['a'\]"),
        ({"more": [1]}, r"more must be a mapping, got \[1\]"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build_checked(Whole, {"count": 1, "rates": [], **change})


def test_what_is_missing_or_not_a_mapping_is_refused() -> None:
    with pytest.raises(TypeError, match="missing .* 'rates'"):
        build_checked(Whole, {"count": 1})
    with pytest.raises(TypeError, match=r"\[1\] is not a mapping"):
        build_checked(Whole, [1])  # type: ignore[arg-type]
