"""Which linear layer of a network is its head: the one whose input is φ(x) and whose output is h(x)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError


def head_candidates(
    network: nn.Module, num_classes: int | None = None, name: str | None = None
) -> dict[str, nn.Linear]:
    """Returns the linear layers that can be the head, by name, in the order of the module listing.

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
    wide = {n: m for n, m in linear.items() if num_classes in (None, m.out_features) and name in (None, n)}
    if not wide:
        wanted = f"with {num_classes} outputs" if num_classes else "at all"
        raise InputError(
            f"{type(network).__name__} has no linear layer {wanted} to be its head (it has {sorted(linear)}). TGDD "
            f"matches the head's input, so end the network with nn.Linear(features, classes), or name it by head=."
        )
    return wide


def find_head(
    network: nn.Module,
    num_classes: int | None = None,
    name: str | None = None,
    shape: Sequence[int] | None = None,
) -> str:
    """Finds the name of the network's head.

    Args:
        network, num_classes, name: As in :func:`head_candidates`.
        shape: (C, H, W) of the images, with which the network is called once in evaluation mode if there are several
            candidates: the one called last is the head. Default: ``None``, the last one in the module listing.

    Raises:
        InputError: If there is no such layer.
    """
    found = head_candidates(network, num_classes, name)
    if len(found) > 1 and shape is not None:
        blank = torch.zeros(1, *shape, device=next(iter(found.values())).weight.device)
        return last_called(network, found, lambda: network(blank)) or list(found)[-1]
    return list(found)[-1]


def last_called(network: nn.Module, layers: Mapping[str, nn.Module], call: Callable[[], Any]) -> str | None:
    """Returns which of some layers a forward pass in evaluation mode calls last, and leaves the network as it was.

    Args:
        network: The network that the layers belong to.
        layers: The layers by name.
        call: Calls the network.

    Returns:
        The name; ``None`` if none of them is called, or the call fails.
    """
    called: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for name, layer in layers.items()
    ]
    training = [module for module in network.modules() if module.training]
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            call()
    except Exception:  # a user's network can fail in any way, and does so again where the error is shown
        return None
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return called[-1] if called else None
