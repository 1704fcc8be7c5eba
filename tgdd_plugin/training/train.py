"""Training and scoring of networks by a Composer Trainer, in the way that is usual in dataset distillation."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from composer.core import Algorithm
from composer.loggers import LoggerDestination
from composer.utils import dist
from torch import nn
from torchmetrics import MetricCollection
from tqdm.auto import tqdm

from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.core.device import Device
from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.weights import are_finite
from tgdd_plugin.data.batch_size import number_at_once
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.training.classifier import EngineClassifier
from tgdd_plugin.training.engine import Engine
from tgdd_plugin.training.fitting import count_batches, fit
from tgdd_plugin.training.resuming import last_checkpoint
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.vectorized import (
    TRIALS,
    Population,
    PopulationAugmentation,
    PopulationLoader,
    vectorizing_is_faster,
)

MICROBATCH = "device_train_microbatch_size"
"""The argument of a ``Trainer`` that has it split batches along their first dimension."""


def train_network(
    network: nn.Module,
    loader: DeviceLoader,
    num_classes: int,
    settings: TrainSettings,
    *,
    seed: int = 0,
    metrics: bool = False,
    replay: Algorithm | None = None,
    logs: Sequence[LoggerDestination] = (),
    checkpoints: Path | None = None,
    **options: Any,
) -> nn.Module:
    """Trains ``network`` in place.

    Args:
        network: A freshly initialised network.
        loader: The batches to train on, in the loader's own order.
        num_classes: The number of classes K.
        settings: How to train; see :class:`TrainSettings`.
        seed: The seed of the augmentation and CutMix. Default: ``0``.
        metrics: Whether the Trainer computes the training accuracy. Default: ``False``.
        replay: An algorithm that mixes a memory into each batch, before it is augmented. Default: ``None``.
        logs: Loggers, which are told the settings and the learning rate, too; one that fails ends nothing. Default:
            none.
        checkpoints: The folder of its checkpoints, one for each minute after the first epoch, from which it goes on
            where it was cut short; see :func:`tgdd_plugin.training.resuming.checkpoint_folder`. The caller removes it.
            Default: ``None``, none.
        options: ``device``, ``'cpu'`` or ``'gpu'``, by default a GPU if there is one. ``title``, that of a progress
            bar, by default none. Other arguments go to Composer's ``Trainer``: ``callbacks`` and ``loggers`` are added
            to ours, all others override ours.

    Returns:
        The network, on the device.
    """
    how: dict[str, Any] = {"seed": seed, "metrics": metrics, "replay": replay, "logs": logs}
    how |= {"checkpoints": checkpoints, "recorded": True}
    _train_one(network, loader, num_classes, settings, **how, **options)
    return network


@dataclass(frozen=True)
class Trained:
    """What is known of a training that is over.

    Args:
        seconds: How long it took, the set-up of the Trainer included; of networks trained at once, an equal share.
            Of what came before it was cut short, the batches alone.
        computed: How most of its batches were computed, such as ``'fp32, eager'``.
    """

    seconds: float
    computed: str


def _train_one(
    network: nn.Module,
    loader: DeviceLoader,
    num_classes: int,
    settings: TrainSettings,
    *,
    seed: int,
    metrics: bool = False,
    replay: Algorithm | None = None,
    repeats: int = 1,
    logs: Sequence[LoggerDestination] = (),
    **options: Any,
) -> Trained:
    """Does what :func:`train_network` says; ``repeats`` trainings like it follow one another."""
    began = time.perf_counter()
    engine = _engine(settings, loader, repeats, options)
    # Nothing is evaluated here, and Composer's metrics refuse a single class.
    none = MetricCollection([])
    how: dict[str, Any] = {"train_metrics": None if metrics else none, "val_metrics": none}
    if settings.label_smoothing:
        how["loss_fn"] = functools.partial(F.cross_entropy, label_smoothing=settings.label_smoothing)
    model = EngineClassifier(network, engine, num_classes=num_classes, **how)
    algorithms = [] if replay is None else [replay]
    if settings.augmentation != "none":
        algorithms.append(SiameseAugmentation(settings.augmentation, seed))
    if settings.cutmix:
        algorithms.append(RandomCutMix(settings.cutmix, seed))
    earlier = fit(model, engine, loader, algorithms, settings, logs, seed=seed, **options)
    return Trained(earlier + time.perf_counter() - began, str(engine))


def _engine(settings: TrainSettings, loader: Any, repeats: int, options: Mapping[str, Any]) -> Engine:
    if "precision" in options:  # the user's own, of the Trainer
        return Engine()
    precision, compile = settings.precision, settings.compile
    if dist.get_world_size() > 1:  # the ranks might find different things
        precision, compile = "fp32" if precision == "auto" else precision, compile is True
    steps = {}
    if isinstance(loader, DeviceLoader | PopulationLoader):  # a stock loader does not say, and is not compiled for
        share = count_batches(settings, loader) / len(loader)
        steps = {size: round(repeats * share * count) for size, count in loader.batch_sizes().items()}
    tell = functools.partial(tqdm.write, file=sys.stderr) if options.get("title") else None
    return Engine(precision, compile, steps, tell)


@torch.inference_mode(False)  # a Population is made of new parameters
def train_each(
    networks: Sequence[nn.Module],
    loaders: Sequence[DeviceLoader],
    num_classes: int,
    settings: TrainSettings,
    *,
    seeds: Sequence[int],
    at_once: bool | None = None,
    title: str | None = None,
    device: Device | None = None,
    logs: Callable[[Sequence[int]], Sequence[LoggerDestination]] = lambda seeds: (),
    checkpoints: Path | None = None,
    **options: Any,
) -> list[Trained]:
    """Trains several networks of one architecture in place, each as :func:`train_network` would, up to rounding.

    At once, layers that draw random numbers, such as dropout, draw others than one after another would.

    Args:
        networks: E freshly initialised networks.
        loaders: A loader for each network, all of equal length.
        num_classes: The number of classes K.
        settings: How to train; see :class:`TrainSettings`.
        seeds: A seed for each network.
        at_once: Whether they are trained all at once (:mod:`tgdd_plugin.training.vectorized`) or one after another.
            Default: ``None``, whichever is faster in a few steps of each; with several ranks, or layers that draw
            random numbers, one after another.
        title: The title of the progress bars; ``None`` for no bars.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        logs: Makes the loggers of the training of some seeds, which is of one or of all. Default: there are none.
        checkpoints: A folder that gets one for the checkpoints of each training, as in :func:`train_network`. Default:
            ``None``, there are none.
        options: More arguments for the ``Trainer`` of each training, as in :func:`train_network`.

    Returns:
        The seconds of each network's training, and how it was computed.
    """
    together = PopulationLoader(loaders)
    folders = [checkpoints and checkpoints / name for name in ("at-once", *(f"seed{seed}" for seed in seeds))]
    begun = [index for index, folder in enumerate(folders) if folder is not None and last_checkpoint(folder)]
    if at_once is None and begun:  # as it was before it was cut short
        at_once = begun[0] == 0
    if at_once is None:
        # A short training ends before the two ways are compared, several ranks might disagree, and whoever splits
        # batches has no memory for all networks.
        one = len(networks) == 1 or dist.get_world_size() > 1 or MICROBATCH in options
        compare = not one and count_batches(settings, together) > 10 * TRIALS
        at_once = compare and vectorizing_is_faster(networks, together)
    if not at_once:
        done: list[Trained] = []
        for network, loader, seed, folder in zip(networks, loaders, seeds, folders[1:], strict=True):
            how: dict[str, Any] = {"title": title and f"{title}, seed {seed}", "device": device, **options}
            how |= {"repeats": len(networks) - len(done), "logs": logs([seed]), "checkpoints": folder}
            done.append(_train_one(network, loader, num_classes, settings, seed=seed, **how))
        return done
    began = time.perf_counter()
    named = title and f"{title}, {len(seeds)} networks"
    engine = _engine(settings, together, 1, {"title": named, **options})
    model = Population(networks, engine, settings.label_smoothing)
    algorithm = PopulationAugmentation(settings.augmentation, settings.cutmix, num_classes, seeds)
    how = {"seed": seeds[0], "title": named, "device": device, "checkpoints": folders[0], **options}
    how.pop(MICROBATCH, None)  # it would split the networks from each other
    earlier = fit(model, engine, together, [algorithm], settings, logs(seeds), **how)
    model.module.release()
    return [Trained((earlier + time.perf_counter() - began) / len(networks), str(engine))] * len(networks)


def check_network(build: Callable[[], nn.Module], shape: Sequence[int], num_classes: int) -> str:
    """Builds a network and checks that it takes images of ``shape`` (C, H, W), has an output for each class and learns.

    Returns:
        The name of its class.

    Raises:
        InputError: If it does not, or nothing of it can be trained, or ``build`` is a network instead of a function, or
            returns the same one again.
    """
    with forked_streams(), torch.no_grad():
        network, remedy = _fresh(build), "Build it for as many channels, pixels and classes."
        try:
            place = next((parameter.device for parameter in network.parameters()), None)
            output = network.eval()(torch.zeros(2, *shape, device=place))
            came: Any = tuple(output.shape) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
            if not isinstance(output, torch.Tensor):
                remedy = "Return the logits alone."
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            came = f"an error ({brief(error)})"
            if shape[1] != shape[2]:
                remedy = (
                    "Of this package's networks convnet and vit take square images alone: choose another one, or make "
                    "the images square (on the command line data.image_size=...)."
                )
    if came != (2, num_classes):
        raise InputError(
            f"`network` must return logits of shape {(2, num_classes)} for 2 images of {list(shape)}, got {came} from "
            f"{type(network).__name__}. {remedy}"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(
            f"`network` must have parameters that require a gradient, got none in {type(network).__name__}. Build it "
            f"with some that are trained, such as its head's (requires_grad_(True))."
        )
    return type(network).__name__


def _fresh(build: Callable[[], nn.Module]) -> nn.Module:
    """Returns a network that ``build`` builds, if it builds another one each time."""
    if isinstance(build, nn.Module):
        name, came = type(build).__name__, "a"
    else:
        network, other = build(), build()
        pairs = zip(network.parameters(), other.parameters(), strict=False)
        if not any(one is again and one.requires_grad for one, again in pairs):  # a frozen part may be shared
            return network
        # The training of each seed would go on where the one before ended.
        name, came = type(network).__name__, "at each call the same"
    raise InputError(
        f"`network` must be a function that builds a fresh one for each seed, got {came} {name}. Give, for example, "
        f"lambda: {name}(...)."
    )


@torch.no_grad()
def accuracy(network: nn.Module, pool: ImagePool, normalization: Normalization) -> float:
    """Returns the share of the pool's images that the network classifies correctly in evaluation mode, from 0 to 1."""
    network.eval()
    device = next(network.parameters()).device
    right = 0
    # Not by a DeviceLoader: with several ranks it has only a share of the images.
    for index in torch.arange(len(pool)).split(number_at_once(*pool.shape[1:])):
        images = normalization(pool.take(index).to(device))
        right += int((network(images).argmax(1).cpu() == pool.labels[index]).sum())
    return right / len(pool)


@torch.no_grad()
def has_diverged(network: nn.Module, pool: ImagePool, normalization: Normalization) -> bool:
    """Returns whether a network's weights, or its outputs for the pool's first image, are not finite."""
    image = normalization(pool.take(torch.tensor([0])).to(next(network.parameters()).device))
    return not are_finite(network.state_dict()) or not bool(network.eval()(image).isfinite().all())
