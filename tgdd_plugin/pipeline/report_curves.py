"""The curves of a report, as SVG that reads on light and on dark ground."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from tgdd_plugin.core.errors import shown
from tgdd_plugin.core.figures import Figure, rc_context
from tgdd_plugin.trajectory.manifest import Run

GRAY = "#808080"
"""Of words and axes: it stands out from white and from black."""

MOST_METRICS, MOST_RUNS = 4, 10
"""The most metrics, and runs, that are drawn."""


def draw_training(runs: Sequence[Run]) -> str | None:
    """Draws what was noted of the training at each stage, one plot for each metric, every stage a point.

    Args:
        runs: The runs of a trajectory.

    Returns:
        An SVG element; ``None`` if no stage has a metric.
    """
    names = list(dict.fromkeys(name for run in runs for stage in run.stages for name in stage.metrics))[:MOST_METRICS]
    if not names:
        return None
    gray = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "tgdd", "text.parse_math": False}
    style |= dict.fromkeys(gray, GRAY)
    with rc_context(style):
        figure = Figure(figsize=(3.4 * len(names), 2.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for number, run in enumerate(runs[:MOST_RUNS]):
                drawn = [stage for stage in run.stages if math.isfinite(stage.metrics.get(name, math.nan))]
                batches, values = [stage.batch for stage in drawn], [stage.metrics[name] for stage in drawn]
                axes.plot(batches, values, "o-", ms=3, color=f"C{number}", label=shown(run.name, 30))
            axes.set(xlabel="batch", title=shown(name, 40))
            axes.title.set_fontsize(9)
            axes.spines[["top", "right"]].set_visible(False)
            if 1 < len(runs) <= MOST_RUNS:
                axes.legend(frameon=False, fontsize=7)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
