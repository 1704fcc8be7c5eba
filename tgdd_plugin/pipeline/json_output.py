"""What a command made or found as one JSON object, for programs."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(content: dict[str, Any]) -> str:
    """Returns plain values as strict JSON: a number that is not finite becomes null, a path becomes text."""
    return json.dumps(_strict(content), indent=1, allow_nan=False, default=str)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
