"""How well a network learns the synthetic images while they are distilled."""

from __future__ import annotations

import copy
import warnings

import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import brief
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.frozen_networks import FrozenNetworks
from tgdd_plugin.distillation.inputs import Inputs
from tgdd_plugin.training.protocols import fast
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import accuracy, train_network

PASSES = 2_000
"""Image passes of a probe's training."""

SCORED = 2_000
"""The most real images that it is scored on."""


class Probe:
    """Trains the first run's network, from its initial weights, on the images as they are, and scores it.

    It is scored on real training images that it was not trained on. The distillation does draw from them, so that the
    accuracy says how the distillation goes, and not what the set is worth. The distillation itself stays as it was.

    Args:
        inputs: What the distillation starts from.
        frozen: Its networks.
        device: Where networks run.
    """

    def __init__(self, inputs: Inputs, frozen: FrozenNetworks, device: Device | None) -> None:
        self.network = copy.deepcopy(frozen.modules[0])
        self.network.load_state_dict(frozen.first_stages[0], strict=False)
        self.network.requires_grad_(True)  # which those of a distillation do not
        self.inputs = inputs
        self.device = device
        self.class_ids = torch.tensor(inputs.class_ids)
        assert inputs.pool is not None, "LoggerSettings.check_probe() comes first"
        self.pool = _some(inputs.pool, self.class_ids)
        operations = [name for name in str(inputs.settings.augmentation).split("_") if name != "cutout"]
        self.augmentation = "_".join(operations) or "none"
        self._failed = False

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> float | None:
        """Returns the accuracy, from 0 to 1; ``None`` once a probe has failed, which is told in one warning.

        Args:
            images: uint8, decoded, ``(N, C, H, W)``.
            labels: Their positions among the classes, ``(N,)``.
        """
        if self._failed:
            return None
        try:
            with forked_streams():
                return self._train(images, labels)
        except Exception as error:
            if dist.get_world_size() > 1:
                raise
            self._failed = True
            warnings.warn(
                f"a probe failed, and there are no more; the distillation goes on: {brief(error)}", stacklevel=2
            )
            return None

    def _train(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        usual, on = fast(PASSES), torch_device(self.device)
        usual["batch_size"] = min(usual["batch_size"], len(images))
        settings = TrainSettings(
            **usual, passes=PASSES, augmentation=self.augmentation, precision="fp32", compile=False
        )
        loader = DeviceLoader(
            images.to(on), self.class_ids[labels], self.inputs.normalization, batch_size=settings.batch_size
        )
        classes = self.inputs.trajectory.run.num_classes
        network: nn.Module = train_network(copy.deepcopy(self.network), loader, classes, settings, device=self.device)
        return accuracy(network, self.pool, self.inputs.normalization)


def _some(pool: ImagePool, class_ids: torch.Tensor) -> ImagePool:
    """Up to :data:`SCORED` images of some classes, drawn at random, the same each time."""
    own = torch.isin(pool.labels, class_ids).nonzero().flatten()
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[:SCORED]
    return pool.subset(own[order])
