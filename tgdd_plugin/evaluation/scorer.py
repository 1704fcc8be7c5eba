"""One row of a table: networks trained on the same kind of set, one for each seed, and scored on test images."""

from __future__ import annotations

import functools
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.loggers import LoggerDestination
from torch import nn

from tgdd_plugin.core.checked_json import Finite, Text, Whole
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import InputError, printable
from tgdd_plugin.core.ranks import rank
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.logs.destinations import TrainingLogs
from tgdd_plugin.training.resuming import checkpoint_folder
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import accuracy, has_diverged, train_each

PROTOCOL = "last epoch, decoded uint8 file; std over seeds with n - 1; nothing is chosen on the test images"


RANDOM = ("random", "random, decoded number")
"""The rows of random images: as many as the file stores and, with a factor, as many as it has once decoded."""


OWN_SOFT_LABELS = "distilled, soft labels of the file"
"""The row of the set with the soft labels that are in its file."""


FULL_DATA = "full data"
"""The row of all real images, trained on for the usual number of epochs."""

EQUAL_PASSES = "full data, equal passes"
"""The row of all real images, trained on for as many image passes as the compact set."""


Key = tuple[str, str, str]
"""What a row is told from the others by: its network, what that was trained on, and the kind of labels."""


Images = tuple[torch.Tensor, torch.Tensor]
"""uint8 images ``(N, C, H, W)`` with class ids ``(N,)`` or soft labels ``(N, K)``."""


