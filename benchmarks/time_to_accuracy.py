"""Accuracy against the seconds of distilling: the published loop and the engine, from the same trajectory and images.

    python -m benchmarks.time_to_accuracy recipes/fashion_mnist_cpu.yaml --steps 100 400 -- data.root=/data
    python -m benchmarks.time_to_accuracy --table          # prints the table of what is there

Each loop runs once, on a machine with nothing else to do, and leaves its images at the given steps; networks are then
trained on each. Seconds run from the call: the engine's contain setting up its Trainer and, where it does, compiling.
A loop is not taken up half-way; what it left, and each trained network, is.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from composer import Callback, Logger, State

from benchmarks.harness import Bench, run
from benchmarks.published_loop import PublishedLoop
from benchmarks.results import Parser, markdown, percent, provenance, read_rows
from tgdd_plugin import DistillSettings, InputError, distill
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.trajectory.store import Trajectory

ENGINE = {"engine, sampled": "sampled", "engine, recorded": "recorded"}


class Snapshots(Callback):
    """Keeps the images of some steps, as they would ship, with the seconds from when this was made.

    Args:
        folder: Where.
        steps: Which.
    """

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        self.folder = folder
        self.steps = steps
        self.began = time.perf_counter()

    def keep(self, step: int, synthetic: SyntheticImages) -> None:
        if step in self.steps:
            spent = time.perf_counter() - self.began
            images, labels = synthetic.to_uint8()
            content = {"images": images, "labels": labels}
            write_whole(self.folder / f"{step}.safetensors", safetensors.torch.save(content, {"seconds": str(spent)}))

    def batch_end(self, state: State, logger: Logger) -> None:
        model: Any = state.model
        self.keep(state.timestamp.batch.value, model.synthetic)


def distilled(bench: Bench, name: str, trajectory: Trajectory, settings: DistillSettings, steps: list[int]) -> Path:
    """The folder of a loop's images; the loop is run if any are missing."""
    folder = bench.output / "work" / name.replace(", ", "-")
    if all((folder / f"{step}.safetensors").is_file() for step in steps):
        return folder
    snapshots = Snapshots(folder, steps)
    if name in ENGINE:
        real = bench.train if settings.source == "sampled" else None
        (folder / "last.beton").unlink(missing_ok=True)  # finished, it would not be made again
        distill(
            trajectory,
            real,
            folder / "last.beton",
            settings,
            network=bench.build,
            device=bench.recipe.device,
            callbacks=[snapshots],
            progress_bar=False,
            image_interval=0,
        )
    else:
        loop = PublishedLoop(
            trajectory, bench.train, settings, bench.build, bench.normalization.mean, bench.normalization.std, bench.on
        )
        for step in range(1, max(steps) + 1):
            loop.step()
            snapshots.keep(step, loop.synthetic)
    return folder


def work(bench: Bench, options: Namespace) -> None:
    """Runs the loops one after another, then scores what they left."""
    recipe = bench.recipe
    if recipe.extra_networks:
        raise InputError("extra_networks has no place here: the published loop knows one network only")
    trajectory = bench.record(recipe.record, recipe.record.runs)
    loops = []
    for name in ("published loop", *ENGINE):
        source = ENGINE.get(name, "sampled")
        settings = bench.resolved(replace(recipe.distill, source=source, steps=max(options.steps)), recipe.record.runs)
        loops.append((name, settings, distilled(bench, name, trajectory, settings, options.steps)))
    retrain = bench.retraining(recipe.distill)
    for name, settings, folder in loops:
        for step in options.steps:
            with safetensors.safe_open(folder / f"{step}.safetensors", "pt") as file:
                data = file.get_tensor("images"), file.get_tensor("labels")
                spent = float(file.metadata()["seconds"])
            about = {"loop": name, "step": step, "distilling": spent}
            row = bench.row(f"{folder.name}-{step}", {"distill": str(settings)}, kind="time", **about)
            bench.score(row, "networks", lambda seed, data=data: data, retrain)


def table(folder: Path) -> str:
    """The Markdown table of a folder's rows."""
    rows = [row for row in read_rows(folder) if row["kind"] == "time"]
    lines = [
        [row["loop"], row["step"], f"{row['distilling']:.0f}", percent(row)]
        for row in sorted(rows, key=lambda row: (row["loop"], row["step"]))
    ]
    return markdown(["loop", "steps", "seconds", "accuracy"], lines, provenance(rows) if rows else [])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, "outputs/time_to_accuracy")
    parser.add_argument("--steps", nargs="+", type=int, default=[100, 400], metavar="N", help="(default: 100 400)")
    return run(parser, arguments, work, table)


if __name__ == "__main__":
    sys.exit(main())
