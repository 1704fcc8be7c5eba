"""What Mammoth and Avalanche print beside this package's figures of the same matrix; and checkouts that do not fit."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import avalanche as avalanche_benchmark
from benchmarks import referees
from benchmarks.mammoth import __main__ as mammoth
from tgdd_plugin import ImagePool, InputError
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.replay.policies import TaskResult
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.tasks import split_classes

MATRIX = [[0.9], [0.5, 0.8], [0.6, 0.85, 0.7]]
"""The second task is best at the end."""


def padded(matrix: list[list[float]]) -> np.ndarray:
    return np.array([[*row, *[0.0] * (len(matrix) - len(row))] for row in matrix])


def test_mammoths_forgetting_is_ours_where_every_task_lost_something() -> None:
    """Its formula written with NumPy: the maximum over all rows, the last one too, minus the last."""
    whole = padded(MATRIX)
    wanted = np.mean([whole[:, j].max() - whole[-1, j] for j in range(2)])
    assert referees.mammoth_forgetting(MATRIX) == pytest.approx(wanted) == pytest.approx(0.15)
    assert Scores({}, MATRIX).forgetting == pytest.approx((0.3 - 0.05) / 2), "what the second task gained counts"
    lost = [[0.9], [0.5, 0.8], [0.6, 0.75, 0.7]]
    assert referees.mammoth_forgetting(lost) == pytest.approx(Scores({}, lost).forgetting)


def test_mammoths_own_functions_agree() -> None:
    """On a checkout, whose folder the environment names."""
    checkout = os.environ.get("TGDD_MAMMOTH")
    if checkout is None:
        pytest.skip("no checkout of Mammoth: TGDD_MAMMOTH is not set")
    spec = importlib.util.spec_from_file_location("mammoth_metrics", Path(checkout) / "utils" / "metrics.py")
    assert spec is not None and spec.loader is not None
    metrics = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(metrics)
    assert metrics.forgetting([list(row) for row in MATRIX]) == pytest.approx(referees.mammoth_forgetting(MATRIX))
    assert metrics.backward_transfer(MATRIX) == pytest.approx(Scores({}, MATRIX).backward_transfer)


def test_avalanches_own_class_agrees() -> None:
    """``Forgetting``: from the first accuracy on a task to the last; the mean over earlier tasks is the stream's."""
    metrics = pytest.importorskip("avalanche.evaluation.metrics", reason="avalanche-lib is not installed")
    metric = metrics.Forgetting()
    for row in MATRIX:
        for task, value in enumerate(row):
            metric.update(task, value, initial=task not in metric.initial)
    found = metric.result()
    lost = [found[task] for task in range(2)]
    assert referees.avalanche_forgetting(MATRIX) == pytest.approx(np.mean(lost))


def test_avalanches_forgetting_is_backward_transfer_turned_around() -> None:
    wanted = np.mean([MATRIX[j][j] - MATRIX[-1][j] for j in range(2)])
    assert referees.avalanche_forgetting(MATRIX) == pytest.approx(wanted)


def test_a_disagreement_is_found() -> None:
    printed = {"seen": [90.0, 65.0, 71.67], "forgetting": 15.0}
    assert referees.disagreement("mammoth", MATRIX, printed) < referees.TOLERANCE
    assert referees.disagreement("mammoth", MATRIX, {**printed, "forgetting": 12.5}) == pytest.approx(2.5)
    assert referees.disagreement("avalanche", MATRIX, {**printed, "forgetting": 12.5}) < referees.TOLERANCE


def test_mammoths_log_is_read() -> None:
    """The line that it appends for each run, of which the last one counts."""
    accuracies = {f"accuracy_{j + 1}_task{i + 1}": 100 * v for i, row in enumerate(MATRIX) for j, v in enumerate(row)}
    means = {f"accmean_task{i + 1}": np.float64(100 * sum(row) / len(row)) for i, row in enumerate(MATRIX)}
    line = {"model": "er", **means, **accuracies, "forward_transfer": None, "forgetting": np.float64(15.0)}
    matrix, printed = mammoth.read_log(f"{{'accmean_task1': 3.0}}\n{line}\n")
    assert [pytest.approx(row) for row in matrix] == MATRIX
    assert printed["seen"] == pytest.approx([90.0, 65.0, 215 / 3]) and printed["forgetting"] == 15.0


