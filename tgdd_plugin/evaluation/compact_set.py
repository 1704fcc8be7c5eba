"""The set that a comparison is about, with the network it was made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.compatibility import bare_networks
from tgdd_plugin.evaluation.scorer import Images
from tgdd_plugin.evaluation.soft_labels import predict_soft_labels
from tgdd_plugin.evaluation.stage_outputs import predict_confidences
from tgdd_plugin.networks.classifiers import classifiers
from tgdd_plugin.networks.factory import build_recorded
from tgdd_plugin.training.train import check_network
from tgdd_plugin.trajectory.store import Trajectory


@dataclass(frozen=True)
class CompactSet:
    """The set that a comparison is about.

    Args:
        card: Its card.
        images: Its images, decoded, and their labels.
        build: Builds a fresh network of its own architecture.
        network: The name of that network.
    """

    card: Card
    images: Images
    build: Callable[[], nn.Module]
    network: str

    @classmethod
    def open(cls, file: str | Path, network: Callable[[], nn.Module] | None = None) -> CompactSet:
        """Reads a ``.beton`` and its card.

        Args:
            file: The ``.beton``.
            network: Builds a fresh network, or a ``ComposerModel``. Default: for this package's networks, as the card
                says.

        Raises:
            InputError: If the file or its card cannot be read, or the network does not fit them.
        """
        card, images = read_card(file), read_beton(file)
        record, arguments = card.network, card.network.get("arguments") or {}
        if "num_classes" in arguments:  # fewer, if the set is of some of the classes alone
            record = {**record, "arguments": {**arguments, "num_classes": len(card.classes)}}
        build = classifiers(network) if network else (lambda: build_recorded(record, card.shape, len(card.classes)))
        return cls(card, images, build, check_network(build, card.shape, len(card.classes)))

    def distilled(self, seed: int) -> Images:
        """Returns the images of the set."""
        return self.images

    def fresh(self) -> nn.Module:
        """Returns a new network and leaves the global random stream as it was."""
        with torch.random.fork_rng():
            return self.build()

    def softened(
        self,
        trajectory: Trajectory,
        images: Images,
        others: Sequence[Callable[[], nn.Module]] = (),
        device: Device | None = None,
    ) -> Images:
        """Returns images with the trajectory's soft labels.

        Args:
            trajectory: The trajectory whose last stages label the images.
            images: The images; their labels do not matter.
            others: Functions that build the trajectory's other networks, if it has several.
            device: ``'cpu'`` or ``'gpu'``; ``None`` for a GPU if there is one.
        """
        pixels = images[0].to(torch_device(device))
        networks = self._recorded(trajectory, others)
        return images[0], predict_soft_labels(trajectory, networks, pixels, self.card.normalization)

    def confidences(
        self,
        trajectory: Trajectory,
        pool: ImagePool,
        others: Sequence[Callable[[], nn.Module]] = (),
        device: Device | None = None,
        progress_bar: bool = False,
    ) -> torch.Tensor:
        """Returns how sure the trajectory's networks were of images at each stage, ``(N, S)``.

        Args:
            trajectory: The trajectory.
            pool: N images and their labels.
            others: As for :meth:`softened`.
            device: ``'cpu'`` or ``'gpu'``; ``None`` for a GPU if there is one.
            progress_bar: Whether to show a progress bar over the stages. Default: ``False``.
        """
        networks, on = self._recorded(trajectory, others), torch_device(device)
        return predict_confidences(trajectory, networks, pool, self.card.normalization, on, progress_bar)

    def _recorded(self, trajectory: Trajectory, others: Sequence[Callable[[], nn.Module]]) -> list[nn.Module]:
        """The networks of a trajectory, the set's own among them; the global random stream stays."""
        channels, height, width = self.card.shape
        with torch.random.fork_rng():
            return bare_networks([self.build, *others], trajectory, (channels, height, width))
