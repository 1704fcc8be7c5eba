"""What a recorded run lacks: its end, or stages that could not be recorded, or finite weights; said in words."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from tgdd_plugin.core.errors import InputError, printable
from tgdd_plugin.core.ranks import rank
from tgdd_plugin.core.weights import are_finite
from tgdd_plugin.trajectory.manifest import Run, Stage
from tgdd_plugin.trajectory.store import Trajectory

NAMED = 3
"""The most runs that a warning names."""


def diverged(run: Run, stages: list[Stage] | None = None) -> str:
    """Says where a training diverged, and which of its stages are not finite.

    Args:
        run: The run.
        stages: Its stages that are not finite, at least one. Default: ``None``, as its manifest has them.
    """
    stages = [stage for stage in run.stages if not stage.finite] if stages is None else stages
    first = stages[0]
    which = f"from batch {first.batch} on"
    if any(stage.batch > first.batch and stage not in stages for stage in run.stages):  # it was set right again
        which = f"at batch {', '.join(str(stage.batch) for stage in stages[:10])}{', ...' if len(stages) > 10 else ''}"
    return (
        f"the training diverged at epoch {first.epoch} (run '{run.name}'): its stages {which} hold values that are not "
        f"finite"
    )


def check_left(run: Run, stages: list[Stage]) -> None:
    """Checks that enough stages of a run are left without some that are not finite.

    Raises:
        InputError: If there are fewer than two.
    """
    if stages and (left := len(run.stages) - len(stages)) < 2:
        raise InputError(
            f"The training of run '{run.name}' diverged at epoch {stages[0].epoch}: {left} of its {len(run.stages)} "
            f"stages hold(s) finite values only, and TGDD needs at least 2. Train it again at a lower learning rate, "
            f"or record stages more often before that."
        )


def warn_of_diverged(found: list[tuple[Run, list[Stage]]]) -> None:
    """Warns, once for all runs, of stages that are left out, on rank 0.

    Args:
        found: The runs with stages that are not finite, and those stages.
    """
    if found and rank() == 0:
        told = [f"{diverged(run, stages)} and are left out" for run, stages in found]
        warnings.warn(printable(_joined(told)), stacklevel=3)


def last_finite(trajectory: Trajectory, folder: Path) -> tuple[Stage, dict[str, torch.Tensor]]:
    """Returns the last stage of a run whose weights are finite, and its weights by name, on the CPU.

    Raises:
        InputError: If there is none, or a file cannot be read.
    """
    run = trajectory.runs[folder]
    for stage in reversed(run.stages):
        if stage.finite and are_finite(weights := trajectory.load(folder, stage)):
            return stage, weights
    raise InputError(
        f"The weights of run '{run.name}' must be finite, got none that are in {len(run.stages)} stages. Train it "
        f"again at a lower learning rate."
    )


def warn_of_incomplete(trajectory: Trajectory) -> None:
    """Warns, once for all runs, of runs that did not come to their end, or have gaps, on rank 0."""
    told = [text for run in trajectory.runs.values() if (text := _incomplete(run))]
    if told and rank() == 0:
        warnings.warn(printable(_joined(told)), stacklevel=3)


def _incomplete(run: Run) -> str:
    gaps = f"{len(run.gaps)} part(s) of it could not be recorded ({run.gaps[0]['reason']})" if run.gaps else ""
    if run.complete:
        return gaps and f"run '{run.name}' has gaps: {gaps}"
    return (
        f"run '{run.name}' is not complete: it was cut short after epoch {run.stages[-1].epoch}, or is still being "
        f"recorded; its stages so far are used" + (gaps and f", and {gaps}")
    )


def _joined(told: list[str]) -> str:
    more = f"; and so in {len(told) - NAMED} more run(s)" if len(told) > NAMED else ""
    return "; ".join(told[:NAMED]) + more
