"""A training's forward passes: in float32 or bfloat16, compiled or not.

One plain function is compiled, with the network as an argument: networks of one architecture share what was compiled.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tgdd_plugin.core.compile_limit import allow_forms
from tgdd_plugin.core.errors import brief
from tgdd_plugin.core.seeding import forked_streams

COMPILED_FORMS = 64
"""Compiled forms that a process keeps: one for each architecture, batch size and precision."""


class Way(NamedTuple):
    """A way to compute forward passes."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision}, {'compiled' if self.compiled else 'eager'}"


EAGER = Way()


def _forward(network: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    if not bf16:
        logits: torch.Tensor = network(images)
        return logits
    with torch.autocast(images.device.type, torch.bfloat16):
        return network(images).float()  # type: ignore[no-any-return]


@functools.cache
def _compiled_forward() -> Callable[..., torch.Tensor]:
    """The forward pass, to be compiled at its first call; not made at import, which would load the compiler."""
    return torch.compile(_forward, dynamic=False)


_trunks: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def compute(way: Way, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns the logits of images in one way, as float32 or in the network's own type."""
    bf16 = way.precision == "bf16"
    if not way.compiled:
        return _forward(network, images, bf16)
    head = watched_head(network)
    if head is None:
        return _compiled_forward()(network, images, bf16)
    features = _compiled_forward()(trunk(network, head), images, bf16)
    return _forward(head, features, bf16)


def watched_head(network: nn.Module) -> nn.Module | None:
    """The layer at the end of a network on which there are hooks; compiled code would know nothing of them.

    Raises:
        RuntimeError: If there are hooks on other modules.
    """
    watched = watched_modules(network)
    if not watched:
        return None
    module, *others = watched.values()
    if others or not isinstance(module, nn.Linear):
        raise RuntimeError("there are hooks on modules other than its head")
    return module


def watched_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network on which there are hooks, by name."""
    return {name: each for name, each in network.named_modules() if each._forward_pre_hooks or each._forward_hooks}


def trunk(network: nn.Module, head: nn.Module) -> nn.Module:
    """A network without its head, with the very weights of the network."""
    if network not in _trunks:
        shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
        _trunks[network] = copy.deepcopy(network, {**shared, id(head): nn.Identity()})
    made = _trunks[network]
    return made if made.training == network.training else made.train(network.training)


def compile_problem(way: Way, network: nn.Module, images: torch.Tensor) -> str | None:
    """Compiles a network's forward and backward pass without training it; says what is in the way of it, if anything.

    Weights, buffers and the random numbers to come stay as they are.
    """
    allow_forms(COMPILED_FORMS)
    buffers = copy.deepcopy(dict(network.named_buffers()))
    try:
        with forked_streams(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (head := watched_head(network)) is not None and not _ends_with(head, network, images[:2]):
                return "the layer whose input is recorded is not its last"
            logits = compute(way, network, images)
            torch.autograd.grad(logits.sum(), [p for p in network.parameters() if p.requires_grad], allow_unused=True)
    except Exception as error:  # a network or a machine that does not compile shows in many ways
        return brief(error)
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
    return None


@torch.no_grad()
def _ends_with(head: nn.Module, network: nn.Module, images: torch.Tensor) -> bool:
    """Whether a network's logits are what its head makes of what the rest returns, looked at in evaluation mode."""
    training = network.training
    network.eval()
    try:
        return torch.allclose(head(trunk(network, head)(images)), network(images), equal_nan=True)
    finally:
        network.train(training)
