"""The last line of a step: where its results are, and whether an earlier call had made all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def content_of(results: Path) -> bytes | None:
    """Returns the bytes of a results file as it is before a step; ``None`` if there is none."""
    return results.read_bytes() if results.is_file() else None


def print_results(results: Path, before: bytes | None) -> dict[str, Any]:
    """Prints where results are, and returns it for programs.

    Args:
        results: The results file.
        before: Its content before the step, by :func:`content_of`. The same content now means that nothing was left to
            do.
    """
    done = before == content_of(results)
    print(f"results   {results}{': already done' if done else ''}")
    return {"results": results, "already_done": done}
