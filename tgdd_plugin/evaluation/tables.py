"""The tables of a comparison: the text that ``tgdd retrain`` prints, and the Markdown of ``tgdd evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tgdd_plugin.evaluation.metrics import hard_label_recovery, improvement_over_random
from tgdd_plugin.evaluation.scorer import FULL_DATA, Row


def text_table(rows: Sequence[Row]) -> str:
    """Returns the rows as text: images, epochs, accuracy ± std over seeds, distance to the full data, seconds."""
    full = next((row.mean for row in rows if row.name == FULL_DATA), None)
    head = ["trained on", "images", "epochs", "accuracy %", "to full data", "seconds"]
    cells = [head]
    for row in rows:
        gap = "" if full is None or row.name == FULL_DATA else f"{row.mean - full:+.1f}"
        seconds = f"{np.mean(row.seconds):.1f}"
        cells.append([row.name, str(row.images), str(row.epochs), row.spread, gap, seconds])
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in cells]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table, with DD-Ranking's measures."""
    lines = [
        "| network | trained on | labels | images | accuracy % | HLR | IOR | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        measures = (hard_label_recovery(row, rows), improvement_over_random(row, rows))
        points = ["" if value is None else f"{value:+.1f}" for value in measures]
        seconds = f"{sum(row.seconds) / len(row.seconds):.1f}"
        cells = [row.network, row.name, row.labels, str(row.images), row.spread, *points, seconds]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
