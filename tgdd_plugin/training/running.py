"""Running a Composer Trainer from its making to its end, as trainings and distillations do."""

from __future__ import annotations

import warnings
from typing import Any

from composer import Trainer
from composer.utils import ensure_tuple

from tgdd_plugin.core.closing import close
from tgdd_plugin.logs.guarding import guarded
from tgdd_plugin.training.vectorized import SLOWER

QUIET = (
    "Cannot split tensor of length",  # Composer, of every last batch that is smaller than the others
    "Some targets have less than 1 total probability",  # Composer, when a CutMix label's shares add up to 0.9999999
    r"\S+ is not in the state_dict",  # Composer, of a bar, picture or logger that a resumed run did not have before
    # A short epoch may have only mixed batches; distillation refuses a run with no other stages.
    "no class statistics.*mix every batch",
    SLOWER,
)
"""Warnings that tell a user of ours nothing."""


def run(**arguments: Any) -> float:
    """Makes a Trainer, runs it to its end unless it had come there before it was resumed, and closes it.

    Args:
        arguments: The Trainer's. An error of one of its ``loggers`` is a warning (:mod:`tgdd_plugin.logs.guarding`).

    Returns:
        The seconds that the run had taken before it was resumed.
    """
    with guarded(ensure_tuple(arguments["loggers"])), warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message=message)
        trainer = Trainer(**arguments)
        state = trainer.state
        earlier = state.timestamp.total_wct.total_seconds()
        try:
            if state.max_duration is None or state.timestamp < state.max_duration:
                trainer.fit()
        finally:
            close(trainer)
    return earlier
