"""What other libraries' runners measured: a file for each run, and the table of them beside this package's figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.results import markdown, read_rows, spread
from tgdd_plugin.core.atomic_files import write_whole
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
