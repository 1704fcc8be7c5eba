"""How much of a step is computed at once: classes in a chunk, and images in a call of the network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from composer import Trainer
from composer.utils import dist

from tgdd_plugin.errors import InputError, brief
from tgdd_plugin.network import even_part
from tgdd_plugin.synthetic import SyntheticImages

CPU_ACTIVATION = 10 * 2**20
"""Bytes of the largest activation in one call on a CPU: with two threads faster than twice as much. Beyond 32 MiB,
glibc maps and unmaps every tensor, and touching its pages anew costs more than computing: ReLU on 64 MiB took 20 times
as long as on 16."""

COMPILED_FROM = 1_000_000
"""Passes of a 32 px image through a network from which the half minute that compiling takes is soon won back."""

FORMS = 8
"""Most compiled forms of a network, as torch has it: with and without gradients, and by the number of images."""

GPU_SHARE = 0.5
"""Of a GPU's free memory; a chunk that proves too large after all is halved."""


def chunk_sizes(
    footprint: tuple[int, int], num_classes: int, synthetic: int, real: int, device: torch.device
) -> tuple[int, int | None]:
    """Classes in one forward and backward pass, and most images in one call of the network.

    Args:
        footprint: Bytes of an image's largest activation and of all its activations.
        num_classes: K.
        synthetic: Decoded synthetic images of a class and step.
        real: Real ones.
        device: Where the networks run.

    Returns:
        The first from 1 to K; the second ``None`` for no limit.
    """
    largest, every = footprint
    if device.type != "cuda":
        images = max(1, CPU_ACTIVATION // largest)
        return even_part(num_classes, max(1, images // synthetic)), images
    # Both networks' activations wait for the backward pass, which needs about as much again; real images keep none.
    of_a_class = 3 * synthetic * every + 2 * real * largest
    fitting = int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE) // of_a_class
    return even_part(num_classes, max(1, fitting)), None


def shall_compile(wanted: bool | None, images: int, side: int, device: torch.device, networks: int = 1) -> bool:
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


def fit_halving(options: Callable[[int], dict[str, Any]], chunk: int, synthetic: SyntheticImages) -> None:
    """Runs a Trainer; when a chunk of classes does not fit in memory, another one with half of it.

    That one goes on from the last checkpoint, or from the start images if there is none yet.
    """
    start = synthetic.pixels.detach().clone()
    while True:
        trainer = Trainer(**options(chunk))
        try:
            # A run that broke off after its last step, as on a full disk, has none left to make.
            if trainer.state.max_duration is None or trainer.state.timestamp.batch < trainer.state.max_duration:
                trainer.fit()
            return
        except RuntimeError as error:  # torch has a class of its own for GPUs only
            if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error):
                raise
            if chunk == 1 or dist.get_world_size() > 1:  # other ranks would wait for this one's Trainer
                raise InputError(
                    f"{chunk} class(es) at a time do not fit in memory; "
                    + ("set classes_per_chunk lower" if chunk > 1 else "lower real_per_class or max_decoded")
                ) from None
        finally:
            trainer.close()
        warnings.warn(f"{chunk} classes at a time do not fit in memory; going on with {(chunk + 1) // 2}", stacklevel=2)
        chunk = (chunk + 1) // 2
        with torch.no_grad():
            synthetic.pixels.copy_(start)
