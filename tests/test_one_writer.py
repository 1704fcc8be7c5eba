"""Two processes at once: the second waits, or is told who works there, and what the first does comes out as if alone.

The first process is this file, run as a script.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Logger, State

from tests.common import At, TinyNetwork, fit, manifest, snapshot, tiny_network
from tests.patterned import SETTINGS, patterned, tiny
from tgdd_plugin import TGDDCallback, Trajectory, TrajectoryRecorder, describe_run, distill
from tgdd_plugin.beton.card import read_card
from tgdd_plugin.core import locks
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.evaluation.comparison import evaluate, retrain
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.networks import convnet
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.learner import learn
from tgdd_plugin.replay.policies import TaskResult
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.tasks import split_classes

LIMIT = 300  # seconds, against hanging
QUICK = RecordSettings(epochs=2, runs=1, batch_size=8, learning_rate=0.05)
RETRAIN = RetrainSettings(epochs=1, seeds=1, full_epochs=1, batch_size=8, augmentation="none", cutmix=0.0)


class Pause(Callback):
    """Calls ``act`` once, in the second batch that it sees."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act, self.batches = act, 0

    def batch_end(self, state: State, logger: Logger) -> None:
        self.batches += 1
        if self.batches == 2:
            self.act()


def nothing() -> None:
    pass


def do(job: str, root: Path, act: Callable[[], Any] = nothing) -> Any:
    """Does one job in a folder; ``act`` is called in its middle."""
    pool, options = patterned(), {"device": "cpu", "progress_bar": False}
    trainer = {"callbacks": [Pause(act)]}
    if job == "record":
        return record(root / "t", pool, tiny, QUICK, trainer_options=trainer, **options)
    if job == "distill":
        return distill(
            root / "t", pool, root / "set.beton", SETTINGS, network=tiny(), callbacks=[Pause(act)], **options
        )
    if job == "retrain":
        more = {**options, "network": tiny, "trainer_options": trainer}
        return retrain(root / "set.beton", pool, RETRAIN, real=pool, results=root / "results.json", **more)
    if job == "evaluate":
        settings = EvaluateSettings(baselines=["random"], networks=[], soft_labels=False)
        more = {**options, "network": tiny, "trainer_options": trainer}
        return evaluate(root / "set.beton", pool, pool, settings, RETRAIN, **more)
    if job == "replay":
        tasks, acts = split_classes(pool, pool, ReplaySettings(tasks=2)), iter([act])

        def policy(result: TaskResult) -> None:
            next(acts, nothing)()

        more = {**options, "mean": [0.5] * 3, "std": [0.25] * 3}
        return learn(tasks, lambda k: convnet(k, 3, 8, depth=2, width=4), root / "r", policy, 2, QUICK, **more)
    if job == "Trainer":
        callback = TGDDCallback(str(root / "trainer"), mean=[0.0], std=[1.0])
        return fit(tiny_network(), callbacks=[callback, At(2, lambda state: act())], max_duration="2ep")
    assert job == "plain loop"
    network = tiny_network()
    recorder = TrajectoryRecorder(root / "plain")
    recorder.start(describe_run("run", network, 3, mean=[0.0], std=[1.0]), network)
    act()
    recorder.batch(torch.rand(3, 1, 8, 8), torch.arange(3))
    recorder.stage(1)
    return recorder.finish()


JOBS = ("record", "distill", "retrain", "evaluate", "replay", "Trainer", "plain loop")


def main(root: Path) -> None:
    """Does all jobs, one after another; in the middle of each it says so and waits for a line."""
    torch.set_num_threads(1)
    for job in JOBS:
        do(job, root, lambda job=job: print(job, flush=True) or sys.stdin.readline())  # type: ignore[misc]


@contextmanager
def other_process(root: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.test_one_writer", str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_every_job_is_done_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT", 0.1)
    with other_process(tmp_path) as process:
        assert process.stdin and process.stdout
        wanted = f"' is in use: process {process.pid} on {socket.gethostname()} is working here. Wait until it has"
        for job in JOBS:
            assert process.stdout.readline() == f"{job}\n"
            before = snapshot(tmp_path)
            with pytest.raises(InputError, match=re.escape(wanted)):
                do(job, tmp_path)
            assert snapshot(tmp_path) == before, "the second process changed nothing"
            process.stdin.write("go on\n")
            process.stdin.flush()
        assert process.wait(LIMIT) == 0
    assert not [name for name in snapshot(tmp_path) if name.endswith((".lock", ".tmp", ".jsonl"))]
    for folder in ("t", "trainer", "plain"):
        assert Trajectory.open(tmp_path / folder).run.complete
    assert len(read_card(tmp_path / "set.beton").accuracy) == 1  # both comparisons had the same rows
    # And once it has ended, the same jobs find its work.
    before = snapshot(tmp_path)
    for job in ("record", "distill", "retrain"):
        do(job, tmp_path, lambda: pytest.fail("trained again"))
    assert snapshot(tmp_path) == before


def test_a_killed_process_binds_nobody_and_its_work_is_gone_on_with(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        assert process.stdout and process.stdout.readline() == "record\n"
        process.kill()
        process.wait(LIMIT)
    assert (tmp_path / "t/.job.json.lock").exists() and (tmp_path / "t/.seed0.lock").exists()
    assert not manifest(tmp_path / "t/seed0")["complete"]
    do("record", tmp_path)
    assert manifest(tmp_path / "t/seed0")["complete"]
    assert sorted(os.listdir(tmp_path / "t")) == ["job.json", "seed0", "seed0-log.csv"]


def test_several_runs_of_one_trajectory_are_recorded_at_once(tmp_path: Path) -> None:
    """The lock is on a run's folder and belongs to the process: its earlier, unfinished recorder does not stop it."""
    recorders = []
    for name in ("a", "b", "a"):
        recorder, network = TrajectoryRecorder(tmp_path, exemplars=0), TinyNetwork()
        recorder.start(describe_run(name, network, 3, mean=[0.0], std=[1.0]), network)
        recorders.append(recorder)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", ".a.lock", ".b.lock"}
    recorders[0].detach()
    assert (tmp_path / ".a.lock").exists()
    for recorder in recorders[1:]:
        recorder.finish()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
