"""What differs between two jobs: an earlier one, as a file records it, and the present one."""

from __future__ import annotations

from typing import Any

LONGEST = 200
"""The characters of a key or value that are shown: what a file from elsewhere says may be long."""


def first_difference(earlier: Any, now: Any, where: str = "") -> str | None:
    """Returns the first difference between two nested mappings in words, or ``None``; ``where`` is the key of both."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = {**earlier, **now}
        found = (first_difference(earlier.get(key), now.get(key), f"{where}.{key}".strip(".")) for key in keys)
        return next(filter(None, found), None)
    return None if earlier == now else f"{where[:LONGEST]} was {_short(earlier)} and is now {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
