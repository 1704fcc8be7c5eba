"""What a network's head gets in training, kept by hooks that torch.compile can trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class _Watch:
    """Keeps what one layer last got in a training forward pass, and tells whose turn it was."""

    def __init__(self, name: str, owner: HeadInput) -> None:
        self.name, self.owner = name, owner
        self.features: torch.Tensor | None = None

    def keep(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Told by the module and not by the gradient, which reentrant activation checkpointing switches off. Simple
        # enough for torch.compile to trace, without a graph break: values are set, and none is read.
        if layer.training and inputs:
            self.features = inputs[0].detach()
            self.owner.last = self.name


class HeadInput:
    """Keeps what each of some layers last got in a training forward pass: of the head, φ(x)."""

    def __init__(self) -> None:
        self.last: str | None = None
        """The layer that was called last."""
        self._watches: dict[str, _Watch] = {}
        self._handles: dict[str, Any] = {}

    def attach(self, layers: Mapping[str, nn.Module]) -> None:
        """Watches some layers from now on, and no others."""
        self.detach()
        self._watches = {name: _Watch(name, self) for name in layers}
        self._handles = {
            name: layers[name].register_forward_pre_hook(each.keep) for name, each in self._watches.items()
        }

    def leave(self, name: str) -> None:
        """Watches that layer alone from now on."""
        for other in [each for each in self._handles if each != name]:
            self._handles.pop(other).remove()
            self._watches[other].features = None

    def detach(self) -> None:
        """Leaves the network as it was."""
        for handle in self._handles.values():
            handle.remove()
        self._handles, self._watches, self.last = {}, {}, None

    @property
    def called(self) -> list[str]:
        """The layers that were called since the last :meth:`take`."""
        return [name for name, watch in self._watches.items() if watch.features is not None]

    def take(self, name: str) -> torch.Tensor | None:
        """The input of a layer since the last call, ``(N, ...)``; ``None`` if there was no training forward pass."""
        features = self._watches[name].features if name in self._watches else None
        for watch in self._watches.values():
            watch.features = None
        return features
