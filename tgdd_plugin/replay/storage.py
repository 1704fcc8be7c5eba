"""A replay memory as a ``.beton`` and its card, whose ``method`` notes what the images alone do not say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.beton.card import MEMORY, Card
from tgdd_plugin.beton.existing import check_replaceable, existing_card
from tgdd_plugin.beton.format import read_stored, write_beton
from tgdd_plugin.core.differences import first_difference
from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay.budget import KINDS

_OTHER_TASKS = "The tasks in the card of '{}' are not those of its images. Copy both again."


@dataclass(frozen=True)
class MemoryTask:
    """What a memory notes of each call of :meth:`tgdd_plugin.replay.memory.ReplayMemory.add`.

    Args:
        name: The name of the task, which no other one has.
        label: Avalanche's task label, where its data sets have them. Default: ``None``.
        fingerprint: That of the images as they were added, see :meth:`ImagePool.fingerprint`. Default: ``None``, of a
            memory that an earlier version saved.
    """

    name: str
    label: int | None = None
    fingerprint: str | None = None


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


def write_memory(memory: SavedMemory, path: str | Path, *, overwrite: bool) -> Path:
    """Writes a memory that is not empty; see :meth:`tgdd_plugin.replay.memory.ReplayMemory.save`."""
    earlier = existing_card(Path(path), overwrite=overwrite)
    if earlier is not None:
        check_replaceable(Path(path), _difference(earlier, memory), overwrite=overwrite)
    ((kind, amount),) = memory.budget.items()
    tasks = []
    for i, task in enumerate(memory.tasks):
        counts = torch.bincount(memory.labels[memory.sources == i], minlength=len(memory.classes))
        noted = {"name": task.name, "label": task.label, "images": counts.tolist()}
        tasks.append(noted | ({"fingerprint": task.fingerprint} if task.fingerprint else {}))
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


def _difference(earlier: Card, memory: SavedMemory) -> str | None:
    """Says what in a card shows that its file is not a memory saved before, with fewer tasks and classes or more."""
    tasks = earlier.method.get("tasks")
    known = [task if isinstance(task, dict) else {} for task in tasks] if isinstance(tasks, list) else []
    pairs, normalization = list(zip(known, memory.tasks, strict=False)), memory.normalization
    added = [(one["fingerprint"], two.fingerprint) for one, two in pairs if one.get("fingerprint") and two.fingerprint]
    kinds = min(len(earlier.classes), len(memory.classes))
    was: dict[str, Any] = {
        "method": earlier.method.get("name"),
        "factor": earlier.factor,
        "mean": earlier.mean,
        "std": earlier.std,
        "tasks": [one.get("name") for one, _ in pairs],
        "classes": earlier.classes[:kinds],
        "budget": {kind: earlier.method[kind] for kind in KINDS if kind in earlier.method},
        "images": [one for one, _ in added],
    }
    now: dict[str, Any] = {
        "method": MEMORY,
        "factor": memory.factor,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "tasks": [two.name for _, two in pairs],
        "classes": memory.classes[:kinds],
        "budget": memory.budget,
        "images": [two for _, two in added],
    }
    return first_difference(was, now)


def read_memory(path: str | Path) -> SavedMemory:
    """Reads what :func:`write_memory` wrote.

    Raises:
        InputError: If the file is something else, or damaged.
    """
    images, labels, card = read_stored(path)
    if card is None or card.method.get("name") != MEMORY:
        raise InputError(f"'{path}' is not a saved memory. Any other set can be added to a ReplayMemory with `add()`.")
    if card.packed != (card.factor > 1):
        raise InputError(
            f"The card of '{path}' must say `packed: {str(card.factor > 1).lower()}` at factor {card.factor}, as a "
            f"memory is packed from factor 2 on. Copy both files again."
        )
    try:
        tasks = [MemoryTask(str(one["name"]), one["label"], one.get("fingerprint")) for one in card.method["tasks"]]
        growing = bool(card.method["growing"])
        counts = [count for task in card.method["tasks"] for count in task["images"]]
        if any(type(count) is not int or count < 0 for count in counts):
            raise TypeError("the numbers of a task's images must be whole numbers")
        if sum(counts) != len(labels):
            raise InputError(_OTHER_TASKS.format(path))
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
        raise InputError(_OTHER_TASKS.format(path))
    sources = torch.tensor([i for _, _, i in places])
    budget = {kind: card.method[kind] for kind in KINDS if kind in card.method}
    return SavedMemory(card.classes, growing, budget, card.normalization, card.factor, tasks, images, labels, sources)
