"""What training on a tiny set costs: serving its batches, a training to its end, and several networks at once.

    python -m benchmarks.training_speed --json retrain.json                     # all parts, on one CPU thread
    python -m benchmarks.training_speed --parts training --epochs 5 --budget 900
    python -m benchmarks.training_speed --device gpu --threads 8 --epochs 50 --json retrain-gpu.json

serving: an epoch of random images from each loader, alone and inside one Composer fit() with a one-layer network.
training: a ConvNet's whole training, its loader's set-up included, augmented and mixed as retrain() does it.
seeds: several networks of one architecture, all at once against one after another (train_each).

Sides take turns within one run (benchmarks.turns). First epochs, in which FFCV compiles, stand in lines of their own.
Before a loader (benchmarks.loaders) is timed it is checked to serve the very images that were written, each as often.

Files are in the page cache; torch's loader has its images in memory. The stock ffcv.Loader sets torch's threads to its
own (--workers).
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.loaders import CLASSES, DEVICE, MEAN, OWN, STD, STOCK, Data, builders, check_same, write_images
from benchmarks.machine import quartiles
from benchmarks.results import OneLineParser
from benchmarks.turns import TURNS, Report, Seconds, take_turns, times
from tgdd_plugin import InputError
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.usage import now
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.factory import build_network
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import train_each, train_network
from tgdd_plugin.training.vectorized import PopulationLoader, vectorizing_is_faster

PARTS = ("serving", "training", "seeds")
AT_ONCE, IN_TURN = "at once", "in turn"
SET_UP, EPOCH = "set-up and first epoch", "an epoch"
FIT_SET_UP, FIT_EPOCH = "Trainer and its first epoch", "an epoch in a Trainer"
WHOLE, LATER = "loader and training in all", "an epoch after the first"
NETWORK, NETWORK_EPOCH = "a network", "an epoch of a network"
WANTED = 5.0  # times that the stock loader shall take for an epoch of COMPACT images
COMPACT = 100


class EpochEnds(Callback):
    """Notes when epochs end, in seconds from when this was made."""

    def __init__(self, on: torch.device) -> None:
        self.on = on
        self.began = now(on)
        self.ends: list[float] = []

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.ends.append(now(self.on) - self.began)

    @property
    def steady(self) -> float:
        """Seconds of an epoch after the first."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def serving(data: Data, batch_size: int, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of setting up, of an epoch alone, and of both in a Trainer."""
    on = torch_device(options.device)
    build = builders(data, batch_size, options)
    loaders: dict[str, Any] = {}
    epochs = max(1, round(options.images / len(data.labels)))  # of a turn

    def serve(name: str, count: int) -> float:
        began = now(on)
        for _ in range(count):
            for images, labels in loaders[name]:
                images.to(on, non_blocking=True), labels.to(on, non_blocking=True)
        return (now(on) - began) / count

    def set_up(name: str) -> Seconds:
        loaders.pop(name, None)
        began = now(on)
        loaders[name] = build[name]()
        serve(name, 1)
        return {SET_UP: now(on) - began}

    def fit(name: str) -> Seconds:
        network = nn.Sequential(nn.Flatten(), nn.Linear(data.images[0].numel(), CLASSES))
        settings = TrainSettings(epochs=max(3, epochs + 1), augmentation="none", cutmix=0.0)
        ends = EpochEnds(on)
        # Composer takes no loader whose workers are running.
        loader = build[name]() if isinstance(loaders[name], DataLoader) else loaders[name]
        train_network(network, loader, CLASSES, settings, device=options.device, callbacks=[ends])
        return {FIT_SET_UP: ends.ends[0], FIT_EPOCH: ends.steady}

    found = take_turns({name: functools.partial(set_up, name) for name in build}, min(3, options.pairs), options)
    for name, loader in loaders.items():
        check_same(name, loader, data)
    fit(DEVICE)  # the first Trainer of a process is slower than the others
    found |= take_turns({name: lambda n=name: {EPOCH: serve(n, epochs)} for name in build}, options.pairs, options)
    return found | take_turns({name: functools.partial(fit, name) for name in build}, options.pairs, options)


