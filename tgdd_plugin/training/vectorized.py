"""Several networks of one architecture trained at once, each as it would be alone.

Their weights are stacked along a first dimension E and called by ``vmap``; batches have that dimension, too. With small
networks and batches most of a step is overhead, which then occurs once for all networks.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from composer.core import Algorithm, Event, State
from composer.functional import cutmix_batch
from composer.loggers import Logger
from composer.models import ComposerModel
from torch import nn
from torch.func import functional_call, stack_module_state

from tgdd_plugin.augmentation.algorithms import cutmix_stream, draw_cutmix, siamese_stream
from tgdd_plugin.augmentation.dsa import augment, draw_augmentation
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.usage import now
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.training.engine import Engine

TRIALS = 10
"""The most timed steps of each way when the two are compared."""

SLOWER = "There is a performance drop because we have not yet implemented the batching rule"
"""The start of torch's warning of an operation that ``vmap`` runs one network at a time. The result is correct, and the
time is measured."""


class StackedNetworks(nn.Module):
    """E networks as one module: images ``(E, N, C, H, W)`` in, logits ``(E, N, K)`` out.

    Random layers draw separately for each network. Buffers must be changed in place: what a forward pass reassigns is
    lost.

    Args:
        networks: Networks of one architecture. Their weights are copied; :meth:`release` copies them back.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        # In lists, so that torch does not register them as submodules. A copy is called, as functional_call leaves its
        # own weights in a module that has two names.
        self.networks, self.called = list(networks), [copy.deepcopy(networks[0])]
        self.called[0].train(self.training)
        parameters, buffers = stack_module_state(self.networks)
        self.names = list(parameters), list(buffers)
        # Built here, as a ParameterList would make frozen weights trainable.
        self.stacked = nn.ParameterList(nn.Parameter(weights, weights.requires_grad) for weights in parameters.values())
        for number, buffer in enumerate(buffers.values()):
            self.register_buffer(f"buffer{number}", buffer)

    def train(self, mode: bool = True) -> StackedNetworks:
        super().train(mode)
        self.called[0].train(mode)
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skeleton = self.called[0]

        def one(parameters: dict[str, Any], buffers: dict[str, Any], images: torch.Tensor) -> Any:
            return functional_call(skeleton, (parameters, buffers), (images,))

        logits: torch.Tensor = torch.vmap(one, randomness="different")(*self._weights(), images)
        return logits

    def _weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        buffers = dict(self.named_buffers(recurse=False))
        return (
            dict(zip(self.names[0], self.stacked)),  # noqa: B905 (torch.compile cannot trace strict)
            {name: buffers[f"buffer{number}"] for number, name in enumerate(self.names[1])},
        )

    @torch.no_grad()
    def release(self) -> None:
        """Copies the present weights back into the networks, on this module's device."""
        parameters, buffers = self._weights()
        for number, network in enumerate(self.networks):
            network.to(self.stacked[0].device)
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
                tensor.copy_((parameters if name in parameters else buffers)[name][number])


