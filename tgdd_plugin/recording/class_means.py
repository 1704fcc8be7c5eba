"""Class means of φ(x), added up while the user trains, so that distillation needs no real image."""

from __future__ import annotations

from typing import Any

import torch

from tgdd_plugin.core.ranks import add_over_ranks, on_all_ranks, rank
from tgdd_plugin.data.targets import are_class_ids, are_class_targets, single_class_targets

POWER = 2.0
"""p of the polynomial decay: with 2, a batch is on average a quarter of the interval old, and the means are as steady
as those of 5/9 of its batches, equally weighted."""


class ClassMeans:
    """Means of φ(x) over each class' images since the last stage, in which recent batches count more.

    Batch i of t has weight (i/t)^p, p = :data:`POWER` (polynomial-decay averaging; Shamir and Zhang, ICML 2013). So the
    means belong to the network as it is now, and nothing need be known of the interval beforehand. All batches are
    counted by i and t, also those whose images are not.

    A batch comes in parts, its microbatches, between :meth:`begin_pass` and :meth:`end_pass`, and counts from
    :meth:`commit` on. A pass that was broken off, as when memory ran out, does not count; of several whole ones the
    first does (SAM's second pass sees other weights).

    Sums are float32, (K, D), on one device, and nothing waits for it before :meth:`take`.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.problem: str | None = None
        self._sums = torch.zeros(0, 0)
        self._counts = torch.zeros(0)
        self._highest = torch.tensor(-1)
        self._pending_sums, self._pending_counts = self._sums, self._counts
        self._whole = False

    def prepare(self, num_classes: int, num_features: int, device: torch.device | str) -> None:
        """Says what comes, before the first batch of a ``fit()``; sums so far are kept if they are of that shape."""
        if self._sums.shape != (num_classes, num_features):
            self.batches = 0
            self._sums, self._counts = torch.zeros(num_classes, num_features), torch.zeros(num_classes)
        self._sums, self._counts = self._sums.to(device), self._counts.to(device)
        self._highest = self._highest.to(device)
        self._pending_sums, self._pending_counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)
        self._whole = False

    def begin_pass(self) -> None:
        """A pass through the batch's microbatches begins, perhaps not the first."""
        if not self._whole:
            self._pending_sums.zero_()
            self._pending_counts.zero_()

    def end_pass(self) -> None:
        """The pass came to its end."""
        self._whole = True

    @torch.no_grad()
    def add(self, features: Any, targets: Any) -> None:
        """Adds a microbatch. What does not fit is left out, and noted as the :attr:`problem`.

        Args:
            features: φ(x), ``(N, ...)`` of D values each, of any floating point and on any device.
            targets: See :func:`tgdd_plugin.data.targets.single_class_targets`.
        """
        if self._whole:
            return
        num_classes, num_features = self._sums.shape
        if not isinstance(features, torch.Tensor) or features.shape[1:].numel() != num_features or features.ndim < 2:
            self.problem = (
                "the head was not seen once for each batch: it is another layer than the one named, or the network was "
                "in evaluation mode, or compiled and run before the recording began"
            )
        elif isinstance(targets, torch.Tensor) and targets.ndim and len(targets) != len(features):
            self.problem = (
                f"the head got {len(features)} images last, and there are {len(targets)} labels: a loop that splits "
                f"its batches calls features.add() after each forward pass, see TrajectoryRecorder.end_batch"
            )
        elif not are_class_targets(targets, len(features), num_classes):
            self.problem = "the batches are not (images, one label for each)"
        else:
            labels, alone = (tensor.to(self._sums.device) for tensor in single_class_targets(targets, num_classes))
            # Uncounted ones are set to 0 rather than left out, for which the host would have to know their number.
            rows = features.flatten(1).to(self._sums).masked_fill(~alone[:, None], 0)
            self._pending_sums.index_add_(0, labels, rows)
            self._pending_counts.index_add_(0, labels, alone.to(self._counts.dtype))
            if are_class_ids(targets) and targets.numel():
                self._highest = self._highest.maximum(targets.long().amax().to(self._highest))  # uint16 has no amax()

    def commit(self) -> None:
        """The batch is over, and trained on."""
        self.batches += 1
        older = ((self.batches - 1) / self.batches) ** POWER
        self._sums.mul_(older).add_(self._pending_sums)
        self._counts.mul_(older).add_(self._pending_counts)
        self._whole = False

    @property
    def highest_label(self) -> int:
        """The highest class id so far on this rank, also outside 0..K-1; -1 if there was none. Waits for the device."""
        return int(self._highest)

    def reset(self) -> None:
        """Begins a new interval."""
        self.batches, self.problem = 0, None
        self._sums.zero_()
        self._counts.zero_()

    def take(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Means and counts of the interval, over all ranks; begins a new one. Collective.

        Returns:
            Means ``(K, D)``, 0 for a class without a counted image, and the sums of its images' weights ``(K,)``,
            float32 on the CPU. ``None`` if no batch came since the last stage, or if there are no means for the reason
            that :attr:`problem` then gives.
        """
        # In place and whatever this rank has, so that nothing can fail, or be left out, while the others wait for it.
        _add_up(self._sums, self._counts)
        batches = self.batches
        problem = self.problem or "no image of a single class was trained on, as when MixUp or CutMix mix every batch"
        try:
            sums, counts = self._sums.cpu().clone(), self._counts.cpu().clone()
        finally:
            self.reset()
        if batches == 0:
            return None
        if not counts.any():
            self.problem = problem
            return None
        means = torch.where(counts[:, None] > 0, sums / counts[:, None], 0.0)
        if not means.isfinite().all():
            self.problem = "the features are not finite"
            return None
        return means, counts

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors alone, the sums of all ranks. Collective, as Composer's saving of a checkpoint is."""
        sums, counts = on_all_ranks(lambda: (self._sums.clone(), self._counts.clone()))
        _add_up(sums, counts)
        if self.batches == 0:
            return {"batches": 0}
        return {"batches": self.batches, "sums": sums.cpu(), "counts": counts.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`, on any number of ranks: the first one takes over the sums of all."""
        self.batches = state["batches"]
        if self.batches:
            share = float(rank() == 0)
            self._sums, self._counts = state["sums"].clone() * share, state["counts"].clone() * share


def _add_up(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if tensor.numel():  # on every rank alike: they are empty before the first fit(), and without statistics
            add_over_ranks(tensor)
