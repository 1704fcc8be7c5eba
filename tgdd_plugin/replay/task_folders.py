"""The folder of a continual learner's job: the files of each task, and the scores, which say what job it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist

from tgdd_plugin.core.differences import as_plain, first_difference
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.renamed_keys import with_current_keys
from tgdd_plugin.distillation.settings import EARLIER
from tgdd_plugin.recording.settings import as_recorded
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.training.resuming import remove_checkpoints

NETWORK, MEMORY, FINETUNED = "network.safetensors", "memory.beton", "tuned.safetensors"
"""The files in the folder of a task."""

NOT_NOTED = {"policy": "distilled"}
"""What the folders of version 0.1 did without noting it in ``scores.json``."""

WITHOUT = {"returning": None, "heads": "one"}
"""The same, of the section ``replay``."""


def checkpoints_of(file: str) -> str:
    """The name of the checkpoints of the training that ends with a file of a task."""
    return f"training-{Path(file).stem}"


def open_scores(folder: Path, about: dict[str, Any]) -> Scores:
    """Reads ``scores.json`` of the job, or begins it.

    Args:
        folder: The folder of the job.
        about: What the scores depend on.

    Raises:
        InputError: If it is of another job.
    """
    about = as_plain(about)
    path = folder / "scores.json"
    scores = Scores.read(path) if path.is_file() else Scores({})
    earlier = {name: value for name, value in NOT_NOTED.items() if name in about} | with_current_keys(scores.about)
    # Earlier versions noted the number of runs, which never had an effect.
    earlier["training"] = as_recorded(earlier.get("training") or {}, about["training"]) | {"runs": 1}
    if isinstance(earlier.get("distill"), dict) and isinstance(about.get("distill"), dict):
        known = {name: value for name, value in EARLIER.items() if name in about["distill"]}
        earlier["distill"] = known | earlier["distill"]
    earlier["replay"] = WITHOUT | (earlier.get("replay") or {})
    for name in ("architecture", "tested_on"):  # before they were noted
        earlier.setdefault(name, about[name])
    other = first_difference(earlier, with_current_keys(about))
    # A job that failed before it had trained anything binds nobody.
    if other and path.is_file() and (scores.rows or (folder / "task0" / NETWORK).is_file()):
        remedy = "Choose another folder (output=... on the command line), or delete this one."
        raise InputError(f"'{folder}' is of another job ({other}). {remedy}")
    if other and dist.get_global_rank() == 0:
        if not path.is_file():  # it was deleted, to learn the tasks anew
            for place in folder.glob("task*"):
                for name in (NETWORK, MEMORY, FINETUNED):
                    (place / name).unlink(missing_ok=True)
                for training in (NETWORK, FINETUNED):
                    remove_checkpoints(place, checkpoints_of(training))
        replace(scores, about=about).write(path)
    dist.barrier()
    return replace(scores, about=about)


def finished_memory(place: Path, scores: Scores, number: int, device: torch.device) -> ReplayMemory | None:
    """Loads the memory after a finished task; ``None`` if the task left none.

    Raises:
        InputError: If it is damaged, or gone: later tasks would be learned without it.
    """
    if (place / MEMORY).is_file():
        return ReplayMemory.load(place / MEMORY, device=device)
    if scores.has_memory_after(number):
        raise InputError(
            f"'{place / MEMORY}' must be there, as the memory after task {number + 1} had images. Put it and "
            f"its card back, or delete '{place.parent}' to learn the tasks anew."
        )
    return None


def saved_memory(place: Path, device: torch.device) -> ReplayMemory | None:
    """Returns the memory after a task if it was saved completely; a file without its card does not count."""
    dist.barrier()
    if not (place / MEMORY).is_file():
        return None
    try:
        return ReplayMemory.load(place / MEMORY, device=device)
    except InputError:
        return None
