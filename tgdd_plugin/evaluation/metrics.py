"""What the rows of an evaluation say beside their accuracy: DD-Ranking's measures (arXiv 2505.13300), and a table."""

from __future__ import annotations

from collections.abc import Sequence

from tgdd_plugin.evaluation.scorer import RANDOM, Row

Key = tuple[str, str, str]
"""What a row is told from the others by: network, what it was trained on, labels."""


def key_of(row: Row) -> Key:
    """The row's :data:`Key`."""
    return row.network, row.name, row.labels


def hard_label_recovery(row: Row, rows: Sequence[Row]) -> float | None:
    """HLR: accuracy of the full data minus the row's, in points; lower is better.

    Returns:
        ``None`` for soft labels and the full data itself, or where the network was not trained on the full data.
    """
    full = _find(rows, row.network, "full data", "hard")
    return None if full is None or row.labels != "hard" or row.name == "full data" else full.mean - row.mean


def improvement_over_random(row: Row, rows: Sequence[Row]) -> float | None:
    """IOR: the row's accuracy minus that of random images with labels of the same kind, in points.

    Returns:
        ``None`` where there is no such row, or for random images and the full data themselves.
    """
    random = _find(rows, row.network, RANDOM[0], row.labels)
    return None if random is None or row.name in (*RANDOM, "full data") else row.mean - random.mean


def _find(rows: Sequence[Row], *key: str) -> Row | None:
    return next((row for row in rows if key_of(row) == key), None)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
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
