"""What a compact set is compared with: as many real images, chosen in several ways, or a set made by plain matching."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import weights_content
from tgdd_plugin.data.coresets import herding, k_center
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.compatibility import bare_networks
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.evaluation.distribution_matching import distribution_matching
from tgdd_plugin.evaluation.scorer import Images, random_images
from tgdd_plugin.evaluation.soft_labels import soft_labels
from tgdd_plugin.networks.features import features_of
from tgdd_plugin.trajectory.store import Trajectory

SELECTIONS = {"herding": herding, "k-center": k_center}
"""Ways to choose real images by the features of networks trained on the full data."""


class ImageSets:
    """The images that networks are trained on in an evaluation; a function for each kind, mostly of a seed.

    Args:
        card: Of the compact set.
        real: The real training images.
        build: Builds a fresh network of the set's own architecture.
        folder: Keeps what takes long to make. It is made when something is kept.
        device: ``'cpu'`` or ``'gpu'``; ``None`` for a GPU if there is one.
        progress_bar: Whether distribution matching shows one.
        others: Build the trajectory's other networks, if it is of several.
    """

    def __init__(
        self,
        card: Card,
        real: ImagePool,
        build: Callable[[], nn.Module],
        folder: Path,
        device: str | None = None,
        progress_bar: bool = True,
        others: Sequence[Callable[[], nn.Module]] = (),
    ) -> None:
        self.card, self.build, self.folder, self.others = card, build, folder, others
        self.device, self.progress_bar = device, progress_bar
        self.real = real.to(torch_device(device))
        # Once for all rows, seeds and learning rates that ask for it.
        self._chosen = functools.cache(self._choose)
        self.matched = functools.cache(self._match)

    def random(self, per_class: int, seed: int) -> Images:
        """Real images drawn at random."""
        return random_images(self.real, per_class, seed)

    def full(self, seed: int) -> Images:
        """All real images."""
        return self.real.images, self.real.labels

    def keep(self, networks: Sequence[nn.Module], seeds: Sequence[int]) -> None:
        """Keeps networks that were trained on the full data: :meth:`selected` goes by their features."""
        for seed, network in zip(seeds, networks, strict=True):
            if dist.get_global_rank() == 0:
                write_whole(self._weights(seed), weights_content(network.state_dict()))
        dist.barrier()

    def selected(self, name: str, seed: int) -> Images:
        """Real images chosen by the features of the kept network of that seed; ``name`` is of :data:`SELECTIONS`.

        Raises:
            InputError: If the network was not kept, or is another.
        """
        index = self._chosen(seed)[name]
        return self.real.take(index), self.real.labels[index]

    def _weights(self, seed: int) -> Path:
        return self.folder / f"full-data-{seed}.safetensors"

    def _choose(self, seed: int) -> dict[str, torch.Tensor]:
        network = self.fresh().to(torch_device(self.device))
        try:
            network.load_state_dict(safetensors.torch.load_file(self._weights(seed)))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise InputError(
                f"'{self._weights(seed)}' cannot be used ({str(error).splitlines()[0]}); delete "
                f"'{self.folder.with_suffix('.json')}' and evaluate again"
            ) from error
        features = features_of(network, self.real, self.card.mean, self.card.std)
        return {name: of(features, self.real.labels, self.card.images_per_class) for name, of in SELECTIONS.items()}

    def _match(self) -> Images:
        path = distribution_matching(
            self.real,
            self.folder / "distribution-matching.beton",
            self.matching(),
            self.build,
            mean=self.card.mean,
            std=self.card.std,
            device=self.device,
            progress_bar=self.progress_bar,
        )
        return read_beton(path)

    def matching(self) -> DistillSettings:
        """How :attr:`matched` is made: as the distilled set was, where that says how, of the images there are."""
        own = {key: value for key, value in self.card.method.items() if key in DistillSettings.__dataclass_fields__}
        settings = DistillSettings(**{**own, "images_per_class": self.card.images_per_class})
        return replace(settings, real_per_class=min(settings.real_per_class, int(self.real.counts.min())))

    def softened(self, trajectory: Trajectory, images: Images) -> Images:
        """The images with the trajectory's soft labels."""
        with torch.random.fork_rng():
            networks = bare_networks([self.build, *self.others], trajectory, self.real.shape)
        pixels = images[0].to(torch_device(self.device))
        return images[0], soft_labels(trajectory, networks, pixels, self.card.mean, self.card.std)

    def check_features(self) -> None:
        """Finds out now whether the network has the features that images are chosen and matched by.

        Raises:
            InputError: If not.
        """
        features_of(self.fresh(), self.real.subset(torch.tensor([0])), self.card.mean, self.card.std)

    def fresh(self) -> nn.Module:
        """A new network; the global random stream has no part in it but is as it was."""
        with torch.random.fork_rng():
            return self.build()
