"""Any ``nn.Module`` as a function (weights, images) -> (features, logits)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call

from tgdd_plugin.errors import InputError


def find_head(network: nn.Module, num_classes: int | None = None, name: str | None = None) -> str:
    """Name of the network's head: the linear layer whose input is φ(x) and whose output is h(x).

    Args:
        network: Any module.
        num_classes: K, if known; narrower and wider layers are then passed over.
        name: The head, if the user named it; it is checked only.

    Raises:
        InputError: If there is no such layer.
    """
    linear = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    if name is not None and name not in linear:
        raise InputError(
            f"head '{name}' is no nn.Linear of the network; its linear layers are {sorted(linear)}. Name one of "
            f"them; a network without any cannot be used, as TGDD matches the input of its linear head"
        )
    wide = [n for n, m in linear.items() if num_classes in (None, m.out_features) and name in (None, n)]
    if not wide:
        wanted = f"with {num_classes} outputs" if num_classes else "at all"
        raise InputError(
            f"{type(network).__name__} has no linear layer {wanted} to be its head (it has {sorted(linear)}); TGDD "
            f"matches the head's input, so end the network with nn.Linear(features, classes) or name it by head="
        )
    return wide[-1]


class FeatureNetwork:
    """A frozen network whose weights are an argument.

    It is called in evaluation mode: dropout is off and batch normalisation uses the stage's own running statistics,
    so an image's features do not depend on the other images of the batch.

    Args:
        network: The module that gives the shape of the computation; put into evaluation mode, weights unused.
        head: Name of its linear head.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.head = network.get_submodule(head)

    def __call__(self, weights: Mapping[str, torch.Tensor], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """φ(images) and h(images) under ``weights``.

        Args:
            weights: Parameters and buffers by name.
            images: Normalised images of shape ``(N, C, H, W)``.

        Returns:
            Features of shape ``(N, D)`` and logits of shape ``(N, K)``.
        """
        captured: list[torch.Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        try:
            logits = functional_call(self.network, dict(weights), (images,))
        finally:
            hook.remove()
        return captured[-1].flatten(1), logits

    def check(self, weights: Mapping[str, torch.Tensor], shape: tuple[int, ...], num_classes: int) -> None:
        """Calls the network once on a blank image of ``shape`` (C, H, W).

        Raises:
            InputError: If it does not take such images or does not answer with logits of shape ``(1, K)``.
        """
        parameter = next(iter(weights.values()))
        try:
            with torch.no_grad():
                logits = self(weights, torch.zeros(1, *shape, device=parameter.device))[1]
        except (RuntimeError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{type(self.network).__name__} does not take images of shape {tuple(shape)}: {reason}; give the data "
                f"the channels and size that the network was trained on"
            ) from error
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if got != (1, num_classes):
            raise InputError(
                f"{type(self.network).__name__} answers one image with {got}; wanted logits of shape (1, {num_classes})"
            )


def fit_names(recorded: Mapping[str, torch.Tensor], network: nn.Module, where: str) -> dict[str, str]:
    """How the network's parameter and buffer names are spelt in a recorded stage.

    A stage recorded from a user's own ``ComposerModel`` may carry a prefix (``net.``) that the bare network lacks.

    Args:
        recorded: A stage, by name.
        network: The bare network.
        where: What to call the stage in an error.

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
            f"({len(missing)} of {len(wanted)} tensors missing); build the network the run was trained with"
        )
    for name, tensor in wanted.items():
        if recorded[prefix + name].shape != tensor.shape:
            raise InputError(
                f"{type(network).__name__} does not fit {where}: '{name}' is {tuple(recorded[prefix + name].shape)} "
                f"there and {tuple(tensor.shape)} in the network; build it with the arguments it was trained with"
            )
    return {name: prefix + name for name in wanted}
