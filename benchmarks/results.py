"""Rows of results, one JSON file each, the table of them, and the options of the scripts that make them."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NoReturn, get_args

from tgdd_plugin import InputError
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.differences import as_plain, first_difference
from tgdd_plugin.core.renamed_keys import RENAMED, with_current_keys
from tgdd_plugin.core.tables import markdown_table
from tgdd_plugin.distillation.settings import Source

TIME_UP = 3  # exit status
SECONDS = "seconds: recording / distilling / a training"
HONEST = "last iterate, decoded uint8 file, last epoch, hard labels; std over networks with n - 1"


class OneLineParser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


class Parser(OneLineParser):
    """Takes ``-- key=value ...`` last."""

    def __init__(self, description: str | None, output: str) -> None:
        super().__init__(
            description=description,
            epilog="After --, keys of the recipe: -- distill.steps=200 data.root=/data",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("recipe", nargs="?", help="YAML file, such as recipes/cifar10.yaml")
        self.add_argument("--source", nargs="+", choices=get_args(Source), default=["sampled", "recorded"])
        self.add_argument("--networks", type=int, help="trained for each number (default: the recipe's retrain.seeds)")
        self.add_argument("--holdout", type=float, help="score on so large a share of the training images instead")
        self.add_argument("--output", type=Path, default=Path(output), help=f"a JSON file per row (default {output})")
        self.add_argument("--minutes", type=float, help=f"stop then, with status {TIME_UP}; the same command goes on")
        self.add_argument("--table", action="store_true", help="only print the table of the files in --output")

    def read(self, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
        """The options, and the recipe's overrides."""
        given, overrides = split_arguments(arguments)
        options = self.parse_args(given)
        if options.holdout is not None:
            overrides.append(f"data.holdout={options.holdout}")
        if options.recipe is None and not options.table:
            self.error("name a recipe, such as recipes/cifar10.yaml, or give --table")
        if options.networks is not None and options.networks < 1:
            self.error(f"--networks is {options.networks}; wanted at least 1")
        if options.minutes is not None and not options.minutes > 0:
            self.error(f"--minutes is {options.minutes}; wanted more than 0")
        return options, overrides


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """What stands before ``--`` and what after it; of ``None`` in the arguments of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    return given[:cut], given[cut + 1 :]


@dataclass
class Row:
    """A row's file, and the folder of the work behind it.

    The content has the ``settings`` it depends on, and lists of one entry per trained network: ``networks`` on what
    ships, ``float`` on the pixels before rounding, ``paper_protocol`` on iterates.
    """

    path: Path
    work: Path
    content: dict[str, Any]

    def save(self) -> None:
        write_whole(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")

    def missing(self, column: str, wanted: Iterable[int], key: str = "seed") -> list[int]:
        """Which of the wanted networks a column lacks."""
        there = {entry[key] for entry in self.content.get(column, [])}
        return [number for number in wanted if number not in there]


def open_row(folder: Path, name: str, settings: dict[str, Any], about: dict[str, Any]) -> Row:
    """Opens ``folder/<name>.json``, or begins it.

    Raises:
        InputError: If the file is of other settings.
    """
    settings = as_plain(settings)
    row = Row(folder / f"{name}.json", folder / "work" / f"{name}-{key_of(settings)}", {})
    if row.path.is_file():
        row.content = json.loads(row.path.read_text())
        if other := first_difference(with_current_keys(row.content["settings"]), settings):
            raise InputError(f"'{row.path}' was made with other settings ({other}); choose another --output")
    else:
        row.content = {"name": name, **about, "protocol": HONEST, "settings": settings}
        row.content |= {"machines": [], "versions": [], "seconds": {}}
    return row


def key_of(settings: dict[str, Any]) -> str:
    """Returns a hash of settings, by the keys of version 0.1: work that was begun under those goes on."""
    return hashlib.sha256(json.dumps(_with_old_keys(settings), sort_keys=True).encode()).hexdigest()[:8]


def _with_old_keys(content: Any) -> Any:
    if isinstance(content, dict):
        old = {present: name for name, present in RENAMED.items()}
        return {old.get(key, key): _with_old_keys(value) for key, value in content.items()}
    return [_with_old_keys(item) for item in content] if isinstance(content, list) else content


@contextmanager
def stopwatch(path: Path) -> Iterator[None]:
    """Adds the seconds of the block to those in a file, also when the block is broken off."""
    began = time.perf_counter()
    try:
        yield
    finally:
        write_whole(path, str((seconds(path) or 0.0) + time.perf_counter() - began))


def seconds(path: Path) -> float | None:
    return float(path.read_text()) if path.is_file() else None


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The contents of all rows' files."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def percent(row: dict[str, Any] | None) -> str:
    """Mean ± standard deviation of the accuracies of a row, if there is one."""
    return spread([100 * entry["accuracy"] for entry in (row or {}).get("networks", [])])


def spread(values: Sequence[float], form: str = ".1f") -> str:
    """``mean ± std``, and the number of values where it is below three."""
    if not values:
        return ""
    few = f" ({len(values)})" if len(values) < 3 else ""
    return format(mean(values), form) + (f" ± {stdev(values):{form.strip('+')}}" if len(values) > 1 else "") + few


def seconds_of(row: dict[str, Any]) -> str:
    """Of a distilled row: all its runs' recording, the distillation, and one training on the set."""
    recorded, distilled = (row["seconds"].get(name) for name in ("record", "distill"))
    total = sum(recorded) if recorded and None not in recorded else None
    trained = [entry["seconds"] for entry in row.get("networks", [])]
    spent = (total, distilled, mean(trained) if trained else None)
    return " / ".join("?" if value is None else f"{value:.0f}" for value in spent)


def markdown(head: Sequence[str], lines: Sequence[Sequence[Any]], notes: Sequence[str]) -> str:
    """A Markdown table without the columns that are empty, and notes below it."""
    kept = [column for column in range(len(head)) if any(str(line[column]) for line in lines)]
    if not kept:
        return "no distilled row is begun yet"
    headers, *rows = ([line[column] for column in kept] for line in (head, *lines))
    return "\n".join([markdown_table(headers, rows), "", *notes])


def provenance(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a table's figures are, and where they come from."""
    scored = " and ".join(sorted({row["scored_on"] for row in rows}))
    machines = sorted({machine for row in rows for machine in row["machines"]})
    versions = sorted({", ".join(f"{k} {v}" for k, v in found.items()) for row in rows for found in row["versions"]})
    few = "(n) where networks are fewer than three"
    return [f"Accuracy in % on {scored}: {HONEST}; {few}.", *machines, *versions]
