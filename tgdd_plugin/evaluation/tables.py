"""The tables of a comparison: the text that ``tgdd retrain`` prints, and the Markdown of ``tgdd evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from tgdd_plugin.core.tables import DrawTable, markdown_table, text_table
from tgdd_plugin.evaluation.metrics import hard_label_recovery, improvement_over_random, worth_in_random_images
from tgdd_plugin.evaluation.scorer import FULL_DATA, Row


def retrain_table(rows: Sequence[Row]) -> str:
    """Returns the rows as text: images, image passes, accuracy ± std over seeds, distance to the full data, seconds."""
    full = next((row.mean for row in rows if row.name == FULL_DATA), None)
    cells = []
    for row in rows:
        distance = None if full is None or row.name == FULL_DATA else f"{row.mean - full:+.1f}"
        cells.append([row.name, row.images, row.image_passes, row.spread, distance, f"{mean(row.seconds):.1f}"])
    return text_table(["trained on", "images", "passes", "accuracy %", "to full data", "seconds"], cells)


def evaluate_table(rows: Sequence[Row], draw: DrawTable = markdown_table) -> str:
    """Returns the rows as a table, with DD-Ranking's measures and how many random images they are worth.

    Args:
        rows: The rows.
        draw: Draws it. Default: :func:`markdown_table`.
    """
    cells = []
    for row in rows:
        measures = (hard_label_recovery(row, rows), improvement_over_random(row, rows))
        points = [None if value is None else f"{value:+.1f}" for value in measures]
        worth = worth_in_random_images(row, rows)
        about = [row.network, row.name, row.labels, row.images, row.image_passes]
        cells.append([*about, row.spread, *points, worth, f"{mean(row.seconds):.1f}"])
    headers = ["network", "trained on", "labels", "images", "passes", "accuracy %", "HLR", "IOR", "worth, images", "s"]
    return draw(headers, cells)
