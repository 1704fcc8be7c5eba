"""Which linear layer of a network is its head: the one whose input is φ(x) and whose output is h(x)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import forked_streams


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
        shape: (C, H, W) of the images. If there are several candidates, a copy of the network is called with a blank
            one in evaluation mode: the candidate called last is the head. Default: ``None``, the last one listed.

    Raises:
        InputError: If there is no such layer.
    """
    found = head_candidates(network, num_classes, name)
    if len(found) > 1 and shape is not None:
        blank = torch.zeros(1, *shape, device=next(iter(found.values())).weight.device)
        return last_called(network, found, lambda copied: copied(blank)) or list(found)[-1]
    return list(found)[-1]


def last_called(network: nn.Module, layers: Mapping[str, nn.Module], call: Callable[[nn.Module], Any]) -> str | None:
    """Returns which of some layers a forward pass in evaluation mode calls last.

    That is told by a copy of the network, which itself is neither called nor changed: either might change a training.

    Args:
        network: The network that the layers belong to.
        layers: The layers by name.
        call: Calls the copy that it is given.

    Returns:
        The name; ``None`` if none of them is called, or the network cannot be copied, or the call fails.
    """
    called: list[str] = []
    copies: dict[int, Any] = {}  # by the identity of what was copied, as copy.deepcopy() notes it
    try:
        with torch.no_grad(), forked_streams():
            copied = copy.deepcopy(network, copies).eval()
            for name, layer in layers.items():
                copies[id(layer)].register_forward_pre_hook(lambda *_, name=name: called.append(name))
            call(copied)
    except Exception:  # a user's network can fail in any way, and does so again where the error is shown
        return None
    return called[-1] if called else None
