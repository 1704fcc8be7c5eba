"""Network weights: the content of their file, its reading, and whether they are finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tgdd_plugin.core.bounded_reading import check_tensor_file


def only_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a ``state_dict()``, which may hold what else a module keeps (``get_extra_state``)."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def weights_content(state: Mapping[str, Any], about: dict[str, str] | None = None) -> bytes:
    """Returns the bytes of a safetensors file of some weights.

    Args:
        state: The weights by name, on any device. Weights that share memory (tied ones), which safetensors refuses, are
            copied, one for each name. Values that are not tensors are left out.
        about: Notes for the file's header. Default: none.
    """
    tensors = only_tensors(state).items()
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors}
    return safetensors.torch.save(copies, about)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Loads the weights of a safetensors file by name, on the CPU.

    Raises:
        InputError: If it is not a regular file.
        OSError, safetensors.SafetensorError: If it cannot be read, or is damaged.
    """
    check_tensor_file(path)
    return safetensors.torch.load_file(path)


def put_weights(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Loads all tensors of a network's ``state_dict()``; what else that has stays as it is.

    Raises:
        RuntimeError: If a tensor is missing, too many, or of another shape.
    """
    state = network.state_dict()
    network.load_state_dict({**{name: state[name] for name in state.keys() - only_tensors(state)}, **weights})


def are_finite(state: Mapping[str, Any]) -> bool:
    """Returns whether weights are those of a training that has not diverged: no value is NaN or positive infinity.

    Negative infinity alone is not counted, as attention masks among a network's buffers are made of it.

    Args:
        state: The weights by name, on any device; values that are not tensors are skipped.
    """
    tensors = only_tensors(state).values()
    # The largest value is NaN if any is: one pass, without a copy.
    floating = (t.detach() for t in tensors if t.is_floating_point() and t.element_size() > 1 and t.numel())
    return all(bool(t.max() < torch.inf) for t in floating)
