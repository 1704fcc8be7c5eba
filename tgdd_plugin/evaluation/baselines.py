"""What a compact set is compared with: as many real images, chosen in several ways, or a set made by plain matching."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.class_names import named_classes
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import load_weights, put_weights, weights_content
from tgdd_plugin.data.coresets import herding, k_center, most_varied
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.settings import EARLIER, DistillSettings
from tgdd_plugin.evaluation.compact_set import CompactSet
from tgdd_plugin.evaluation.distribution_matching import match_distributions
from tgdd_plugin.evaluation.scorer import Images, random_images
from tgdd_plugin.evaluation.settings import Baseline
from tgdd_plugin.networks.features import features_of

SELECTIONS = {"herding": herding, "k-center": k_center}
"""The ways to choose real images by the features of networks trained on the full data."""
CONFIDENCE: Baseline = "confidence"


class Baselines:
    """What networks are trained on beside a compact set: one method for each kind of images, a function of the seed.

    Args:
        compact: The compact set.
        real: The real training images.
        folder: Keeps what takes long to make. It is made when something is kept.
        device: ``'cpu'`` or ``'gpu'``; ``None`` for a GPU if there is one.
        progress_bar: Whether distribution matching shows one.
        confidences: Computes the confidences ``(N, S)`` of images; ``None`` where no two stages are at hand.
    """

    def __init__(
        self,
        compact: CompactSet,
        real: ImagePool,
        folder: Path,
        device: Device | None = None,
        progress_bar: bool = True,
        confidences: Callable[[ImagePool], torch.Tensor] | None = None,
    ) -> None:
        self.compact, self.card, self.folder = compact, compact.card, folder
        self.most = max(compact.stored)  # of a class; what the card says need not be true of a set made otherwise
        self.device, self.progress_bar = device, progress_bar
        self.real = real.to(torch_device(device))
        self.confidences = confidences
        self._chosen = functools.cache(self._choose)  # once for all rows and learning rates that ask for a seed's

    def random(self, per_class: int | Sequence[int], seed: int) -> Images:
        """Returns real images of each class, drawn at random, see :func:`random_images`."""
        return random_images(self.real, per_class, seed)

    def check_counts(self, names: Sequence[str], seed: int) -> None:
        """Checks that there are as many real images of each class as the set stores.

        Args:
            names: The baselines.
            seed: A seed.

        Raises:
            InputError: If a class has none, no class has as many, or a rare one has fewer and some of the baselines
                choose among its images. With random images alone a warning says that there are fewer of that class.
        """
        stored = self.compact.stored
        self.random(stored, seed)
        real = list(zip(self.real.classes, self.real.counts.tolist(), stored, strict=True))
        chosen = [name for name in names if name in SELECTIONS or (name == CONFIDENCE and self.confidences)]
        if chosen and (rare := [name for name, have, _ in real if have < self.most]):
            raise InputError(
                f"The {named_classes(rare)} must have at least {self.most} real images for baseline '{chosen[0]}', got "
                f"fewer. Add images, or leave that baseline out (evaluate.baselines)."
            )
        if rare := [name for name, have, count in real if have < count]:
            warnings.warn(
                f"{named_classes(rare)}: fewer than {max(count for _, have, count in real if have < count)} real "
                f"images, all of which the random baseline takes",
                stacklevel=4,
            )

    def full(self, seed: int) -> Images:
        """Returns all real images."""
        return self.real.images, self.real.labels

    def keep(self, networks: Sequence[nn.Module], seeds: Sequence[int]) -> None:
        """Keeps networks that were trained on the full data; :meth:`selected` chooses by their features."""
        for seed, network in zip(seeds, networks, strict=True):
            if dist.get_global_rank() == 0:
                write_whole(self._weights(seed), weights_content(network.state_dict()))
        dist.barrier()

    def selected(self, name: str, seed: int) -> Images:
        """Returns real images chosen by the features of the kept network of that seed.

        Args:
            name: One of :data:`SELECTIONS`.
            seed: The seed of the network.

        Raises:
            InputError: If the network was not kept, or is another one.
        """
        index = self._chosen(seed)[name]
        return self.real.take(index), self.real.labels[index]

    def _weights(self, seed: int) -> Path:
        return self.folder / f"full-data-{seed}.safetensors"

    def _choose(self, seed: int) -> dict[str, torch.Tensor]:
        network = self.compact.fresh().to(torch_device(self.device))
        try:
            put_weights(network, load_weights(self._weights(seed)))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise InputError(
                f"'{self._weights(seed)}' cannot be used ({str(error).splitlines()[0]}). Delete "
                f"'{self.folder.with_suffix('.json')}' and evaluate again."
            ) from error
        features = features_of(network, self.real, self.card.normalization)
        return {name: self._as_stored(of(features, self.real.labels, self.most)) for name, of in SELECTIONS.items()}

    def _as_stored(self, index: torch.Tensor) -> torch.Tensor:
        """Returns the first of each class' selected images, as many as the set stores of it; ``index`` has as many of
        each."""
        rows = index.view(len(self.compact.stored), -1)
        return torch.cat([row[:count] for row, count in zip(rows, self.compact.stored, strict=True)])

    def varied(self, seed: int) -> Images:
        """Returns the real images of which the recorded networks' confidence varies most, the same for every seed."""
        return self.real.take(self._varied), self.real.labels[self._varied]

    @functools.cached_property
    def _varied(self) -> torch.Tensor:
        assert self.confidences is not None, "the row is planned only where a trajectory is at hand"
        return self._as_stored(most_varied(self.confidences(self.real), self.real.labels, self.most))

    def matched(self, seed: int) -> Images:
        """Returns the images of plain distribution matching, the same for every seed."""
        return self._matched

    @functools.cached_property
    def _matched(self) -> Images:
        path = match_distributions(
            self.real,
            self.folder / "distribution-matching.beton",
            self.matching(),
            self.compact.build,
            normalization=self.card.normalization,
            device=self.device,
            progress_bar=self.progress_bar,
        )
        return read_beton(path)

    def matching(self) -> DistillSettings:
        """Returns the settings of :meth:`matched`: those of the distilled set, as far as its card has them."""
        own = {key: value for key, value in self.card.method.items() if key in DistillSettings.__dataclass_fields__}
        earlier = EARLIER if own else {}  # a card that an earlier version wrote lacks these
        settings = DistillSettings(**{**earlier, **own, "images_per_class": self.most})
        return replace(settings, real_per_class=min(settings.real_per_class, int(self.real.counts.max())))

    def check_features(self) -> None:
        """Checks that the network has the features that images are chosen and matched by.

        Raises:
            InputError: If it has not.
        """
        features_of(self.compact.fresh(), self.real.subset(torch.tensor([0])), self.card.normalization)
