"""The set that a comparison is about, with the network it was made for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import are_probabilities, read_beton, read_soft_labels
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.distillation.compatibility import bare_networks
from tgdd_plugin.evaluation.scorer import Images
from tgdd_plugin.evaluation.soft_labels import predict_soft_labels
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
        soft_labels: The file's own soft labels of the images, float32 ``(N, K)``. Default: ``None``, it has none.
    """

    card: Card
    images: Images
    build: Callable[[], nn.Module]
    network: str
    soft_labels: torch.Tensor | None = None

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
        name = check_network(build, card.shape, len(card.classes))
        soft_labels = read_soft_labels(Path(file), (len(images[0]), len(card.classes)))
        # An earlier version wrote what it was given, logits among them.
        if soft_labels is not None and not are_probabilities(soft_labels):
            text = f"the soft labels of '{file}' are no probabilities, and no row is trained on them"
            warnings.warn(text, stacklevel=3)
            soft_labels = None
        return cls(card, images, build, name, soft_labels)

    @property
    def decoded(self) -> list[int]:
        """The number of images of each class. A memory, and sets of other tools, need not have as many of each."""
        return torch.bincount(self.images[1].cpu(), minlength=len(self.card.classes)).tolist()

    @property
    def stored(self) -> list[int]:
        """The number of stored images of each class, of which ``factor``² images each are decoded."""
        return [-(-count // self.card.factor**2) for count in self.decoded]

    def distilled(self, seed: int) -> Images:
        """Returns the images of the set."""
        return self.images

    def own_softened(self, seed: int) -> Images:
        """Returns the images of the set with the file's own soft labels."""
        assert self.soft_labels is not None, "the row is planned only where there are some"
        return self.images[0], self.soft_labels

    def fresh(self) -> nn.Module:
        """Returns a new network and leaves the global random stream as it was."""
        with forked_streams():
            return self.build()

    def recorded(self, trajectory: Trajectory, others: Sequence[Callable[[], nn.Module]] = ()) -> list[nn.Module]:
        """Returns the networks of a trajectory, the set's own among them; the global random stream stays as it was.

        Args:
            trajectory: The trajectory.
            others: Functions that build its other networks, if it has several.
        """
        channels, height, width = self.card.shape
        with forked_streams():
            return bare_networks([self.build, *others], trajectory, (channels, height, width))

    def softened(
        self, trajectory: Trajectory, networks: Sequence[nn.Module], device: torch.device, images: Images
    ) -> Images:
        """Returns images with the trajectory's soft labels.

        Args:
            trajectory: The trajectory whose last stages label the images.
            networks: Its networks, see :meth:`recorded`.
            device: Where they are called.
            images: The images; their labels do not matter.
        """
        return images[0], predict_soft_labels(trajectory, networks, images[0].to(device), self.card.normalization)
