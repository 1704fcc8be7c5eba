"""The images and labels of a batch, or of one item of a data set, in the forms that data loaders give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IMAGES = ("pixel_values", "image", "images", "img")
"""Names of images in a mapping: those of Hugging Face's image models, and of data sets on its hub."""
LABELS = ("labels", "label", "targets", "target")


def images_and_labels(batch: Any) -> tuple[Any, Any]:
    """Returns the images and the labels of a batch or an item; ``None`` for what it has not.

    Args:
        batch: A mapping with one of :data:`IMAGES` and one of :data:`LABELS`, or a tuple or list whose first two parts
            are meant.
    """
    if isinstance(batch, Mapping):
        return _first_of(batch, IMAGES), _first_of(batch, LABELS)
    parts = batch if isinstance(batch, (tuple, list)) else ()
    return (*parts[:2], None, None)[:2]  # type: ignore[return-value]


def _first_of(batch: Mapping[Any, Any], names: Sequence[str]) -> Any:
    return next((batch[name] for name in names if name in batch), None)
