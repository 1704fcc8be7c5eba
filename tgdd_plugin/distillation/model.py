"""TGDD as a Composer model: its parameters are pixels, a batch is one step's draws, its loss is the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer.models import ComposerModel

from tgdd_plugin.augmentation.dsa import Draw, augment
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.losses import distribution_constraint, stage_matching
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.networks.feature_network import FeatureNetwork


class DistillationModel(ComposerModel):
    """The synthetic images under TGDD's loss (arXiv 2512.02469).

    Only the pixels are parameters; stages and real images are neither parameters nor buffers, so a checkpoint holds
    the pixels alone.

    Args:
        synthetic: The images to train.
        networks: The frozen networks, one for each of the trajectory's architectures.
        bank: Their stages.
        pool: The real images; ``None`` to match the bank's recorded means.
        normalization: What the images are normalized with.
        alpha: α, the weight of the constraint.
        bf16: Whether networks run in bfloat16 autocast.
    """

    def __init__(
        self,
        synthetic: SyntheticImages,
        networks: Sequence[FeatureNetwork],
        bank: StageBank,
        pool: ImagePool | None,
        *,
        normalization: Normalization,
        alpha: float,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.synthetic = synthetic
        self.networks = networks
        self.bank = bank
        self.pool = pool
        self.mean, self.std = normalization.tensors()
        self.alpha = alpha
        self.bf16 = bf16

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Computes the features and logits of a step's classes.

        Args:
            batch: ``classes`` (k,) and their ``positions`` (k,) among the synthetic ones, ``real`` (k, m) positions in
                the pool or absent, ``chosen`` (k, s) decoded images or absent, ``draw`` of (k, 1) augmentations, one
                for each class, or of (k, s), one for each synthetic image, or absent, ``early`` and ``late`` positions
                in the bank.

        Returns:
            ``real`` (k, m, D), or (k, 1, D) for recorded means, ``synthetic`` (k, n, D), ``classes`` (k,), and unless
            α = 0 ``logits`` (k, n, K).
        """
        classes, draw = batch["classes"], batch.get("draw", {})
        early, late = self.bank[batch["early"]], self.bank[batch["late"]]
        network = self.networks[self.bank.architecture[batch["early"]]]  # the late stage is of the same run
        synthetic = self._prepared(self.synthetic.decode(batch["positions"], batch.get("chosen")), draw)
        real = None  # augmented in float32 as the synthetic images are
        if self.pool is not None:
            taken = self.pool.take(batch["real"]).to(classes.device, non_blocking=True).float() / 255
            real = self._prepared(taken, draw)
        with torch.autocast(classes.device.type, torch.bfloat16, enabled=self.bf16):
            if real is None:
                means = self.bank.means[batch["early"]]
                assert means is not None, "only stages with means are drawn as early ones"
                real_features = means[classes].unsqueeze(1)
            else:
                with torch.no_grad():
                    real_features, _ = network(early, real.flatten(0, 1))
                real_features = real_features.unflatten(0, real.shape[:2])
            features, logits = network(early, synthetic.flatten(0, 1))
            if self.alpha and batch["late"] != batch["early"]:
                _, logits = network(late, synthetic.flatten(0, 1))
        shape = synthetic.shape[:2]
        outputs = {"real": real_features, "synthetic": features.unflatten(0, shape), "classes": classes}
        return {**outputs, "logits": logits.unflatten(0, shape)} if self.alpha else outputs

    @torch.no_grad()
    def is_finite_at(self, position: int) -> bool:
        """Returns whether the network's features and logits of a gray image are finite at a stage of the bank."""
        gray = torch.full_like(self.synthetic.pixels[:1, 0], 0.5)
        outputs = self.networks[self.bank.architecture[position]](
            self.bank[position], self._prepared(gray[None], {})[0]
        )
        return all(bool(each.isfinite().all()) for each in outputs)

    @torch.no_grad()
    def feature_difference(self) -> float:
        """Returns how far the last stage's features of some images lie from their mean, beside their length.

        They are an image of each class, of 16 classes at most. Infinite for one image alone, or if all features are 0.
        """
        classes = torch.arange(min(16, len(self.synthetic.pixels)), device=self.synthetic.pixels.device)
        images = self.synthetic.decode(classes, classes.new_zeros(len(classes), 1))
        features, _ = self.networks[0](self.bank.last, self._prepared(images.transpose(0, 1), {})[0])
        features = features.double()
        length = float(features.norm())
        return float((features - features.mean(0)).norm()) / length if len(features) > 1 and length else math.inf

    def _prepared(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Normalizes and augments images ``(k, n, C, H, W)``; their shape stays."""
        if self.mean.device != images.device:  # once: Composer moves the pixels alone
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        each = next(iter(draw.values())).shape[1] > 1 if draw else False
        grouped = images.flatten(0, 1) if each else images
        draw = {name: values.flatten(0, 1) for name, values in draw.items()}
        return augment((grouped - self.mean) / self.std, draw).view(images.shape)

    def loss(  # type: ignore[override]  # Composer logs each entry of a dictionary, though its annotation does not allow one
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Computes ``match``, ``constraint`` and ``total`` = match + α · constraint, each summed over all K classes.

        Composer weights a microbatch by its share of the batch, as for a mean; so the sum over the microbatch's k
        classes is scaled by K/k here, and the microbatches add up to the sum over all classes.
        """
        scale = len(self.synthetic.pixels) / len(outputs["classes"])
        match = stage_matching(outputs["real"], outputs["synthetic"]) * scale
        if not self.alpha:
            return {"match": match, "total": match.clone()}  # Composer scales the total in place
        constraint = distribution_constraint(outputs["logits"], outputs["classes"]) * scale
        return {"match": match, "constraint": constraint, "total": match + self.alpha * constraint}
