"""Metrics of continual learning: the accuracy matrix, and the usual figures computed from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import JSON_SIZE, parse_json, read_bounded
from tgdd_plugin.core.checked_json import Finite, Text, Whole, build_checked
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.tables import DrawTable, markdown_table


@dataclass(frozen=True)
class Scores:
    """The accuracies a_ij, from 0 to 1, on the test images of task j after task i was learned.

    Args:
        about: Everything that the accuracies depend on, as plain values. ``tasks``, the class names of each task, and
            ``test_images``, their numbers, are read here; both may be missing.
        rows: The accuracies a_i0 to a_ii for each finished task i.
        memory: The images in the memory after each of them; fewer numbers where an earlier version began the file.
    """

    about: dict[Text, Any]
    rows: list[list[Finite]] = field(default_factory=list)
    memory: list[Whole] = field(default_factory=list)

    def after(self, row: list[float], images: int | None = None) -> Scores:
        """Returns the scores with one more task finished; ``images`` says how many the memory has, if that is noted."""
        return Scores(self.about, [*self.rows, row], [] if images is None else [*self.memory, images])

    def has_memory_after(self, number: int) -> bool:
        """Whether it is known that there were images in the memory after a finished task."""
        earlier = len(self.rows) - len(self.memory)
        return 0 <= earlier <= number and self.memory[number - earlier] > 0

    @property
    def seen(self) -> list[float]:
        """The accuracy on the test images of all tasks so far, after each task.

        Where ``about`` does not note their numbers (``test_images``) it is the mean over tasks, as it is for tasks of
        equal size. The network is told the task of an image only where ``heads`` is ``'task'``.
        """
        sizes = self.about.get("test_images", [])
        return [_mean(row, sizes[: len(row)]) for row in self.rows]

    @property
    def average_accuracy(self) -> float:
        """The mean over tasks, whatever their size, after the last one (Lopez-Paz and Ranzato, NeurIPS 2017)."""
        return _mean(self.rows[-1])

    @property
    def average_incremental_accuracy(self) -> float:
        """The mean of :attr:`seen` (Rebuffi et al., CVPR 2017)."""
        return _mean(self.seen)

    @property
    def forgetting(self) -> float:
        """The mean over earlier tasks j of the best a_ij before the end minus the last (Chaudhry et al., 2018)."""
        last = self.rows[-1]
        lost = [max(row[j] for row in self.rows[j:-1]) - last[j] for j in range(len(last) - 1)]
        return sum(lost) / len(lost) if lost else 0.0

    @property
    def backward_transfer(self) -> float:
        """The mean over earlier tasks j of a_ij at the end minus a_jj (Lopez-Paz and Ranzato, NeurIPS 2017)."""
        last = self.rows[-1]
        moved = [last[j] - self.rows[j][j] for j in range(len(last) - 1)]
        return sum(moved) / len(moved) if moved else 0.0

    def figures(self) -> dict[str, float]:
        """Returns the four figures by name."""
        names = ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
        return {name: getattr(self, name) for name in names}

    def write(self, path: Path) -> None:
        """Writes the matrix and, once there is a row, the figures as JSON, whole."""
        content = {**asdict(self), **(self.figures() if self.rows else {})}
        write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Reads a file that :meth:`write` wrote.

        Raises:
            InputError: If it is damaged.
        """
        text = read_bounded(path, JSON_SIZE, "results file")
        try:
            scores = build_checked(cls, parse_json(text))
            if [len(row) for row in scores.rows] != list(range(1, len(scores.rows) + 1)):
                raise ValueError("rows of wrong length")
            if not all(0 <= value <= 1 for row in scores.rows for value in row):
                raise ValueError("accuracies beyond 0 to 1")
            tasks = scores.about.get("tasks", [])
            if not (isinstance(tasks, list) and all(isinstance(names, list) for names in tasks)):
                raise ValueError("tasks must be a list of lists of class names")
            if not all(isinstance(name, str) for names in tasks for name in names):
                raise ValueError("class names must be text")
            sizes = scores.about.get("test_images", [])
            if not (isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)):
                raise ValueError("test_images must be a list of whole numbers of at least 1")
        except ValueError as error:
            raise InputError(f"'{path}' is damaged: {error}. Delete it to learn the tasks anew.") from error
        return scores

    def table(self, draw: DrawTable = markdown_table) -> str:
        """Returns the matrix and the measures as a table, in per cent; before the first task is finished, a line."""
        if not self.rows:
            return "No task is finished yet."
        tasks, seen_names = self.about.get("tasks", []), set[str]()
        headers = ["after task"]
        for number in range(len(self.rows)):
            names = tasks[number] if number < len(tasks) else []
            first = [name for name in names if name not in seen_names]  # those that come back are tested earlier
            seen_names.update(names)
            headers.append(f"on {', '.join(first or names) or f'task {number + 1}'}")
        headers.append("all so far")
        cells = []
        for number, (row, seen) in enumerate(zip(self.rows, self.seen, strict=True), 1):
            later = [""] * (len(self.rows) - len(row))
            cells.append([number, *(f"{100 * value:.1f}" for value in row), *later, f"{100 * seen:.1f}"])
        words = (f"{name.replace('_', ' ')} {100 * value:.1f} %" for name, value in self.figures().items())
        return f"{draw(headers, cells)}\n\n{', '.join(words)}"


def _mean(values: list[float], sizes: Sequence[int] = ()) -> float:
    """The mean, weighted by ``sizes`` if these differ and there is one for each value."""
    if len(sizes) < len(values) or len(set(sizes)) == 1:
        return sum(values) / len(values)
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)
