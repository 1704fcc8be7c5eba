"""Networks that go on from task to task: grown to more classes, saved and loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import safetensors
import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.weights import load_weights, only_tensors, put_weights, weights_content
from tgdd_plugin.training.train import check_network


def grow(network: nn.Module, earlier: nn.Module | None) -> nn.Module:
    """Copies the weights of an earlier network with fewer outputs into a fresh one, in place.

    The head's rows of the earlier classes come first; those of new classes stay as they were initialized.

    Args:
        network: The fresh network.
        earlier: The earlier network; ``None`` leaves the fresh one as it is.

    Returns:
        ``network``.

    Raises:
        InputError: If the networks differ in more than the number of outputs.
    """
    if earlier is None:
        return network
    old, new = only_tensors(earlier.state_dict()), only_tensors(network.state_dict())
    for name, tensor in new.items():
        there, here = old[name].shape if name in old else None, tensor.shape
        if there is None or (len(there), there[1:]) != (len(here), here[1:]) or there[:1] > here[:1]:
            raise InputError(
                f"`build` must return networks that differ in their outputs alone, got '{name}' of {tuple(here)} for "
                f"more classes and {'missing' if there is None else tuple(there)} in the network before. Let the "
                f"number of classes decide about the head alone."
            )
    with torch.no_grad():
        for name, tensor in new.items():
            tensor[tuple(slice(size) for size in old[name].shape)] = old[name].to(tensor.device)
    return network


def check_growth(build: Callable[[int], nn.Module], shape: Sequence[int], counts: Iterable[int]) -> None:
    """Checks that networks of all sizes take images of ``shape``, and can take over the weights of the smaller ones.

    Raises:
        InputError: If not.
    """
    smaller = None
    for count in sorted(set(counts)):
        check_network(functools.partial(build, count), shape, count)
        with forked_streams():
            smaller = grow(build(count), smaller)


def save_network(network: nn.Module, path: Path) -> None:
    """Writes the weights of a network as safetensors, on rank 0."""
    if dist.get_global_rank() == 0:
        write_whole(path, weights_content(network.state_dict()))


def load_network(network: nn.Module, path: Path) -> nn.Module:
    """Loads the weights that :func:`save_network` wrote into a network, and returns it.

    Raises:
        InputError: If the file is damaged, or of another network.
    """
    try:
        put_weights(network, load_weights(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"'{path}' cannot be used ({str(error).splitlines()[0]}). Delete '{path.parents[1]}' to learn the tasks "
            f"anew."
        ) from error
    return network
