"""What can be found out about the images of a training run by looking at its loader and algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from composer.algorithms import AugMix, ColOut, CutOut, ProgressiveResizing, RandAugment
from composer.core import Algorithm
from torch import nn
from torch.utils.data import DataLoader, default_collate

from tgdd_plugin.augmentation.algorithms import SiameseAugmentation
from tgdd_plugin.augmentation.strategy import OPERATIONS, parse_augmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.normalization import Normalization

Found = TypeVar("Found")

PLAIN = {
    *("Normalize", "ToTensor", "PILToTensor", "ToPILImage", "ToImage", "ToDtype", "ToPureTensor", "ConvertImageDtype"),
    *("Identity", "Resize", "CenterCrop", "Pad", "Grayscale", "RGB"),
}
"""torchvision's transforms, v1 and v2 by the same names, that augment nothing."""

PLAIN_DATASETS = ("torch.utils.data.", "torchvision.", "tgdd_plugin.")
"""Where data sets are from that augment by their attributes ``transform`` and ``transforms`` or not at all."""

CONTAINERS = {"Compose", "Sequential", "RandomApply", "RandomChoice", "RandomOrder"}

TRANSFORMS = {
    "ColorJitter": {"color"},
    "RandomCrop": {"crop"},
    "RandomErasing": {"cutout"},
    "RandomHorizontalFlip": {"flip"},
    "RandomResizedCrop": {"crop", "scale"},
    "RandomRotation": {"rotate"},
}
"""Those that augment, as operations of this package."""


def _of_parts(dataset: Any, look: Callable[[Any], Found | None], outer: Sequence[Any] = ()) -> list[Found | None]:
    """What ``look`` finds on a data set or, out of ``Subset``-like wrappers, inside it: the outermost that there is.

    Of a ``ConcatDataset`` that is found for each part on its own; ``None`` stands for a part where there is nothing.
    """
    if (found := look(dataset)) is not None:
        return [found]
    outer = [*outer, dataset]  # as a data set may name itself
    parts = [part for part in _inside(dataset) if all(part is not one for one in outer)]
    return [found for part in parts for found in _of_parts(part, look, outer)] or [None]


def find_classes(loader: Any, num_classes: int) -> list[str] | None:
    """Names of the ``num_classes`` classes: ``classes`` of the data set, or ``None`` if it has no such list.

    The parts of a ``ConcatDataset`` must have the same ones.
    """

    def names(dataset: Any) -> list[str] | None:
        classes = getattr(dataset, "classes", None)
        # Others may mean something else by this name: a number, a mapping, the classes of a larger set.
        if isinstance(classes, (list, tuple)) and len(classes) == num_classes:
            return [str(name) for name in classes]
        return None

    first, *others = _of_parts(getattr(loader, "dataset", loader), names)
    return first if all(other == first for other in others) else None


def find_normalization(loader: Any, *others: Any) -> Normalization | None:
    """Per-channel mean and std that a loader's images were normalized with, for pixels in [0, 1].

    Looks for torchvision's ``Normalize`` (v1 or v2) among the transforms of the data set and of the wrappers around it,
    and for ``mean`` and ``std`` of the loader itself, or of its ``normalization``
    (:class:`tgdd_plugin.data.device_loader.DeviceLoader`).

    Args:
        loader: The loader.
        others: What else may normalize its batches, such as the transforms of a ``DataSpec`` (Composer's
            ``NormalizationFn``).

    Returns:
        The normalization; ``None`` if nothing was found, or not the same in all parts of a ``ConcatDataset``.
    """
    first, *further = _of_parts(
        getattr(loader, "dataset", loader),
        # VisionDataset keeps its transform twice: as `transform` and inside `transforms`.
        lambda dataset: _among(getattr(dataset, "transform", None), getattr(dataset, "transforms", None)),
    )
    if any(other != first for other in further):
        return None
    return first or _among(getattr(loader, "normalization", None), loader, *others)


def _among(*given: Any) -> Normalization | None:
    """The normalization that one of some transforms is, or of those inside them."""
    transforms = list(given)
    while transforms:
        transform = transforms.pop(0)
        if found := _normalization(transform):
            return found
        inner = list(transform) if isinstance(transform, nn.Sequential) else getattr(transform, "transforms", None)
        if isinstance(inner, (list, tuple)):
            transforms.extend(inner)
    return None


