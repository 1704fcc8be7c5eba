"""retrain(): fresh networks trained on a compact set and scored on real test images, beside random and full data."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.beton import read_beton
from tgdd_plugin.card import Card, read_card
from tgdd_plugin.errors import InputError
from tgdd_plugin.files import check_writable, write_whole
from tgdd_plugin.loader import DeviceLoader
from tgdd_plugin.manifest import versions
from tgdd_plugin.networks import build_recorded
from tgdd_plugin.pool import ImagePool
from tgdd_plugin.training import TrainSettings, accuracy, check_network, torch_device, train


@dataclass(frozen=True)
class RetrainSettings(TrainSettings):
    """How networks are trained on a compact set, and what stands beside them.

    Args:
        epochs: On the compact set and on random images. Default: ``1500``, the paper's at 32 px.
        seeds: Networks trained for each row, and random subsets drawn. Default: ``3``.
        full_epochs: Of training on the full data; 0 leaves that row out. Default: ``60``, the paper's.
    """

    epochs: int = 1500
    seeds: int = 3
    full_epochs: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1 or self.full_epochs < 0:
            raise InputError(f"seeds is {self.seeds} and full_epochs {self.full_epochs}; wanted at least 1 and 0")

    def training(self, epochs: int) -> TrainSettings:
        """The training part, for another number of epochs."""
        names = TrainSettings.__dataclass_fields__
        return TrainSettings(**{**{name: getattr(self, name) for name in names}, "epochs": epochs})


@dataclass
class Row:
    """One row of the table: networks trained on the same kind of set, one for each seed.

    Args:
        name: What they were trained on.
        images: How many images it has.
        epochs: How long they were trained.
        accuracies: On the test set, from 0 to 1, one for each seed.
        seconds: Of each training, from the first batch to the last, set-up of the Trainer included.
    """

    name: str
    images: int
    epochs: int
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean accuracy in per cent."""
        return 100 * float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Standard deviation over the seeds (with n - 1) in points; NaN for one seed."""
        return 100 * float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else float("nan")


def retrain(
    file: str | Path,
    test: Any,
    settings: RetrainSettings | None = None,
    *,
    real: Any = None,
    network: Callable[[], nn.Module] | None = None,
    device: str | None = None,
    seed: int = 0,
    results: str | Path | None = None,
    progress_bar: bool = True,
) -> list[Row]:
    """Trains fresh networks on a ``.beton`` and scores them at the last epoch; nothing is chosen on the test set.

    Args:
        file: The ``.beton``, as it ships, its card beside it. The card gets the accuracies.
        test: Real test images: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        settings: Default: ``RetrainSettings()``.
        real: The real training images, for the rows of random and full data. Default: those rows are left out.
        network: A function that builds a fresh network. Default: for this package's networks, as the card says.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``settings.seeds`` seeds: of the initial weights, the order of images, the augmentation, and
            the choice of random images. Default: ``0``.
        results: A JSON file to write. Default: none.
        progress_bar: Default: ``True``.

    Returns:
        Rows for ``distilled``, ``random`` (as many stored images), with a factor ``random, decoded number`` (as many
        as the file holds once decoded), and ``full data``.

    Raises:
        InputError: If the file, its card, the images or the network do not fit each other.
    """
    settings = settings or RetrainSettings()
    card = read_card(file)
    images, labels = read_beton(file)
    test = _pool(test, "test", file, card)
    real = None if real is None else _pool(real, "real", file, card)
    if isinstance(network, nn.Module):
        raise InputError(
            f"network is a {type(network).__name__}; wanted a function that builds a fresh one for each seed, such as "
            f"lambda: {type(network).__name__}(...)"
        )
    results = check_writable(Path(results)) if results else None
    build = network or (lambda: build_recorded(card.network, card.shape, len(card.classes)))
    # What cannot work is found out now, not after hours of training.
    fresh_name = check_network(build, card.shape, len(card.classes))
    sizes = [card.images_per_class] if card.factor == 1 else [card.images_per_class, card.images // len(card.classes)]
    if real is not None:
        for size in sizes:
            _random_subset(real, size, seed)
    on = torch_device(device)
    rows = []

    def add(name: str, epochs: int, subset: Callable[[int], ImagePool]) -> None:
        row = Row(name, 0, epochs)
        for s in range(seed, seed + settings.seeds):
            pool = subset(s).to(on)
            row.images = len(pool)
            with torch.random.fork_rng():
                torch.manual_seed(s)
                fresh = build()
            loader = DeviceLoader(
                pool.images,
                pool.labels,
                card.mean,
                card.std,
                batch_size=settings.batch_size,
                seed=s,
                device=on,
            )
            title = f"{name}, seed {s}" if progress_bar else None
            began = time.perf_counter()
            train(
                fresh,
                loader,
                len(card.classes),
                settings.training(epochs),
                seed=s,
                device=device,
                title=title,
            )
            row.seconds.append(time.perf_counter() - began)
            row.accuracies.append(accuracy(fresh, test, card.mean, card.std))
        rows.append(row)

    distilled = ImagePool(images, labels, card.classes)
    add("distilled", settings.epochs, lambda s: distilled)
    if real is not None:
        add("random", settings.epochs, lambda s: _random_subset(real, sizes[0], s))
        if card.factor > 1:
            add("random, decoded number", settings.epochs, lambda s: _random_subset(real, sizes[1], s))
        if settings.full_epochs:
            add("full data", settings.full_epochs, lambda s: real)
    summary = _summary(rows, test, fresh_name, settings, seed, on)
    if dist.get_global_rank() == 0:
        latest = read_card(file)  # another call may have added its rows meanwhile
        if latest.sha256 != card.sha256:
            raise InputError(
                f"'{file}' was replaced during training, so its card gets no accuracies; retrain on it again"
            )
        latest.accuracy = [*latest.accuracy, summary]
        latest.write(Path(file))
        if results:
            content = {"file": Path(file).name, "sha256": card.sha256, **summary}
            write_whole(results, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a text table: images, epochs, accuracy ± std over seeds, distance to the full data, seconds."""
    full = next((row.mean for row in rows if row.name == "full data"), None)
    head = ["trained on", "images", "epochs", "accuracy %", "to full data", "seconds"]
    cells = [head]
    for row in rows:
        spread = "" if len(row.accuracies) == 1 else f" ± {row.std:.1f}"
        gap = "" if full is None or row.name == "full data" else f"{row.mean - full:+.1f}"
        cells.append(
            [
                row.name,
                str(row.images),
                str(row.epochs),
                f"{row.mean:.1f}{spread}",
                gap,
                f"{np.mean(row.seconds):.1f}",
            ]
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in cells]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _pool(images: Any, name: str, file: str | Path, card: Card) -> ImagePool:
    """The images as a pool, if they are of the file's shape and classes."""
    pool = images if isinstance(images, ImagePool) else ImagePool.from_dataset(images)
    if list(pool.shape) != card.shape or pool.num_classes > len(card.classes):
        raise InputError(
            f"the {name} images are {pool.num_classes} classes of {list(pool.shape)}; '{file}' holds "
            f"{len(card.classes)} classes of {card.shape}. Give the data set that was distilled"
        )
    pool.agree(card.classes, len(card.classes), f"'{file}'")
    return pool


def _random_subset(real: ImagePool, per_class: int, seed: int) -> ImagePool:
    generator = torch.Generator().manual_seed(seed)
    index = real.draw(torch.arange(real.num_classes), per_class, generator, "the random baseline")
    return real.subset(index.flatten())


def _summary(
    rows: list[Row],
    test: ImagePool,
    fresh_name: str,
    settings: RetrainSettings,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {
        "protocol": "last epoch, decoded uint8 file, hard labels; std over seeds with n - 1",
        "network": fresh_name,
        "test_images": len(test),
        "seeds": list(range(seed, seed + settings.seeds)),
        "settings": asdict(settings),
        "rows": [
            {
                **asdict(row),
                "mean_percent": round(row.mean, 2),
                "std_points": round(row.std, 2) if len(row.accuracies) > 1 else None,  # JSON has no NaN
            }
            for row in rows
        ],
        "device": f"{where}, {torch.get_num_threads()} threads",
        "versions": versions("mosaicml", "ffcv", "numpy"),
    }
