"""Means of the training loss and metrics over the batches since the last stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch

from tgdd_plugin.core.checked_json import MOST_TEXT
from tgdd_plugin.core.errors import shown
from tgdd_plugin.trajectory.manifest import MOST_METRICS


class MetricMeans:
    """Means of the training loss and metrics over the batches since the last stage.

    Sums stay where the values are, so that nothing waits for a GPU between stages.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds the numbers, and tensors of one number, of the batch that just ended; other values are left out.

        A name is noted as text that a manifest can hold.
        """
        for name, value in metrics.items():
            name = shown(name, MOST_TEXT)
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                value = value.detach().float()  # a sum in half precision soon stops growing
            elif isinstance(value, Real):  # NumPy's numbers among them, which would add up in their own precision
                value = float(value)
            else:
                continue
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Returns the means so far, those that are finite, at most a manifest's number of them, and begins anew."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        finite = [(name, mean) for name, mean in means.items() if math.isfinite(mean)]
        return dict(finite[:MOST_METRICS])

    def state_dict(self) -> dict[str, list[float]]:
        """Sum and count by name, as plain numbers."""
        return {name: [float(total), self.counts[name]] for name, total in self.sums.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.sums = {name: total for name, (total, _) in state.items()}
        self.counts = {name: int(count) for name, (_, count) in state.items()}
