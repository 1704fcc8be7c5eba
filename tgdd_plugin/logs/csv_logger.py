"""A log as a CSV file, which a resumed run continues without losing or repeating a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from composer import Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist

from tgdd_plugin.core.atomic_files import sync, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.logs.log_file import SECONDS, STEP, read_table


class CSVLogger(LoggerDestination):
    """Writes metrics to a CSV file: a row for a step, and a column for a metric, empty where it was not measured.

    A row is in the file by the end of its step. A run that is resumed drops the rows after its checkpoint, which come
    again; one that begins anew drops all. On several ranks, rank 0 writes.

    Args:
        path: The file.
        columns: The name of each column's metric, by the name of the column.
        about: What the rows are about, by the name of the column, which stands first: rows that are about something
            else are kept. Default: none, and the file has no other rows.
        most: The most rows: of a longer run every second, third, ... step has one. Default:
            ``10_000``.

    Raises:
        InputError: At the start of training, if there is a file of that name with other columns.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Mapping[str, str],
        *,
        about: Mapping[str, Any] | None = None,
        most: int = 10_000,
    ) -> None:
        self.path = Path(path)
        self.columns = dict(columns)
        self.about = {name: str(value) for name, value in (about or {}).items()}
        self.most = most
        self._values: dict[str, Any] = {}
        self._every = 1
        self._file: TextIO | None = None

    @property
    def header(self) -> list[str]:
        """The names of all columns."""
        return [*self.about, STEP, *self.columns, SECONDS]

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._values.update(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() != 0:
            return
        self.close(state, logger)
        made = state.timestamp.batch.value
        header, rows = read_table(self.path)
        if header not in ([], self.header):
            raise InputError(
                f"'{self.path}' is there already, and its columns are not {', '.join(self.header)}. Move it away."
            )
        kept = [row for row in rows if self._is_kept(row, made)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *kept])
        write_whole(self.path, text.getvalue())
        self._file = self.path.open("a", buffering=1, newline="")
        self._every = -(-_steps(state) // self.most)
        self._values = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        if self._file is None or (step % self._every and step != _steps(state)):
            return
        found = [self._values.get(metric) for metric in self.columns.values()]
        numbers = ["" if value is None else f"{float(value):.7g}" for value in found]
        seconds = f"{state.timestamp.total_wct.total_seconds():.3f}"
        csv.writer(self._file, lineterminator="\n").writerow([*self.about.values(), step, *numbers, seconds])
        self._values = {}

    def close(self, state: State, logger: Logger) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            sync(self.path)

    def _is_kept(self, row: list[str], made: int) -> bool:
        others = row[: len(self.about)] != list(self.about.values())
        return others or int(row[len(self.about)]) <= made


def _steps(state: State) -> int:
    """How many steps a training has in all."""
    duration, length = state.max_duration, state.dataloader_len
    assert duration is not None  # the Trainer checks this
    if duration.unit.value == "ba":
        return duration.value
    return duration.value * (length.value if length is not None else 1)
