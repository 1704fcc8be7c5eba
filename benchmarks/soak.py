"""Does anything grow while a long training is recorded, or while distilling and training are repeated?

A plain loop of 5,000 steps records 3,000 stages (all of which are kept), then a small trajectory is distilled and
trained on again and again in the same process. Looked at are this process' memory, open files, threads and children,
after a first part in which everything is loaded and at the end, and the time of the last stages beside that of the
first.

    OMP_NUM_THREADS=1 python -m benchmarks.soak
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.machine import describe_machine
from benchmarks.small_jobs import CLASSES, MEAN, STD, loader, quiet, sets, small_network
from tgdd_plugin import (
    DistillSettings,
    RetrainSettings,
    Trajectory,
    TrajectoryRecorder,
    describe_run,
    distill,
    retrain,
)
from tgdd_plugin.core.tables import markdown_table
from tgdd_plugin.data.image_pool import ImagePool

Use = dict[str, float]


def use() -> Use:
    """This process' memory in MiB, and its numbers of open files, threads and children."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return {
        "memory, MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": sum(map(len, children)),
    }


def record(folder: Path, steps: int, stages: int) -> tuple[list[float], Use, Use]:
    """Records a plain loop.

    Returns:
        The seconds of each stage, and the use of the process after a tenth of the steps and at the end.
    """
    network, batches = small_network(), list(loader())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    recorder = TrajectoryRecorder(folder, exemplars=4)
    recorder.start(describe_run("run", network, CLASSES, mean=MEAN, std=STD, augmentation="none"), network)
    seconds: list[float] = []
    early = use()
    for step in range(1, steps + 1):
        images, labels = batches[step % len(batches)]
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.batch(images, labels, {"loss": loss})
        if step * stages // steps > (step - 1) * stages // steps:
            start = time.perf_counter()
            recorder.stage(step * 3 // steps)
            seconds.append(time.perf_counter() - start)
        if step == max(1, steps // 10):
            early = use()
    late = use()
    recorder.finish()
    return seconds, early, late


def repeat(work: Callable[[int], Any], times: int) -> tuple[Use, Use]:
    """The use of the process after a third of the repetitions of ``work`` and after all."""
    early = use()
    for number in range(times):
        work(number)
        if number == times // 3:
            early = use()
    return early, use()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="(default 5000)")
    parser.add_argument("--stages", type=int, default=3000, help="(default 3000)")
    parser.add_argument("--repeats", type=int, default=30, help="of distilling and of retraining (default 30)")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    options = parser.parse_args(arguments)
    quiet()
    real, test = (ImagePool.from_dataset(each) for each in sets())
    training = RetrainSettings(epochs=1, seeds=1, full_epochs=0, augmentation="none")
    settings = DistillSettings(images_per_class=1, factor=1, steps=3, augmentation="none", source="recorded")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, *recorded = record(folder / "long", options.steps, options.stages)
        assert len(Trajectory.open(folder / "long").run.stages) == options.stages + 1
        record(folder / "short", 12, 6)

        def make(number: int) -> None:
            distill(folder / "short", None, folder / f"{number}.beton", settings, device="cpu", progress_bar=False)

        def train(number: int) -> None:
            retrain(folder / "0.beton", test, training, real=real, device="cpu", progress_bar=False)

        uses = {"recording": recorded, "distilling": repeat(make, options.repeats)}
        uses["retraining"] = repeat(train, options.repeats)
    rows = []
    for what, (early, late) in uses.items():
        rows += [
            [what, key, f"{early[key]:.1f}", f"{late[key]:.1f}", f"{late[key] - early[key]:+.1f}"] for key in early
        ]
    tenth = max(1, len(seconds) // 10)
    first, last = (1000 * median(part) for part in (seconds[:tenth], seconds[-tenth:]))
    print(f"{describe_machine('cpu', 1)}; {options.steps} steps, {options.stages} stages, {options.repeats} repeats\n")
    print(markdown_table(["while", "use", "early", "at the end", "more"], rows))
    print(f"\na stage: {first:.2f} ms at first, {last:.2f} ms at last ({last / first:.2f} times; medians of a tenth)")
    if options.json:
        options.json.write_text(json.dumps({"uses": uses, "stage seconds": seconds}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
