"""The figures of continual learning: numbers worked out by hand, and a loop over the accuracy matrix in numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.replay.metrics import Scores

# After the third task the first is at 0.4 (it had been at 0.9 and 0.95) and the second at 0.8 (it had been at 0.7).
ROWS = [[0.9], [0.95, 0.7], [0.4, 0.8, 0.6]]


def by_loop(rows: list[list[float]]) -> dict[str, float]:
    """The four figures, entry by entry, of the square matrix."""
    count = len(rows)
    matrix = np.full((count, count), np.nan)
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    seen = [np.nanmean(matrix[i]) for i in range(count)]
    lost, moved = [], []
    for j in range(count - 1):
        best = max(matrix[i, j] for i in range(j, count - 1))
        lost.append(best - matrix[count - 1, j])
        moved.append(matrix[count - 1, j] - matrix[j, j])
    return {
        "average_accuracy": float(seen[-1]),
        "average_incremental_accuracy": float(np.mean(seen)),
        "forgetting": float(np.mean(lost)) if lost else 0.0,
        "backward_transfer": float(np.mean(moved)) if moved else 0.0,
    }


def test_figures_worked_out_by_hand() -> None:
    scores = Scores({}, ROWS)
    assert scores.seen == pytest.approx([0.9, 0.825, 0.6])
    assert scores.average_accuracy == pytest.approx(0.6)  # (0.4 + 0.8 + 0.6) / 3
    assert scores.average_incremental_accuracy == pytest.approx(0.775)  # (0.9 + 0.825 + 0.6) / 3
    assert scores.forgetting == pytest.approx(0.225)  # (0.95 - 0.4 + 0.7 - 0.8) / 2: the best before the end
    assert scores.backward_transfer == pytest.approx(-0.2)  # (0.4 - 0.9 + 0.8 - 0.7) / 2: the accuracy when learned


def test_tasks_of_unequal_size_count_by_their_test_images() -> None:
    """Beside the share of right answers among all images so far; Lopez-Paz's figures stay means over tasks."""
    right, sizes = [[90], [60, 300], [30, 420, 6]], [100, 600, 20]
    rows = [[count / size for count, size in zip(row, sizes, strict=False)] for row in right]
    scores, even = Scores({"test_images": sizes}, rows), Scores({}, rows)
    answered = [sum(row) / sum(sizes[: len(row)]) for row in right]
    assert scores.seen == pytest.approx(answered)
    assert scores.average_incremental_accuracy == pytest.approx(sum(answered) / 3)
    assert [line.split(" | ")[-1] for line in scores.table().splitlines()[2:5]] == ["90.0 |", "51.4 |", "63.3 |"]
    for name in ("average_accuracy", "forgetting", "backward_transfer"):
        assert scores.figures()[name] == even.figures()[name]


def test_tasks_of_equal_size_have_the_figures_of_scores_that_note_no_sizes() -> None:
    random = np.random.default_rng(0)
    rows = [random.random(i + 1).tolist() for i in range(7)]
    for size in (1, 7, 1000):
        noted, bare = Scores({"test_images": [size] * 7}, rows), Scores({}, rows)
        assert (noted.seen, noted.figures()) == (bare.seen, bare.figures())  # to the last digit


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_figures_are_those_of_a_loop(count: int) -> None:
    random = np.random.default_rng(count)
    rows = [random.random(i + 1).tolist() for i in range(count)]
    assert Scores({}, rows).figures() == pytest.approx(by_loop(rows))


def test_columns_are_named_by_the_classes_of_the_test_images() -> None:
    """Those of classes that come back belong to the first task; where all tasks have all classes, to each."""

    def heads(*tasks: list[str]) -> list[str]:
        return Scores({"tasks": list(tasks)}, ROWS).table().splitlines()[0].split(" | ")[1:-1]

    assert heads(["a", "b"], ["a", "b", "c"], ["b", "d", "e"]) == ["on a, b", "on c", "on d, e"]
    assert heads(["a"], ["a"], ["a"]) == ["on a"] * 3


def test_of_one_task_nothing_can_be_forgotten() -> None:
    """Nor of one class, which is all that the network knows."""
    for accuracy in (0.7, 1.0):
        figures = Scores({}, [[accuracy]]).figures()
        assert figures == {**dict.fromkeys(figures, 0.0), **dict.fromkeys(list(figures)[:2], accuracy)}
        assert list(figures)[:2] == ["average_accuracy", "average_incremental_accuracy"]


def test_a_row_more_leaves_the_earlier_scores_as_they_were() -> None:
    scores = Scores({"seed": 3}, ROWS[:2])
    assert scores.after(ROWS[2]) == Scores({"seed": 3}, ROWS)
    assert scores.after(ROWS[2], 6) == Scores({"seed": 3}, ROWS, [6])
    assert scores.rows == ROWS[:2]


def test_written_and_read_again(tmp_path: Path) -> None:
    for rows in ([], ROWS):
        scores = Scores({"tasks": [["a"], ["b", "c"], ["d"]], "seed": 0}, rows)
        scores.write(tmp_path / "scores.json")
        assert Scores.read(tmp_path / "scores.json") == scores
    content = json.loads((tmp_path / "scores.json").read_text())
    assert {name: content[name] for name in scores.figures()} == pytest.approx(by_loop(ROWS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"about": {}, "rows": [[0.5], [0.5]]}',
        '{"about": {}, "rows": [[0.5, 0.5]]}',
        '{"about": {}, "rows": [["0.5"]]}',
        '{"about": {}, "rows": [[NaN]]}',
        '{"about": {}, "rows": [[1.5]]}',
        '{"about": [], "rows": []}',
        '{"about": {"tasks": [["a", 1]]}, "rows": [[0.5]]}',
        '{"about": {"tasks": ["a"]}, "rows": [[0.5]]}',
        '{"about": {"tasks": 1}, "rows": [[0.5]]}',
        '{"about": {"test_images": 3}, "rows": [[0.5]]}',
        '{"about": {"test_images": [3, "4"]}, "rows": [[0.5]]}',
        '{"about": {"test_images": [0]}, "rows": [[0.5]]}',
        '{"rows": []}',
        "\xff",
    ],
)
def test_damaged_scores_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="scores.json' is damaged: .*. Delete it to learn the tasks anew") as error:
        Scores.read(path)
    assert "\n" not in str(error.value)


def test_the_table_has_a_row_for_each_task() -> None:
    lines = Scores({"tasks": [["a", "b"], ["c"], ["d"]]}, ROWS[:2]).table().splitlines()
    assert lines[0] == "| after task | on a, b | on c | all so far |"
    assert lines[2:4] == ["| 1 | 90.0 |  | 90.0 |", "| 2 | 95.0 | 70.0 | 82.5 |"]
    assert lines[-1].endswith("forgetting -5.0 %, backward transfer 5.0 %")


def test_the_table_of_tasks_without_names_numbers_them() -> None:
    for named, expected in (
        ([], ["on task 1", "on task 2", "on task 3"]),
        ([["a"], []], ["on a", "on task 2", "on task 3"]),
    ):
        lines = Scores({"tasks": named} if named else {}, ROWS).table().splitlines()
        assert lines[0].strip("| ").split(" | ") == ["after task", *expected, "all so far"]
        assert lines[4] == "| 3 | 40.0 | 80.0 | 60.0 | 60.0 |"


def test_the_table_before_the_first_task_is_a_line() -> None:
    assert Scores({"tasks": [["a"], ["b"]]}).table() == "No task is finished yet."
