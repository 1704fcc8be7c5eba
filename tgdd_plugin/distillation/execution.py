"""Running the distillation's Trainer, with smaller chunks where memory is short."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from composer import Trainer
from composer.utils import dist

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.synthetic_images import SyntheticImages


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
