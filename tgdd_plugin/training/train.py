"""Training and scoring of networks by a Composer Trainer, in the way that is usual in dataset distillation."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from composer import Callback, Trainer
from composer.core import Algorithm, State
from composer.models import ComposerModel
from composer.optim import ComposerScheduler, MultiStepScheduler
from composer.utils import dist, ensure_tuple
from torch import nn
from torchmetrics import MetricCollection
from tqdm.auto import tqdm

from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.core.device import Device
from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.core.progress_bar import ProgressBar
from tgdd_plugin.core.weights import are_finite
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.training.classifier import EngineClassifier, Float32Fallback
from tgdd_plugin.training.engine import Engine
from tgdd_plugin.training.settings import Schedule, TrainSettings
from tgdd_plugin.training.vectorized import (
    SLOWER,
    TRIALS,
    Population,
    PopulationAugmentation,
    PopulationLoader,
    vectorizing_is_faster,
)

WARM_UP = 0.3
"""Share of a one-cycle training in which the learning rate rises."""


def train_network(
    network: nn.Module,
    loader: DeviceLoader,
    num_classes: int,
    settings: TrainSettings,
    *,
    seed: int = 0,
    metrics: bool = False,
    replay: Algorithm | None = None,
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
        options: ``device``, ``'cpu'`` or ``'gpu'``, by default a GPU if there is one. ``title``, that of a progress
            bar, by default none. Other arguments go to Composer's ``Trainer``: ``callbacks`` are added to ours, all
            others override ours.

    Returns:
        The network, on the device.
    """
    _train_one(network, loader, num_classes, settings, seed=seed, metrics=metrics, replay=replay, **options)
    return network


