"""A replay memory as a ``.beton`` and its card, whose ``method`` notes what the images alone do not say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.beton.card import MEMORY, Card
from tgdd_plugin.beton.format import read_stored, write_beton
from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay.budget import KINDS


@dataclass(frozen=True)
class MemoryTask:
    """What a memory notes of each call of :meth:`tgdd_plugin.replay.memory.ReplayMemory.add`.

    Args:
        name: The name of the task, which no other one has.
        label: Avalanche's task label, where its data sets have them. Default: ``None``.
    """

    name: str
    label: int | None = None


@dataclass(frozen=True)
class SavedMemory:
    """The state of a memory; see :class:`tgdd_plugin.replay.memory.ReplayMemory` for each part."""

    classes: list[str]
    growing: bool
    budget: dict[str, Any]
    normalization: Normalization
    factor: int
    tasks: list[MemoryTask]
    images: torch.Tensor
    labels: torch.Tensor
    sources: torch.Tensor


def write_memory(memory: SavedMemory, path: str | Path) -> Path:
    """Writes a memory that is not empty; see :meth:`tgdd_plugin.replay.memory.ReplayMemory.save`."""
    ((kind, amount),) = memory.budget.items()
    tasks = []
    for i, task in enumerate(memory.tasks):
        counts = torch.bincount(memory.labels[memory.sources == i], minlength=len(memory.classes))
        tasks.append({"name": task.name, "label": task.label, "images": counts.tolist()})
    card = Card(
        classes=memory.classes,
        images=0,
        images_per_class=int(memory.labels.bincount().max()),
        shape=[],
        mean=list(memory.normalization.mean),
        std=list(memory.normalization.std),
        factor=memory.factor,
        packed=memory.factor > 1,
        method={"name": MEMORY, kind: amount, "growing": memory.growing, "tasks": tasks},
        versions=installed_versions("ffcv", "numpy"),
    )
    return write_beton(path, memory.images, memory.labels, card)


def read_memory(path: str | Path) -> SavedMemory:
    """Reads what :func:`write_memory` wrote.

    Raises:
        InputError: If the file is something else, or damaged.
    """
    images, labels, card = read_stored(path)
    if card is None or card.method.get("name") != MEMORY:
        raise InputError(f"'{path}' is not a saved memory. Any other set can be added to a ReplayMemory with `add()`.")
    try:
        tasks = [MemoryTask(str(task["name"]), task["label"]) for task in card.method["tasks"]]
        growing = bool(card.method["growing"])
        # In the order of tgdd_plugin.replay.ordering.arrange().
        places = sorted(
            (label, rank, i)
            for i, task in enumerate(card.method["tasks"])
            for label, count in enumerate(task["images"])
            for rank in range(count)
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"The card of '{path}' lacks what a memory needs ({brief(error)}). Copy it again.") from error
    if [label for label, _, _ in places] != labels.tolist():
        raise InputError(f"The tasks in the card of '{path}' are not those of its images. Copy both again.")
    sources = torch.tensor([i for _, _, i in places])
    budget = {kind: card.method[kind] for kind in KINDS if kind in card.method}
    return SavedMemory(card.classes, growing, budget, card.normalization, card.factor, tasks, images, labels, sources)
