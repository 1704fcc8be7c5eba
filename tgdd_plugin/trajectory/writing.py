"""Writing a run's folder while it is recorded: its stages, its manifest, and the thinning of both."""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.core.atomic_files import sweep, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import are_finite, weights_content
from tgdd_plugin.trajectory.manifest import EXEMPLARS, MOST_STAGES, Run, Stage
from tgdd_plugin.trajectory.store import CLASS_COUNTS, CLASS_MEANS


def thin(stages: list[Stage], max_stages: int | None) -> list[Stage]:
    """Returns the stages to keep: the first, the last, and between them every 2^m-th with the smallest m that fits.

    Which those are follows from the last stage's index alone, and of a longer list only stages are kept that a shorter
    one kept too. So a run may be thinned while it goes on, on bounded disk, and a resumed run ends with the stages of
    an uninterrupted one. More than half of ``max_stages`` remain.
    """
    if max_stages is None or not stages:
        return stages
    last = stages[-1].index
    stride = 1
    while math.ceil(last / stride) + 1 > max_stages:
        stride *= 2
    return [stage for stage in stages if stage.index % stride == 0 or stage.index == last]


def add_stage(
    folder: Path,
    run: Run,
    state: dict[str, torch.Tensor],
    max_stages: int | None,
    *,
    class_means: tuple[torch.Tensor, torch.Tensor] | None = None,
    index: int | None = None,
    **when: Any,
) -> None:
    """Writes a stage file, then its line in the manifest's journal, then removes the files that thinning dropped.

    What it costs does not grow with the number of stages.

    Args:
        folder: The run's folder.
        run: Its manifest, which gets the stage.
        state: The weights by name, on any device.
        max_stages: The most stages to keep, as in :func:`thin`.
        class_means: Means ``(K, D)`` of φ(x) and counts ``(K,)`` by class, float32, since the stage before. Default:
            ``None``, the stage has none.
        index: See :class:`Stage`. Default: one more than the last stage's.
        when: ``epoch``, ``batch``, ``sample`` and ``metrics`` of the stage.

    Raises:
        InputError: If there would be more stages than a manifest can hold.
        OSError: If the folder cannot be written.
    """
    finite = are_finite(state)
    if class_means is not None:
        state = {**state, CLASS_MEANS: class_means[0], CLASS_COUNTS: class_means[1]}
    content = weights_content(state)
    name = f"stage-ep{when['epoch']}-ba{when['batch']}.safetensors"
    if index is None:
        index = run.stages[-1].index + 1 if run.stages else 0
    before = run.stages
    checksum = hashlib.sha256(content).hexdigest()
    stages = [*before, Stage(file=name, index=index, sha256=checksum, finite=finite, **when)]
    thinned = thin(stages, max_stages)
    if len(thinned) > MOST_STAGES:
        raise InputError(
            f"`max_stages` must be at most {MOST_STAGES} where more are due, got {max_stages}. Give a lower one or a "
            f"longer interval; what is recorded so far can be used."
        )
    write_whole(folder / name, content, swept=True)  # as the run began
    run.stages = thinned
    dropped: list[str] = []
    if run.stages is not stages:
        kept = {stage.file for stage in run.stages}
        dropped = [stage.file for stage in stages if stage.file not in kept]
    try:
        run.write_stage(folder, dropped)
    except BaseException:
        run.stages = before  # as the manifest on disk has them
        raise
    for file in dropped:
        with suppress(OSError):  # what is left over is removed when the run starts or goes on
            (folder / file).unlink(missing_ok=True)


def write_manifest_and_prune(folder: Path, run: Run) -> None:
    """Writes the manifest of a run that starts or goes on, and removes all files of a recording that it does not name.

    Those come from the future of a crashed run, which will write them again, or from a crash while writing.
    """
    run.write(folder, ongoing=True)
    named = {stage.file for stage in run.stages} | ({EXEMPLARS} if run.exemplars else set())
    for path in [*folder.glob("stage-*.safetensors"), folder / EXEMPLARS]:
        if path.name not in named:
            path.unlink(missing_ok=True)
    sweep(folder)
