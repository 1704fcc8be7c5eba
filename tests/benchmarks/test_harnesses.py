"""The harnesses that disturb, a few dozen tries of each, and what each of them calls a finding."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import examination, faults, fuzz, mutations, outcomes
from benchmarks.folder_faults import FAULTS, MOUNTED
from benchmarks.forked import Ended, Tries, run_forked
from benchmarks.readers import Reader
from tgdd_plugin.core.errors import InputError

ROOT = Path(__file__).parents[2]

# In a process of its own, as this one's threads would not survive a fork; one for all, as importing takes seconds.
SCRIPT = """
import io, json, sys
from contextlib import redirect_stdout
from benchmarks import faults, fuzz, kills, soak

ended = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with redirect_stdout(io.StringIO()) as said:
        status = sys.modules[f"benchmarks.{name}"].main(arguments)
    ended[name] = [status, said.getvalue()]
print(json.dumps(ended))
"""
CALLS = {
    "kills": ["--tries", "8", "--jobs", "recorder", "--seed", "1", "--output", "kills"],
    "faults": ["--tries", "15", "--seed", "1", "--output", "faults"],
    "fuzz": ["--tries", "500", "--seed", "1", "--output", "fuzz"],
    "soak": ["--steps", "60", "--stages", "40", "--repeats", "2", "--json", "soak.json"],  # last: it does not fork
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which all harnesses ran, and how each ended and what it printed."""
    folder = tmp_path_factory.mktemp("harnesses")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(CALLS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def tries(ran, name):
    """The tries of a harness that found nothing."""
    folder, ended = ran
    status, said = ended[name]
    assert status == 0, said
    return [json.loads(line) for line in (folder / name / "tries.jsonl").read_text().splitlines()]


# Kills.


def test_killed_jobs_end_with_the_bytes_of_undisturbed_ones(ran):
    rows = tries(ran, "kills")
    assert len(rows) == 8 and all(row["kills"] and not row["problems"] for row in rows)
    kinds = {kill.split()[0] for row in rows for kill in row["kills"] if not kill.startswith("after 0")}
    assert kinds >= {"before", "after"}


def test_what_is_not_as_it_should_be_is_found(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "stage-ep0-ba0.safetensors")
    row = {"network": "ConvNet", "name": "random", "labels": "hard", "seconds": [1.0]}
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row]}))
    wanted = outcomes.outcome(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"rows": [{**row, "seconds": [2.0]}]}))
    assert outcomes.outcome(tmp_path) == wanted and not outcomes.half_files(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row, row]}))
    (tmp_path / ".results.json.abc.tmp").write_text("{")
    content = (tmp_path / "stage-ep0-ba0.safetensors").read_bytes()
    (tmp_path / "stage-ep0-ba0.safetensors").write_bytes(content[:-1])
    found = outcomes.differences(wanted, outcomes.outcome(tmp_path))
    assert {problem.split(":")[0] for problem in found} == {"leftover", "other content"} and len(found) == 3
    assert [name.split()[0] for name in outcomes.half_files(tmp_path)] == ["stage-ep0-ba0.safetensors"]
    assert len(outcomes.repeated_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("work", "options", "how"),
    [
        (lambda: None, {}, "done"),
        (lambda: [][0], {}, "failed"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), {}, "killed"),
        (lambda: signal.pause(), {"kill_after": 0.1}, "killed"),
        (lambda: signal.pause(), {"limit": 0.1}, "hung"),
    ],
)
def test_how_a_child_ended(tmp_path, work, options, how):
    ended = run_forked(work, tmp_path, tmp_path / "log", **options)
    assert ended.how == how and ("IndexError" in ended.output) == (how == "failed")


def test_tries_go_on_where_they_were_broken_off(tmp_path):
    first = Tries(tmp_path / "tries.jsonl")
    first.add({"try": ["a", 0]})
    with first.path.open("a") as file:
        file.write('{"try": ["a"')
    again = Tries(first.path)
    assert list(again.missing("try", [["a", 0], ["a", 1]])) == [["a", 1]]
    again.add({"try": ["a", 1]})
    assert [row["try"] for row in Tries(first.path).rows] == [["a", 0], ["a", 1]]


# Faults.


def test_training_goes_on_whatever_its_folder_does(ran):
    rows = tries(ran, "faults")
    assert len(rows) == 15 and len({row["fault"] for row in rows}) >= len(FAULTS) - len(MOUNTED)


