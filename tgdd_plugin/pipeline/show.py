"""Descriptions of a trajectory folder and of a ``.beton``, for ``tgdd show``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tgdd_plugin.beton.card import Card, accuracy_cells, scored_network
from tgdd_plugin.core.atomic_files import check_writable
from tgdd_plugin.core.errors import printable, shown
from tgdd_plugin.core.network_record import network_in_words
from tgdd_plugin.core.tables import text_table
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory

MOST_NAMES = 20
"""The most classes, runs or metrics that are printed."""

MOST_ROWS = 5000
"""The most stages of a run that are printed: of more, the first and the last."""


def describe_beton(path: Path, card: Card) -> str:
    """Describes a ``.beton`` by its card: its images, how to use them, where they come from, and their accuracies.

    Args:
        path: The ``.beton``.
        card: Its card.

    Returns:
        The lines of the description, joined.
    """
    stages = f"{len(card.trajectory.get('stages', []))} stages"
    if (networks := len(card.trajectory.get("networks", []))) > 1:
        stages += f" of {networks} networks"
    shape = "x".join(map(str, card.shape))
    packed = f", packed: the file holds {card.images // card.parts}" if card.packed else ""
    lines = [
        f"file        {path}, {path.stat().st_size / 2**20:.1f} MiB, SHA-256 {card.sha256}",
        f"images      {card.images} of {shape}: {card.images_per_class} stored per class, factor {card.factor}{packed}",
        f"classes     {len(card.classes)}: {_names(card.classes)}",
        f"normalize   {_normalization(card.mean, card.std)}",
        f"method      {_pairs(card.method) or 'not recorded'}",
        f"network     {network_in_words(card.network)}",
        f"trajectory  {_names(card.trajectory.get('runs', [])) or 'not recorded'}: {stages}",
        f"versions    {_pairs(card.versions)}",
    ]
    lines = [printable(line) for line in lines]
    for entry in card.accuracy:
        seeds, images = shown(entry["seeds"]), f"{entry['test_images']} test images"
        lines += ["", f"accuracy    {scored_network(entry)}, seeds {seeds}, {images}", _accuracy_table(entry)]
    return "\n".join(lines)


def draw_beton(path: Path, card: Card, picture: str | Path | None) -> Path:
    """Draws the images of a ``.beton``, unless the figure that the distillation drew is there.

    Args:
        path: The ``.beton``.
        card: Its card.
        picture: Where to; ``None`` for beside it, as PNG.

    Returns:
        The picture's path.
    """
    # Reading the images takes torch and FFCV seconds to load; the words do not wait for that.
    from tgdd_plugin.beton.format import read_beton
    from tgdd_plugin.data.set_figure import draw_set, is_drawing_of

    images, labels = read_beton(path)
    where = Path(picture) if picture else path.with_suffix(".png")
    # The distillation's own, which has the images at the start beside them, is kept.
    if picture or not is_drawing_of(where, images):
        draw_set(check_writable(where), images, labels, card.classes)
    return where


def beton_content(path: Path, card: Card) -> dict[str, Any]:
    """What :func:`describe_beton` says as plain values: the card, whole, and where its file is."""
    return {"file": path, "bytes": path.stat().st_size, **asdict(card)}


def trajectory_content(trajectory: Trajectory) -> dict[str, Any]:
    """What :func:`describe_trajectory` says as plain values: the manifest of every run, whole."""
    runs = [
        {"folder": folder, **asdict(run), "bytes": _bytes_of(folder, run)} for folder, run in trajectory.runs.items()
    ]
    return {"trajectory": trajectory.folder, "runs": runs}


def _bytes_of(folder: Path, run: Run) -> int:
    return sum((folder / stage.file).stat().st_size for stage in run.stages)


def _accuracy_table(entry: dict[str, Any]) -> str:
    return text_table(["trained on", "images", "passes", "accuracy %"], accuracy_cells(entry, shown))


def describe_trajectory(trajectory: Trajectory) -> str:
    """Describes a trajectory: its networks, what they were trained on, and a table of the stages of each run.

    Args:
        trajectory: The opened trajectory.

    Returns:
        The lines of the description, joined.
    """
    run = trajectory.run
    shape = "x".join(str(int(n)) for n in run.input["shape"]) if run.input else "not recorded"
    lines = [
        f"trajectory  {trajectory.folder}",
        *(
            f"network     {network_in_words(kind.network)}, {kind.network['parameters']:,} parameters, "
            f"head {shown(kind.head)}"
            for kind in trajectory.representative_runs.values()
        ),
        f"classes     {run.num_classes}" + (f": {_names(run.classes)}" if run.classes else ""),
        f"input       {shape}, normalization {_normalization(run.mean, run.std)}",
        f"versions    {_pairs(run.versions)}",
    ]
    lines = [printable(line) for line in lines]
    for folder, run in trajectory.runs.items():
        size = _bytes_of(folder, run) / 2**20
        state = "complete" if run.complete else "not complete"
        lines += [
            "",
            f"run         {shown(run.name, 200)}: {len(run.stages)} stages, {size:.1f} MiB, {state}",
            f"statistics  {_statistics(trajectory, folder, run)}",
            *(
                f"gap         epoch {gap['epoch']}, batch {gap['batch']}: {shown(gap['reason'], 400)}"
                for gap in run.gaps
            ),
            _stage_table(run),
        ]
    return "\n".join(lines)


def _statistics(trajectory: Trajectory, folder: Path, run: Run) -> str:
    count = sum(trajectory.has_class_means(folder, stage) for stage in run.stages)
    real = f"{trajectory.exemplar_count(folder)} real images" if run.exemplars else "no real images"
    return f"class means in {count} stages; {real} kept; augmentation {shown(run.augmentation or 'not known')}"


def _names(names: list[str]) -> str:
    return ", ".join([shown(name) for name in names[:MOST_NAMES]] + ["..."] * (len(names) > MOST_NAMES))


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{shown(name)} {shown(value)}" for name, value in values.items())


def _normalization(mean: list[float] | None, std: list[float] | None) -> str:
    if mean is None or std is None:
        return "not recorded"
    return f"mean {[round(m, 4) for m in mean]}, std {[round(s, 4) for s in std]}"


def _stage_table(run: Run) -> str:
    metrics = list(dict.fromkeys(name for stage in run.stages for name in stage.metrics))[:MOST_NAMES]
    diverged = ["weights"] if any(not stage.finite for stage in run.stages) else []
    headers = ["epoch", "batch", *map(shown, metrics), *diverged]
    half = MOST_ROWS // 2
    long = len(run.stages) > MOST_ROWS
    rows: list[list[Any]] = []
    for stage in [*run.stages[:half], *run.stages[-half:]] if long else run.stages:
        values = [f"{stage.metrics[name]:.4f}" if name in stage.metrics else "-" for name in metrics]
        values += [("finite" if stage.finite else "not finite") for _ in diverged]
        rows.append([stage.epoch, stage.batch, *values])
    if long:
        rows.insert(half, ["..."] * len(headers))
    return text_table(headers, rows, align="r" * len(headers))
