"""A few real images of each class, kept beside a run's stages for distillation to start from."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.checked_json import MOST_SIDE
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.targets import are_class_targets, single_class_targets
from tgdd_plugin.trajectory.manifest import EXEMPLARS, Run

LIMIT = 256 * 2**20
"""Most bytes of pixels that are kept."""

SLACK, OUTSIDE = 0.5, 0.1
"""How far a pixel may lie outside [0, 1], as augmentation moves some, and the share of pixels that may lie further."""


class Exemplars:
    """Collects the first ``per_class`` images of each class from batches of (normalized images, targets).

    Once it is done, it looks at no batch any more.

    Args:
        num_classes: K.
        per_class: Images of each class. With 0 it is done from the start.
    """

    def __init__(self, num_classes: int, per_class: int) -> None:
        self.num_classes = num_classes
        self.per_class = per_class
        self.done = per_class == 0
        self._wanted = [per_class] * num_classes
        self._images: list[torch.Tensor] = []
        self._labels: list[int] = []
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, images: Any, targets: Any, normalization: Normalization | None) -> str | None:
        """Takes what is still wanted out of a batch.

        Args:
            images: Normalized floating-point images, ``(N, C, H, W)``.
            targets: See :func:`tgdd_plugin.data.targets.single_class_targets`; images that are not of one class are
                passed over.
            normalization: What the images were normalized with; ``None`` if it is not known.

        Returns:
            Why fewer than ``per_class`` can be kept of each class, or none at all; ``None`` if nothing is in the way.
        """
        if not _are_images(images) or (normalization and normalization.channels not in (1, images.shape[1])):
            self.done = True
            return "the batches are not (floating-point images of 1 or 3 channels, labels)"
        if normalization is None:
            self.done = True
            return "their normalization is not known: give mean= and std="
        if not are_class_targets(targets, len(images), self.num_classes):
            self.done = True
            return "the batches are not (images, one label for each)"
        if self._images and images.shape[1:] != self._images[0].shape[1:]:
            self.done = True
            return "the batches have images of several sizes, and those of the first are kept"
        problem = None if self._images else self._limit(images[0].numel())
        if self.done:
            return problem
        labels, alone = single_class_targets(targets, self.num_classes)
        chosen: list[tuple[int, int]] = []
        for position, (label, counted) in enumerate(zip(labels.tolist(), alone.tolist(), strict=True)):
            if counted and self._wanted[label] > 0:
                self._wanted[label] -= 1
                chosen.append((position, label))
        if chosen:
            kept = images[torch.tensor([position for position, _ in chosen], device=images.device)].float().cpu()
            pixels = normalization.denormalize(kept).contiguous()  # also where batches are channels_last
            if not self._images and ((pixels - 0.5).abs() > 0.5 + SLACK).float().mean() > OUTSIDE:
                self.done = True
                return (
                    f"with {normalization} the batches become pixels from {pixels.min():.3g} to {pixels.max():.3g}, "
                    f"outside [0, 1]: give the mean and std that they were normalized with"
                )
            self._keep((pixels.clamp(0, 1) * 255).round().to(torch.uint8), [label for _, label in chosen])
        self.done = not any(self._wanted)
        return problem

    def _keep(self, images: torch.Tensor, labels: list[int]) -> None:
        """Keeps what is not kept yet: a loop that counts its epochs from 0 shows those of the first one twice."""
        fresh = []
        for position, label in enumerate(labels):
            seen = hash((label, images[position].numpy().tobytes()))
            if seen in self._seen:
                self._wanted[label] += 1
            else:
                self._seen.add(seen)
                self._labels.append(label)
                fresh.append(position)
        self._images.append(images[fresh])

    def keep(self, folder: Path, run: Run) -> None:
        """Writes the exemplars as soon as there will be no more of them, so that a resumed run finds them.

        Called on rank 0 alone: a full disk must wait for the next stage, which is written on all ranks' account.
        """
        if self.done and len(self):
            with suppress(OSError):
                self.write_if_done(folder, run)
                run.write(folder, ongoing=True)

    def write_if_done(self, folder: Path, run: Run) -> None:
        """Writes the exemplars before the manifest that names them, if there will be no more of them."""
        if self.done and len(self):
            run.exemplars = self.write(folder)

    def write(self, folder: Path) -> str:
        """Writes what was collected to ``folder/exemplars.safetensors``, in the order of the classes, and forgets it.

        Returns:
            SHA-256 of the file.
        """
        labels, order = torch.tensor(self._labels).sort(stable=True)
        content = safetensors.torch.save({"images": torch.cat(self._images)[order], "labels": labels})
        write_whole(folder / EXEMPLARS, content, swept=True)
        self._images, self._labels, self.done = [], [], True
        return hashlib.sha256(content).hexdigest()

    def _limit(self, size: int) -> str | None:
        """Asks for no more images, of ``size`` bytes each, than :data:`LIMIT` allows."""
        most = LIMIT // (self.num_classes * size)
        if most >= self.per_class:
            return None
        self._wanted = [most] * self.num_classes
        self.done = most == 0
        return f"more than {most} of each class would take more than {LIMIT // 2**20} MiB"


def _are_images(images: Any) -> bool:
    return (
        isinstance(images, torch.Tensor)
        and images.ndim == 4
        and images.shape[1] in (1, 3)
        and images.is_floating_point()
        and images.numel() > 0
        and max(images.shape[2:]) <= MOST_SIDE
    )