def test_a_manifest_that_says_more_than_is_true_is_found(ran, tmp_path):
    wanted, place = ran[0] / "faults" / "undisturbed", tmp_path / "lie"
    ended = Ended("done", 1.0)
    shutil.copytree(wanted, place)
    assert faults.look(place, wanted, ended) == []
    (place / "trajectory/run/stage-ep0-ba2.safetensors").unlink()
    assert any("named, and not there" in problem for problem in faults.look(place, wanted, ended))
    said = json.loads((place / "said.json").read_text())
    (place / "said.json").write_text(json.dumps({**said, "deleted_too_late": True}))
    assert faults.look(place, wanted, ended) == []
    (place / "said.json").write_text(json.dumps(said))
    path = place / "trajectory/run/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["stages"] = [stage for stage in manifest["stages"] if stage["batch"] != 2]
    path.write_text(json.dumps(manifest))
    found = faults.look(place, wanted, ended)
    assert any("missing without a gap" in problem for problem in found) and any("no warning" in p for p in found)
    (place / "final.safetensors").write_bytes(b"other")
    assert "other weights" in faults.look(place, wanted, ended)
    assert faults.look(place, wanted, Ended("failed", 1.0, "Error: disk"))[0].startswith("fit() failed: Error: disk")


# Damaged files.


def test_every_damaged_file_ends_in_one_clear_error(ran):
    rows = tries(ran, "fuzz")
    assert {row["try"][0] for row in rows} == set(fuzz.SHARES)
    for name in fuzz.SHARES:
        refused = sum(row["inputs"] - row["accepted"] for row in rows if row["try"][0] == name)
        assert refused, f"no input of {name} was refused"


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    return examination.Canary(tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda data: None, ""),
        (lambda data: "fine\n", ""),
        (lambda data: "\x1b[31m", "control characters"),
        (lambda data: 1 / 0, "ZeroDivisionError in test_harnesses.py:<lambda>"),
        (lambda data: [][1], "IndexError"),
        (lambda data: subprocess.run(["true"]), "code: subprocess.Popen"),
        (lambda data: os.system("true"), "code: os.system"),
        (lambda data: bytearray(600 * 2**20) and None, "too much memory"),
    ],
)
def test_what_is_no_clear_error_is_a_finding(canary, read, problem):
    accepted, found, _ = examination.examine(Reader(lambda rng: b"", read), b"", canary)
    assert found.startswith(problem) and bool(found) == bool(problem)


@pytest.mark.parametrize(("message", "clear"), [("one line", True), ("two\nlines", False), ("a\x1b[0m", False)])
def test_the_message_must_be_one_line(canary, message, clear):
    def read(data):
        error = InputError()
        error.args = (message,)  # which its constructor would have escaped
        raise error

    assert (examination.examine(Reader(lambda rng: b"", read), b"", canary)[1] == "") == clear


def test_an_input_follows_from_its_number_alone():
    tree = {"a": [1, 2.5, "text"], "b": {"c": None}}
    reader = Reader(lambda rng: mutations.mutate_document(rng, tree, json.dumps, "json"), lambda data: None)
    first = [fuzz.make_input(reader, 0, "x", number) for number in range(300)]
    assert first == [fuzz.make_input(reader, 0, "x", number) for number in range(300)]
    assert len(set(first)) > 150 and tree == {"a": [1, 2.5, "text"], "b": {"c": None}}


def test_bytes_are_damaged_in_every_way():
    data, rng = bytes(range(256)) * 4, random.Random(0)
    damaged = [mutations.mutate_bytes(rng, data, [(0, 8)]) for _ in range(200)]
    assert sum(each != data for each in damaged) > 190
    assert any(len(each) < len(data) for each in damaged) and any(len(each) > len(data) for each in damaged)


def test_what_can_be_left_out_is_left_out():
    assert fuzz.minimize(b"a" * 100 + b"!" + b"b" * 100, lambda data: b"!" in data) == b"!"


# Soak.


def test_nothing_grows(ran):
    folder, ended = ran
    measured = json.loads((folder / "soak.json").read_text())
    assert len(measured["stage seconds"]) == 40 and "a stage: " in ended["soak"][1]
    for early, late in measured["uses"].values():
        for name in ("open files", "threads", "children"):
            assert late[name] <= early[name], name
        assert late["memory, MiB"] < early["memory, MiB"] + 50
