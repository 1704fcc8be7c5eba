"""Closing a Composer Trainer so that what it trained on can be freed."""

from __future__ import annotations

import tempfile

from composer import Trainer

HEAVY = (
    *("model", "batch", "outputs", "loss", "_optimizers", "_schedulers", "_algorithms"),
    *("_train_dataloader", "_dataloader", "_evaluators", "train_metrics", "eval_metrics", "scaler"),
)
"""The attributes of a State that hold networks, images and the optimizer's moments."""


def close(trainer: Trainer) -> None:
    """Closes a Trainer, and empties its State.

    Composer (0.32) registers each engine's State with ``atexit``, and takes it back for engines alone that were never
    closed, so that every closed Trainer's network, data and callbacks would stay in memory until the process ends.
    """
    trainer.close()
    for callback in trainer.state.callbacks:
        folder = getattr(callback, "tmp_dir_for_symlink", None)  # of CheckpointSaver, which leaves it to the end, too
        if isinstance(folder, tempfile.TemporaryDirectory):
            folder.cleanup()
    content = vars(trainer.state)
    for name in HEAVY:
        if name in content:
            content[name] = None
    content["_callbacks"] = []
