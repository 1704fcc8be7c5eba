"""What recorded networks say of images: class probabilities under the weights of a stage, and confidences under all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import are_finite, put_weights
from tgdd_plugin.data.batch_size import number_at_once
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.feature_network import fit_names
from tgdd_plugin.trajectory.manifest import Stage
from tgdd_plugin.trajectory.store import Trajectory


class StageOutputs:
    """Class probabilities of images under any stage of a trajectory, in evaluation mode, without augmentation.

    Args:
        trajectory: The trajectory.
        networks: The bare networks that were trained, one for each of the trajectory's ``architectures``; their
            weights do not matter and stay as they are.
        normalization: What the images are normalized with.
        device: Where the networks are called.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        networks: Sequence[nn.Module],
        normalization: Normalization,
        device: torch.device,
    ) -> None:
        self.networks = [copy.deepcopy(network).to(device).eval() for network in networks]
        self.numbers = trajectory.architectures
        self.normalization, self.device = normalization, device

    @torch.no_grad()
    def __call__(
        self, folder: Path, stage: Stage, weights: dict[str, torch.Tensor], images: ImagePool | torch.Tensor
    ) -> torch.Tensor:
        """Returns the probabilities of N images, float32 ``(N, K)`` on the CPU, in rows that sum to 1.

        Args:
            folder: The folder of the stage's run.
            stage: The stage.
            weights: Its weights by name.
            images: A pool, or uint8 ``(N, C, H, W)``.

        Raises:
            InputError: If the network does not fit the stage, or its output is not finite.
        """
        where, network = f"stage '{folder / stage.file}'", self.networks[self.numbers[folder]]
        put_weights(network, {name: weights[spelt] for name, spelt in fit_names(weights, network, where).items()})
        parts = []
        for index in torch.arange(len(images)).split(number_at_once(*images.shape[-2:])):
            pixels = images.take(index) if isinstance(images, ImagePool) else images[index.to(images.device)]
            parts.append(network(self.normalization(pixels.to(self.device))).softmax(1).float().cpu())
        outputs = torch.cat(parts)
        if not outputs.isfinite().all():
            raise InputError(
                f"The output of {where} must be finite, got infinite or undefined values. Train with a lower learning "
                f"rate."
            )
        return outputs


def predict_confidences(
    trajectory: Trajectory,
    networks: Sequence[nn.Module],
    pool: ImagePool,
    normalization: Normalization,
    device: torch.device,
    progress_bar: bool = False,
) -> torch.Tensor:
    """Predicts how sure the recorded networks were of the class of each image as their training went on.

    Args:
        trajectory: The trajectory.
        networks: As for :class:`StageOutputs`.
        pool: N images and their labels.
        normalization: What the images are normalized with.
        device: Where the networks are called.
        progress_bar: Whether to show a progress bar over the stages on a terminal. Default: ``False``.

    Returns:
        The probability of each image's own class after each of the S stages of all runs whose weights are finite,
        float32 ``(N, S)`` on the CPU.

    Raises:
        InputError: If a network does not fit the trajectory, or its output is not finite.
    """
    outputs, own = StageOutputs(trajectory, networks, normalization, device), pool.labels.cpu()[:, None]
    found = [torch.empty(len(pool), 0)]
    for folder, stage in tqdm(
        trajectory.finite_stages, "confidences", leave=False, disable=None if progress_bar else True
    ):
        if are_finite(weights := trajectory.load(folder, stage)):
            found.append(outputs(folder, stage, weights, pool).gather(1, own))
    return torch.cat(found, 1)
