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
        return batch.get(_name_of(batch, IMAGES)), batch.get(_name_of(batch, LABELS))
    parts = batch if isinstance(batch, (tuple, list)) else ()
    return (*parts[:2], None, None)[:2]  # type: ignore[return-value]


def with_images_and_labels(batch: Any, images: Any, labels: Any) -> Any:
    """Returns a batch of the same form with other images and labels; what else a mapping holds stays.

    Args:
        batch: A batch that :func:`images_and_labels` found both in.
    """
    if isinstance(batch, Mapping):
        return {**batch, _name_of(batch, IMAGES): images, _name_of(batch, LABELS): labels}
    return images, labels


def image_key(batch: Any) -> str | int | None:
    """Returns the key of a batch's images: their name in a mapping, 0 in a tuple or list, ``None`` for neither."""
    if isinstance(batch, Mapping):
        return _name_of(batch, IMAGES)
    return 0 if isinstance(batch, (tuple, list)) and batch else None


def other_entries(batch: Any) -> dict[Any, Any]:
    """Returns what a batch that is a mapping holds beside its images and labels; of any other batch nothing."""
    taken = (_name_of(batch, IMAGES), _name_of(batch, LABELS)) if isinstance(batch, Mapping) else ()
    return {name: value for name, value in batch.items() if name not in taken} if taken else {}


def _name_of(batch: Mapping[Any, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in batch), None)