@pytest.mark.parametrize("there", [False, True])
def test_a_checkout_that_lacks_something_is_refused(
    tmp_path: Path, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in mammoth.NEEDED.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "models" / "__init__.py").write_text("another") if there else (tmp_path / "main.py").unlink()
    assert mammoth.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    missing = "models/__init__.py lacks `def register_model(`" if there else "main.py is missing"
    assert missing in told and told.count("\n") == 1 and f"Check out commit {mammoth.COMMIT[:7]}." in told
    assert not (tmp_path / "out").exists()


def test_mammoth_that_cannot_be_imported_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("import nothing_of_this_name\n")
    code = f"""
from pathlib import Path
from benchmarks.mammoth.__main__ import load
from tgdd_plugin import InputError
try:
    load(Path({str(tmp_path)!r}))
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be imported (No module named 'nothing_of_this_name'). Check out commit" in done.stdout


def test_without_avalanche_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(avalanche_benchmark, "find_spec", lambda name: None)
    assert avalanche_benchmark.main([]) == 2
    assert capsys.readouterr().err.startswith("Avalanche is not installed. Install avalanche-lib==0.6.0")


@pytest.mark.parametrize("method", avalanche_benchmark.OURS)
def test_each_memory_of_this_package_has_its_policy_under_avalanche(method: str) -> None:
    """It keeps as many images of each new class as it is told, made of those of a task and its recording."""
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (80, 3, 8, 8), dtype=torch.uint8), torch.arange(80) % 4
    pool = ImagePool(images, labels, ["a", "b", "c", "d"])
    options = argparse.Namespace(steps=2, per_class=20, tasks=2)
    policy = avalanche_benchmark.policy_of(method, 2, options, (pool, pool), Normalization([0.5] * 3, [0.3] * 3))
    assert callable(policy)
    if method in ("random", "herding"):
        network = convnet(2, image_size=8, width=4, depth=2)
        task = split_classes(pool, pool, ReplaySettings(tasks=2))[0]
        kept = policy(TaskResult(task, network, Path(), Path(), 0))
        assert isinstance(kept, ImagePool) and kept.labels.bincount().tolist() == [2, 2]


def test_the_table_has_means_over_seeds(tmp_path: Path) -> None:
    for seed, lower in enumerate((0.0, 0.1)):
        matrix = [[value - lower for value in row] for row in MATRIX]
        about = {"library": "mammoth", "data": "d", "method": "er", "seed": seed, "images": 20, "settings": {"lr": 1}}
        seen = [100 * value for value in Scores({}, matrix).seen]
        referees.save(tmp_path, about, matrix, {"seen": seen, "forgetting": 15.0}, 3.0)
    assert json.loads((tmp_path / "mammoth-d-er-seed1.json").read_text())["disagreement"] < 1e-9
    lines = referees.table(tmp_path).splitlines()
    assert lines[2] == "| mammoth | d | er | 66.7 ± 7.1 (2) | 70.6 ± 7.1 (2) | 12.5 ± 0.0 (2) | 20 | 3 |"
    assert referees.table(tmp_path / "none") == "no run is finished yet"


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    about = {"library": "avalanche", "data": "d", "method": "er", "seed": 0, "images": 100}
    run = {**about, "settings": {"per_class": 200}}
    assert not referees.is_done(tmp_path, run)
    referees.save(tmp_path, run, MATRIX, {"seen": [90.0, 65.0, 215 / 3], "forgetting": 12.5}, 1.0)
    assert referees.is_done(tmp_path, run)
    with pytest.raises(InputError, match="is of another run .settings.per_class was 200 and is now 300.. Name another"):
        referees.is_done(tmp_path, {**about, "settings": {"per_class": 300}})
