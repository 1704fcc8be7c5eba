"""How the images of a data loader were normalised, found by looking at it."""

from __future__ import annotations

from typing import Any


def unwrap_dataset(loader: Any) -> Any:
    """The data set behind a loader, out of any number of ``Subset``-like wrappers."""
    dataset = getattr(loader, "dataset", loader)
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def find_normalisation(loader: Any) -> tuple[list[float] | None, list[float] | None]:
    """Per-channel mean and std that a loader's images were normalised with, for pixels in [0, 1].

    Looks for torchvision's ``Normalize`` (v1 or v2) among the data set's transforms, and for ``mean`` and ``std`` of
    the loader itself (:class:`tgdd_plugin.loader.DeviceLoader`).

    Returns:
        ``(mean, std)``, or ``(None, None)`` if nothing was found.
    """
    dataset = unwrap_dataset(loader)
    # VisionDataset keeps its transform twice: as `transform` and inside `transforms`.
    transforms = [getattr(dataset, "transform", None), getattr(dataset, "transforms", None), loader]
    while transforms:
        transform = transforms.pop(0)
        mean, std = getattr(transform, "mean", None), getattr(transform, "std", None)
        if isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)):
            return [float(m) for m in mean], [float(s) for s in std]
        inner = getattr(transform, "transforms", None)
        if isinstance(inner, (list, tuple)):
            transforms.extend(inner)
    return None, None
