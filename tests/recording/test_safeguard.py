"""What recording does when its disk fails: training goes on, with the weights of an undisturbed one, and is told so."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Logger, State
from torch import nn

from tests.common import CLASSES, fit, make_trainer, manifest, tiny_network
from tgdd_plugin import TGDDCallback, Trajectory, TrajectoryRecorder, describe_run
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.pipeline.show import describe_trajectory
from tgdd_plugin.recording import callback as callback_module
from tgdd_plugin.recording import safeguard
from tgdd_plugin.trajectory import writing
from tgdd_plugin.trajectory.journal import Journal
from tgdd_plugin.trajectory.manifest import Run

ENOSPC, EIO, EROFS, ESTALE = 28, 5, 30, 116


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safeguard, "PAUSES", (0.0, 0.0))


class Disk:
    """Stands between the recording and its folder: lets some of the writes of stages fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Any, error: Exception) -> None:
        self.calls, self.fails, self.error = 0, fails, error
        self.write = writing.write_whole
        monkeypatch.setattr(writing, "write_whole", self)

    def __call__(self, path: Path, content: bytes, **options: Any) -> None:
        self.calls += 1
        if self.fails(self.calls):
            raise self.error
        self.write(path, content, **options)


def train(folder: Path, epochs: int = 4, **options: Any) -> nn.Module:
    """A whole training under the callback; returns the network."""
    network = tiny_network(norm=True)
    callback = TGDDCallback(str(folder), mean=[0.0], std=[1.0], **options)
    fit(network, callbacks=[callback], max_duration=f"{epochs}ep")
    return network


