"""Which factors of multi-formation fit the images. Nothing here loads torch."""

from __future__ import annotations

from tgdd_plugin.core.errors import InputError

MOST_PACKED = 10
"""The highest factor of packed images."""

LARGEST = 8
"""The largest factor that is offered in place of one that does not fit."""


def check_factor(factor: int, height: int, width: int) -> None:
    """Raises an InputError unless ``factor`` divides both sides of the images."""
    if factor >= 1 and height % factor == width % factor == 0:
        return
    *others, last = [str(one) for one in range(1, LARGEST + 1) if height % one == width % one == 0]
    raise InputError(
        f"`factor` must divide both sides of the images, {height}x{width} pixels, got {factor}. Choose "
        f"{', '.join(others)}{' or ' if others else ''}{last}."
    )
