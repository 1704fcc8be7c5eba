"""How many images a network is called with at once where nothing is trained."""

from __future__ import annotations

MOST_AT_ONCE = 512
"""How many images of up to 32 pixels."""


def number_at_once(height: int, width: int) -> int:
    """Returns with how many images of H x W a network is called at once, as its activations grow with their pixels.

    Example:
        >>> number_at_once(32, 32), number_at_once(128, 128)
        (512, 32)
    """
    return max(1, min(MOST_AT_ONCE, MOST_AT_ONCE * 32**2 // (height * width)))
