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
    return None if full is None or row.labels != "hard" or row.is_full_data else full.mean - row.mean


def improvement_over_random(row: Row, rows: Sequence[Row]) -> float | None:
    """Returns IOR: the row's accuracy minus that of random images with labels of the same kind, in points.

    Returns:
        ``None`` where there is no such row, or for random images and the full data themselves.
    """
    random = _find(rows, (row.network, RANDOM[0], row.labels))
    return None if random is None or row.is_random or row.is_full_data else row.mean - random.mean


def worth_in_random_images(row: Row, rows: Sequence[Row]) -> str | None:
    """Returns how many random images give the same accuracy at as many passes, the honest compression ratio.

    Between two numbers of images it is interpolated on a logarithmic scale.

    Returns:
        The number of images, with ``<`` or ``>`` in front where only a bound is known; ``None`` for random images, the
        full data and soft labels, or where there are fewer than two rows of random images to go by.
    """
    if row.labels != "hard" or row.is_random or row.is_full_data:
        return None
    random = [one for one in rows if one.is_random and (one.network, one.labels) == (row.network, "hard")]
    # Under the paper's protocol as many images as are stored see fewer passes than the decoded ones of a factor.
    # (With a rare class a row has a few less.)
    random = [one for one in random if abs(one.image_passes - row.image_passes) <= 0.1 * row.image_passes]
    random.sort(key=lambda one: one.images)
    if len(random) < 2:
        return None
    above = next((i for i, one in enumerate(random) if one.mean >= row.mean), None)
    if above is None:
        return f"> {random[-1].images:,}"
    if above == 0:
        return f"< {random[0].images:,}"
    low, high = random[above - 1], random[above]
    share = (row.mean - low.mean) / (high.mean - low.mean)
    return f"{float(f'{low.images * (high.images / low.images) ** share:.2g}'):,.0f}"


def _find(rows: Sequence[Row], key: Key) -> Row | None:
    return next((row for row in rows if row.key == key), None)
