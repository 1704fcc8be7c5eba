"""The journal: what a stage costs on the disk, what a crash at any moment leaves, and reading while it is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.common import manifest, snapshot
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.trajectory.checking import with_checked_files
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.writing import add_stage, write_manifest_and_prune


def begin(folder: Path) -> Run:
    run = Run(name="run", network={"class": "m:Net", "parameters": 12}, head="fc", num_classes=3)
    write_manifest_and_prune(folder, run)
    return run


def add(folder: Path, run: Run, number: int, max_stages: int | None = None) -> None:
    weights = {"w": torch.full((3, 4), float(number))}
    add_stage(folder, run, weights, max_stages, epoch=number, batch=4 * number, sample=32 * number)


def raw(folder: Path) -> dict[str, Any]:
    """What the manifest itself says, without its journal."""
    return json.loads((folder / "manifest.json").read_text())


def journals(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.jsonl"))


def test_a_stage_adds_a_line_and_leaves_the_manifest_alone(tmp_path: Path) -> None:
    run = begin(tmp_path)
    head = (tmp_path / "manifest.json").read_bytes()
    for number in range(5):
        before = (tmp_path / "stages-1.jsonl").read_bytes()
        add(tmp_path, run, number, max_stages=3)
        after = (tmp_path / "stages-1.jsonl").read_bytes()
        assert after.startswith(before) and after.count(b"\n") == number + 1
        assert (tmp_path / "manifest.json").read_bytes() == head
        assert Run.read(tmp_path) == run == run
        assert [stage["batch"] for stage in manifest(tmp_path)["stages"]] == [stage.batch for stage in run.stages]
    assert [stage.index for stage in run.stages] == [0, 2, 4]
    assert raw(tmp_path)["format"] == 2 and raw(tmp_path)["stages"] == []  # an earlier version refuses it


def test_what_else_changes_rewrites_the_manifest_and_begins_the_next_journal(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add(tmp_path, run, 0)
    run.gaps.append({"epoch": 1, "batch": 4, "reason": "full"})
    add(tmp_path, run, 2)
    assert journals(tmp_path) == ["stages-2.jsonl"] and len(raw(tmp_path)["stages"]) == 2
    run.exemplars = "0" * 64
    run.write(tmp_path, ongoing=True)
    add(tmp_path, run, 3)
    run.stages = run.stages[1:]  # as when a file is lost
    add(tmp_path, run, 4)
    assert journals(tmp_path) == ["stages-4.jsonl"]
    assert Run.read(tmp_path) == run and [stage.epoch for stage in run.stages] == [2, 3, 4]


def test_the_journal_of_a_long_run_that_is_thinned_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    run = begin(tmp_path)
    begun = set()
    for number in range(350):
        add(tmp_path, run, number, max_stages=4)
        (name,) = journals(tmp_path)
        begun.add(name)
        assert (tmp_path / name).read_bytes().count(b"\n") <= 2 * 4 + 101
    assert len(begun) == 4 and Run.read(tmp_path) == run and [stage.index for stage in run.stages] == [0, 128, 256, 349]


def test_a_finished_manifest_is_what_it_always_was(tmp_path: Path) -> None:
    run = begin(tmp_path)
    add(tmp_path, run, 0)
    run.complete = True
    run.write(tmp_path)
    checksum = hashlib.sha256((tmp_path / "stage-ep0-ba0.safetensors").read_bytes()).hexdigest()
    stage = {"file": "stage-ep0-ba0.safetensors", "index": 0, "epoch": 0, "batch": 0, "sample": 0, "sha256": checksum}
    content = {
        "format": 1,
        "name": "run",
        "network": {"class": "m:Net", "parameters": 12},
        "head": "fc",
        "num_classes": 3,
        **dict.fromkeys(("classes", "mean", "std", "input")),
        "interval": "1ep",
        **dict.fromkeys(("augmentation", "exemplars")),
        "complete": True,
        "stages": [{**stage, "metrics": {}}],
        "versions": {},
    }
    assert (tmp_path / "manifest.json").read_text() == json.dumps(content, indent=1) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "stage-ep0-ba0.safetensors"]


# What may stand in a journal.


def test_half_a_line_at_the_end_is_no_stage_yet(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for number in range(3):
        add(tmp_path, run, number)
    whole = (tmp_path / "stages-1.jsonl").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        for rest in (b"", b"\0" * 8):
            (tmp_path / "stages-1.jsonl").write_bytes(whole[:end] + rest)
            assert [stage.epoch for stage in Run.read(tmp_path).stages] == [0, 1]
    # The run goes on from there.
    again = Run.read(tmp_path)
    write_manifest_and_prune(tmp_path, again)
    add(tmp_path, again, 2)
    assert Run.read(tmp_path) == run and journals(tmp_path) == ["stages-2.jsonl"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "null",
        "[1]",
        '{"stage": {"file": "x.safetensors"}}',
        '{"stage": {}, "drop": []}',
        '{"stage": {"file": "x.safetensors"}, "drop": ["y.safetensors"]}',
        '{"stage": {"file": "x.safetensors"}, "drop": [[]]}',
        '{"stage": {"file": "stage-ep0-ba0.safetensors"}, "drop": []}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_damaged_line_is_told(tmp_path: Path, line: str) -> None:
    run = begin(tmp_path)
    add(tmp_path, run, 0)
    with (tmp_path / "stages-1.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(InputError) as error:
        Run.read(tmp_path)
    assert f"'{tmp_path}/manifest.json' is damaged (" in str(error.value) and "\n" not in str(error.value)
    assert "line 2 of its journal 'stages-1.jsonl' is damaged" in str(error.value)


@pytest.mark.parametrize("stage", [{"file": "../x.safetensors"}, {"batch": -4}, {"sha256": 3}])
def test_a_stage_of_the_journal_is_checked_like_any_other(tmp_path: Path, stage: dict[str, Any]) -> None:
    run = begin(tmp_path)
    add(tmp_path, run, 0)
    add(tmp_path, run, 1)
    entry = json.loads((tmp_path / "stages-1.jsonl").read_text().splitlines()[1])
    entry["stage"] |= {"file": "stage-ep2-ba8.safetensors", **stage}
    with (tmp_path / "stages-1.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    with pytest.raises(InputError, match="manifest.json' is damaged"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["../stages-1.jsonl", "/etc/passwd", "stages-2.jsonl", "", None, 3, "stages-1.jsonl\n"]
)
def test_a_journal_is_in_the_folder_and_there(tmp_path: Path, name: Any) -> None:
    run = begin(tmp_path / "run")
    add(tmp_path / "run", run, 0)
    (tmp_path / "stages-1.jsonl").touch()
    (tmp_path / "run/manifest.json").write_text(json.dumps({**raw(tmp_path / "run"), "journal": name}))
    wanted = "is missing" if name == "stages-2.jsonl" else "journal must be the name of a journal in this folder"
    with pytest.raises(InputError, match=f"manifest.json' is damaged .*{wanted}"):
        Run.read(tmp_path / "run")


# Errors in writing it.


def test_after_an_error_in_the_middle_of_a_line_nothing_is_appended_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path)
    add(tmp_path, run, 0)
    fsync = os.fsync

    def full(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.suffix == ".jsonl":
            os.truncate(path, path.stat().st_size - 9)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            add(tmp_path, run, 1)
    assert [stage.epoch for stage in run.stages] == [stage.epoch for stage in Run.read(tmp_path).stages] == [0]
    add(tmp_path, run, 2)
    add(tmp_path, run, 3)
    assert [stage.epoch for stage in run.stages] == [0, 2, 3] and Run.read(tmp_path) == run


def test_a_manifest_that_appeared_although_its_writing_failed_loses_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after the renaming: the manifest on the disk names another journal than the writer had."""
    run = begin(tmp_path)
    add(tmp_path, run, 0)
    run.gaps.append({"epoch": 1, "batch": 4, "reason": "full"})
    fsync, replace, renamed = os.fsync, os.replace, []

    def note(source: Any, target: Any) -> None:
        replace(source, target)
        renamed.append(Path(target).name)

    def fails(handle: int) -> None:
        if "manifest.json" in renamed:
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", note)
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output error"):
            add(tmp_path, run, 2)
    for number in (2, 3):
        add(tmp_path, run, number)
    assert Run.read(tmp_path) == run and [stage.epoch for stage in run.stages] == [0, 2, 3]
    assert len(journals(tmp_path)) == 1


