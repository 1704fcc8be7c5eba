"""Any ``nn.Module`` as a function (weights, images) -> (features, logits)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import only_tensors
from tgdd_plugin.networks.chunk_size import even_part
from tgdd_plugin.networks.classifiers import logits_of
from tgdd_plugin.networks.heads import last_called


class FeatureNetwork:
    """A frozen network whose weights are an argument.

    It is called in evaluation mode: dropout is off and batch normalization uses the stage's own running statistics,
    so an image's features do not depend on the other images of the batch.

    Args:
        network: The module that defines the computation. It is put into evaluation mode; its weights are not used.
        head: The name of its linear head.
        compiled: Whether :func:`torch.compile` builds the forward and backward passes, in channels-last layout.
            Default: ``False``.

    Attributes:
        compiled: As given.
        slice_size: The most images in one call of the network; more are passed in slices. Default: ``None``, no limit.
    """

    def __init__(self, network: nn.Module, head: str, *, compiled: bool = False) -> None:
        self.network = network.eval().requires_grad_(False)
        self.compiled = compiled
        self.slice_size: int | None = None
        self.head = head
        self._with_features = _WithFeatures(self.network, head)
        # Convolutions are faster in channels-last, but GroupNorm's backward pass, not compiled, many times slower.
        self._layout = torch.channels_last if compiled else torch.contiguous_format
        # With fixed shapes: slices have one size wherever possible.
        self._call = torch.compile(self._functional, dynamic=False) if compiled else self._functional

    def __call__(self, weights: Mapping[str, torch.Tensor], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes φ(images) and h(images) under ``weights``.

        Args:
            weights: Parameters and buffers by name.
            images: Normalized images of shape ``(N, C, H, W)``.

        Returns:
            Features of shape ``(N, D)`` and logits of shape ``(N, K)``.
        """
        named = {
            name: tensor.contiguous(memory_format=self._layout) if tensor.ndim == 4 else tensor
            for name, tensor in _named(weights).items()
        }
        parts = images.split(even_part(len(images), self.slice_size))
        # Copies, as a network may change its input in place.
        outputs = [self._call(named, part.clone(memory_format=self._layout)) for part in parts]
        if len(outputs) == 1:
            return outputs[0]
        features, logits = zip(*outputs, strict=True)
        return torch.cat(features), torch.cat(logits)

    def _functional(self, weights: dict[str, torch.Tensor], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Each name has its own tensor in a stage's file, also where the network ties two.
        return functional_call(self._with_features, weights, (images,), tie_weights=False)

    def check(self, weights: Mapping[str, torch.Tensor], shape: tuple[int, ...], num_classes: int) -> None:
        """Calls the network once on a blank image of ``shape`` (C, H, W).

        Raises:
            InputError: If it does not take such images, does not call its head, or does not return logits of shape
                ``(1, K)``.
        """
        try:
            logits = self._blank(weights, shape)[1]
        except HeadNotCalled:
            raise self._not_called(weights, shape) from None
        except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{type(self.network).__name__} does not take images of shape {tuple(shape)}: {reason}. Give images "
                f"with the channels and size that the network was trained on."
            ) from error
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if got != (1, num_classes):
            raise InputError(
                f"{type(self.network).__name__} must return logits of shape (1, {num_classes}) for one image, got "
                f"{got}. Return the logits alone."
            )

    def uncompiled(self) -> FeatureNetwork:
        """Returns the same network with passes that are not compiled."""
        other = copy.copy(self)
        other.compiled, other._layout, other._call = False, torch.contiguous_format, other._functional
        return other

    def passes_gradients(self, weights: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> bool:
        """Returns whether φ of an image of ``shape`` (C, H, W) has a gradient by its pixels."""
        device = next(iter(weights.values())).device
        with torch.enable_grad():
            image = torch.zeros(1, *shape, device=device, requires_grad=True)
            return self._functional(_named(weights), image)[0].requires_grad

    def _not_called(self, weights: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> InputError:
        """Returns the error of a head that is never called, with the layer that is called in its place."""
        linear = {name: module for name, module in self.network.named_modules() if isinstance(module, nn.Linear)}
        blank = torch.zeros(1, *shape, device=next(iter(weights.values())).device)
        last = last_called(
            self.network, linear, lambda copied: functional_call(copied, dict(weights), (blank,), tie_weights=False)
        )
        remedy = f"Name the layer that makes the logits by head=, such as head='{last}', which is called last."
        if last is None:
            remedy = "No other linear layer is called either, and TGDD needs one that makes the logits."
        return InputError(
            f"`head` must be a layer that is called in evaluation mode, got '{self.head}': the head is never called "
            f"when {type(self.network).__name__} takes an image. {remedy}"
        )

    @torch.no_grad()
    def _blank(self, weights: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(iter(weights.values())).device
        return self._functional(_named(weights), torch.zeros(1, *shape, device=device))

    def footprint(self, weights: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> tuple[int, int]:
        """Returns the bytes of the largest activation of one image of ``shape`` (C, H, W), and of all, in float32."""
        sizes: list[int] = []
        leaves = [module for module in self.network.modules() if not list(module.children())]
        hooks = [
            leaf.register_forward_hook(
                lambda *arguments: sizes.append(arguments[2].numel() * 4 if torch.is_tensor(arguments[2]) else 0)
            )
            for leaf in leaves
        ]
        try:
            self._blank(weights, shape)
        finally:
            for hook in hooks:
                hook.remove()
        return max(sizes), sum(sizes)


def _named(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights by their names in :class:`_WithFeatures`."""
    return {f"network.{name}": tensor for name, tensor in weights.items()}


class HeadNotCalled(Exception):
    """A forward pass did not call the head."""


class _WithFeatures(nn.Module):
    """A network that returns the input of its head together with its logits."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network = network
        self._seen: list[torch.Tensor] = []
        network.get_submodule(head).register_forward_pre_hook(self._see)

    def _see(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._seen.clear()  # of what a copy of the network, which has this hook as well, saw before
        self._seen.append(inputs[0])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._seen.clear()
        logits = logits_of(self.network(images))
        if not self._seen:
            raise HeadNotCalled
        # Cloned: a compiled pass that changes the memory layout cannot return a view of the head's input.
        return self._seen.pop().flatten(1).clone(), logits


def fit_names(recorded: Mapping[str, torch.Tensor], network: nn.Module, where: str) -> dict[str, str]:
    """Maps the network's parameter and buffer names to those in a recorded stage.

    A stage recorded from a user's own ``ComposerModel`` may carry a prefix (``net.``) that the bare network lacks.

    Args:
        recorded: The tensors of a stage, by name.
        network: The bare network.
        where: The name of the stage for an error message.

    Returns:
        The recorded name for each name of the network.

    Raises:
        InputError: If a tensor is missing or of another shape, or the stage has one that the network lacks: it would
            be another function.
    """
    wanted = only_tensors(network.state_dict())
    first = next(iter(wanted))
    prefixes = [name.removesuffix(first) for name in recorded if name == first or name.endswith(f".{first}")]
    prefix = min(prefixes, key=lambda p: sum(p + name not in recorded for name in wanted), default="")
    missing = [name for name in wanted if prefix + name not in recorded]
    if missing:
        raise InputError(
            f"{type(network).__name__} does not fit {where}: the stage has no '{missing[0]}' "
            f"({len(missing)} of {len(wanted)} tensors missing). Build the network that the run was trained with."
        )
    lacking = [name for name in recorded if name.startswith(prefix) and name.removeprefix(prefix) not in wanted]
    if lacking:
        raise InputError(
            f"{type(network).__name__} does not fit {where}: the network has no '{lacking[0]}', which the stage has "
            f"({len(lacking)} such tensor(s)). Build the network that the run was trained with, changed as it was then."
        )
    for name, tensor in wanted.items():
        if recorded[prefix + name].shape != tensor.shape:
            raise InputError(
                f"{type(network).__name__} does not fit {where}: '{name}' is {tuple(recorded[prefix + name].shape)} "
                f"there and {tuple(tensor.shape)} in the network. Build it with the arguments that it was trained with."
            )
    return {name: prefix + name for name in wanted}
