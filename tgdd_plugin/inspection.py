"""What can be found out about a training run by looking at it: its images' normalisation, its network, its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from composer.algorithms import EMA
from composer.core import State
from composer.models import ComposerClassifier
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tgdd_plugin.network import find_head

# Names under which torch.compile, FSDP and activation checkpointing keep the module that they wrap.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


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


def find_normalisation(loader: Any) -> tuple[list[float] | None, list[float] | None]:
    """Per-channel mean and std that a loader's images were normalised with, for pixels in [0, 1].

    Looks for torchvision's ``Normalize`` (v1 or v2) among the transforms of the data set and of the wrappers around it,
    and for ``mean`` and ``std`` of the loader itself (:class:`tgdd_plugin.loader.DeviceLoader`).

    Returns:
        ``(mean, std)``, or ``(None, None)`` if nothing was found.
    """
    transforms: list[Any] = []
    for dataset in dataset_layers(loader):
        # VisionDataset keeps its transform twice: as `transform` and inside `transforms`.
        transforms += [getattr(dataset, "transform", None), getattr(dataset, "transforms", None)]
    transforms.append(loader)
    while transforms:
        transform = transforms.pop(0)
        mean, std = _floats(getattr(transform, "mean", None)), _floats(getattr(transform, "std", None))
        if mean and std:
            # A mean beyond 1 is of pixels in [0, 255].
            scale = 255.0 if max(mean) > 1 else 1.0
            return [m / scale for m in mean], [s / scale for s in std]
        inner = list(transform) if isinstance(transform, nn.Sequential) else getattr(transform, "transforms", None)
        if isinstance(inner, (list, tuple)):
            transforms.extend(inner)
    return None, None


def _floats(value: Any) -> list[float] | None:
    """A list, tuple, array or tensor of one dimension as a list; ``None`` for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (int, float)) for v in value):
        return None
    return [float(v) for v in value]


def bare_network(model: nn.Module) -> tuple[nn.Module, str]:
    """The network inside a Trainer's model, and the prefix of its names in the model's state.

    That is the module a ``ComposerClassifier`` was made of, and any other ``ComposerModel`` itself.
    """
    network, prefix = _unwrapped(model), ""
    if isinstance(network, ComposerClassifier):
        network, prefix = network.module, "module."
    while (inner := next((getattr(network, w) for w in WRAPPERS if hasattr(network, w)), None)) is not None:
        network = inner
    return network, prefix


def _unwrapped(model: nn.Module) -> nn.Module:
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


def network_weights(state: State, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The network's parameters and buffers by their bare names, those of floating point as ``dtype``.

    Collective under FSDP, where the first rank alone gets them whole.
    """
    prefix = bare_network(state.model)[1]
    # This drops the names' prefixes of DDP, FSDP and torch.compile.
    weights = state.get_model_state_dict()
    return {
        name.removeprefix(prefix): _stored(tensor, dtype)
        for name, tensor in weights.items()
        if isinstance(tensor, torch.Tensor) and name.startswith(prefix)
    }


def _stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype)
    # A running variance may well be larger than float16's 65504.
    if dtype == torch.float16 and not stored.isfinite().all() and tensor.isfinite().all():
        return tensor.float()
    return stored


def describe_network(state: State, head: str | None = None) -> tuple[dict[str, Any], str, int]:
    """What the manifest says of the network (see :class:`tgdd_plugin.manifest.Run`).

    Args:
        state: The Trainer's, with any wrappers in place.
        head: Name of the head, if the user gave it.

    Returns:
        The manifest's ``network``, the head's name and its number of outputs.

    Raises:
        InputError: If there is no such head.
    """
    network, prefix = bare_network(state.model)
    # Modules are named with the wrappers around them, which the recorded names lack.
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    spelt = next((name for name in linear if bare_name(name) == head), head)
    found = find_head(network, getattr(_unwrapped(state.model), "num_classes", None), spelt)
    # Parameters are but shards under FSDP; the gathered ones are whole.
    whole: dict[str, Any] = state.get_model_state_dict()
    sizes = [whole.get(prefix + bare_name(name), parameter).numel() for name, parameter in network.named_parameters()]
    notes = (getattr(module, "tgdd_network", None) for module in network.modules())
    built: dict[str, Any] = next(filter(None, notes), {})
    described = {
        "class": f"{type(network).__module__}:{type(network).__qualname__}",
        "parameters": sum(sizes),
        "factory": built.get("factory"),
        "arguments": built.get("arguments", {}),
        "algorithms": [type(algorithm).__name__ for algorithm in state.algorithms],
    }
    return described, bare_name(found), linear[found].out_features


class MetricMeans:
    """Means of the training loss and metrics over the batches since the last stage.

    The Trainer itself has the last batch's only. Sums stay where the Trainer's values are, so that nothing waits for a
    GPU between stages.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def add(self, state: State) -> None:
        """Adds the batch that just ended."""
        for name, value in {**state.total_loss_dict, **state.train_metric_values}.items():
            if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means so far, those that are finite; begins anew."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}

    def state_dict(self) -> dict[str, list[float]]:
        """Sum and count by name, as plain numbers."""
        return {name: [float(total), self.counts[name]] for name, total in self.sums.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.sums = {name: total for name, (total, _) in state.items()}
        self.counts = {name: int(count) for name, (_, count) in state.items()}