class Population(ComposerModel):
    """E networks as one Composer model, whose loss is the sum of their mean losses: each gets its own gradient only.

    Args:
        networks: Networks of one architecture, see :class:`StackedNetworks`.
        engine: Computes the forward passes. Default: one that does so in float32, not compiled.
        label_smoothing: Share of each label that is spread over all classes. Default: ``0.0``.
    """

    def __init__(
        self, networks: Sequence[nn.Module], engine: Engine | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.module = StackedNetworks(networks)
        self.engine = engine or Engine()

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.engine(self.module, batch[0])

    def loss(self, outputs: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Returns the sum over networks of the mean cross-entropy, for class ids ``(E, N)`` or shares ``(E, N, K)``."""
        labels = batch[1].flatten(0, 1)
        mean = F.cross_entropy(outputs.flatten(0, 1), labels, label_smoothing=self.label_smoothing)
        return mean * len(outputs)


class PopulationLoader:
    """The batches of several loaders of equal length side by side: images ``(E, N, C, H, W)``, labels ``(E, N, ...)``.

    Args:
        loaders: A loader for each network.
    """

    def __init__(self, loaders: Sequence[DeviceLoader]) -> None:
        self.loaders = loaders
        self.batch_size = len(loaders)  # Composer splits the first dimension at it, and networks stay together

    def __len__(self) -> int:
        return len(self.loaders[0])

    def batches_of(self, passes: int) -> int:
        """As of each of the loaders."""
        return self.loaders[0].batches_of(passes)

    def batch_sizes(self) -> dict[int, int]:
        """How many batches of an epoch have each size, in images of all networks."""
        return {len(self.loaders) * size: count for size, count in self.loaders[0].batch_sizes().items()}

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for batches in zip(*self.loaders, strict=True):
            yield tuple(torch.stack(parts) for parts in zip(*batches, strict=True))


class PopulationAugmentation(Algorithm):
    """Gives every network's images what :class:`SiameseAugmentation` and :class:`RandomCutMix` would give them.

    Args:
        strategy: The strategy of the augmentation, or ``'none'``.
        cutmix: The share of batches that CutMix mixes.
        num_classes: The number of classes K.
        seeds: The seeds of the networks.
    """

    def __init__(self, strategy: str, cutmix: float, num_classes: int, seeds: Sequence[int]) -> None:
        self.num_classes = num_classes
        self.strategy = strategy
        self.cutmix = cutmix
        self.seeds = seeds
        self._streams: list[tuple[torch.Generator, torch.Generator]] = []

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.BEFORE_TRAIN_BATCH, Event.BEFORE_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BEFORE_TRAIN_BATCH:
            self._streams = [(siamese_stream(seed, state), cutmix_stream(seed, state)) for seed in self.seeds]
            return
        images, labels = state.batch_get_item(0), state.batch_get_item(1)
        _, count, _, height, width = images.shape
        draws = [draw_augmentation(self.strategy, count, (height, width), own) for own, _ in self._streams]
        together = {name: torch.cat([draw[name] for draw in draws]).to(images.device) for name in draws[0]}
        images = augment(images.flatten(0, 1), together).view_as(images)
        for number, (_, stream) in enumerate(self._streams):
            if not self.cutmix or float(torch.rand((), generator=stream)) >= self.cutmix:
                continue
            if labels.ndim == 2:
                labels = F.one_hot(labels, self.num_classes).float()
            order, box = draw_cutmix(count, (height, width), stream)
            mixed = cutmix_batch(images[number], labels[number], bbox=box, indices=order.to(images.device))
            images[number], others, share, _ = mixed
            labels[number] = share * labels[number] + (1 - share) * others
        state.batch_set_item(0, images)
        state.batch_set_item(1, labels)


def vectorizing_is_faster(networks: Sequence[nn.Module], loader: PopulationLoader) -> bool:
    """Measures whether a training step of all networks at once is faster than their steps one after another.

    Both are run a few times, with copies of the networks and their first batch. If all networks do not fit in memory at
    once, an operation cannot be vectorized, or a layer draws random numbers, which would be others, the answer is no.
    """
    images, labels = next(iter(PopulationLoader([copy.copy(one) for one in loader.loaders])))
    alone = copy.deepcopy(networks[0])
    with forked_streams(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=SLOWER)
        one = _step_seconds(alone, lambda: F.cross_entropy(alone(images[0]), labels[0]), images.device)
        buffers, streams = list(alone.buffers()), _streams(images.device)
        alone(images[0])
        if any(now is not before for now, before in zip(alone.buffers(), buffers, strict=True)):
            return False  # reassigned, not changed in place: see Population
        if any(not torch.equal(*pair) for pair in zip(_streams(images.device), streams, strict=True)):
            return False  # what dropout and its like draw would depend on which of the two ways is faster today
        batch = images, labels
        try:
            together = Population(networks)
            every = _step_seconds(together, lambda: together.loss(together(batch), batch), images.device)
        except RuntimeError:  # torch.OutOfMemoryError is one, too
            return False
    return every < len(networks) * one


def _streams(device: torch.device) -> list[torch.Tensor]:
    """The states of the global random streams that a network on a device can draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _step_seconds(model: nn.Module, loss: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Returns the seconds of the fastest of ten steps, or of as many as fit in half a second, but at least two."""
    optimizer = torch.optim.SGD(model.to(device).train().parameters(), lr=0.0, momentum=0.9)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < TRIALS and sum(seconds) < 0.5):
        began = now(device)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        seconds.append(now(device) - began)
    return min(seconds)
