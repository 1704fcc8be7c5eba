"""Network weights: the content of their file, its reading, and whether they are finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from tgdd_plugin.core.bounded_reading import check_tensor_file


def weights_content(state: Mapping[str, torch.Tensor], about: dict[str, str] | None = None) -> bytes:
    """Returns the bytes of a safetensors file of some weights.

    Args:
        state: The weights by name, on any device. Weights that share memory (tied ones), which safetensors refuses, are
            copied, one for each name.
        about: Notes for the file's header. Default: none.
    """
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(copies, about)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Loads the weights of a safetensors file by name, on the CPU.

    Raises:
        InputError: If it is not a regular file.
        OSError, safetensors.SafetensorError: If it cannot be read, or is damaged.
    """
    check_tensor_file(path)
    return safetensors.torch.load_file(path)


def are_finite(state: Mapping[str, torch.Tensor]) -> bool:
    """Returns whether weights are those of a training that has not diverged: no value is NaN or positive infinity.

    Negative infinity alone is not counted, as attention masks among a network's buffers are made of it.

    Args:
        state: The weights by name, on any device.
    """
    # The largest value is NaN if any is: one pass, without a copy.
    floating = (t.detach() for t in state.values() if t.is_floating_point() and t.element_size() > 1 and t.numel())
    return all(bool(t.max() < torch.inf) for t in floating)
