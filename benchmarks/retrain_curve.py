"""Accuracy against the seconds of training: on a distilled file, on as many random images, and on the full data.

    python -m benchmarks.retrain_curve recipes/fashion_mnist_cpu.yaml --every 1s -- data.root=/data
    python -m benchmarks.retrain_curve outputs/cifar10-ipc10.beton -- data.name=cifar10 retrain.epochs=300
    python -m benchmarks.retrain_curve recipes/cifar10.yaml --full-epochs 2 5 20 60 --minutes 9
    python -m benchmarks.retrain_curve --table --levels 70 75 80

The file must be there: the recipe's, or a .beton itself, whose card then names the network. All sides are trained
alike, with all images resident on the device, so the full data is served as fast as it can be. Learning rates fall with
the length of a training: --epochs and --full-epochs take several, each a row.

The clock starts where the Trainer is set up, and stands while the test images are scored. Seeds are the pairs: a seed's
rows are trained one after another. --minutes stops between trainings, and the same command goes on.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from composer import Callback, Logger, State

from benchmarks.harness import Bench, Images, run
from benchmarks.machine import quartiles
from benchmarks.results import Parser, Row, markdown, percent, provenance, read_rows, spread
from tgdd_plugin import InputError
from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.usage import now
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.evaluation.scorer import RANDOM, random_images
from tgdd_plugin.networks.factory import recorded_factory
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import accuracy, train_network

DISTILLED, FULL = "distilled", "full data"
LEVELS = 6  # so many columns unless --levels says which
APART = 0.1  # of the seconds so far: points lie that far apart where --every is less
NOTES = [
    f"Seconds of training, without distilling, to the first point at that level or above; ± over networks; points in "
    f"seconds lie up to {APART:.0%} apart. `not by all`: some network never reached it. The best is the highest point "
    "of each curve, and so chosen on the scored images; the last is what a table may quote.",
]


class Curve(Callback):
    """Scores a network every so often during training, outside of the clock.

    Args:
        score: Its accuracy as it is now.
        every: How many seconds or epochs. Seconds grow to a tenth of those so far: a long training is not scored for
            hours.
        unit: ``'s'`` or ``'ep'``.
        on: The device of the training.
    """

    def __init__(self, score: Callable[[], float], every: float, unit: str, on: torch.device) -> None:
        self.score = score
        self.every = self.due = every
        self.unit = unit
        self.on = on
        self.points: list[dict[str, float]] = []
        self.paused = 0.0
        self.began = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        # A look at the clock without waiting for the device, which would slow the training down.
        if self.unit == "s" and time.perf_counter() - self.began - self.paused >= self.due:
            self._point(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        if self.unit == "ep" and state.timestamp.epoch.value % self.every == 0:
            self._point(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        if not self.points or self.points[-1]["batch"] < state.timestamp.batch.value:
            self._point(state)

    def _point(self, state: State) -> None:
        stopped = now(self.on)
        seconds = stopped - self.began - self.paused
        self.points.append({"seconds": seconds, "batch": state.timestamp.batch.value, "accuracy": self.score()})
        self.due = seconds + max(self.every, APART * seconds)
        self.paused += now(self.on) - stopped


def train_with_curve(
    bench: Bench, card: Card, images: Images, settings: TrainSettings, seed: int, every: tuple[float, str]
) -> list[dict[str, float]]:
    """Trains a fresh network as retrain() does.

    Returns:
        Points of the curve: ``seconds``, ``batch`` and ``accuracy``, the last at the end.
    """
    with forked_streams(seed):
        network = bench.build()

    def score() -> float:
        training = network.training
        found = accuracy(network, bench.test, card.normalization)
        network.train(training)
        return found

    pixels, size = images[0].to(bench.on), settings.batch_size
    loader = DeviceLoader(pixels, images[1], card.normalization, batch_size=size, seed=seed, device=bench.on)
    curve = Curve(score, *every, bench.on)
    train_network(
        network, loader, len(card.classes), settings, seed=seed, device=bench.recipe.device, callbacks=[curve]
    )
    return curve.points


def work(bench: Bench, options: Namespace) -> None:
    """All trainings, seed after seed, as far as the time goes."""
    beton = bench.recipe.beton
    if not beton.is_file():
        raise InputError(f"there is no file '{beton}'; distill it first, or name another with -- file=...")
    card = read_card(beton)
    for pool, name in ((bench.train, "real"), (bench.test, "test")):
        fitting_pool(pool, name, beton, card)
    shipped = read_beton(beton)
    sides: list[tuple[str, list[int], Callable[[int], Images]]] = []
    retrain = bench.recipe.retrain
    lengths = options.epochs or [retrain.epochs or -(-(retrain.training(card.images).passes or 0) // card.images)]
    sides.append((DISTILLED, lengths, lambda seed: shipped))
    per_class = (
        [card.images_per_class] if card.factor == 1 else [card.images_per_class, card.images // len(card.classes)]
    )
    for name, size in zip(RANDOM, per_class, strict=False):
        random_images(bench.train, size, 0)  # found out now if there are too few
        sides.append((name, lengths, functools.partial(random_images, bench.train, size)))
    full = options.full_epochs or [bench.recipe.retrain.full_epochs]
    sides.append((FULL, [n for n in full if n], lambda seed: (bench.train.images, bench.train.labels)))
    wanted: list[tuple[Row, Callable[[int], Images], TrainSettings]] = []
    for name, epochs, images in sides:
        for length in epochs:
            how = replace(retrain, passes=None, epochs=length, full_epochs=length)
            count = len(images(bench.seeds[0])[1])
            settings = how.full_training(count) if name == FULL else how.training(count)
            depends = {"file": card.sha256, "retrain": asdict(settings), "every": options.every}
            title = f"curve-{name.replace(',', '').replace(' ', '-')}-{length}ep"
            wanted.append((bench.row(title, depends, kind="curve", side=name, epochs=length), images, settings))
    if any(row.missing("networks", bench.seeds) for row, _, _ in wanted):
        # The first Trainer of a process is slower than the others.
        train_with_curve(bench, card, shipped, TrainSettings(epochs=1), bench.seeds[0], options.every)
    for seed in bench.seeds:
        for row, images, settings in wanted:
            if not row.missing("networks", [seed]):
                continue
            data = images(seed)
            row.content["images"] = len(data[1])
            points = train_with_curve(bench, card, data, settings, seed, options.every)
            last = {"accuracy": points[-1]["accuracy"], "seconds": points[-1]["seconds"]}
            bench.note(row, "networks", {"seed": seed, **last, "curve": points})


def reached(row: dict[str, Any], level: float) -> dict[int, float]:
    """Seconds after which a row's networks were first found at ``level`` per cent or above, by seed."""
    found = {}
    for entry in row["networks"]:
        seconds = [point["seconds"] for point in entry["curve"] if 100 * point["accuracy"] >= level]
        if seconds:
            found[entry["seed"]] = seconds[0]
    return found