def training(data: Data, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds from before a loader is set up to a trained network, and of an epoch after the first."""
    settings = TrainSettings(epochs=options.epochs)
    build = builders(data, min(settings.batch_size, len(data.labels)), options)
    del build[OWN]
    sides = {name: functools.partial(time_training, build[name], data, settings, options) for name in build}
    return take_turns(sides, options.pairs, options)


def time_training(
    build: Callable[[], Any], data: Data, settings: TrainSettings, options: argparse.Namespace
) -> Seconds:
    """One side's turn of :func:`training`: a fresh ConvNet, and a loader that is built within the clock."""
    on = torch_device(options.device)
    torch.manual_seed(0)
    network = build_network("convnet", {"width": options.width}, data.images.shape[1:], CLASSES)
    ends = EpochEnds(on)
    train_network(network, build(), CLASSES, settings, device=options.device, callbacks=[ends])
    return {WHOLE: now(on) - ends.began, LATER: ends.steady}


class TimedLoader(DeviceLoader):
    """Notes when its epochs start."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.starts: list[float] = []

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.starts.append(now(self.device))
        return super().__iter__()


def seeds(
    name: str, size: int, count: int, options: argparse.Namespace
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Any]]:
    """Seconds for each of ``count`` networks, set-up of Trainers included, and of an epoch in the midst of training.

    Returns:
        The seconds, and how many ``epochs`` there were and what ``vectorizing_is_faster`` said each turn.
    """
    on = torch_device(options.device)
    kind, _, width = name.partition("-")
    shape = (3, options.side, options.side)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, *shape), dtype=torch.uint8, generator=generator).to(on)
    labels = torch.arange(size) % CLASSES
    said: list[bool] = []

    def fresh() -> tuple[list[nn.Module], list[TimedLoader]]:
        networks = [build_network(kind, {"width": int(width)} if width else {}, shape, CLASSES) for _ in range(count)]
        batch_size, normalization = TrainSettings.batch_size, Normalization(MEAN, STD)
        return networks, [
            TimedLoader(images, labels, normalization, batch_size=batch_size, seed=seed, device=on)
            for seed in range(count)
        ]

    def turn(at_once: bool, epochs: int) -> Seconds:
        networks, loaders = fresh()
        began = now(on)
        train_each(
            networks, loaders, CLASSES, TrainSettings(epochs=epochs), seeds=range(count), at_once=at_once,
            device=options.device,
        )  # fmt: skip
        spent = now(on) - began
        if at_once:  # what is chosen when nobody says
            networks, timed = fresh()
            said.append(vectorizing_is_faster(networks, PopulationLoader(timed)))
        between = sum((one.starts[-1] - one.starts[1]) / (epochs - 2) for one in loaders[: 1 if at_once else count])
        return {NETWORK: spent / count, NETWORK_EPOCH: between / count}

    shortest = turn(False, 3)[NETWORK] * count / 3  # seconds of an epoch of all, with set-up
    turn(True, 3)
    epochs = max(3, min(options.epochs, int(options.budget / (2 * TURNS * shortest))))
    said.clear()
    sides = {way: functools.partial(turn, way == AT_ONCE, epochs) for way in (AT_ONCE, IN_TURN)}
    return take_turns(sides, options.pairs, options), {"epochs": epochs, "pays": said}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts asked for."""
    report = Report(options)
    written = functools.cache(lambda size: write_images(folder, size, options.side))
    if "serving" in options.parts:
        for size in options.sizes:
            for batch_size in sorted({min(size, 64), min(size, 256)}):
                report.add(
                    "serving", {"images": size, "batch": batch_size}, serving(written(size), batch_size, options)
                )
    if "training" in options.parts:
        expected = 0.0  # seconds of the fewest turns
        smallest = written(options.sizes[0])
        # The first Trainer of a process is slower than the others.
        time_training(builders(smallest, 64, options)[DEVICE], smallest, TrainSettings(epochs=2), options)
        for size, following in zip(options.sizes, [*options.sizes[1:], 0], strict=True):
            if expected > options.budget:
                print(
                    f"training: from {size} images on left out; {TURNS} turns would take about {expected:.0f} s, which "
                    f"is above --budget {options.budget:.0f}",
                    file=sys.stderr,
                )
                break
            found = training(written(size), options)
            report.add("training", {"images": size, "epochs": options.epochs, "width": options.width}, found)
            whole, later = (sum(quartiles(v)["median"] for v in found[what].values()) for what in (WHOLE, LATER))
            expected = TURNS * (whole + (following / size - 1) * options.epochs * later)
    if "seeds" in options.parts:
        for name in options.networks:
            for size in options.set_sizes:
                for count in options.at_once:
                    found, more = seeds(name, size, count, options)
                    report.add("seeds", {"network": name, "images": size, "networks": count}, found, **more)
    for row in report.content["rows"]:
        if row["part"] == "serving" and row["images"] == COMPACT and row["what"] == EPOCH:
            ratio = row["ratio"][STOCK]
            verdict = "reached" if ratio["median"] >= WANTED else "missed"
            print(
                f"\n{COMPACT} images, batch size {row['batch']}: an epoch takes the {STOCK} loader {times(ratio)} as "
                f"long as the {DEVICE}; {WANTED:.0f} × is {verdict}."
            )
    return report.content


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 5_000, 50_000], metavar="N", help="images")
    parser.add_argument("--side", type=int, default=32, help="pixels (default 32)")
    parser.add_argument("--images", type=int, default=2_000, help="that a turn of serving has at least (default 2000)")
    parser.add_argument("--width", type=int, default=32, help="of the ConvNet that is trained (default 32)")
    parser.add_argument("--epochs", type=int, default=10, help="of each training, from 3 on (default 10)")
    parser.add_argument("--networks", nargs="+", default=["convnet-32", "convnet-128", "resnet10"], metavar="NAME")
    parser.add_argument("--set-sizes", type=int, nargs="+", default=[10, 100], metavar="N", help="for several seeds")
    parser.add_argument("--at-once", type=int, nargs="+", default=[3, 5], metavar="E", help="networks (default 3 5)")
    parser.add_argument("--pairs", type=int, default=12, help="most turns of each side (default 12)")
    parser.add_argument(
        "--budget", type=float, default=120, help=f"seconds for each comparison, but {TURNS} turns (default 120)"
    )
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default 1, the least disturbed)")
    parser.add_argument("--workers", type=int, help="of the stock FFCV loader (default: as many as --threads)")
    parser.add_argument("--torch-workers", type=int, nargs="*", default=[0, 2], metavar="N", help="(default: 0 2)")
    parser.add_argument("--folder", help="where to write images for the while (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    options = parser.parse_args(arguments)
    if options.device == "gpu" and not torch.cuda.is_available():
        parser.error("--device gpu: torch sees no GPU here; use --device cpu")
    options.workers = options.threads if options.workers is None else options.workers
    least = {"pairs": TURNS, "epochs": 3, "sizes": 1, "set_sizes": 1, "at_once": 2, "threads": 1, "workers": 1}
    for name, wanted in least.items():
        value = getattr(options, name)
        if min(value if isinstance(value, list) else [value]) < wanted:
            parser.error(f"--{name.replace('_', '-')} is {value}; wanted at least {wanted}")
    options.sizes = sorted(set(options.sizes))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = read_options(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            run(options, Path(folder))
    except (InputError, OSError) as error:
        print(f"training_speed: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
