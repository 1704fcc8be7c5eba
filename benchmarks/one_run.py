"""What someone gets who trained once: distilled from one run, beside several, fewer stages, and cheap remedies.

    python -m benchmarks.one_run recipes/fashion_mnist_cpu.yaml --runs 1 2 3 -- data.holdout=0.1 data.root=/data
    python -m benchmarks.one_run recipes/fashion_mnist_cpu.yaml --runs 1 3 --first 0 1 --stages every2 half last3 \\
        --interval 50ba --short 2 --midpoints --minutes 9          # stops in time; the same command goes on
    python -m benchmarks.one_run --table                           # prints the table of what is there

Each row is one distillation, with the recipe's settings, and the networks trained on it. Its ± is over those networks
and not over runs: --first 0 1 2 makes the rows again from other runs, which shows how far single runs differ.

--stages, --interval, --short and --midpoints apply to one run:
    everyN: every N-th stage and the last; half: those of the first half; firstN, lastN: so many.
    --interval: recorded anew with a stage so often. --short: with a second run of so few epochs.
    --midpoints: between every two stages one more, whose weights are their mean (source sampled; no such network was
    trained, so no class means were recorded for it).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Bench, run
from benchmarks.results import SECONDS, Parser, markdown, percent, provenance, read_rows, seconds, seconds_of
from tgdd_plugin import InputError
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.manifest import Stage
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.writing import add_stage, write_manifest_and_prune

ABOUT = ("first", "runs", "stages", "remedy")


class Case(NamedTuple):
    """What is distilled from.

    Attributes:
        name: Of the row, without the source.
        first: Number of the first run.
        runs: How many.
        stages: Which, of each run.
        remedy: In words.
        open: The trajectory, recorded now unless it is there; given a folder to write in.
        sources: That it can be distilled with.
    """

    name: str
    first: int
    runs: int
    stages: str
    remedy: str
    open: Callable[[Path], Trajectory]
    sources: tuple[str, ...] = ("sampled", "recorded")


def pick(stages: list[Stage], which: str) -> list[Stage]:
    """Some of a run's stages: ``all``, ``half``, ``everyN``, ``firstN`` or ``lastN``."""
    number = int(re.sub(r"\D", "", which) or 0)
    if which == "half":
        return stages[: (len(stages) + 1) // 2]
    if which.startswith("first"):
        return stages[:number]
    if which.startswith("last"):
        return stages[-number:]
    step = number if which.startswith("every") else 1
    last = len(stages) - 1
    return [stage for position, stage in enumerate(stages) if position % step == 0 or position == last]


def thinned(trajectory: Trajectory, which: str) -> Trajectory:
    """A view of a trajectory with some of its stages.

    Raises:
        InputError: If fewer than two remain.
    """
    runs = {path: replace(run, stages=pick(run.stages, which)) for path, run in trajectory.runs.items()}
    for path, found in runs.items():
        if len(found.stages) < 2:
            raise InputError(f"stages '{which}' leave {len(found.stages)} of '{path}'; TGDD needs at least 2")
    return Trajectory(trajectory.folder, runs)


def with_midpoints(trajectory: Trajectory, folder: Path) -> Trajectory:
    """The trajectory with the mean of every two neighbouring stages between them, written into ``folder``."""
    runs = {}
    for path, recorded in trajectory.runs.items():
        made = replace(recorded, stages=[], exemplars=None)
        target = folder / path.name
        write_manifest_and_prune(target, made)
        for earlier, later in zip([None, *recorded.stages], recorded.stages, strict=False):
            weights = trajectory.load(path, later)
            if earlier is not None:
                if later.batch - earlier.batch < 2:
                    raise InputError(f"stages of '{path}' are one batch apart; --midpoints wants at least two")
                mean = {
                    name: (tensor + weights[name]) / 2 if tensor.is_floating_point() else tensor
                    for name, tensor in trajectory.load(path, earlier).items()
                }
                between = {name: (getattr(earlier, name) + getattr(later, name)) // 2 for name in ("batch", "sample")}
                add_stage(target, made, mean, None, epoch=earlier.epoch, **between)
            add_stage(target, made, weights, None, epoch=later.epoch, batch=later.batch, sample=later.sample)
        spent = seconds(path.with_suffix(".seconds"))
        write_whole(target.with_suffix(".seconds"), str(spent or 0.0))
        runs[target] = made
    return Trajectory(folder, runs)


def cases(bench: Bench, options: argparse.Namespace) -> Iterator[Case]:
    """All that is asked for."""
    record = bench.recipe.record

    def recorded(settings: RecordSettings, count: int, first: int, which: str = "all") -> Callable[[Path], Trajectory]:
        return lambda _: thinned(bench.record(settings, count, first), which)

    def with_short(short: RecordSettings, first: int) -> Callable[[Path], Trajectory]:
        def opened(_: Path) -> Trajectory:
            whole = bench.record(record, 1, first)
            return Trajectory(whole.folder, whole.runs | bench.record(short, 1, first + 1).runs)

        return opened

    def averaged(first: int) -> Callable[[Path], Trajectory]:
        return lambda folder: with_midpoints(bench.record(record, 1, first), folder / "midpoints")

    for first in options.first:
        end = f"-from{first}" if first else ""
        for count in options.runs:
            yield Case(f"runs{count}{end}", first, count, "all", "", recorded(record, count, first))
        for which in options.stages:
            yield Case(f"runs1-{which}{end}", first, 1, which, "", recorded(record, 1, first, which))
        for interval in options.interval:
            often = recorded(replace(record, interval=interval), 1, first)
            yield Case(f"runs1-{interval}{end}", first, 1, "all", f"a stage each {interval}", often)
        for epochs in options.short:
            remedy, both = f"+ a run of {epochs} epoch(s)", with_short(replace(record, epochs=epochs), first)
            yield Case(f"runs1-short{epochs}{end}", first, 2, "all", remedy, both)
        if options.midpoints:
            yield Case(f"runs1-midpoints{end}", first, 1, "all", "+ midpoints", averaged(first), ("sampled",))


def work(bench: Bench, options: argparse.Namespace) -> None:
    """All rows of the command, as far as the time goes."""
    recipe = bench.recipe
    retrain = bench.retraining(recipe.distill)
    wanted = []  # all settings are checked before any work
    for case in cases(bench, options):
        of_case = {**asdict(replace(recipe.record, runs=case.runs)), **dict(zip(ABOUT, case[1:5], strict=True))}
        for source in options.source:
            if source in case.sources:
                settings = bench.resolved(replace(recipe.distill, source=source), case.runs)
                depends = {"record": of_case, "distill": asdict(settings), "retrain": asdict(retrain)}
                wanted.append((case, settings, depends))
    for case, settings, depends in wanted:
        about = {**dict(zip(ABOUT, case[1:5], strict=True)), "source": settings.source}
        row = bench.row(f"{case.name}-{settings.source}", depends, kind="one run", **about)
        if not row.missing("networks", bench.seeds):
            continue
        trajectory = case.open(row.work)
        row.content["stages_used"] = sum(len(run.stages) for run in trajectory.runs.values())
        images = bench.distill(row, trajectory, settings)
        bench.score(row, "networks", lambda seed, images=images: images, retrain)
    bench.baselines([bench.sized(recipe.distill).images_per_class])


def table(folder: Path) -> str:
    """The Markdown table of a folder's rows, in the order of the source, the first run and the number of runs."""
    rows = read_rows(folder)
    head = ["data", "source", "runs", "first run", "stages of each", "remedy", "stages in all", "distilled", SECONDS]
    lines = []
    chosen = [row for row in rows if row["kind"] == "one run"]
    chosen.sort(key=lambda row: [row["data"], row["source"] != "sampled", *(row[name] for name in ABOUT)])
    for row in chosen:
        given = [row[name] for name in ("data", "source", "runs", "first", "stages", "remedy", "stages_used")]
        lines.append([*given, percent(row), seconds_of(row)])
    for row in rows:
        if row["kind"] in ("random", "full"):
            lines.append(
                [row["data"], row["name"].removeprefix(f"{row['data']}-"), "", "", "", "", "", percent(row), ""]
            )
    return markdown(head, lines, provenance(rows))


def stages_name(text: str) -> str:
    """An argument of ``--stages``."""
    if not re.fullmatch(r"half|(every|first|last)([2-9]|[1-9]\d+)", text):
        raise argparse.ArgumentTypeError(f"'{text}' names no stages; wanted half, everyN, firstN or lastN, N from 2 on")
    return text


def run_number(text: str) -> int:
    """An argument of ``--first``."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no number of a run; wanted 0, 1, 2, ...")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, "outputs/one_run")
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 2, 3], metavar="R", help="(default 1 2 3)")
    parser.add_argument("--first", nargs="+", type=run_number, default=[0], metavar="I", help="run to begin with (0)")
    parser.add_argument("--stages", nargs="+", type=stages_name, default=[], metavar="S", help="such as every2 last3")
    parser.add_argument("--interval", nargs="+", default=[], metavar="T", help="record anew, such as 50ba")
    parser.add_argument("--short", nargs="+", type=int, default=[], metavar="EPOCHS", help="with a second, short run")
    parser.add_argument("--midpoints", action="store_true", help="with the means of neighbouring stages")
    return run(parser, arguments, work, table)


if __name__ == "__main__":
    sys.exit(main())
