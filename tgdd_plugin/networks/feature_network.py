"""Any ``nn.Module`` as a function (weights, images) -> (features, logits)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.networks.chunk_size import even_part


def find_head(network: nn.Module, num_classes: int | None = None, name: str | None = None) -> str:
    """Finds the name of the network's head: the linear layer whose input is φ(x) and whose output is h(x).

    Args:
        network: Any module.
        num_classes: The number of classes K, if known; layers with another number of outputs are then left out.
        name: The head, if the user named it; then it is only checked.

    Raises:
        InputError: If there is no such layer.
    """
    linear = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    if name is not None and name not in linear:
        raise InputError(
            f"`head` must be the name of an nn.Linear of the network, got '{name}'. Name one of its linear layers, "
            f"{sorted(linear)}; a network without any cannot be used, as TGDD matches the input of the linear head."
        )
    wide = [n for n, m in linear.items() if num_classes in (None, m.out_features) and name in (None, n)]
    if not wide:
        wanted = f"with {num_classes} outputs" if num_classes else "at all"
        raise InputError(
            f"{type(network).__name__} has no linear layer {wanted} to be its head (it has {sorted(linear)}). TGDD "
            f"matches the head's input, so end the network with nn.Linear(features, classes), or name it by head=."
        )
    return wide[-1]


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
        slice_size: The most images in one call of the network; more are passed in slices. Default: ``None``, no limit.
    """

    def __init__(self, network: nn.Module, head: str, *, compiled: bool = False) -> None:
        self.network = network.eval().requires_grad_(False)
        self.slice_size: int | None = None
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
        outputs = [self._call(named, part.contiguous(memory_format=self._layout)) for part in parts]
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
            InputError: If it does not take such images or does not return logits of shape ``(1, K)``.
        """
        try:
            logits = self._blank(weights, shape)[1]
        except (RuntimeError, IndexError, TypeError, AssertionError) as error:
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


class _WithFeatures(nn.Module):
    """A network that returns the input of its head together with its logits."""

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        self.network = network
        self._seen: list[torch.Tensor] = []
        network.get_submodule(head).register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._seen.clear()
        logits = self.network(images)
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
        InputError: If a tensor is missing or of another shape.
    """
    wanted = network.state_dict()
    first = next(iter(wanted))
    prefixes = [name.removesuffix(first) for name in recorded if name == first or name.endswith(f".{first}")]
    prefix = min(prefixes, key=lambda p: sum(p + name not in recorded for name in wanted), default="")
    missing = [name for name in wanted if prefix + name not in recorded]
    if missing:
        raise InputError(
            f"{type(network).__name__} does not fit {where}: the stage has no '{missing[0]}' "
            f"({len(missing)} of {len(wanted)} tensors missing). Build the network that the run was trained with."
        )
    for name, tensor in wanted.items():
        if recorded[prefix + name].shape != tensor.shape:
            raise InputError(
                f"{type(network).__name__} does not fit {where}: '{name}' is {tuple(recorded[prefix + name].shape)} "
                f"there and {tuple(tensor.shape)} in the network. Build it with the arguments that it was trained with."
            )
    return {name: prefix + name for name in wanted}
