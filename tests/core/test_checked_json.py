"""Parsed JSON as a dataclass: what fits is taken, all else named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tgdd_plugin.core.checked_json import AnyFloat, Positive, Sha256, Text, Whole, build_checked


@dataclass
class Part:
    name: Text


@dataclass
class Record:
    count: Whole
    rates: list[Positive]
    note: Text | None = None
    parts: list[Part] = field(default_factory=list)
    more: dict[Text, Any] = field(default_factory=dict)
    loss: AnyFloat = 0.0
    checksum: Sha256 = ""


def test_known_keys_are_taken_and_unknown_ones_left_out() -> None:
    content = {"count": 2, "rates": [1, 0.5], "parts": [{"name": "a"}], "more": {"x": None}, "later": "version"}
    assert build_checked(Record, content) == Record(2, [1, 0.5], None, [Part("a")], {"x": None})
    assert build_checked(Record, {"count": 0, "rates": [], "loss": float("inf")}).loss == float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "`count` must be a whole number, got True"),
        ({"count": 2.0}, "`count` must be a whole number, got 2.0"),
        ({"count": -1}, "`count` must be greater than or equal to 0, got -1"),
        ({"count": 10**4000}, r"`count` must be less than or equal to 9007199254740992, got 10+$"),
        ({"rates": [0.5, "1"]}, r"`rates\[1\]` must be a number, got '1'"),
        ({"rates": [-1.0]}, r"`rates\[0\]` must be greater than 0, got -1.0"),
        ({"rates": [float("nan")]}, r"`rates\[0\]` must be a finite number, got nan"),
        ({"rates": None}, "`rates` must be a list, got None"),
        ({"rates": [10**400]}, r"`rates\[0\]` must be a number, got 10+"),
        ({"note": 3}, "`note` must be text, got 3"),
        ({"note": "x" * 5000}, r"`note` must have at most 4096 characters, got 'x{70,79}\.\.\."),
        ({"note": "\ud800"}, r"`note` must be a valid string, unable to parse .*\\ud800"),
        ({"parts": ["a"]}, r"`parts\[0\]` must be a mapping, got 'a'"),
        ({"parts": [{"name": "a"}, {}]}, r"`parts\[1\].name` is missing"),
        ({"more": [1]}, r"`more` must be a mapping, got \[1\]"),
        ({"more": {3: 1}}, r"`more.*` must be text, got 3"),
        ({"checksum": "a" * 64 + "\n"}, r"`checksum` must match pattern"),
    ],
)
def test_a_value_of_another_kind_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build_checked(Record, {"count": 1, "rates": [], **change})


def test_what_is_missing_or_not_a_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="^`rates` is missing$"):
        build_checked(Record, {"count": 1})
    with pytest.raises(ValueError, match=r"^must be a mapping, got \[1\]"):
        build_checked(Record, [1])
