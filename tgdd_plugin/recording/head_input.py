"""What a network's head gets in training, kept by hooks that torch.compile can trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class _Watch:
    """Keeps what one layer last got and gave in a training forward pass, and tells whose turn it was."""

    def __init__(self, name: str, owner: HeadInput) -> None:
        self.name, self.owner = name, owner
        self.features: torch.Tensor | None = None
        self.output: torch.Tensor | None = None

    # Whether it is training is told by the module and not by the gradient, which reentrant activation checkpointing
    # switches off. Both are simple enough for torch.compile to trace, without a graph break: values are set, none read.

    def keep(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer.training and inputs and isinstance(inputs[0], torch.Tensor):
            self.features = inputs[0].detach()
            self.owner.last = self.name

    def keep_output(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if layer.training and isinstance(output, torch.Tensor):
            self.output = output.detach()


class HeadInput:
    """Keeps what each of some layers last got in a training forward pass: of the head, φ(x).

    Of several layers the output is kept, too, to tell which of them is the head.
    """

    def __init__(self) -> None:
        self.last: str | None = None
        """The layer that was called last."""
        self._layers: dict[str, nn.Module] = {}
        self._watches: dict[str, _Watch] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self, layers: Mapping[str, nn.Module]) -> None:
        """Watches some layers from now on, and no others; earlier recordings, which may have broken off, do no more."""
        self.detach()
        for layer in layers.values():
            for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
                for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), _Watch)]:
                    del hooks[key]
        self._layers = dict(layers)
        self._watches = {name: _Watch(name, self) for name in layers}
        self.resume()

    def resume(self) -> None:
        """Puts the hooks on the layers, unless they are there."""
        if self._handles:
            return
        for name, watch in self._watches.items():
            self._handles.append(self._layers[name].register_forward_pre_hook(watch.keep))
            if len(self._watches) > 1:
                self._handles.append(self._layers[name].register_forward_hook(watch.keep_output))

    def pause(self) -> None:
        """Takes the hooks off the layers, and keeps what they kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def leave(self, name: str) -> None:
        """Watches that layer alone from now on."""
        on = bool(self._handles)
        self.pause()
        self._watches = {name: self._watches[name]}
        self._watches[name].output = None
        if on:
            self.resume()

    def detach(self) -> None:
        """Leaves the network as it was."""
        self.pause()
        self._layers, self._watches, self.last = {}, {}, None

    def outputs(self) -> dict[str, torch.Tensor]:
        """What the layers gave that were called since the last :meth:`take`, by name, in the order of the listing."""
        kept = {name: watch.output for name, watch in self._watches.items() if watch.features is not None}
        return {name: output for name, output in kept.items() if output is not None}

    def take(self, name: str) -> torch.Tensor | None:
        """The input of a layer since the last call, ``(N, ...)``; ``None`` if there was no training forward pass."""
        features = self._watches[name].features if name in self._watches else None
        for watch in self._watches.values():
            watch.features = watch.output = None
        return features