def assert_trained_alike(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def epochs_of(folder: Path) -> list[int]:
    return [stage["epoch"] for stage in manifest(folder / "run")["stages"]]


@pytest.mark.parametrize(
    "error",
    [
        OSError(ENOSPC, "No space left on device"),
        OSError(EROFS, "Read-only file system"),
        OSError(ESTALE, "Stale file handle"),
        MemoryError("cannot allocate"),
        RuntimeError("anything"),
        RuntimeError("a tensor in words " * 500),
    ],
    ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "") or ""),
)
def test_training_goes_on_when_a_stage_cannot_be_written(tmp_path, monkeypatch, error):
    whole = train(tmp_path / "whole")
    tries = 3 if isinstance(error, OSError) else 1
    Disk(monkeypatch, lambda call: 3 <= call < 3 + tries, error)  # the stage of the second epoch, every time
    with pytest.warns(UserWarning) as told:
        network = train(tmp_path / "gap")
    assert_trained_alike(network, whole)
    messages = [str(warning.message) for warning in told]
    assert [message.split(":")[0] for message in messages] == [
        "RECORDING FAILED, training goes on",
        "the recording of run 'run' is not whole",
    ]
    assert all("the stage at epoch 2, batch" in message for message in messages)
    assert epochs_of(tmp_path / "gap") == [0, 1, 3, 4]
    noted = manifest(tmp_path / "gap" / "run")
    assert noted["complete"] and [gap["epoch"] for gap in noted["gaps"]] == [2]
    opened = Trajectory.open(tmp_path / "gap")
    assert "gap         epoch 2, batch" in describe_trajectory(opened)
    # The stages that were written are those of the whole recording; class means alone cover other batches.
    whole_run = Trajectory.open(tmp_path / "whole")
    for stage, twin in ((opened.run.stages[-1], whole_run.run.stages[-1]),):
        ours, theirs = opened.load(tmp_path / "gap" / "run", stage), whole_run.load(tmp_path / "whole" / "run", twin)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_transient_error_is_tried_again_and_leaves_no_gap(tmp_path, monkeypatch):
    Disk(monkeypatch, lambda call: call == 3, OSError(EIO, "Input/output error"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path)
    assert epochs_of(tmp_path) == [0, 1, 2, 3, 4] and "gaps" not in manifest(tmp_path / "run")


def test_a_disk_that_is_full_from_the_first_epoch_on_ends_no_training(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    Disk(monkeypatch, lambda call: call > 1, OSError(ENOSPC, "No space left on device"))
    with pytest.warns(UserWarning) as told:
        network = train(tmp_path / "gap")
    assert_trained_alike(network, whole)
    assert len(told) == 2 and "4 part(s) of it failed" in str(told[1].message)
    assert epochs_of(tmp_path / "gap") == [0]


def test_a_manifest_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    """Neither by a line of its journal nor whole."""
    append, write, failed = Journal.append, Run.write, []

    def half(journal: Journal, stage: dict[str, Any], dropped: list[str]) -> None:
        if stage["epoch"] == 2:
            failed.append("line")
            journal.path.write_text(journal.path.read_text() + '{"stage": {"file": "stage-ep2')
            raise OSError(ENOSPC, "No space left on device")
        append(journal, stage, dropped)

    def fails(run: Run, folder: Path, **options: Any) -> None:
        if run.stages and run.stages[-1].epoch == 2:
            failed.append("whole")
            raise OSError(ENOSPC, "No space left on device")
        write(run, folder, **options)

    monkeypatch.setattr(Journal, "append", half)
    monkeypatch.setattr(Run, "write", fails)
    with pytest.warns(UserWarning) as told:
        train(tmp_path)
    assert len(told) == 2 and "the stage at epoch 2" in str(told[0].message)
    Trajectory.open(tmp_path)  # what the manifest names is there, and whole
    assert epochs_of(tmp_path) == [0, 1, 3, 4] and failed == ["line", "whole", "whole"]


def test_raise_ends_training_at_once(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, lambda call: call == 3, OSError(EIO, "Input/output error"))
    with pytest.raises(InputError, match="Cannot record in .* .Input/output error"):
        train(tmp_path, on_error="raise")
    assert disk.calls == 3  # and it was not tried again


class Delete(Callback):
    """Removes something after an epoch, as a cleaning job does."""

    def __init__(self, epoch: int, path: Path) -> None:
        self.epoch, self.path = epoch, path

    def epoch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.epoch.value == self.epoch:
            shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()


@pytest.mark.parametrize("what", ["", "stage-ep1-ba4.safetensors", "manifest.json", "exemplars.safetensors"])
def test_what_was_deleted_meanwhile_is_told_and_the_run_is_not_called_complete(tmp_path, what):
    network = tiny_network()
    callback = TGDDCallback(str(tmp_path), mean=[0.0], std=[1.0])
    trainer = make_trainer(network, callbacks=[Delete(2, tmp_path / "run" / what), callback], max_duration="4ep")
    with pytest.warns(UserWarning, match="recorded files are gone"):
        trainer.fit()
    trainer.close()
    noted = manifest(tmp_path / "run")
    assert not noted["complete"] and noted["gaps"][0]["reason"].startswith("recorded files are gone from")
    opened = Trajectory.open(tmp_path)  # the manifest names what is there, and nothing else
    assert "not complete" in describe_trajectory(opened)


def test_what_is_deleted_while_the_last_manifest_is_written_is_told_too(tmp_path, monkeypatch):
    write = Run.write

    def deleting(run: Run, folder: Path, **options: Any) -> None:
        if run.complete:
            (folder / run.stages[1].file).unlink()
        write(run, folder, **options)

    monkeypatch.setattr(Run, "write", deleting)
    with pytest.warns(UserWarning, match="recorded files are gone"):
        train(tmp_path)
    noted = manifest(tmp_path / "run")
    assert not noted["complete"] and all((tmp_path / "run" / stage["file"]).is_file() for stage in noted["stages"])


def test_an_error_of_the_users_own_code_is_theirs(tmp_path):
    def interval(state: State, event: Any) -> bool:
        if state.timestamp.epoch.value == 2:
            raise ZeroDivisionError("mine")
        return True

    with pytest.raises(ZeroDivisionError, match="mine"):
        train(tmp_path, interval=interval)


def test_an_error_while_looking_at_a_batch_is_covered_too(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    monkeypatch.setattr("tgdd_plugin.recording.class_means.ClassMeans.add", lambda *_: 1 / 0)
    with pytest.warns(UserWarning) as told:
        assert_trained_alike(train(tmp_path / "gap"), whole)
    assert "recording at before_loss failed: ZeroDivisionError" in str(told[0].message)
    assert epochs_of(tmp_path / "gap") == [0, 1, 2, 3, 4]


def test_weights_that_cannot_be_gathered_are_a_gap_too(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    gather, calls = callback_module.network_weights, []

    def fails(state: State) -> Any:
        calls.append(state.timestamp.epoch.value)
        if len(calls) == 3:
            raise MemoryError("no room for a copy")
        return gather(state)

    monkeypatch.setattr(callback_module, "network_weights", fails)
    with pytest.warns(UserWarning) as told:
        assert_trained_alike(train(tmp_path / "gap"), whole)
    assert "the stage at epoch 2, batch 8 failed: MemoryError: no room for a copy" in str(told[0].message)
    noted = manifest(tmp_path / "gap" / "run")
    assert epochs_of(tmp_path / "gap") == [0, 1, 3, 4] and noted["complete"] and noted["gaps"][0]["epoch"] == 2


def test_a_plain_loop_goes_on_too(tmp_path, monkeypatch):
    Disk(monkeypatch, lambda call: call > 1, OSError(ENOSPC, "No space left on device"))
    network = tiny_network()
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
    network(torch.zeros(1, 1, 8, 8))
    recorder.batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    with pytest.warns(UserWarning, match="RECORDING FAILED, training goes on: the stage at epoch 1"):
        recorder.stage(1)
    with pytest.warns(UserWarning, match="the recording of run 'run' is not whole: 1 part"):
        recorder.finish()
    with pytest.raises(InputError, match="`on_error` must be one of warn, raise, got 'ignore'"):
        TrajectoryRecorder(tmp_path, on_error="ignore")


@pytest.mark.parametrize(("fails", "left"), [((4,), []), ((2, 4), [1])])
def test_a_gap_that_a_resumed_run_fills_is_no_longer_noted(tmp_path, monkeypatch, fails, left):
    """Of four epochs of a batch each; the checkpoint is of the second. Gaps of before it stay."""
    Disk(monkeypatch, lambda call: call in fails, RuntimeError("anything"))
    network = tiny_network()
    run = describe_run("run", network, CLASSES, mean=[0.0], std=[1.0])

    def train_epochs(recorder, epochs):
        recorder.start(run, network)
        for epoch in epochs:
            network(torch.zeros(1, 1, 8, 8))
            recorder.batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
            recorder.stage(epoch)
            yield recorder.state_dict()

    recorder = TrajectoryRecorder(tmp_path)
    with pytest.warns(UserWarning, match="RECORDING FAILED"):
        states = list(train_epochs(recorder, range(1, 5)))
    recorder.detach()
    assert [gap["batch"] for gap in Run.read(tmp_path / "run").gaps] == [*left, 3]
    resumed = TrajectoryRecorder(tmp_path)
    resumed.load_state_dict(states[1])
    list(train_epochs(resumed, range(3, 5)))
    resumed.finish()
    assert epochs_of(tmp_path) == [epoch for epoch in range(5) if epoch not in left]
    assert [gap["batch"] for gap in Run.read(tmp_path / "run").gaps] == left
