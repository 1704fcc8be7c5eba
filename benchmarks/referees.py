"""What other libraries' runners measured: a file for each run, and the table of them beside this package's figures."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.results import TIME_UP, markdown, read_rows, spread
from tgdd_plugin import InputError
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.differences import as_plain, first_difference
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.replay.metrics import Scores


def mammoth_forgetting(matrix: Sequence[Sequence[float]]) -> float:
    """Forgetting as Mammoth's ``utils/metrics.py`` has it: the best accuracy on a task includes the last one.

    So a task that was never better than at the end counts as 0, where :attr:`Scores.forgetting` counts what it gained.
    """
    last = matrix[-1]
    lost = [max(row[j] for row in matrix[j:]) - last[j] for j in range(len(last) - 1)]
    return sum(lost) / len(lost)


def avalanche_forgetting(matrix: Sequence[Sequence[float]]) -> float:
    """Forgetting as Avalanche's ``StreamForgetting`` has it: from the accuracy right after a task was learned."""
    return -Scores({}, [list(row) for row in matrix]).backward_transfer


DEFINITIONS = {"mammoth": mammoth_forgetting, "avalanche": avalanche_forgetting}
TOLERANCE = 0.006
"""Percentage points: what is printed with two decimals."""


def disagreement(library: str, matrix: Sequence[Sequence[float]], printed: dict[str, Any]) -> float:
    """How far what a library printed is from what the matrix gives here, in percentage points.

    Args:
        library: A key of :data:`DEFINITIONS`.
        matrix: The accuracies a_ij from 0 to 1, as in :class:`Scores`.
        printed: What the library printed, in per cent: ``seen``, the mean accuracy after each task, and ``forgetting``.
    """
    seen = Scores({}, [list(row) for row in matrix]).seen
    differences = [abs(100 * mine - theirs) for mine, theirs in zip(seen, printed["seen"], strict=True)]
    return max(*differences, abs(100 * DEFINITIONS[library](matrix) - printed["forgetting"]))


def add_options(parser: argparse.ArgumentParser, library: str, methods: Sequence[str]) -> None:
    """The options that both runners have."""
    parser.add_argument("--data", default="data", help="folder of torchvision's data sets (default data)")
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(methods), metavar="M")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="(default 0 1 2)")
    parser.add_argument("--buffer", type=int, default=100, help="images in the memory (default 100)")
    parser.add_argument("--per-class", type=int, default=1000, help="training images of each class (default 1000)")
    parser.add_argument("--epochs", type=int, default=6, help="of each task (default 6)")
    parser.add_argument("--lr", type=float, default=0.01, help="with momentum 0.9 (default 0.01)")
    parser.add_argument("--steps", type=int, default=300, help="of distilling a task (default 300)")
    parser.add_argument("--memory-epochs", type=int, default=30, help="on the memory alone (default 30)")
    parser.add_argument("--minutes", type=float, help=f"begin no run after that, and end with status {TIME_UP}")
    folder = Path("outputs") / library
    parser.add_argument("--output", type=Path, default=folder, help=f"(default {folder})")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")


def run_all(options: argparse.Namespace, prepare: Callable[[], Callable[[str, int], None]]) -> int:
    """Does the runs of all seeds and methods as far as time allows, and prints the table.

    Args:
        options: Those of :func:`add_options`.
        prepare: Makes a function that does one run, of a method and a seed, unless its file is there.

    Returns:
        The exit status.
    """
    try:
        run = prepare()
        end = time.monotonic() + 60 * (options.minutes or float("inf"))
        for seed in options.seeds:
            for method in options.methods:
                if time.monotonic() > end:
                    return TIME_UP
                run(method, seed)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(options.output))
    return 0


def save(folder: Path, about: dict[str, Any], matrix: list[list[float]], printed: dict[str, Any], spent: float) -> None:
    """Writes the file of a run, named by its method and seed."""
    content = {
        **about,
        "matrix": matrix,
        "printed": printed,
        "seconds": spent,
        "disagreement": disagreement(about["library"], matrix, printed),
        "machine": describe_machine("cpu", 1),
        "versions": installed_versions(),
    }
    write_whole(path_of(folder, about), json.dumps(content, indent=1) + "\n")


def is_done(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a run's file is there.

    Raises:
        InputError: If it is of other settings.
    """
    path = path_of(folder, about)
    if not path.is_file():
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    if other := first_difference({key: content.get(key) for key in about}, as_plain(about)):
        raise InputError(f"'{path}' is of another run ({other}). Name another folder (--output), or delete it.")
    return True


def path_of(folder: Path, about: dict[str, Any]) -> Path:
    """The file of a run."""
    return folder / f"{about['library']}-{about['data']}-{about['method']}-seed{about['seed']}.json"


def table(folder: Path) -> str:
    """The Markdown table of a folder's runs, a line for all seeds of a method."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in read_rows(folder):
        groups.setdefault((row["library"], row["data"], row["method"]), []).append(row)
    lines = []
    for key, rows in groups.items():
        scores = [Scores({}, row["matrix"]) for row in rows]
        figures = [
            [one.average_accuracy for one in scores],
            [one.average_incremental_accuracy for one in scores],
            [one.forgetting for one in scores],
        ]
        texts = [spread([100 * value for value in values]) for values in figures]
        seconds = sum(row["seconds"] for row in rows) / len(rows)
        lines.append([*key, *texts, str(rows[0]["images"]), f"{seconds:.0f}"])
    if not lines:
        return "no run is finished yet"
    rows = read_rows(folder)
    worst = max(row["disagreement"] for row in rows)
    head = ["runner", "data", "method", "average accuracy", "average incremental", "forgetting", "images", "seconds"]
    notes = [
        f"In % on test images; std over seeds, (n) where they are fewer than three. The accuracies after each task and "
        f"the forgetting that the libraries printed differ from those of tgdd_plugin.replay.metrics on the same matrix "
        f"(by the library's definition) by {worst:.3f} percentage points at most.",
        *sorted({json.dumps(row["settings"]) for row in rows}),
        *sorted({row["machine"] for row in rows}),
    ]
    return markdown(head, lines, notes)
