"""Accuracy against the seconds of distilling: the published loop and the engine, from the same trajectory and images.

    python -m benchmarks.time_to_accuracy recipes/fashion_mnist_cpu.yaml --steps 100 400 -- data.root=/data
    python -m benchmarks.time_to_accuracy --table          # prints the table of what is there

The published loop runs once and leaves its images at the given steps; the engine, whose rate falls over the steps, runs
once for each number of them. The machine should have nothing else to do. Networks are then trained on each. Seconds
run from the call: the engine's contain setting up its Trainer and, where it does, compiling. A loop is not taken up
half-way; what it left, and each trained network, is.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
from composer import Callback, Logger, State

from benchmarks.harness import Bench, run
from benchmarks.published_loop import PublishedLoop
from benchmarks.results import Parser, markdown, percent, provenance, read_rows
from tgdd_plugin import DistillSettings, InputError, distill
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.distillation.settings import Source
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.trajectory.store import Trajectory

SOURCES: tuple[Source, ...] = get_args(Source)


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


def published(bench: Bench, settings: DistillSettings, trajectory: Trajectory, snapshots: Snapshots) -> None:
    """Runs the published loop as far as the last snapshot."""
    mean, std = bench.normalization.mean, bench.normalization.std
    loop = PublishedLoop(trajectory, bench.train, settings, bench.build, mean, std, bench.on)
    for step in range(1, max(snapshots.steps) + 1):
        loop.step()
        snapshots.keep(step, loop.synthetic)


def engine(bench: Bench, settings: DistillSettings, trajectory: Trajectory, snapshots: Snapshots) -> None:
    """Runs the engine."""
    file = snapshots.folder / "last.beton"
    file.unlink(missing_ok=True)  # finished, it would not be made again
    distill(
        trajectory,
        bench.train if settings.source == "sampled" else None,
        file,
        settings,
        network=bench.build,
        device=bench.recipe.device,
        callbacks=[snapshots],
        progress_bar=False,
        image_interval=0,
    )


Loop = Callable[[Bench, DistillSettings, Trajectory, Snapshots], None]


def jobs(
    recipe: Recipe, sources: Sequence[Source], steps: Sequence[int], images: int
) -> Iterator[tuple[str, Loop, DistillSettings, Sequence[int]]]:
    """Each call of a loop: its name, itself, its settings, and the steps whose images it leaves.

    The published loop is as published: any images to start from, one rate, 128 real images of each class at a step, or
    as many as there are (``images``). The engine's rate may depend on the number of steps, so that each number is a
    call of its own.
    """
    real = min(DistillSettings.real_per_class, images)
    given = replace(recipe.distill, source="sampled", start="mix", schedule="constant", learning_rate=None)
    yield "published loop", published, replace(given, real_per_class=real, steps=max(steps)), steps
    for source in sources:
        for step in steps:
            yield f"engine, {source}", engine, replace(recipe.distill, source=source, steps=step), [step]


def work(bench: Bench, options: Namespace) -> None:
    """Runs the loops one after another, then scores what they left."""
    recipe = bench.recipe
    if recipe.extra_networks:
        raise InputError("extra_networks has no place here: the published loop knows one network only")
    trajectory = bench.record(recipe.record, recipe.record.runs)
    left = []
    for name, run_loop, given, steps in jobs(recipe, options.sources, options.steps, int(bench.train.counts.min())):
        settings = bench.resolved(given, recipe.record.runs)
        short = name.replace(", ", "-")
        folder = bench.output / "work" / (f"{short}-{steps[0]}" if run_loop is engine else short)
        left += [(name, step, settings, folder / f"{step}.safetensors", f"{short}-{step}") for step in steps]
        if not all((folder / f"{step}.safetensors").is_file() for step in steps):
            run_loop(bench, settings, trajectory, Snapshots(folder, steps))
    retrain = bench.retraining(recipe.distill)
    for name, step, settings, path, title in left:
        with safetensors.safe_open(path, "pt") as file:
            data = file.get_tensor("images"), file.get_tensor("labels")
            spent = float(file.metadata()["seconds"])
        about = {"loop": name, "step": step, "distilling": spent}
        row = bench.row(title, {"distill": str(settings)}, kind="time", **about)
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
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="of the engine (default: all)")
    return run(parser, arguments, work, table)


if __name__ == "__main__":
    sys.exit(main())
