"""Recipe keys that were renamed, which keep their old names for one release."""

from __future__ import annotations

from typing import Any

RENAMED = {"grey": "grayscale", "also_record": "extra_networks", "tune": "finetune_epochs"}
"""Old names (0.1) and the present ones."""


def with_current_keys(content: Any) -> Any:
    """Parsed JSON of an earlier version with its keys by their present names, at every depth."""
    if isinstance(content, dict):
        return {RENAMED.get(key, key): with_current_keys(value) for key, value in content.items()}
    return [with_current_keys(item) for item in content] if isinstance(content, list) else content