# A crash at any moment.

RECORD = """
import json, os, signal, sys
from pathlib import Path
import torch
from tgdd_plugin import TrajectoryRecorder, describe_run  # and no more: the less there is, the faster it forks

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}

def record(root, dies_at=None):
    '''Trains a network (by adding to its weights) from its last checkpoint on; dies just before one operation.'''
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in EVENTS and "trajectory" in str(arguments[0]):
            count += 1
            if count == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    saved = root / "checkpoint.pt"
    recorder = TrajectoryRecorder(root / "trajectory", max_stages=2, exemplars=1, on_error="raise")
    done = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        recorder.load_state_dict(state["recorder"])
        network.load_state_dict(state["network"])
        done = state["epoch"]
    sys.addaudithook(hook)
    recorder.start(describe_run("run", network, 3, mean=[0.0], std=[1.0]), network)
    images, labels = torch.linspace(0, 1, 192).reshape(3, 1, 8, 8), torch.arange(3)
    for epoch in range(done + 1, 4):
        network(images)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += epoch
        recorder.batch(images, labels, {"loss": torch.tensor(1.0 / epoch)})
        recorder.stage(epoch)
        torch.save({"recorder": recorder.state_dict(), "network": network.state_dict(), "epoch": epoch}, f"{saved}.new")
        os.replace(f"{saved}.new", saved)
    recorder.finish()
    return count

def child(work):
    '''Exit status of a forked child that does some work.'''
    if (pid := os.fork()) == 0:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

os.fsync = lambda handle: None  # what a killed process wrote stays, and 100 recordings are not to wait for the disk
torch.set_num_threads(1)
root = Path(sys.argv[1])
assert child(lambda: record(root / "whole")) == 0
number, status = 0, -9
while status == -9:
    number += 1
    status = child(lambda: record(root / str(number), number))
    print(json.dumps([number, status]), flush=True)
    if status == -9:
        exec(sys.argv[2], {"folder": root / str(number) / "trajectory" / "run"})
        assert child(lambda: record(root / str(number))) == 0
assert status == 0
"""

