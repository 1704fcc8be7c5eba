"""Figures of benchmarks, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tgdd_plugin.core.figures import Figure, rc_context
from tgdd_plugin.evaluation.scorer import Row

REAL = {"all images": ("black", "--"), "random": ("0.55", "-"), "herding": ("0.55", ":")}
"""Colour and line of what stands beside the sets."""


def draw_accuracies(path: Path, rows: Sequence[Row], stored: Mapping[str, int], title: str) -> None:
    """Draws accuracy against image passes: the sets in colour, real images of the same numbers in gray, all in black.

    Args:
        path: The SVG to write.
        rows: The rows of all budgets.
        stored: The images of each class that each set stores, by the set's name.
        title: The title of the figure.
    """
    with rc_context({"svg.hashsalt": "tgdd", "svg.fonttype": "none"}):  # the same rows give the same bytes
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        numbers = {f"{kind}, {count} of each class" for count in stored.values() for kind in ("random", "herding")}
        for name in dict.fromkeys(row.name for row in rows):
            if name not in stored and name not in numbers and name != "all images":
                continue
            own = sorted((row for row in rows if row.name == name), key=lambda row: row.passes)
            colour, line = REAL.get(name.partition(",")[0], (None, "-"))
            axes.errorbar(
                [row.passes for row in own],
                [row.mean for row in own],
                [row.std for row in own],
                label=name,
                color=colour,
                linestyle=line,
                marker="o" if name in stored else None,
                capsize=2,
                linewidth=2 if name in stored else 1.2,
            )
        axes.set_xscale("log")
        budgets = sorted({row.passes for row in rows})
        axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axes.minorticks_off()
        axes.set(title=title, xlabel="image passes (images × epochs)", ylabel="test accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
        figure.savefig(path, metadata={"Date": None})
