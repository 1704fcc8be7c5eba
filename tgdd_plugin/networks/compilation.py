"""Whether networks are compiled by ``torch.compile``."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from tgdd_plugin.core.errors import InputError, brief

COMPILED_FROM = 1_000_000
"""Passes of a 32 px image through a network from which the half minute that compiling takes is soon won back."""


FORMS = 8
"""Most compiled forms of a network, as torch has it: with and without gradients, and by the number of images."""


def should_compile(wanted: bool | None, images: int, side: int, device: torch.device, networks: int = 1) -> bool:
    """Whether to compile the networks.

    Args:
        wanted: By the user; ``None`` if so many passes of ``images`` of ``side`` pixels through each are worth it.
        images: How many.
        side: In pixels.
        device: Where.
        networks: How many there are to compile. Default: ``1``.

    Raises:
        InputError: If it is wanted and cannot be done. If it would only be worth it, a warning says so.
    """
    if wanted is False or (wanted is None and images * side**2 < COMPILED_FROM * 32**2):
        return False
    # Of one function torch compiles so many forms and then no more: those of earlier distillations give way, and each
    # network has as many as one alone.
    torch.compiler.reset()
    limits: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"  # before torch 2.6
    setattr(limits, limit, max(getattr(limits, limit), FORMS * networks))
    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler shows in many ways
        reason = f"torch.compile does not work here ({brief(error)}); install a C++ compiler, or set compile to false"
        if wanted:
            raise InputError(reason) from error
        warnings.warn(f"{reason}. Not compiled, the distillation takes about twice as long", stacklevel=3)
        return False
    return True
