"""Augmentation strategies: operations of differentiable siamese augmentation (DSA), joined by ``_``."""

from __future__ import annotations

from tgdd_plugin.core.errors import InputError

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def parse_augmentation(strategy: str) -> tuple[str, ...]:
    """Splits a strategy such as ``'color_crop_cutout_flip'`` into its operations; ``'none'`` has none.

    Raises:
        InputError: If an operation is unknown.

    Example:
        >>> parse_augmentation("color_crop")
        ('color', 'crop')
    """
    names = () if strategy == "none" else tuple(strategy.split("_"))
    if unknown := set(names) - set(OPERATIONS):
        raise InputError(
            f"`augmentation` must be operations of {', '.join(OPERATIONS)} joined by _, or none, got '{strategy}'. "
            f"Correct {', '.join(sorted(unknown))}."
        )
    return names