def _normalization(transform: Any) -> Normalization | None:
    """The normalization that a transform's ``mean`` and ``std`` are, if they are one."""
    mean, std = _floats(getattr(transform, "mean", None)), _floats(getattr(transform, "std", None))
    if not mean or not std:
        return None
    # A mean beyond 1 is of pixels in [0, 255], and so is a deviation that those in [0, 1] are far from having.
    scale = 255.0 if max(mean) > 1 or max(std) > 2 else 1.0
    channels = max(len(mean), len(std))  # torchvision lets a single value stand for all channels
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    try:
        return Normalization([m / scale for m in mean], [s / scale for s in std])
    except InputError:  # something else by these names: it is not for a recording to stop a training
        return None


def find_augmentation(loader: Any, algorithms: Iterable[Algorithm]) -> str | None:
    """What augmentation training images get, as a strategy of :mod:`tgdd_plugin.augmentation.dsa`.

    Looks at the algorithms of the Trainer and at the torchvision transforms of the data set and of the wrappers around
    it. Strengths are not compared, and MixUp and CutMix do not count: they mix images.

    Returns:
        Operations joined by ``_`` in the order of :data:`tgdd_plugin.augmentation.strategy.OPERATIONS`; ``'none'`` if
        there are none; ``None`` if that cannot be told, or if there is one that this package does not have.
    """
    found = [_operations(algorithm) for algorithm in algorithms]
    # This package's own loaders do not augment. Others may anywhere, and a function that collates batches, too.
    if not type(loader).__module__.startswith("tgdd_plugin."):
        if not isinstance(loader, DataLoader) or not _only_collates(loader.collate_fn):
            return None
        for dataset in _all_datasets(loader.dataset):
            transforms = [getattr(dataset, name) for name in ("transform", "transforms") if hasattr(dataset, name)]
            found += [_transform_operations(transform) for transform in transforms if transform is not None]
            if not transforms and not type(dataset).__module__.startswith(PLAIN_DATASETS):
                return None  # a data set of the user's own may augment wherever it likes
    operations: set[str] = set()
    for names in found:
        if names is None:
            return None
        operations |= names
    return "_".join(name for name in OPERATIONS if name in operations) or "none"


def _only_collates(function: Any) -> bool:
    """Whether a function is known to make batches and nothing else: torch's, or Composer's for PIL images."""
    return function is default_collate or getattr(function, "__name__", "") == "pil_image_collate"


def _operations(algorithm: Algorithm) -> set[str] | None:
    if isinstance(algorithm, SiameseAugmentation):
        return set(parse_augmentation(algorithm.strategy))
    if isinstance(algorithm, CutOut):
        return {"cutout"}
    unlike = (AugMix, ColOut, ProgressiveResizing, RandAugment)
    known = type(algorithm).__module__.startswith(("composer.", "tgdd_plugin."))
    return set() if known and not isinstance(algorithm, unlike) else None


def _all_datasets(dataset: Any) -> list[Any]:
    """A data set and all those inside it, out of ``Subset`` and ``ConcatDataset`` alike."""
    found = [dataset]
    for outer in found:  # grows on the way
        found += [one for one in _inside(outer) if all(one is not other for other in found)]
    return found


def _inside(dataset: Any) -> list[Any]:
    """The data sets directly inside one, such as that of a ``Subset`` and those of a ``ConcatDataset``."""
    parts = getattr(dataset, "datasets", None)
    inner = [getattr(dataset, "dataset", None), *(parts if isinstance(parts, (list, tuple)) else ())]
    return [one for one in inner if one is not None]


def _transform_operations(transform: Any) -> set[str] | None:
    name = type(transform).__name__
    if not type(transform).__module__.startswith(("torchvision.", "torch.nn.")):
        return None
    if name == "StandardTransform":  # VisionDataset's pair of transforms for image and label
        return set() if transform.transform is None else _transform_operations(transform.transform)
    if name in CONTAINERS:
        inner = transform.transforms if hasattr(transform, "transforms") else transform
        parts = [_transform_operations(part) for part in inner]
        return None if None in parts else {operation for part in parts for operation in part or ()}
    if name == "RandomAffine":
        moved = {
            "rotate": any(transform.degrees),
            "crop": transform.translate is not None,
            "scale": transform.scale is not None,
        }
        return {operation for operation, has in moved.items() if has} if transform.shear is None else None
    return set() if name in PLAIN else TRANSFORMS.get(name)


def _floats(value: Any) -> list[float] | None:
    """A number, or a list, tuple, array or tensor of one dimension, sizes of 1 aside, as a list; else ``None``."""
    if hasattr(value, "tolist"):
        if hasattr(value, "shape") and len(value.shape) > 1 and max(value.shape) == math.prod(value.shape):
            value = value.reshape(-1)  # (1, C, 1, 1), say
        value = value.tolist()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [float(value)]
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (int, float)) for v in value):
        return None
    return [float(v) for v in value]