OPEN = """
from tgdd_plugin.trajectory.checking import with_checked_files
from tgdd_plugin.trajectory.manifest import Run
if (folder / "manifest.json").exists():
    run = with_checked_files(folder, Run.read(folder))  # all that it names is there, and whole
    assert len(run.stages) <= 2 and [s.index for s in run.stages] in ([], [0], [0, 1], [0, 2], [0, 3]), run.stages
"""


def test_a_kill_before_any_operation_leaves_what_can_be_opened_and_the_same_bytes_after_the_rerun(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECORD, str(tmp_path), textwrap.dedent(OPEN)], stdout=subprocess.PIPE, timeout=300
    )
    assert done.returncode == 0
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) > 60 and [status for _, status in kills] == [-9] * (len(kills) - 1) + [0]
    wanted = snapshot(tmp_path / "whole/trajectory")
    assert sorted(wanted) == [
        f"run/{name}"
        for name in (
            "exemplars.safetensors",
            "manifest.json",
            "stage-ep0-ba0.safetensors",
            "stage-ep3-ba3.safetensors",
        )
    ]
    for number, _ in kills:
        assert snapshot(tmp_path / f"{number}/trajectory") == wanted, f"killed before operation {number}"


# Opening a run while it is recorded and thinned.

RECORD_ON = """
import os, sys
from pathlib import Path
import torch
from tgdd_plugin import TrajectoryRecorder, describe_run
os.fsync = lambda handle: None  # as fast as can be
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
recorder = TrajectoryRecorder(sys.argv[1], max_stages=8, exemplars=0, statistics=False)
recorder.start(describe_run("run", network, 3, mean=[0.0], std=[1.0]), network)
epoch = 0
while not Path(sys.argv[1], "end").exists():
    epoch += 1
    recorder.batch(torch.rand(3, 1, 8, 8), torch.arange(3))
    recorder.stage(epoch)
    if epoch == 3:
        print("recording", flush=True)
recorder.finish()
"""


def test_a_run_can_be_opened_while_it_is_recorded_and_thinned_without_pause(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", RECORD_ON, str(tmp_path)], stdout=subprocess.PIPE) as recording:
        try:
            assert recording.stdout and recording.stdout.readline()
            seen = set()
            gone = 0
            for number in range(100):
                trajectory = Trajectory.open(tmp_path)
                folder, run = next(iter(trajectory.runs.items()))
                seen.add(run.stages[-1].index)
                if number % 3 == 0:
                    try:
                        for stage in run.stages:
                            trajectory.load(folder, stage)
                    except InputError as error:
                        gone += 1
                        assert "is gone since the folder was opened: its run is being recorded, and thinned" in str(
                            error
                        )
        finally:
            (tmp_path / "end").touch()
    assert recording.returncode == 0 and len(seen) > 20
    whole = Trajectory.open(tmp_path)
    assert whole.run.complete and with_checked_files(tmp_path / "run", whole.run) == whole.run


def test_a_stage_that_is_really_missing_is_told_at_once(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for number in range(3):
        add(tmp_path, run, number)
    (tmp_path / "stage-ep1-ba4.safetensors").unlink()
    with pytest.raises(InputError, match="stage-ep1-ba4.safetensors' is missing. Copy the whole folder or record the"):
        Trajectory.open(tmp_path)
    trajectory = Trajectory.open(tmp_path, check=False)
    with pytest.raises(InputError, match="stage-ep1-ba4.safetensors' cannot be read: .* or record the run again."):
        trajectory.load(tmp_path, run.stages[1])
    add(tmp_path, run, 3, max_stages=2)
    assert [stage.index for stage in run.stages] == [0, 3]
    with pytest.raises(InputError, match="stage-ep1-ba4.safetensors' is gone since the folder was opened"):
        trajectory.load(tmp_path, trajectory.run.stages[1])