@dataclass
class Row:
    """One row of the table: networks trained on the same kind of set, one for each seed.

    Args:
        name: What the networks were trained on.
        images: The number of different images in their training set.
        epochs: The number of epochs that they were trained for; the last one may have been cut short.
        accuracies: The accuracy of each seed's network on the test set, from 0 to 1.
        seconds: The seconds of each training, from the first batch to the last, set-up of the Trainer included;
            networks that were trained at once have equal shares.
        network: The name of the network.
        labels: The kind of labels, ``'hard'`` or ``'soft'``.
        learning_rate: The learning rate of the training.
        passes: The number of images that they saw in all; 0 where it was not noted, and all epochs were whole.
        computed: How most batches were computed, such as ``'fp32, eager'``; empty where it was not noted.
    """

    name: Text
    images: Whole = 0
    epochs: Whole = 0
    accuracies: list[Finite] = field(default_factory=list)
    seconds: list[Finite] = field(default_factory=list)
    network: Text = ""
    labels: Text = "hard"
    learning_rate: Finite = 0.01
    passes: Whole = 0
    computed: Text = ""

    @property
    def key(self) -> Key:
        """The network, the name and the labels."""
        return self.network, self.name, self.labels

    @property
    def is_random(self) -> bool:
        """Whether it is of random images, of whatever number."""
        return self.name.startswith(RANDOM[0])

    @property
    def is_full_data(self) -> bool:
        """Whether it is of all real images."""
        return self.name in (FULL_DATA, EQUAL_PASSES)

    @property
    def image_passes(self) -> int:
        """The number of images that its networks saw in all, also where that was not noted."""
        return self.passes or self.images * self.epochs

    @property
    def mean(self) -> float:
        """Mean accuracy in per cent."""
        return 100 * float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Standard deviation over the seeds (with n - 1) in points; NaN for one seed."""
        return 100 * float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else float("nan")

    @property
    def spread(self) -> str:
        """``mean ± std`` in per cent, of one seed the mean alone."""
        return f"{self.mean:.1f}" + (f" ± {self.std:.1f}" if len(self.accuracies) > 1 else "")

    def summary(self) -> dict[str, Any]:
        """Returns the row as plain values for JSON, with mean and standard deviation."""
        std = round(self.std, 4) if len(self.accuracies) > 1 else None  # JSON has no NaN
        # Rounded once more when it is printed, to what the terminal showed: of 95.648, two digits would give 95.7.
        return {**asdict(self), "mean_percent": round(self.mean, 4), "std_points": std}


@dataclass(frozen=True)
class Scorer:
    """Trains networks on sets of images and scores them on the same test images.

    Args:
        test: The images to score on.
        normalization: What the images are normalized with.
        seeds: The seeds of the networks, each of initial weights, the order of the images and the augmentation.
        num_classes: The number of classes K.
        device: ``'cpu'`` or ``'gpu'``; ``None`` for a GPU if there is one.
        at_once: Whether networks are trained at once, see :func:`tgdd_plugin.training.train.train_each`.
        progress_bar: Whether to show a progress bar for each training.
        trainer_options: More arguments for the Composer ``Trainer`` of each training, see
            :func:`tgdd_plugin.training.train.train_network`. Default: none.
        logs: The logs of the trainings. Default: none.
        checkpoints: The folder for the checkpoints of trainings that take minutes, which go on from there where they
            were cut short, see :meth:`remove_checkpoints`. Default: ``None``, none.
    """

    test: ImagePool
    normalization: Normalization
    seeds: Sequence[int]
    num_classes: int
    device: Device | None = None
    at_once: bool | None = None
    progress_bar: bool = True
    trainer_options: Mapping[str, Any] | None = None
    logs: TrainingLogs | None = None
    checkpoints: Path | None = None

    def score(
        self, row: Row, build: Callable[[], nn.Module], images: Callable[[int], Images], settings: TrainSettings
    ) -> list[nn.Module]:
        """Trains a fresh network for each seed and fills in the row.

        Args:
            row: Its epochs, learning rate, accuracies and seconds are filled in, and its images unless they are given.
            build: Builds a fresh network.
            images: Returns the training images of a seed, equally many for every seed.
            settings: How networks are trained.

        Returns:
            The trained networks, on the device.
        """
        networks = self._score(row, build, images, settings)
        lost = sum(has_diverged(network, self.test, self.normalization) for network in networks)
        if lost and rank() == 0:
            warnings.warn(
                f"the training of row '{row.name}' ({row.network}) diverged for {lost} of {len(networks)} seed(s) at "
                f"learning_rate={settings.learning_rate:g}: outputs are not finite, and the accuracy is that of "
                f"guessing; lower retrain.learning_rate",
                stacklevel=2,
            )
        return networks

    def _score(
        self, row: Row, build: Callable[[], nn.Module], images: Callable[[int], Images], settings: TrainSettings
    ) -> list[nn.Module]:
        on = torch_device(self.device)
        networks, loaders = [], []
        for seed in self.seeds:
            pixels, labels = images(seed)
            with forked_streams(seed):
                networks.append(build())
            # Moved as a pool is, which leaves in memory what is too large.
            pixels = ImagePool(pixels, torch.zeros(len(pixels))).to(on).images
            loaders.append(
                DeviceLoader(pixels, labels, self.normalization, batch_size=settings.batch_size, seed=seed, device=on)
            )
        row.images = row.images or len(labels)
        row.learning_rate = settings.learning_rate
        row.passes = settings.passes or settings.epochs * len(labels)
        row.epochs = -(-row.passes // len(labels))
        folder = None
        if self.checkpoints is not None:
            folder = checkpoint_folder(self.checkpoints, "row", networks, loaders, asdict(settings))
        trained = train_each(
            networks,
            loaders,
            self.num_classes,
            settings,
            seeds=self.seeds,
            at_once=self.at_once,
            title=printable(f"{row.network} {row.name}").strip() if self.progress_bar else None,
            device=self.device,
            logs=functools.partial(self._loggers, row),
            checkpoints=folder,
            **(self.trainer_options or {}),
        )
        row.seconds, row.computed = [each.seconds for each in trained], trained[0].computed
        row.accuracies = [accuracy(network, self.test, self.normalization) for network in networks]
        return networks

    def remove_checkpoints(self) -> None:
        """Removes the checkpoints of all trainings, whose rows are done."""
        if self.checkpoints is not None and rank() == 0:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _loggers(self, row: Row, seeds: Sequence[int]) -> list[LoggerDestination]:
        """The loggers of a row's training with some seeds."""
        if self.logs is None:
            return []
        about = {"network": row.network, "trained_on": row.name, "labels": row.labels}
        which = "-".join(str(seed) for seed in ([seeds[0], seeds[-1]] if len(seeds) > 1 else seeds))
        return self.logs.of(" ".join([*about.values(), f"seed{which}"]), {**about, "seeds": which})

    def tune_learning_rate(
        self,
        rates: Sequence[float],
        held_out: ImagePool,
        row: Row,
        build: Callable[[], nn.Module],
        images: Callable[[int], Images],
        settings: TrainSettings,
    ) -> TrainSettings:
        """Chooses the learning rate whose network of the first seed is the most accurate on held-out images.

        Args:
            rates: The learning rates to choose from.
            held_out: The held-out images.
            row, build, images, settings: What is to be scored, as in :meth:`score`; the row stays as it is.

        Returns:
            The settings with the chosen learning rate.
        """
        trial = replace(self, test=held_out, seeds=self.seeds[:1])
        found: dict[float, float] = {}
        for rate in rates:
            attempt = Row(f"{row.name} at {rate:g}", network=row.network)
            trial._score(attempt, build, images, replace(settings, learning_rate=rate))
            found[rate] = attempt.accuracies[0]
        return replace(settings, learning_rate=max(found, key=found.__getitem__))

    def where(self) -> str:
        """Returns the device and the number of threads, for people."""
        on = torch_device(self.device)
        name = torch.cuda.get_device_name(on) if on.type == "cuda" else f"{platform.machine()} CPU"
        threads = torch.get_num_threads()
        return f"{name}, {threads} thread" + ("s" if threads > 1 else "")


def random_images(real: ImagePool, per_class: int | Sequence[int], seed: int) -> Images:
    """Draws real images of each class at random, others for each seed; of a rare class, which has fewer, all.

    Args:
        real: The real images.
        per_class: The number of images of each class, or one number for each.
        seed: The seed of the draw.

    Raises:
        InputError: If a class has no images, or none has as many.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = [per_class] * real.num_classes if isinstance(per_class, int) else per_class
    asked, counts = max(wanted), real.counts.tolist()
    empty = [label for label, count in enumerate(counts) if wanted[label] and not count]
    if empty or max(counts) < asked:
        label = empty[0] if empty else int(real.counts.argmin())
        raise InputError(
            f"Class {label} ('{real.classes[label]}') has {counts[label] or 'no'} real images, {asked} were asked for "
            f"the random ones, which repeat none. Add images of that class, or distill "
            + ("without it (distill.classes)." if empty else f"at most images_per_class={max(counts)}.")
        )
    drawn = [
        real.draw(torch.tensor([label]), min(number, counts[label]), generator)[0]
        for label, number in enumerate(wanted)
    ]
    index = torch.cat(drawn)
    return real.take(index), real.labels[index]
