"""The networks of a trajectory, frozen on the device with all their stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.compatibility import (
    NetworkOrFactory,
    bare_networks,
    check_recorded_head,
    recorded_head,
)
from tgdd_plugin.distillation.inputs import Inputs
from tgdd_plugin.distillation.rare_classes import warn_of_rare_classes
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.networks.chunk_size import chunk_sizes
from tgdd_plugin.networks.compilation import should_compile
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.networks.features import features_by
from tgdd_plugin.networks.heads import find_head
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.shortcomings import warn_of_incomplete


@dataclass(frozen=True)
class FrozenNetworks:
    """The networks of a trajectory, one for each of its architectures, and their stages.

    Args:
        modules: The bare networks; their own weights are not used.
        functional: Each as a function of weights and images.
        bank: The stages on the device.
        first_stages: The weights of each network's first stage, by name.
    """

    modules: list[nn.Module]
    functional: list[FeatureNetwork]
    bank: StageBank
    first_stages: list[dict[str, torch.Tensor]]

    def features_of(self, pool: ImagePool, inputs: Inputs, chunk: int) -> torch.Tensor:
        """Computes φ of a pool's images at the last stage of the first run, ``(N, D)`` in float32 on the CPU.

        Compiled passes take them as the real images of a step of ``chunk`` classes, and so are built once for both.
        """
        network, weights = self.functional[0], self.bank.last
        if not network.compiled or not inputs.real_per_class:
            return features_by(network.uncompiled(), weights, pool, inputs.normalization)
        device = next(iter(weights.values())).device
        with torch.autocast(device.type, torch.bfloat16, enabled=inputs.settings.precision == "bf16"):
            return features_by(network, weights, pool, inputs.normalization, chunk * inputs.real_per_class)

    def fit_memory(self, inputs: Inputs, device: torch.device) -> int:
        """Sets how many images each network takes in one call, by the device's caches or memory.

        Returns:
            The number of classes in one forward and backward pass.
        """
        classes = chunk = len(inputs.class_ids)
        for network, weights in zip(self.functional, self.first_stages, strict=True):
            footprint = network.footprint(weights, inputs.shape)
            fitting, network.slice_size = chunk_sizes(
                footprint, classes, inputs.synthetic_per_class, inputs.real_per_class, device
            )
            chunk = min(chunk, fitting)
        return min(inputs.settings.classes_per_chunk or chunk, classes)


def freeze_networks(
    inputs: Inputs,
    network: NetworkOrFactory | Sequence[NetworkOrFactory] | None,
    head: str | None,
    device: torch.device,
) -> FrozenNetworks:
    """Finds or builds the networks of a trajectory, loads its stages, and calls each network once.

    Warns of what the runs and the real images lack.

    Args:
        inputs: What the distillation starts from.
        network: The networks that the user gave, as in :func:`tgdd_plugin.distillation.distiller.distill`.
        head: Name of their linear head; ``None`` for the recorded one.
        device: The device that they run on.

    Raises:
        InputError: If a network does not fit its stages or the images.
    """
    trajectory, settings, classes = inputs.trajectory, inputs.settings, inputs.trajectory.run.num_classes
    warn_of_incomplete(trajectory)
    warn_of_rare_classes(settings, inputs.pool, inputs.start_pool, inputs.class_ids)
    modules = bare_networks(network, trajectory, inputs.shape)
    runs = list(trajectory.representative_runs.values())
    heads = [
        find_head(module, classes, head or recorded_head(module, run.head))
        for module, run in zip(modules, runs, strict=True)
    ]
    bank = StageBank(
        trajectory,
        modules,
        device,
        matched=settings.stages,
        recorded=inputs.pool is None,
        classes=inputs.class_ids,
    )
    if head is None:
        for module, run in zip(modules, runs, strict=True):
            check_recorded_head(module, run)
    if inputs.pool is None:
        _check_means(runs, modules, heads, bank)
    passes = settings.steps * len(inputs.class_ids) * (inputs.real_per_class + 2 * inputs.synthetic_per_class)
    compiled = should_compile(settings.compile, passes // len(modules), inputs.shape[1], device, len(modules))
    functional = [
        FeatureNetwork(module.to(device), name, compiled=compiled) for module, name in zip(modules, heads, strict=True)
    ]
    first_stages = [bank[bank.architecture.index(number)] for number in range(len(modules))]
    for each, weights in zip(functional, first_stages, strict=True):
        each.check(weights, inputs.shape, classes)
        if not each.passes_gradients(weights, inputs.shape):
            raise InputError(
                f"`network` must pass gradients from its features to the images, got {type(each.network).__name__}, "
                f"which computes them without, as under torch.no_grad(). Build it without that; weights may be frozen."
            )
    return FrozenNetworks(modules, functional, bank, first_stages)


def _check_means(runs: Sequence[Run], modules: Sequence[nn.Module], heads: Sequence[str], bank: StageBank) -> None:
    """Raises an InputError unless the recorded class means are of the features that the networks' heads take."""
    for module, head, run in zip(modules, heads, runs, strict=True):
        if (recorded := recorded_head(module, run.head)) not in (None, head):
            raise InputError(
                f"`head` must be '{recorded}' where the source is 'recorded', as the class means were recorded before "
                f"that layer, got '{head}'. Leave it out, or give the real images."
            )
    for means, name, number in zip(bank.means, bank.names, bank.architecture, strict=True):
        width = modules[number].get_submodule(heads[number]).in_features
        if means is not None and means.shape[1] != width:
            raise InputError(
                f"The class means of {name} must be of {width} features, as '{heads[number]}' takes, got "
                f"{means.shape[1]}. Record again, or give the real images."
            )
