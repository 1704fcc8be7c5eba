"""What every benchmark prints: the machine, and figures with their spread."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from statistics import median, quantiles

import torch


def describe_machine(device: str, threads: int) -> str:
    """The machine and the version of torch, in a line.

    Args:
        device: ``'cpu'`` or ``'gpu'``.
        threads: Of torch on the CPU.
    """
    name = torch.cuda.get_device_name() if device == "gpu" else f"{platform.machine()} CPU"
    return f"{name}, {os.cpu_count()} cores, {threads} thread(s), torch {torch.__version__}"


def quartiles(values: list[float]) -> dict[str, float]:
    """Median, the quartiles, and the bounds of the median by the order of the values (95 %).

    Args:
        values: At least two.

    Returns:
        ``median``, ``low`` and ``high`` (quartiles), ``from`` and ``to`` (bounds).
    """
    values = sorted(values)
    low, _, high = quantiles(values, n=4, method="inclusive")
    reach = 0.98 * math.sqrt(len(values))
    first, last = max(0, math.floor(len(values) / 2 - reach)), min(len(values) - 1, math.ceil(len(values) / 2 + reach))
    return {"median": median(values), "low": low, "high": high, "from": values[first], "to": values[last]}


def print_figures(figures: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a table of :func:`quartiles` by name."""
    print(f"{'':34}  {'median':>8}  {'middle half':>20}  {'median within':>20}")
    for name, v in figures.items():
        bounds = [f"{v[low]:.3f} .. {v[high]:.3f}" for low, high in (("low", "high"), ("from", "to"))]
        print(f"{name:34}  {v['median']:8.3f}  {bounds[0]:>20}  {bounds[1]:>20}")
