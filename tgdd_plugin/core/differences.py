"""What differs between two jobs: an earlier one, as a file records it, and the present one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tgdd_plugin.core.errors import shown

LONGEST = 200
"""The characters of a key or value that are shown: what a file from elsewhere says may be long."""


def first_difference(earlier: Any, now: Any, where: str = "") -> str | None:
    """Returns the first difference between two nested mappings in words, or ``None``; ``where`` is the key of both."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = {**earlier, **now}
        found = (first_difference(earlier.get(key), now.get(key), f"{where}.{key}".strip(".")) for key in keys)
        return next(filter(None, found), None)
    if earlier == now:
        return None
    return f"{shown(where, LONGEST)} was {_in_words(earlier)} and is now {_in_words(now)}"


def under_section(about: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Returns what a job depends on with its ``settings`` named as a recipe's section, by which a user knows them."""
    return {section if key == "settings" else key: value for key, value in about.items()}


def _in_words(value: Any) -> str:
    # Checksums and fingerprints by their first digits: nobody compares more of them.
    return shown(re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1...", repr(value)), LONGEST)


def with_later_settings(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that an earlier version noted, and those which only a later one has as they are now."""
    return {**now, **earlier}


def as_plain(content: Any) -> Any:
    """Returns values as JSON would give them back, so that they can be compared with those of a file.

    What JSON lacks becomes text, and keys that it lacks are left out.
    """
    return json.loads(json.dumps(content, default=str, skipkeys=True))
