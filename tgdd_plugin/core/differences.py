"""What differs between two jobs: an earlier one, as a file records it, and the present one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tgdd_plugin.core.errors import shown

LONGEST = 200
"""The characters of a key or value that are shown: what a file from elsewhere says may be long."""


def first_difference(earlier: Any, now: Any, most: int = 1) -> str | None:
    """Returns the first difference between two nested mappings in words, or ``None``.

    Args:
        earlier, now: The mappings.
        most: How many differences are told at most, with the number of those that are not. Default: ``1``, alone.
    """
    found = list(_differences(earlier, now, ""))
    more = [f"{len(found) - most} more"] if 1 < most < len(found) else []
    return "; ".join(found[:most] + more) or None


def _differences(earlier: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in {**earlier, **now}:
            yield from _differences(earlier.get(key), now.get(key), f"{where}.{key}".strip("."))
    elif earlier != now:
        yield f"{shown(where, LONGEST)} was {_in_words(earlier)} and is now {_in_words(now)}"


def under_section(about: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Returns what a job depends on, its ``settings`` first, and named as a recipe's section: so a user knows them."""
    return {section: about.get("settings")} | {key: value for key, value in about.items() if key != "settings"}


def _in_words(value: Any) -> str:
    # Checksums and fingerprints by their first digits: nobody compares more of them.
    return shown(re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1...", repr(value)), LONGEST)


def with_later_settings(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that an earlier version noted, and those which only a later one has as they are now."""
    return {**now, **earlier}


def as_plain(content: Any) -> Any:
    """Returns values as JSON would give them back, so that they can be compared with those of a file.

    What JSON lacks becomes what :func:`for_json` makes of it, and keys that it lacks are left out.
    """
    return json.loads(json.dumps(content, default=for_json, skipkeys=True))


def for_json(value: Any) -> Any:
    """The ``default`` of ``json.dumps``: a number of NumPy or torch as a plain one, anything else as text."""
    try:
        plain = value.item()
    except Exception:  # it has none, or is of several numbers, or of no device
        return str(value)
    return plain if isinstance(plain, int | float) else str(value)
