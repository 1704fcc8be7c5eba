"""The plots of a report, as SVG that reads on light and on dark ground."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tgdd_plugin.core.errors import printable, shown
from tgdd_plugin.core.figures import Axes, Figure, Locator, LogLocator, MaxNLocator, NullFormatter, rc_context
from tgdd_plugin.trajectory.manifest import Run

GRAY = "#808080"
"""Of words and axes: it stands out from white and from black."""

MOST_METRICS, MOST_RUNS, MOST_SERIES = 4, 10, 10
"""The most metrics, runs, and lines of a plot that are drawn."""

LONGEST_LABEL = 34
"""The most letters of a name in a legend."""

MOST_POINTS = 300
"""The most points of a line; of more, the means of as many equal parts are drawn."""

Point = tuple[int, float, float, float]
"""Image passes, seconds, accuracy in per cent, and its standard deviation in points; NaN for one network."""


def draw_training(runs: Sequence[Run]) -> str | None:
    """Draws what was noted of the training at each stage, one plot for each metric, every stage a point.

    Args:
        runs: The runs of a trajectory.

    Returns:
        SVG elements; ``None`` if no stage has a metric.
    """
    names = list(dict.fromkeys(name for run in runs for stage in run.stages for name in stage.metrics))[:MOST_METRICS]

    def draw(axes: Axes, name: str) -> None:
        for number, run in enumerate(runs[:MOST_RUNS]):
            drawn = [stage for stage in run.stages if math.isfinite(stage.metrics.get(name, math.nan))]
            batches, values = [stage.batch for stage in drawn], [stage.metrics[name] for stage in drawn]
            axes.plot(batches, values, "o-", ms=3, color=f"C{number}", label=shown(run.name, 30))
        if 1 < len(runs) <= MOST_RUNS:
            axes.legend(frameon=False, fontsize=7)

    return _small_multiples(names, "batch", draw)


def draw_log(columns: Mapping[str, Sequence[float]]) -> str | None:
    """Draws the losses of a distillation, and what else was noted at each step, one plot for each.

    Args:
        columns: The values by the names of their columns; ``step`` has the steps.

    Returns:
        SVG elements; ``None`` if there is nothing to draw.
    """
    names = [name for name in columns if name not in ("step", "seconds", "learning_rate")]
    names = [name for name in names if any(map(math.isfinite, columns[name]))][:MOST_METRICS]

    def draw(axes: Axes, name: str) -> None:
        pairs = zip(columns["step"], columns[name], strict=True)
        points = [(step, value) for step, value in pairs if math.isfinite(step) and math.isfinite(value)]
        steps, values = zip(*_thinned(points), strict=True)
        axes.plot(steps, values, "-" if len(steps) > 30 else "o-", ms=3, lw=1.2)

    return _small_multiples(names, "step", draw)


def draw_accuracies(series: Mapping[str, Sequence[Point]]) -> str | None:
    """Draws accuracy against the seconds of a training: the points of a name, with a line in the order of their passes.

    No line is drawn where two points of a name have the same number of passes, as points of several sets may.

    Returns:
        An SVG element; ``None`` if fewer than two points have a time.
    """
    timed = {name: sorted(p for p in points if p[1] > 0) for name, points in series.items()}
    if sum(map(len, timed.values())) < 2:
        return None

    def draw(axes: Axes, _: str) -> None:
        for number, (name, points) in enumerate([(n, p) for n, p in timed.items() if p][:MOST_SERIES]):
            passes, seconds, means, spreads = zip(*points, strict=True)
            errors = [0.0 if math.isnan(spread) else spread for spread in spreads]
            form = "o-" if len(set(passes)) == len(passes) > 1 else "o"
            look: dict[str, Any] = {"color": f"C{number}", "label": _label(name), "ms": 4, "lw": 1.2, "capsize": 2}
            axes.errorbar(seconds, means, errors, fmt=form, **look)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(_time_ticks([point[1] for points in timed.values() for point in points]))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("test accuracy %", fontsize=8)
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    return _small_multiples([""], "seconds of a training", draw, (5.2, 3.6))


def _label(name: str) -> str:
    """A name that fits twice side by side below a plot: sets of one job differ at the end of theirs."""
    text = printable(name)
    return text if len(text) <= LONGEST_LABEL else f"{text[:10]}…{text[11 - LONGEST_LABEL :]}"


def _time_ticks(seconds: Sequence[float]) -> Locator:
    """Ticks of a logarithmic axis, some wherever the times lie: within a decade there may be no power of ten."""
    span = max(seconds) / min(seconds)
    if span < 10:
        return MaxNLocator(7, steps=[1, 2, 5, 10])
    return LogLocator(subs=(1, 2, 5) if span < 1000 else (1,))


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    count = min(len(points), MOST_POINTS)
    bounds = [len(points) * i // count for i in range(count + 1)]
    parts = [points[i:j] for i, j in zip(bounds, bounds[1:], strict=False)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _small_multiples(
    names: Sequence[str], below: str, draw: Callable[[Axes, str], None], size: tuple[float, float] = (3.2, 2.5)
) -> str | None:
    """A plot for each name by ``draw``, each an SVG element of its own; ``None`` without names."""
    if not names:
        return None
    gray = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "tgdd", "text.parse_math": False}
    style |= {**dict.fromkeys(gray, GRAY), "xtick.labelsize": 8, "xtick.minor.size": 2, "ytick.labelsize": 8}
    # The browser has the letters that matplotlib's own font lacks.
    with warnings.catch_warnings(), rc_context(style):
        warnings.simplefilter("ignore")
        return "".join(_plot(name, below, draw, size) for name in names)


def _plot(name: str, below: str, draw: Callable[[Axes, str], None], size: tuple[float, float]) -> str:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw(axes, name)
    axes.set_xlabel(below, fontsize=8)
    axes.set_title(shown(name, 40), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
