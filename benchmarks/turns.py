"""Sides that take turns, each turn in the other order, and the lines that tell of them.

A turn gives a ratio to the side that stands first; what is told is its median and middle half.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, quartiles
from tgdd_plugin.beton.ffcv_threads import restored_threads
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.versions import installed_versions

TURNS = 2  # are taken whatever they cost
Seconds = dict[str, float]  # by what was timed


def take_turns(
    sides: Mapping[str, Callable[[], Seconds]], pairs: int, options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Lets the sides take turns, as often as ``pairs`` and the budget allow.

    Args:
        sides: What does a turn and returns its seconds, by name.
        pairs: Most turns of each.
        options: ``budget`` in seconds, and torch's ``threads``, which FFCV changes.

    Returns:
        Seconds by what was timed, then by side, turn by turn.
    """
    found: dict[str, dict[str, list[float]]] = {}
    began = time.perf_counter()
    for number in range(pairs):
        spent = time.perf_counter() - began
        if number >= TURNS and spent * (number + 1) / number > options.budget:
            break
        for name in list(sides)[:: -1 if number % 2 else 1]:
            with restored_threads():
                torch.set_num_threads(options.threads)
                seconds = sides[name]()
            for what, value in seconds.items():
                found.setdefault(what, {side: [] for side in sides})[name].append(value)
    return found


class Report:
    """Prints lines as they are measured, and keeps a JSON file of them up to date.

    Args:
        options: Of the script.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.path = options.json
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        about = installed_versions("mosaicml", "ffcv", "numba", "torchvision", "pillow", "numpy")
        machine = describe_machine(options.device, options.threads)
        self.content: dict[str, Any] = {"machine": machine, "versions": about, "settings": settings, "rows": []}
        print(machine, ", ".join(f"{name} {value}" for name, value in about.items()), sep="\n")
        self.head: list[str] = []

    def add(self, part: str, about: dict[str, Any], found: dict[str, dict[str, list[float]]], **more: Any) -> None:
        """Lines of one case: what was timed, the first side's time, and the others' as multiples of it."""
        for what, seconds in found.items():
            (first, base), *others = seconds.items()
            ratio = {name: quartiles([v / b for v, b in zip(values, base, strict=True)]) for name, values in others}
            row = {"part": part, **about, "what": what, **more, "seconds": seconds, "ratio": ratio}
            self.content["rows"].append(row)
            self._show(
                [*about, "", first, *ratio, *more],
                [*about.values(), what, duration(quartiles(base)["median"]), *map(times, ratio.values())]
                + [_brief(value) for value in more.values()],
            )
        if self.path:
            write_whole(self.path, json.dumps(self.content, indent=1) + "\n")

    def _show(self, head: list[str], cells: list[Any]) -> None:
        lines = [cells]
        if head != self.head:
            print()
            lines = [head, ["---"] * len(head), cells]
            self.head = head
        for line in lines:
            print("| " + " | ".join(str(cell) for cell in line) + " |", flush=True)


def duration(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def times(ratio: Mapping[str, float]) -> str:
    """Median of a ratio, and its middle half."""
    median, low, high = (f"{ratio[n]:.{1 if ratio[n] >= 10 else 2}f}" for n in ("median", "low", "high"))
    return f"{median} × ({low} .. {high})"


def _brief(value: Any) -> str:
    return f"yes {sum(value)} of {len(value)}" if isinstance(value, list) else str(value)
