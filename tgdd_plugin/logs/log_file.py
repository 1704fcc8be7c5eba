"""The file of a log: where it lies, and how it is read. Nothing here loads Composer."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from tgdd_plugin.core.bounded_reading import MIB, read_bounded
from tgdd_plugin.core.errors import InputError

LOG_SIZE = 256 * MIB
"""Most bytes of a log; 10,000 rows are 1 MiB."""

STEP, SECONDS = "step", "seconds"
"""The first and the last column of numbers: steps made so far, and the seconds that they took."""


def log_path(path: Path) -> Path:
    """Where the log of what is made at a path is: ``<name>-log.csv`` beside it."""
    return path.with_name(f"{path.stem}-log.csv")


def read_log(path: str | Path) -> dict[str, list[float]]:
    """Reads the log of one run: the values of each column by its name, NaN where one is empty; nothing without a file.

    Raises:
        InputError: If it is not such a file.
    """
    header, rows = read_table(Path(path))
    try:
        values = [[float(value or "nan") for value in row] for row in rows]
    except ValueError as error:
        raise InputError(f"The log '{path}' is damaged ({error}). Delete it; nothing depends on it.") from error
    return {name: [row[place] for row in values] for place, name in enumerate(header)}


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the whole rows of a log; both are empty without a file."""
    if not path.is_file():
        return [], []
    try:
        header, *rows = [*csv.reader(io.StringIO(_text(path)))] or [[]]
    except (ValueError, csv.Error):
        return [], []
    if STEP not in header:
        return header, []
    return header, [row for row in rows if len(row) == len(header) and row[header.index(STEP)].isdecimal()]


def _text(path: Path) -> str:
    """The whole lines of a log: of a writer that was killed, the last one may have been cut short."""
    whole, newline, _ = read_bounded(path, LOG_SIZE, "log").decode(errors="replace").rpartition("\n")
    return whole + newline
