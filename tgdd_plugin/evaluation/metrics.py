"""Measures of the rows of an evaluation beside their accuracy, as DD-Ranking defines them (arXiv 2505.13300)."""

from __future__ import annotations

from collections.abc import Sequence

from tgdd_plugin.evaluation.scorer import FULL_DATA, RANDOM, Key, Row


def hard_label_recovery(row: Row, rows: Sequence[Row]) -> float | None:
    """Returns HLR: the accuracy of the full data minus the row's, in points; lower is better.

    Returns:
        ``None`` for soft labels and the full data itself, or where the network was not trained on the full data.
    """
    full = _find(rows, (row.network, FULL_DATA, "hard"))
    return None if full is None or row.labels != "hard" or row.name == FULL_DATA else full.mean - row.mean


def improvement_over_random(row: Row, rows: Sequence[Row]) -> float | None:
    """Returns IOR: the row's accuracy minus that of random images with labels of the same kind, in points.

    Returns:
        ``None`` where there is no such row, or for random images and the full data themselves.
    """
    random = _find(rows, (row.network, RANDOM[0], row.labels))
    return None if random is None or row.name in (*RANDOM, FULL_DATA) else row.mean - random.mean


def _find(rows: Sequence[Row], key: Key) -> Row | None:
    return next((row for row in rows if row.key == key), None)
