"""Whether networks are compiled by ``torch.compile``."""

from __future__ import annotations

import warnings

import torch

from tgdd_plugin.core.compile_limit import allow_forms
from tgdd_plugin.core.errors import InputError, brief

COMPILED_FROM = 1_000_000
"""The number of passes of a 32 px image through a network above which compiling, about half a minute, saves time."""

FORMS = 8
"""The most compiled forms of a network, torch's own limit: with and without gradients, and by the number of images."""


def should_compile(wanted: bool | None, images: int, side: int, device: torch.device, networks: int = 1) -> bool:
    """Decides whether to compile the networks.

    Args:
        wanted: What the user set; with ``None`` they are compiled if that saves time.
        images: The number of passes of an image through each network.
        side: The side of the images in pixels.
        device: The device that the networks run on.
        networks: The number of networks to compile. Default: ``1``.

    Raises:
        InputError: If compiling is wanted and torch.compile does not work. If it is not set, a warning is given.
    """
    if wanted is False or (wanted is None and images * side**2 < COMPILED_FROM * 32**2):
        return False
    # Torch compiles a limited number of forms of one function: the forms of earlier distillations are dropped, and each
    # network gets as many as a single one would.
    torch.compiler.reset()
    allow_forms(FORMS * networks)
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler shows in many ways
        if wanted:
            raise InputError(
                f"`compile` must be false where torch.compile does not work ({brief(error)}), got true. Install a C++ "
                f"compiler, or set it to false."
            ) from error
        warnings.warn(
            f"torch.compile does not work here ({brief(error)}), so the networks are not compiled and the distillation "
            f"takes about twice as long. Install a C++ compiler, or set compile to false.",
            stacklevel=3,
        )
        return False
    return True