@dataclass(frozen=True)
class Trained:
    """What is known of a training that is over.

    Args:
        seconds: How long it took, the set-up of the Trainer included; of networks trained at once, an equal share.
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
    _fit(model, engine, loader, algorithms, settings, seed=seed, **options)
    return Trained(time.perf_counter() - began, str(engine))


def _batches(settings: TrainSettings, loader: Any) -> int:
    """How many batches a training has."""
    return loader.batches_of(settings.passes) if settings.passes else settings.epochs * len(loader)


def _engine(settings: TrainSettings, loader: Any, repeats: int, options: Mapping[str, Any]) -> Engine:
    if "precision" in options:  # the user's own, of the Trainer
        return Engine()
    precision, compile = settings.precision, settings.compile
    if dist.get_world_size() > 1:  # the ranks might find different things
        precision, compile = "fp32" if precision == "auto" else precision, compile is True
    steps = {}
    if isinstance(loader, DeviceLoader | PopulationLoader):  # a stock loader does not say, and is not compiled for
        share = _batches(settings, loader) / len(loader)
        steps = {size: round(repeats * share * count) for size, count in loader.batch_sizes().items()}
    tell = functools.partial(tqdm.write, file=sys.stderr) if options.get("title") else None
    return Engine(precision, compile, steps, tell)


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
    **options: Any,
) -> list[Trained]:
    """Trains several networks of one architecture in place, each as :func:`train_network` would, up to rounding.

    Args:
        networks: E freshly initialised networks.
        loaders: A loader for each network, all of equal length.
        num_classes: The number of classes K.
        settings: How to train; see :class:`TrainSettings`.
        seeds: A seed for each network.
        at_once: Whether they are trained all at once (:mod:`tgdd_plugin.training.vectorized`) or one after another.
            Default: ``None``, whichever is faster in a few steps of each; with several ranks, one after another.
        title: The title of the progress bars; ``None`` for no bars.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        options: More arguments for the ``Trainer`` of each training, as in :func:`train_network`.

    Returns:
        The seconds of each network's training, and how it was computed.
    """
    together = PopulationLoader(loaders)
    if at_once is None:
        # A short training ends before the two ways are compared, and several ranks might disagree.
        compare = len(networks) > 1 and dist.get_world_size() == 1 and _batches(settings, together) > 10 * TRIALS
        at_once = compare and vectorizing_is_faster(networks, together)
    if not at_once:
        done: list[Trained] = []
        for network, loader, seed in zip(networks, loaders, seeds, strict=True):
            how: dict[str, Any] = {"title": title and f"{title}, seed {seed}", "device": device, **options}
            repeats = len(networks) - len(done)
            done.append(_train_one(network, loader, num_classes, settings, seed=seed, repeats=repeats, **how))
        return done
    began = time.perf_counter()
    named = title and f"{title}, {len(seeds)} networks"
    engine = _engine(settings, together, 1, {"title": named, **options})
    model = Population(networks, engine, settings.label_smoothing)
    algorithm = PopulationAugmentation(settings.augmentation, settings.cutmix, num_classes, seeds)
    _fit(model, engine, together, [algorithm], settings, seed=seeds[0], title=named, device=device, **options)
    model.module.release()
    return [Trained((time.perf_counter() - began) / len(networks), str(engine))] * len(networks)


def _fit(
    model: ComposerModel,
    engine: Engine,
    loader: Any,
    algorithms: list[Algorithm],
    settings: TrainSettings,
    /,
    *,
    title: str | None = None,
    callbacks: Callback | Sequence[Callback] | None = None,
    **trainer_options: Any,
) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    schedulers: dict[Schedule, ComposerScheduler] = {
        "steps": MultiStepScheduler(["0.666667dur", "0.833333dur"], gamma=0.2),
        "one-cycle": one_cycle,
    }
    ours = {
        "optimizers": optimizer,
        "schedulers": schedulers[settings.schedule],
        "algorithms": algorithms,
        "callbacks": [Float32Fallback(engine), *([ProgressBar(title)] if title else []), *ensure_tuple(callbacks)],
        "precision": "fp32",
        "progress_bar": False,
    }
    in_batches = settings.passes is not None or settings.schedule == "one-cycle"
    duration = f"{_batches(settings, loader)}ba" if in_batches else f"{settings.epochs}ep"
    trainer = Trainer(model=model, train_dataloader=loader, max_duration=duration, **{**ours, **trainer_options})
    try:
        with warnings.catch_warnings():
            # Composer warns of every last batch that is smaller than the others.
            warnings.filterwarnings("ignore", message="Cannot split tensor of length")
            # It also warns when the two shares of a CutMix label add up to 0.9999999.
            warnings.filterwarnings("ignore", message="Some targets have less than 1 total probability")
            # A short epoch may have only mixed batches; distillation refuses a run with no other stages.
            warnings.filterwarnings("ignore", message="no class statistics.*mix every batch")
            warnings.filterwarnings("ignore", message=SLOWER)
            trainer.fit()
    finally:
        trainer.close()


def one_cycle(state: State, ssr: float = 1.0) -> float:
    """The share of the highest learning rate by the middle of a batch, never 0 (L. N. Smith, arXiv 1803.09820).

    Composer's own, LinearWithWarmupScheduler, gives the first batches a rate of 0, and warns where there are few.
    """
    assert state.max_duration is not None  # in batches
    done = (state.timestamp.batch.value + 0.5) / state.max_duration.value
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def check_network(build: Callable[[], nn.Module], shape: Sequence[int], num_classes: int) -> str:
    """Builds a network and checks that it takes images of ``shape`` (C, H, W) and has an output for each class.

    Returns:
        The name of its class.

    Raises:
        InputError: If it does not, or ``build`` is a network instead of a function.
    """
    if isinstance(build, nn.Module):
        raise InputError(
            f"`network` must be a function that builds a fresh one for each seed, got a {type(build).__name__}. Give, "
            f"for example, lambda: {type(build).__name__}(...)."
        )
    with torch.random.fork_rng(), torch.no_grad():
        network = build()
        try:
            came: Any = tuple(network.eval()(torch.zeros(2, *shape)).shape)
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            came = f"an error ({brief(error)})"
    if came != (2, num_classes):
        raise InputError(
            f"`network` must return logits of shape {(2, num_classes)} for 2 images of {list(shape)}, got {came} from "
            f"{type(network).__name__}. Build it for as many channels, pixels and classes."
        )
    return type(network).__name__


@torch.no_grad()
def accuracy(network: nn.Module, pool: ImagePool, normalization: Normalization) -> float:
    """Returns the share of the pool's images that the network classifies correctly in evaluation mode, from 0 to 1."""
    network.eval()
    device = next(network.parameters()).device
    right = 0
    # Not by a DeviceLoader: with several ranks it has only a share of the images.
    for index in torch.arange(len(pool)).split(512):
        images = normalization(pool.take(index).to(device))
        right += int((network(images).argmax(1).cpu() == pool.labels[index]).sum())
    return right / len(pool)


@torch.no_grad()
def has_diverged(network: nn.Module, pool: ImagePool, normalization: Normalization) -> bool:
    """Returns whether a network's weights, or its outputs for the pool's first image, are not finite."""
    image = normalization(pool.take(torch.tensor([0])).to(next(network.parameters()).device))
    return not are_finite(network.state_dict()) or not bool(network.eval()(image).isfinite().all())
