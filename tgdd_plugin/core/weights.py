"""The content of a file of network weights."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch


def weights_content(state: Mapping[str, torch.Tensor], about: dict[str, str] | None = None) -> bytes:
    """Returns the bytes of a safetensors file of some weights.

    Args:
        state: The weights by name, on any device. Weights that share memory (tied ones), which safetensors refuses, are
            copied, one for each name.
        about: Notes for the file's header. Default: none.
    """
    return safetensors.torch.save({name: t.detach().cpu().clone().contiguous() for name, t in state.items()}, about)
