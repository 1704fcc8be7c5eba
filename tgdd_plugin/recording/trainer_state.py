"""What a Trainer's state says of its network and of the batch at hand, whatever wraps the one and mixed the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from composer.algorithms import EMA, CutMix, LabelSmoothing, MixUp
from composer.core import Algorithm, DataSpec, State
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tgdd_plugin.augmentation.algorithms import RandomCutMix
from tgdd_plugin.core.batches import images_and_labels
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.classifiers import WRAPPERS, bare_network
from tgdd_plugin.networks.heads import head_candidates
from tgdd_plugin.networks.surgery import note_surgery
from tgdd_plugin.recording.data_introspection import find_augmentation, find_normalization
from tgdd_plugin.recording.description import describe_module
from tgdd_plugin.trajectory.manifest import Run


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


def describe_training(
    state: State,
    head: str,
    num_classes: int,
    classes: list[str] | None,
    normalization: Normalization | None,
    specs: Sequence[DataSpec],
    covers: Callable[[str], AbstractContextManager[None]],
) -> Run:
    """The manifest's head, with no stage yet; what a data set's attributes raise for when looked at is unknown.

    Args:
        state: The Trainer's.
        head: The name of the network's head.
        num_classes: Its outputs K.
        classes: The names of the classes, if known.
        normalization: What the inputs are normalized with, if the user gave it. Otherwise it is looked for.
        specs: What the loader's batches go through.
        covers: Covers looking at the training data, as :meth:`tgdd_plugin.recording.safeguard.Safeguard.covers` does.
    """
    transforms = [one for spec in specs for one in (spec.batch_transforms, spec.microbatch_transforms)]
    augmentation = None
    with covers("looking for the normalization of the training data"):
        normalization = normalization or find_normalization(state.train_dataloader, *transforms)
    with covers("looking for the augmentation of the training data"):
        augmentation = find_augmentation(state.train_dataloader, state.algorithms)
    return Run(
        name=state.run_name,
        network=describe_network(state),
        head=head,
        num_classes=num_classes,
        classes=classes,
        mean=list(normalization.mean) if normalization else None,
        std=list(normalization.std) if normalization else None,
        augmentation=augmentation,
        versions=installed_versions("mosaicml"),
    )


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


def trained_labels(state: State) -> Any:
    """The labels of the microbatch at hand, as they were before Composer's LabelSmoothing, if that is used.

    Of two classes, a smoothed label cannot be told from that of an image of both.
    """
    labels = images_and_labels(state.batch)[1]
    smoothing = (algorithm for algorithm in state.algorithms if isinstance(algorithm, LabelSmoothing))
    return next((algorithm.original_labels for algorithm in smoothing), labels)
