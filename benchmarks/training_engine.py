"""What the training engine gains: each way to compute the passes beside float32 without compiling, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.training_engine
    OMP_NUM_THREADS=1 python -m benchmarks.training_engine --accuracy --data DATA

speed: whole Composer trainings of a ConvNet-3, augmentation included, as retrain() does them. The ways take turns; a
turn gives each way the median time of its batches, the first ones left out, and so a ratio to the first way. Told are
the median ratio and the middle half. float32 without compiling is what this package did before it had an engine.
accuracy: Fashion-MNIST (2,000 images of each class, width 32), float32 beside bf16 compiled, a pair for each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State
from torch import nn

from benchmarks.machine import describe_machine, quartiles
from benchmarks.results import spread
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.tables import markdown_table
from tgdd_plugin.core.usage import now
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.networks import convnet
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.training.forward_passes import Way
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import accuracy, train_network

WAYS = (Way("fp32"), Way("bf16"), Way("fp32", True), Way("bf16", True))
NETWORKS = {"width 32, 28 px, gray": (32, 1, 28), "width 128, 32 px, colour": (128, 3, 32)}
WARM_UP = 10
"""Batches at the beginning of a training that are not timed."""


class BatchTimes(Callback):
    """When each batch ended."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ends: list[float] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        self.ends.append(now(self.device))

    def median(self) -> float:
        """Seconds of a batch."""
        ends = self.ends[WARM_UP:]
        return statistics.median(later - sooner for sooner, later in zip(ends, ends[1:], strict=False))


def network(width: int, channels: int, side: int, seed: int = 0) -> nn.Module:
    with forked_streams(seed):
        return convnet(10, channels, side, width=width)


def seconds_of_a_batch(name: str, way: Way, options: argparse.Namespace) -> float:
    """Trains a fresh network for a number of batches; returns the median of their seconds."""
    width, channels, side = NETWORKS[name]
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1024, channels, side, side), dtype=torch.uint8, generator=drawn)
    labels = torch.randint(10, (1024,), generator=drawn)
    on = torch_device(options.device)
    normalization, times = Normalization([0.5] * channels, [0.25] * channels), BatchTimes(on)
    loader = DeviceLoader(images.to(on), labels, normalization, batch_size=options.batch_size, device=on)
    count = WARM_UP + options.batches
    settings = TrainSettings(passes=count * options.batch_size, precision=way.precision, compile=way.compiled)
    train_network(network(width, channels, side), loader, 10, settings, device=options.device, callbacks=[times])
    return times.median()


def speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for name in NETWORKS:
        found: dict[Way, list[float]] = {way: [] for way in WAYS}
        for turn in range(options.turns + 1):
            for way in WAYS if turn % 2 else WAYS[::-1]:
                seconds = seconds_of_a_batch(name, way, options)
                if turn:  # the first one compiles
                    found[way].append(seconds)
        for way in WAYS:
            ratios = quartiles([before / after for before, after in zip(found[WAYS[0]], found[way], strict=True)])
            rate = options.batch_size / statistics.median(found[way])
            rows.append({"network": name, "way": str(way), "images_per_second": rate, "times_as_fast": ratios})
            print(f"{name}, {way}: {rate:,.0f} images/s, {ratios['median']:.2f} times", file=sys.stderr, flush=True)
    return rows


def paired_accuracies(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The test accuracies, in per cent, of float32 not compiled and of bf16 compiled, seed by seed."""
    train, test = load_data(DataSettings(name="fashion_mnist", root=str(options.data), per_class=2000))
    normalization, on = Normalization(*train.statistics()), torch_device(options.device)
    ways = (WAYS[0], WAYS[-1])
    rows: list[dict[str, Any]] = [{"way": str(way), "accuracies": []} for way in ways]
    settings = TrainSettings(epochs=options.epochs, batch_size=options.batch_size)
    pool = train.to(on)
    for seed in range(options.seeds):
        for row, way in zip(rows, ways, strict=True):
            loader = DeviceLoader(
                pool.images, pool.labels, normalization, batch_size=settings.batch_size, seed=seed, device=on
            )
            how = replace(settings, precision=way.precision, compile=way.compiled)
            trained = train_network(network(32, 1, 28, seed), loader, 10, how, seed=seed, device=options.device)
            row["accuracies"].append(100 * accuracy(trained, test, normalization))
            print(f"{way}, seed {seed}: {row['accuracies'][-1]:.2f} %", file=sys.stderr, flush=True)
    return rows


def speed_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        ratio = row["times_as_fast"]
        words = f"{ratio['median']:.2f} ({ratio['low']:.2f} .. {ratio['high']:.2f})"
        lines.append([row["network"], row["way"], f"{row['images_per_second']:,.0f}", words])
    return markdown_table(["network", "way", "images/s", "times as fast"], lines)


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        own = row["accuracies"]
        apart = [after - before for before, after in zip(rows[0]["accuracies"], own, strict=True)]
        lines.append([row["way"], spread(own, ".2f"), spread(apart, "+.2f") if row is not rows[0] else ""])
    return markdown_table(["way", "accuracy %", "to float32, eager, paired"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", action="store_true", help="compare accuracies, not speed")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where Fashion-MNIST lies")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=30, help="timed ones of a training")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    rows = (paired_accuracies if options.accuracy else speed)(options)
    machine = describe_machine(options.device, options.threads)
    print(f"{machine}\n\n{(accuracy_table if options.accuracy else speed_table)(rows)}")
    if options.json:
        write_whole(options.json, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
