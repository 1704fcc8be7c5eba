"""The class means of what reaches a network's head in training: the hook on the head, and the sums, as one thing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tgdd_plugin.core.ranks import rank
from tgdd_plugin.networks.classifiers import logits_of
from tgdd_plugin.networks.heads import last_called
from tgdd_plugin.recording.class_means import ClassMeans
from tgdd_plugin.recording.head_input import HeadInput


class HeadStatistics:
    """Class means of the head's input φ(x) over the batches since the last stage.

    Args:
        enabled: Without it, every call does nothing.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._means = ClassMeans()
        self._input = HeadInput()
        self._layers: dict[str, nn.Linear] = {}
        self.head = ""
        """The name of the layer that is taken for the head."""
        self._settled = True
        self._num_classes = 0
        self._device: torch.device | str = "cpu"
        self._told = False

    @property
    def problem(self) -> str | None:
        """Why there are no means for the last stage, or ``None``."""
        return self._means.problem

    @property
    def doubt(self) -> str | None:
        """What there is to tell of the head, where several layers can be it and none was seen to be called."""
        if self._settled:
            return None
        return (
            f"which of the layers {', '.join(self._layers)} is the network's head could not be seen, as where it was "
            f"compiled and run before the recording began: '{self.head}' is taken for it. Name it by head="
        )

    def attach(self, layers: Mapping[str, nn.Linear], head: str, device: torch.device | str) -> None:
        """Watches a head from now on; sums so far are kept if they are of its shape.

        Args:
            layers: The layers that can be the head, by name.
            head: Which of them is taken for it, until :meth:`settle` tells.
            device: Where to add up.
        """
        self._layers, self._settled = dict(layers), len(layers) == 1
        self._device = device
        self._watch(head)
        if self.enabled or not self._settled:
            self._input.attach(layers)

    def _watch(self, head: str) -> None:
        layer = self._layers[head]
        self.head, self._num_classes = head, layer.out_features
        if self.enabled:
            self._means.prepare(layer.out_features, layer.in_features, self._device)

    def settle(self, network: nn.Module, call: Callable[[nn.Module], Any], answer: Any) -> nn.Linear | None:
        """Finds out, after the first forward pass in training, which of several layers is the head.

        Of those that were called with as many outputs as the last, it is the one that made the network's logits. Where
        these come of several, some may be of use in training alone: then the head is the one that is called last in
        evaluation mode, by a copy of the network. If that cannot be told either, it is the one called last.

        Args:
            network: The network, which is not called: its next backward pass may need what its last forward pass left.
            call: Calls a copy of it with a batch.
            answer: What the network answered in training.

        Returns:
            The layer, if it is another one than was taken for it; it is watched from now on.
        """
        if self._settled or (last := self._input.last) is None:
            return None
        self._settled = True
        wide = self._layers[last].out_features
        called = {name: out for name, out in self._input.outputs().items() if self._layers[name].out_features == wide}
        logits = logits_of(answer)
        made = [name for name, output in called.items() if is_same(output, logits)]
        head = last
        if len(called) > 1 and last not in made:
            rivals = {name: self._layers[name] for name in called}
            head = made[-1] if made else last_called(network, rivals, call) or last
        if self.enabled:
            self._input.leave(head)
        else:
            self._input.detach()
        if head == self.head:
            return None
        self._watch(head)
        return self._layers[head]

    def begin_forward(self) -> None:
        """The network is about to be called: the hooks are put on it, if they were taken off."""
        self._input.resume()

    def end_forward(self) -> None:
        """The network was called: the hooks are taken off it, so that it can be saved or scripted as if unwatched."""
        self._input.pause()

    def detach(self) -> None:
        """Leaves the network as it was."""
        self._input.detach()

    def begin_pass(self) -> None:
        """A pass through the microbatches of a batch begins, perhaps not the first."""
        if self.enabled:
            self._means.begin_pass()

    def add(self, targets: Any, own: int | None = None, counted: bool = True) -> None:
        """A forward pass was made in training mode: adds up the features that reached the head.

        Args:
            targets: Class ids ``(N,)``, or shares of the classes ``(N, K)``, of which only those of a single class
                count.
            own: How many of the images count, the first ones. Default: ``None``, all.
            counted: Whether they count at all; images that were mixed behind the targets' back do not. Default:
                ``True``.
        """
        if not self.enabled:
            return
        features = self._input.take(self.head)
        if own is not None and features is not None:
            features, targets = features[:own], targets[:own]
        if counted:
            self._means.add(features, targets)

    def end_pass(self) -> None:
        """The pass came to its end."""
        if self.enabled:
            self._means.end_pass()

    def commit(self) -> None:
        """The batch is over, and trained on."""
        if self.enabled:
            self._means.commit()
            self._input.take(self.head)  # activation checkpointing has filled it once more, in the backward pass

    def take(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Means and counts since the last call, see :meth:`ClassMeans.take`. Collective.

        Warns once, on rank 0, if labels were too high for the classes. Negative ones mean that an image is ignored.
        """
        means = self._means.take()  # first of all, since the other ranks wait for it
        if not self._told and rank() == 0 and (highest := self._means.highest_label) >= self._num_classes > 0:
            self._told = True
            two = ". To distill two classes, give the network an output for each" if self._num_classes == 1 else ""
            warnings.warn(
                f"there are labels up to {highest} for {self._num_classes} classes: images with a label of "
                f"{self._num_classes} or more count in no class mean and are not kept{two}",
                stacklevel=5,
            )
        return means

    def forget(self) -> None:
        """Drops what was added up."""
        self._means = ClassMeans()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ClassMeans.state_dict`. Collective."""
        return self._means.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        if self.enabled:
            self._means.load_state_dict(state)


def is_same(output: torch.Tensor, logits: Any) -> bool:
    """Whether a layer's output is what a network answered with, in whatever precision."""
    if not isinstance(logits, torch.Tensor) or output.shape != logits.shape:
        return False
    return torch.equal(output.float(), logits.detach().float())
