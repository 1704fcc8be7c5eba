"""The time and memory that a step took, in a small JSON file beside what it made."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import MIB, parse_json, read_bounded
from tgdd_plugin.core.checked_json import Finite, build_checked
from tgdd_plugin.core.usage import peak_memory

COSTS_SIZE = 1 * MIB
"""Most bytes of a file of costs."""


@dataclass
class Cost:
    """What a step took, of the call that ended it: a job that was interrupted had other calls before.

    Args:
        seconds: Its time.
        memory_mib: The most memory that the process had held by its end, earlier steps of the same call included.
        gpu_memory_mib: The most memory of a GPU that its tensors took; ``None`` if no GPU was used.
    """

    seconds: Finite
    memory_mib: Finite
    gpu_memory_mib: Finite | None = None


def costs_path(beton: Path) -> Path:
    """Returns where the costs of a ``.beton`` are: ``name-costs.json`` beside ``name.beton``."""
    return beton.with_name(f"{beton.stem}-costs.json")


def recording_costs_path(trajectory: Path) -> Path:
    """Returns where the costs of a recording are: ``costs.json`` in the trajectory folder."""
    return trajectory / "costs.json"


def read_costs(path: Path) -> dict[str, Cost]:
    """Reads the costs by the names of their steps; there are none if there is no such file, or it is damaged."""
    try:
        content = parse_json(read_bounded(path, COSTS_SIZE, "file"))
        return build_checked(dict[str, Cost], content)
    except (OSError, ValueError):
        return {}


class Measure:
    """Whether a step did any work. One that an earlier call had finished did none, and that call's cost stays noted."""

    worked = True


@contextmanager
def measured(path: Path, step: str, *, keep: bool = True) -> Iterator[Measure]:
    """Measures a step, and notes its cost in a file if it ended well and worked.

    Args:
        path: The file.
        step: The name of the step.
        keep: Whether the costs of other steps stay there. Default: ``True``.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    measure, began = Measure(), time.perf_counter()
    yield measure
    if not measure.worked:
        return
    cost = Cost(round(time.perf_counter() - began, 3), round(peak_memory() / MIB, 1))
    if torch.cuda.is_initialized() and (most := torch.cuda.max_memory_allocated()):
        cost.gpu_memory_mib = round(most / MIB, 1)
    costs = {**(read_costs(path) if keep else {}), step: cost}
    write_whole(path, json.dumps({name: asdict(each) for name, each in costs.items()}, indent=1) + "\n")
