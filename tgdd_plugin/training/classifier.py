"""A classifier for Composer whose training is computed by an :class:`Engine`, and the way back where bf16 fails."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn

from tgdd_plugin.core.weights import are_finite
from tgdd_plugin.training.engine import Engine

KEPT_EVERY = 50
"""Batches between two copies of a training in bf16."""
LOOKED_AT_EVERY = 10
"""Batches between two looks at the outputs on a GPU, which must wait for it."""


class EngineClassifier(ComposerClassifier):
    """A ``ComposerClassifier`` whose forward passes in training are an engine's; in evaluation the network is called.

    Args:
        network: The network.
        engine: Computes the forward passes.
        options: As of ``ComposerClassifier``.
    """

    def __init__(self, network: nn.Module, engine: Engine, **options: Any) -> None:
        super().__init__(network, **options)
        self.engine = engine

    def forward(self, batch: Any) -> torch.Tensor:
        return self.engine(self.module, batch[0]) if self.training else super().forward(batch)


class Float32Fallback(Callback):
    """Where outputs in bf16 are not finite, goes back to the last finite state of the training, and on in float32.

    Args:
        engine: The engine of the training.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._kept: tuple[int, dict[str, Any], list[dict[str, Any]]] | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.engine.precision != "fp32":
            self._keep(state)

    def after_forward(self, state: State, logger: Logger) -> None:
        outputs, batch = state.outputs, state.timestamp.batch.value
        assert isinstance(outputs, torch.Tensor)  # a classifier's logits
        if not self.engine.uses_bf16 or self._kept is None or (outputs.is_cuda and batch % LOOKED_AT_EVERY):
            return
        finite = outputs.isfinite().all().int()
        dist.all_reduce(finite, "MIN")  # all ranks go back, or none does
        if finite:
            return
        kept, weights, optimizers = self._kept
        self.engine.keep_to_float32()
        state.model.load_state_dict(weights)
        for optimizer, its_state in zip(state.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(its_state)
        warnings.warn(
            f"at batch {batch} the outputs in bf16 were not finite: training goes on in float32 with the weights of "
            f"batch {kept}. Set precision to fp32 to have all of it so",
            stacklevel=2,
        )
        state.outputs = state.model(state.batch)

    def batch_end(self, state: State, logger: Logger) -> None:
        if self.engine.uses_bf16 and state.timestamp.batch.value % KEPT_EVERY == 0:
            self._keep(state)

    def state_dict(self) -> dict[str, Any]:
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.engine.load_state_dict(state)

    def _keep(self, state: State) -> None:
        if are_finite(state.model.state_dict()):
            optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in state.optimizers]
            self._kept = state.timestamp.batch.value, copy.deepcopy(state.model.state_dict()), optimizers