def usual_levels(rows: Sequence[dict[str, Any]]) -> list[float]:
    """The highest few multiples of 5 % that some row's networks all reach."""
    everyone = [level for level in range(5, 101, 5) if any(_by_all(row, level) for row in rows)]
    return [float(level) for level in everyone[-LEVELS:]]


def _by_all(row: dict[str, Any], level: float) -> dict[int, float] | None:
    found = reached(row, level)
    return found if len(found) == len(row["networks"]) else None


def table(folder: Path, levels: Sequence[float] | None = None) -> str:
    """The Markdown table of a folder's rows, and what the distilled file gains on the other sides."""
    rows = [row for row in read_rows(folder) if row["kind"] == "curve" and row.get("networks")]
    order = [DISTILLED, *RANDOM, FULL]
    rows.sort(key=lambda row: (row["data"], order.index(row["side"]), row["epochs"]))
    if not rows:
        return "no network is trained yet"
    levels = levels or usual_levels(rows)
    head = ["data", "trained on", "images", "epochs", "last %", "best %", "seconds in all"]
    head += [f"seconds to {level:g} %" for level in levels]
    lines = []
    for row in rows:
        best = [100 * max(point["accuracy"] for point in entry["curve"]) for entry in row["networks"]]
        spent = [entry["seconds"] for entry in row["networks"]]
        cells = [row["data"], row["side"], f"{row['images']:,}", row["epochs"], percent(row), spread(best)]
        cells += [spread(spent, ".2f"), *(_seconds(row, level) for level in levels)]
        lines.append(cells)
    return markdown(head, lines, [*gains(rows, levels), *NOTES, *provenance(rows)])


