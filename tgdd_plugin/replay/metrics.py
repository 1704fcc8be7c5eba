"""What a continual learner still knows: the accuracy matrix, and the usual figures made of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tgdd_plugin.core.atomic_files import build_checked, write_whole
from tgdd_plugin.core.errors import InputError


@dataclass(frozen=True)
class Scores:
    """Accuracies a_ij from 0 to 1, on the test images of task j after task i was learned.

    Args:
        about: What they are of.
        rows: For each finished task i, a_i0 to a_ii.
    """

    about: dict[str, Any]
    rows: list[list[float]] = field(default_factory=list)

    def after(self, row: list[float]) -> Scores:
        """With one more task finished."""
        return Scores(self.about, [*self.rows, row])

    @property
    def seen(self) -> list[float]:
        """Accuracy over all tasks seen so far, after each task: the mean over them (a network without task ids)."""
        return [sum(row) / len(row) for row in self.rows]

    @property
    def average_accuracy(self) -> float:
        """Mean over tasks after the last one (Lopez-Paz and Ranzato, NeurIPS 2017)."""
        return self.seen[-1]

    @property
    def average_incremental_accuracy(self) -> float:
        """Mean of :attr:`seen` (Rebuffi et al., CVPR 2017)."""
        return sum(self.seen) / len(self.seen)

    @property
    def forgetting(self) -> float:
        """Mean over earlier tasks j of the best a_ij before the end minus that at the end (Chaudhry et al., 2018)."""
        last = self.rows[-1]
        lost = [max(row[j] for row in self.rows[j:-1]) - last[j] for j in range(len(last) - 1)]
        return sum(lost) / len(lost) if lost else 0.0

    @property
    def backward_transfer(self) -> float:
        """Mean over earlier tasks j of a_ij at the end minus a_jj (Lopez-Paz and Ranzato, NeurIPS 2017)."""
        last = self.rows[-1]
        moved = [last[j] - self.rows[j][j] for j in range(len(last) - 1)]
        return sum(moved) / len(moved) if moved else 0.0

    def figures(self) -> dict[str, float]:
        """The four figures by name."""
        names = ("average_accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer")
        return {name: getattr(self, name) for name in names}

    def write(self, path: Path) -> None:
        """Writes the matrix and, once there is a row, the figures as JSON, whole."""
        content = {**asdict(self), **(self.figures() if self.rows else {})}
        write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Reads such a file.

        Raises:
            InputError: If it is damaged.
        """
        try:
            scores = build_checked(cls, json.loads(path.read_text()))
            if [len(row) for row in scores.rows] != list(range(1, len(scores.rows) + 1)):
                raise ValueError("rows of wrong length")
            if not all(0 <= value <= 1 for row in scores.rows for value in row):
                raise ValueError("accuracies beyond 0 to 1")
        except (ValueError, TypeError) as error:
            raise InputError(f"'{path}' is damaged ({error}); delete it to learn the tasks anew") from error
        return scores

    def table(self) -> str:
        """The matrix and the figures as a Markdown table, in per cent."""
        tasks = self.about.get("tasks", [])
        head = ["after task", *(f"on {', '.join(names)}" for names in tasks[: len(self.rows)]), "all so far"]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for number, row in enumerate(self.rows):
            cells = [f"{100 * value:.1f}" for value in row] + [""] * (len(self.rows) - len(row))
            lines.append("| " + " | ".join([str(number + 1), *cells, f"{100 * self.seen[number]:.1f}"]) + " |")
        words = (f"{name.replace('_', ' ')} {100 * value:.1f} %" for name, value in self.figures().items())
        return "\n".join([*lines, "", ", ".join(words)])
