"""The table and the plot of the rows that ``benchmarks/replay.py`` makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.results import markdown, provenance, read_rows, spread
from tgdd_plugin.core.figures import Figure
from tgdd_plugin.replay.metrics import Scores

METHODS = ("finetune", "joint", "random", "reservoir", "herding", "distilled", "hybrid")
LEARNER, GDUMB = "replay", "from scratch"
FIGURES = ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
PROTOCOL = "last epoch of the last task, nothing chosen on the test images; std over class orders with n - 1"


def figures(row: dict[str, Any]) -> dict[str, float]:
    """Returns a row's figures, means over its networks; a matrix of its last row alone has the first figure only."""
    tasks, found = len(row["tasks"]), []
    for entry in row.get("networks", []):
        scores = Scores({}, entry["matrix"])
        found.append(scores.figures() if len(entry["matrix"]) == tasks else {FIGURES[0]: scores.average_accuracy})
    return {name: mean(each[name] for each in found) for name in (found[0] if found else ())}


def groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Groups the rows that differ in their order alone."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=_place):
        if row.get("networks"):
            found.setdefault(_place(row)[:-1], []).append(row)
    return found


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    about = [row["data"], row["scenario"], len(row["tasks"])]
    return (*about, row["form"] == GDUMB, METHODS.index(row["method"]), row["source"], row["order"])


def table(folder: Path) -> str:
    """Returns the Markdown table of a folder's rows, with one line for all orders of a method."""
    rows = [row for row in read_rows(folder) if row["kind"] == "continual"]
    head = ["data", "new in a task", "tasks", "memory", "source", "form", *(n.replace("_", " ") for n in FIGURES)]
    head += ["images", "memory, KiB", "seconds"]
    lines = []
    for group in groups(rows).values():
        first, of_each = group[0], [figures(row) for row in group]
        numbers = [spread([100 * each[name] for each in of_each if name in each]) for name in FIGURES]
        held = [str(first["stored"]), f"{first['bytes'] / 1024:.1f}"] if first.get("stored") else ["", ""]
        spent = mean(entry["seconds"] for row in group for entry in row["networks"])
        about = [first["data"], first["scenario"], len(first["tasks"]), first["method"], first["source"], first["form"]]
        lines.append([*about, *numbers, *held, f"{spent:.0f}"])
    if not lines:
        return "no row is finished yet"
    scored = " and ".join(sorted({row["scored_on"] for row in rows}))
    notes = [
        f"Figures in % on {scored}: {PROTOCOL}; (n) where orders are fewer than three.",
        "Images as stored, in uint8. Seconds of a learner, what it keeps of each task included, or of one training.",
        plot(folder, rows),
    ]
    return markdown(head, lines, [*notes, *provenance(rows)[1:]])


def plot(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Plots accuracy against the tasks seen, and says in a line where."""
    drawn = []
    kinds = sorted({_place(row)[:3] for row in rows})
    for kind in kinds:
        figure = Figure()
        axes = figure.subplots()
        for group in groups([row for row in rows if _place(row)[:3] == kind]).values():
            first = group[0]
            several = [Scores({}, entry["matrix"]).seen for row in group for entry in row["networks"]]
            curves = 100 * torch.tensor(several)
            x = first["classes_seen"] if kind[1] == "classes" else list(range(1, kind[2] + 1))
            label = " ".join(filter(None, (first["method"], first["source"], first["form"])))
            apart = curves.std(0) if len(curves) > 1 else None  # with n - 1, as in the table
            axes.errorbar(x[-curves.shape[1] :], curves.mean(0), apart, label=label, marker="o", capsize=3)
        axes.set(xlabel=f"{kind[1]} seen", ylabel="accuracy, %", title=kind[0])
        axes.legend()
        path = folder / f"{'-'.join(map(str, kind))}.png"
        figure.savefig(path, dpi=150)
        drawn.append(str(path))
    return f"Plot: {', '.join(drawn)}"