def _seconds(row: dict[str, Any], level: float) -> str:
    found = reached(row, level)
    if not found:
        return "—"
    return spread(list(found.values()), ".2f") if len(found) == len(row["networks"]) else "not by all"


def gains(rows: Sequence[dict[str, Any]], levels: Sequence[float]) -> list[str]:
    """Ratios of seconds to the distilled file's, seed by seed, each side at the length that is quickest there."""
    lines = []
    for data in sorted({row["data"] for row in rows}):
        for level in levels:
            quickest: dict[str, tuple[dict[str, Any], dict[int, float]]] = {}
            for row in rows:
                found = _by_all(row, level) if row["data"] == data else None
                side = row["side"]
                if found and (side not in quickest or mean(found.values()) < mean(quickest[side][1].values())):
                    quickest[side] = (row, found)
            ours = quickest.pop(DISTILLED, None)
            for side, (row, theirs) in quickest.items() if ours else ():
                ratios = [theirs[seed] / ours[1][seed] for seed in sorted({*theirs} & {*ours[1]})]
                if ratios:
                    lines.append(
                        f"{data}, to {level:g} %: {side} ({row['epochs']} epochs) takes {_ratio(ratios)} as long as "
                        f"distilled ({ours[0]['epochs']} epochs)."
                    )
    return [*lines, ""] if lines else []


def _ratio(ratios: list[float]) -> str:
    if len(ratios) == 1:
        return f"{ratios[0]:.1f} × (1 seed)"
    found = quartiles(ratios)
    return f"{found['median']:.1f} × (middle half {found['low']:.1f} .. {found['high']:.1f}, {len(ratios)} seeds)"


def interval(text: str) -> tuple[float, str]:
    """An argument of ``--every``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)s|(\d+)ep", text)
    number = float(found[1] or found[2]) if found else 0.0
    if not found or number <= 0:
        raise ArgumentTypeError(f"'{text}' is no interval; wanted seconds or epochs, such as 0.5s or 10ep")
    return number, "s" if found[1] else "ep"


class CurveParser(Parser):
    """Takes a ``.beton`` in place of the recipe, too: its card then gives the network."""

    levels: list[float] | None = None

    def read(self, arguments: Sequence[str] | None) -> tuple[Namespace, list[str]]:
        options, overrides = super().read(arguments)
        for name in ("epochs", "full_epochs"):
            if min(getattr(options, name) or [1]) < 1:
                self.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; wanted at least 1")
        self.levels = options.levels
        if options.recipe and options.recipe.endswith(".beton"):
            named = []
            if not any(override.startswith("network.") for override in overrides):
                try:
                    network = read_card(options.recipe).network
                    given = {"name": recorded_factory(network), **(network.get("arguments") or {})}
                except InputError as error:
                    self.error(" ".join(str(error).split()))
                named = [f"network.{key}={json.dumps(value)}" for key, value in given.items()]
            overrides = [f"file={options.recipe}", *named, *overrides]
            options.recipe = None
        return options, overrides


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CurveParser(__doc__, "outputs/retrain_curve")
    parser.add_argument(
        "--every", type=interval, default=(1.0, "s"), metavar="T", help="between points: 0.5s, 10ep (default 1s)"
    )
    parser.add_argument("--epochs", type=int, nargs="+", metavar="N", help="on few images (default: retrain.epochs)")
    parser.add_argument("--full-epochs", type=int, nargs="+", metavar="N", help="(default: retrain.full_epochs)")
    parser.add_argument("--levels", type=float, nargs="+", metavar="X", help="in %% (default: the last ones reached)")
    return run(parser, arguments, work, lambda folder: table(folder, parser.levels))


if __name__ == "__main__":
    sys.exit(main())
