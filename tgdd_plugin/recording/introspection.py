"""What can be found out about a training run by looking at it: its images' normalization, its network, its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from composer.algorithms import EMA, AugMix, ColOut, CutMix, CutOut, MixUp, ProgressiveResizing, RandAugment
from composer.core import Algorithm, State
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, default_collate

from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.augmentation.strategy import OPERATIONS, parse_augmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.classifiers import WRAPPERS, bare_network
from tgdd_plugin.networks.heads import head_candidates
from tgdd_plugin.networks.surgery import note_surgery
from tgdd_plugin.recording.description import describe_module

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


def dataset_layers(loader: Any) -> list[Any]:
    """The data set of a loader and, out of any number of ``Subset``-like wrappers, those inside it; outermost first."""
    layers = [getattr(loader, "dataset", loader)]
    while hasattr(layers[-1], "dataset") and all(layers[-1].dataset is not layer for layer in layers):
        layers.append(layers[-1].dataset)
    return layers


def find_classes(loader: Any, num_classes: int) -> list[str] | None:
    """Names of the ``num_classes`` classes: ``classes`` of the data set, or ``None`` if it has no such list."""
    for dataset in dataset_layers(loader):
        classes = getattr(dataset, "classes", None)
        # Others may mean something else by this name: a number, a mapping, the classes of a larger set.
        if isinstance(classes, (list, tuple)) and len(classes) == num_classes:
            return [str(name) for name in classes]
    return None


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
        The normalization; ``None`` if nothing was found.
    """
    transforms: list[Any] = []
    for dataset in dataset_layers(loader):
        # VisionDataset keeps its transform twice: as `transform` and inside `transforms`.
        transforms += [getattr(dataset, "transform", None), getattr(dataset, "transforms", None)]
    transforms += [getattr(loader, "normalization", None), loader, *others]
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
        datasets = getattr(outer, "datasets", None)
        inner = [getattr(outer, "dataset", None), *(datasets if isinstance(datasets, (list, tuple)) else ())]
        found += [one for one in inner if one is not None and all(one is not other for other in found)]
    return found


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
    """A list, tuple, array or tensor of one dimension, but for those of size 1, as a list; else ``None``."""
    if hasattr(value, "tolist"):
        if hasattr(value, "shape") and len(value.shape) > 1 and max(value.shape) == math.prod(value.shape):
            value = value.reshape(-1)  # (1, C, 1, 1), say
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (int, float)) for v in value):
        return None
    return [float(v) for v in value]


def unwrapped(model: nn.Module) -> nn.Module:
    """A Trainer's model without what DDP wraps around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def bare_name(name: str) -> str:
    """A module's or parameter's name without the wrappers' parts, as states have it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


@contextmanager
def training_weights(state: State) -> Iterator[None]:
    """Puts the weights being trained into the model for as long as the block runs, if EMA's stand there.

    EMA swaps its own in for a checkpoint and leaves them there until the next batch: they are still there at
    ``EPOCH_END`` if the epoch's last batch was saved, at ``FIT_START`` of a resumed run and at ``FIT_END``.
    """
    active = [a.ema_model for a in state.algorithms if isinstance(a, EMA) and a.ema_weights_active and a.ema_model]
    for average in active:
        average.swap_params(state.model)
    try:
        yield
    finally:
        for average in active:
            average.swap_params(state.model)


def network_weights(state: State) -> dict[str, torch.Tensor]:
    """The network's parameters and buffers by their bare names.

    Collective under FSDP, where the first rank alone gets them whole.
    """
    prefix = bare_network(state.model)[1]
    # This drops the names' prefixes of DDP, FSDP and torch.compile.
    weights = state.get_model_state_dict()
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if isinstance(tensor, torch.Tensor) and name.startswith(prefix)
    }


def find_head_layers(state: State, head: str | None, classes: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The layers that can be the network's head, by their bare names, inside whatever wraps it.

    Args:
        state: The Trainer's, with any wrappers in place.
        head: The head's name, if the user gave it.
        classes: The names of the classes, if the user gave them: their number, where the model does not say it.

    Raises:
        InputError: If there is none.
    """
    network, _ = bare_network(state.model)
    # Modules are named with the wrappers around them, which the recorded names lack.
    linear = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    spelt = next((name for name in linear if bare_name(name) == head), head)
    outputs = getattr(unwrapped(state.model), "num_classes", None)
    if outputs is None and head is None and classes is not None:
        outputs = len(classes)
    found = head_candidates(network, outputs, spelt)
    return {bare_name(name): layer for name, layer in found.items()}


def is_language_model(network: nn.Module, head: nn.Linear) -> bool:
    """Whether what looks like a head gives every token of a vocabulary a score."""
    sizes = {module.num_embeddings for module in network.modules() if isinstance(module, nn.Embedding)}
    return head.out_features in sizes


def describe_network(state: State) -> dict[str, Any]:
    """What the manifest says of the network (see :class:`tgdd_plugin.trajectory.manifest.Run`)."""
    network, prefix = bare_network(state.model)
    # Parameters are but shards under FSDP; the gathered ones are whole.
    whole: dict[str, Any] = state.get_model_state_dict()
    sizes = [whole.get(prefix + bare_name(name), parameter).numel() for name, parameter in network.named_parameters()]
    algorithms = state.algorithms
    names = [type(algorithm).__name__ for algorithm in algorithms]
    return describe_module(network, sum(sizes), names, note_surgery(algorithms))


def is_mixed(algorithms: Iterable[Algorithm]) -> bool:
    """Whether one of Composer's MixUp and CutMix, or a subclass, mixed the images of the batch in the Trainer.

    Asked between the forward pass and the loss. With ``interpolate_loss`` the targets alone would not tell.
    """
    return any(
        algorithm.mixing if isinstance(algorithm, RandomCutMix) else isinstance(algorithm, (CutMix, MixUp))
        for algorithm in algorithms
    )


def own_images(algorithms: Iterable[Algorithm]) -> int | None:
    """How many images of the microbatch at hand are the loader's: the first ones. ``None`` if all of them are.

    Told by an algorithm's attribute ``own_images``, such as that of :class:`tgdd_plugin.DistilledReplay`.
    """
    counts = (getattr(algorithm, "own_images", None) for algorithm in algorithms)
    return next((count for count in counts if count is not None), None)


def device_of(state: State) -> torch.device:
    """The device of a Trainer, with its number."""
    return state.device.tensor_to_device(torch.empty(0)).device
