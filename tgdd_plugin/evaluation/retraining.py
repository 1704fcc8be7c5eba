"""retrain(): fresh networks trained on a compact set and scored on real test images, beside random and full data."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from composer.utils import dist
from torch import nn

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.versions import versions
from tgdd_plugin.evaluation.scorer import PROTOCOL, RANDOM, Images, Row, Scorer, random_images
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.networks.factory import build_recorded
from tgdd_plugin.training.train import check_network


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
    shipped = read_beton(file)
    test = fitting_pool(test, "test", file, card)
    real = None if real is None else fitting_pool(real, "real", file, card)
    results = check_writable(Path(results)) if results else None
    build = network or (lambda: build_recorded(card.network, card.shape, len(card.classes)))
    # What cannot work is found out now, not after hours of training.
    fresh_name = check_network(build, card.shape, len(card.classes))
    sizes = [card.images_per_class] if card.factor == 1 else [card.images_per_class, card.images // len(card.classes)]
    if real is not None:
        for size in sizes:
            random_images(real, size, seed)
    scorer = Scorer(
        test,
        card.mean,
        card.std,
        range(seed, seed + settings.seeds),
        len(card.classes),
        device=device,
        at_once=settings.at_once,
        progress_bar=progress_bar,
    )
    rows = []

    def add(name: str, epochs: int, images: Callable[[int], Images]) -> None:
        rows.append(Row(name, network=fresh_name))
        scorer.score(rows[-1], build, images, settings.training(epochs))

    add("distilled", settings.epochs, lambda s: shipped)
    if real is not None:
        pool = real.to(torch_device(device))
        for name, size in zip(RANDOM, sizes, strict=False):
            add(name, settings.epochs, functools.partial(random_images, pool, size))
        if settings.full_epochs:
            add("full data", settings.full_epochs, lambda s: (pool.images, pool.labels))
    summary = {
        "protocol": PROTOCOL,
        "network": fresh_name,
        "test_images": len(test),
        "seeds": list(scorer.seeds),
        "settings": asdict(settings),
        "rows": [row.summary() for row in rows],
        "device": scorer.where(),
        "versions": versions("mosaicml", "ffcv", "numpy"),
    }
    if dist.get_global_rank() == 0:
        add_accuracy(file, card, summary)
        if results:
            content = {"file": Path(file).name, "sha256": card.sha256, **summary}
            write_whole(results, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return rows


def add_accuracy(file: str | Path, card: Card, summary: dict[str, Any]) -> None:
    """Adds accuracies to the card of ``file``.

    Raises:
        InputError: If the file is no longer the one that ``card`` was read of.
    """
    latest = read_card(file)  # another call may have added its rows meanwhile
    if latest.sha256 != card.sha256:
        raise InputError(f"'{file}' was replaced during training, so its card gets no accuracies; retrain on it again")
    latest.accuracy = [*latest.accuracy, summary]
    latest.write(Path(file))


def table(rows: Sequence[Row]) -> str:
    """The rows as a text table: images, epochs, accuracy ± std over seeds, distance to the full data, seconds."""
    full = next((row.mean for row in rows if row.name == "full data"), None)
    head = ["trained on", "images", "epochs", "accuracy %", "to full data", "seconds"]
    cells = [head]
    for row in rows:
        gap = "" if full is None or row.name == "full data" else f"{row.mean - full:+.1f}"
        seconds = f"{np.mean(row.seconds):.1f}"
        cells.append([row.name, str(row.images), str(row.epochs), row.spread, gap, seconds])
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in cells]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
