"""TGDD as a Composer model: its parameters are pixels, a batch is one step's draws, its loss is the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer.models import ComposerModel

from tgdd_plugin.augment import Draw, augment
from tgdd_plugin.losses import distribution_constraint, stage_matching
from tgdd_plugin.network import FeatureNetwork
from tgdd_plugin.pool import ImagePool
from tgdd_plugin.stages import StageBank
from tgdd_plugin.synthetic import SyntheticImages


class DistillationModel(ComposerModel):
    """The synthetic images under TGDD's loss (arXiv 2512.02469).

    Only the pixels are parameters; stages and real images are neither parameters nor buffers, so a checkpoint holds
    the pixels alone.

    Args:
        synthetic: The images to train.
        network: The frozen network.
        bank: Its stages.
        pool: The real images.
        mean, std: Per-channel normalisation of pixels in [0, 1].
        alpha: α, the weight of the constraint.
        bf16: Whether networks run in bfloat16 autocast.
    """

    def __init__(
        self,
        synthetic: SyntheticImages,
        network: FeatureNetwork,
        bank: StageBank,
        pool: ImagePool,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        alpha: float,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.synthetic = synthetic
        self.network = network
        self.bank = bank
        self.pool = pool
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.alpha = alpha
        self.bf16 = bf16

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Features and logits of a step's classes.

        Args:
            batch: ``classes`` (k,), ``real`` (k, m) positions in the pool, ``chosen`` (k, s) decoded images or absent,
                ``draw`` of k augmentations, ``early`` and ``late`` positions in the bank.

        Returns:
            ``real`` (k, m, D), ``synthetic`` (k, n, D), ``logits`` (k, n, K) and ``classes`` (k,).
        """
        classes, draw = batch["classes"], batch["draw"]
        early, late = self.bank[batch["early"]], self.bank[batch["late"]]
        real = self.pool.take(batch["real"]).to(classes.device, non_blocking=True).float() / 255
        synthetic = self.synthetic.decode(classes, batch.get("chosen"))
        real, synthetic = self._prepared(real, draw), self._prepared(synthetic, draw)
        with torch.autocast(classes.device.type, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                real_features, _ = self.network(early, real.flatten(0, 1))
            features, logits = self.network(early, synthetic.flatten(0, 1))
            if batch["late"] != batch["early"]:
                _, logits = self.network(late, synthetic.flatten(0, 1))
        shape = synthetic.shape[:2]
        return {
            "real": real_features.unflatten(0, real.shape[:2]),
            "synthetic": features.unflatten(0, shape),
            "logits": logits.unflatten(0, shape),
            "classes": classes,
        }

    def _prepared(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        if self.mean.device != images.device:  # once: Composer moves the pixels alone
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return augment((images - self.mean) / self.std, draw)

    def loss(  # type: ignore[override]  # Composer logs each entry of a dictionary, though its annotation has none
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """``match``, ``constraint`` and ``total`` = match + α · constraint, each summed over all K classes.

        Composer weights a microbatch by its share of the batch, as for a mean; so the sum over the microbatch's k
        classes is scaled by K/k here, and the microbatches add up to the sum over all classes.
        """
        scale = len(self.synthetic.pixels) / len(outputs["classes"])
        match = stage_matching(outputs["real"], outputs["synthetic"]) * scale
        constraint = distribution_constraint(outputs["logits"], outputs["classes"]) * scale
        return {"match": match, "constraint": constraint, "total": match + self.alpha * constraint}
