"""Soft labels: the class probabilities that the networks of a trajectory give images at the end of their training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.evaluation.stage_outputs import StageOutputs
from tgdd_plugin.trajectory.manifest import Stage
from tgdd_plugin.trajectory.shortcomings import last_finite, warn_of_diverged, warn_of_incomplete
from tgdd_plugin.trajectory.store import Trajectory


def find_teachers(trajectory: Trajectory) -> list[Stage]:
    """Returns the stages that :func:`predict_soft_labels` uses, one of each run, with a warning of what runs lack.

    Raises:
        InputError: If no stage of a run is finite.
    """
    warn_of_incomplete(trajectory)
    teachers, diverged = [], []
    for folder, run in trajectory.runs.items():
        teacher, _ = last_finite(trajectory, folder)
        teachers.append(teacher)
        if lost := [stage for stage in run.stages if stage.batch > teacher.batch]:
            diverged.append((run, lost))
    warn_of_diverged(diverged)
    return teachers


def predict_soft_labels(
    trajectory: Trajectory,
    networks: Sequence[nn.Module],
    images: torch.Tensor,
    normalization: Normalization,
) -> torch.Tensor:
    """Predicts class probabilities of images by the last finite stage of every run, averaged over the runs.

    Each image gets one fixed label, that of the image without augmentation (DD-Ranking calls it a single soft label).

    Args:
        trajectory: The trajectory, of R runs.
        networks: The bare networks that were trained, one for each of the trajectory's ``architectures``; their
            weights do not matter and stay as they are.
        images: uint8, ``(N, C, H, W)``, on any device; the network is called there.
        normalization: What the images are normalized with.

    Returns:
        float32 of shape ``(N, K)``, on the CPU, in rows that sum to 1.

    Raises:
        InputError: If a network does not fit the trajectory, no stage of a run is finite, or its output is not.
    """
    outputs = StageOutputs(trajectory, networks, normalization, images.device)
    lasts = ((folder, *last_finite(trajectory, folder)) for folder in trajectory.runs)
    return torch.stack([outputs(*last, images) for last in lasts]).mean(0)
