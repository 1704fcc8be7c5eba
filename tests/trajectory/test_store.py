"""The folder: thinning, what opening checks, and what a crash while writing leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from tests.common import assert_same, manifest, recorded, refusal
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.pipeline.show import describe_trajectory, trajectory_content
from tgdd_plugin.trajectory.manifest import Run, Stage
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.writing import add_stage, thin, write_manifest_and_prune


def weights(number: int) -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.full((3, 4), float(number)), "steps": torch.tensor(number)}


def new_run(name: str = "run") -> Run:
    return Run(name=name, network={"class": "m:Net", "parameters": 12}, head="fc", num_classes=3)


def write_run(folder: Path, stages: int = 3, max_stages: int | None = None, name: str = "run") -> Run:
    run = new_run(name)
    write_manifest_and_prune(folder / name, run)
    for number in range(stages):
        add_stage(folder / name, run, weights(number), max_stages, epoch=number, batch=4 * number, sample=32 * number)
    run.write(folder / name)  # as a recording ends
    return run


def by_hand(count: int, max_stages: int) -> list[int]:
    """The rule in words: first, last, and every 2^m-th between them, with the smallest m that fits."""
    for m in range(count + 1):
        kept = {*range(0, count, 2**m), count - 1}
        if len(kept) <= max_stages:
            return sorted(kept)
    raise AssertionError


# Thinning.


@pytest.mark.parametrize(
    ("count", "max_stages", "kept"),
    [
        (1, 2, [0]),
        (2, 2, [0, 1]),
        (5, 2, [0, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (6, 5, [0, 2, 4, 5]),
        (9, 5, [0, 2, 4, 6, 8]),
        (9, 4, [0, 4, 8]),
        (61, 20, [*range(0, 61, 4)]),
    ],
)
def test_thin(count: int, max_stages: int, kept: list[int]) -> None:
    stages = [Stage(f"{i}", i, i, i, i, "") for i in range(count)]
    assert [stage.index for stage in thin(stages, max_stages)] == kept == by_hand(count, max_stages)
    assert thin(stages, None) == stages


@pytest.mark.parametrize("max_stages", [2, 3, 4, 5, 6, 7, 8])
def test_thinning_step_by_step_equals_thinning_at_once(max_stages: int) -> None:
    """Also after going back to any earlier stage, as a resumed run does, with only what is on disk by then."""
    for crash in range(24):
        for back in range(crash + 1):
            stages: list[Stage] = []
            todo = [*range(crash + 1), *range(back + 1, 30)]
            for position, index in enumerate(todo):
                if position == crash + 1:
                    stages = [stage for stage in stages if stage.index <= back]
                stages = thin([*stages, Stage(f"{index}", index, index, index, index, "")], max_stages)
            assert [stage.index for stage in stages] == by_hand(30, max_stages)
    for count in range(1, 70):
        stages = [Stage(f"{i}", i, i, i, i, "") for i in range(count)]
        assert max_stages / 2 < len(thin(stages, max_stages)) <= max_stages or count <= max_stages / 2


@pytest.mark.parametrize("max_stages", [None, 2, 3, 5])
def test_files_are_those_of_the_manifest(tmp_path: Path, max_stages: int | None) -> None:
    for count in (1, 2, 5, 8):
        folder = tmp_path / f"{count}"
        write_run(folder, count, max_stages)
        kept = by_hand(count, max_stages or count)
        assert_same(recorded(folder / "run"), {4 * number: weights(number) for number in kept})
        names = {stage["file"] for stage in manifest(folder / "run")["stages"]}
        assert {path.name for path in (folder / "run").iterdir()} == names | {"manifest.json"}


# Opening what is whole.


def test_open(tmp_path: Path) -> None:
    write_run(tmp_path, 3, name="b")
    write_run(tmp_path, 2, name="a")
    trajectory = Trajectory.open(str(tmp_path))
    assert [run.name for run in trajectory.runs.values()] == ["a", "b"]
    assert list(trajectory.runs) == [tmp_path / "a", tmp_path / "b"]
    files = [tmp_path / name / stage["file"] for name in ("a", "b") for stage in manifest(tmp_path / name)["stages"]]
    assert trajectory.checksums == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    loaded = trajectory.load(tmp_path / "b", trajectory.runs[tmp_path / "b"].stages[2])
    assert_same({0: loaded}, {0: weights(2)})
    assert [run.name for run in Trajectory.open(tmp_path / "b").runs.values()] == ["b"]


def test_manifest_round_trip(tmp_path: Path) -> None:
    run = new_run()
    run.network |= {"factory": None, "arguments": {"width": 4}, "algorithms": ["EMA"]}
    run.classes, run.mean, run.std = ["kät", "dog", "owl"], [0.5], [0.25]
    run.input = {"shape": [1, 8, 8], "mean": [0.1], "std": [0.2]}
    run.augmentation, run.exemplars = "color_flip", "ab" * 32
    run.stages = [Stage("s.safetensors", 0, 0, 0, 0, "cd" * 32, {"loss": 0.5})]
    run.write(tmp_path)
    assert Run.read(tmp_path) == run


def test_keys_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    content = manifest(tmp_path / "run")
    content["novelty"] = content["stages"][0]["novelty"] = 1
    (tmp_path / "run/manifest.json").write_text(json.dumps(content))
    assert Run.read(tmp_path / "run") == run


# Class means.


def write_means(folder: Path, means: Any, counts: Any) -> Trajectory:
    run = write_run(folder, 2)
    add_stage(folder / "run", run, weights(2), None, class_means=(means, counts), epoch=2, batch=8, sample=64)
    return Trajectory.open(folder)


def test_class_means(tmp_path: Path) -> None:
    means, counts = torch.rand(3, 5), torch.tensor([2.5, 0.0, 1.0])
    trajectory = write_means(tmp_path, means, counts)
    stages = trajectory.run.stages
    found = trajectory.class_means(tmp_path / "run", stages[2])
    assert found is not None and torch.equal(found[0], means) and torch.equal(found[1], counts)
    assert trajectory.class_means(tmp_path / "run", stages[1]) is None
    assert_same({2: trajectory.load(tmp_path / "run", stages[2])}, {2: weights(2)})
    content = load_file(tmp_path / "run" / stages[2].file)
    assert set(content) == {*weights(2), "tgdd/class_means", "tgdd/class_counts"}


@pytest.mark.parametrize(
    ("means", "counts"),
    [
        (torch.zeros(4, 5), torch.zeros(4)),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3, 5), torch.zeros(5)),
        (torch.zeros(3, 5), torch.zeros(3, 1)),
        (torch.zeros(3, 5, dtype=torch.float16), torch.zeros(3)),
        (torch.full((3, 5), float("nan")), torch.zeros(3)),
        (torch.zeros(3, 5), torch.tensor([1.0, float("inf"), 0])),
        (torch.zeros(3, 5), torch.tensor([1.0, -1, 0])),
    ],
)
def test_class_means_that_are_none(tmp_path: Path, means: torch.Tensor, counts: torch.Tensor) -> None:
    trajectory = write_means(tmp_path, means, counts)
    with pytest.raises(
        InputError, match=r"must be finite float32 \(3, features\) and \(3,\), got .*[.] Copy the folder"
    ) as error:
        trajectory.class_means(tmp_path / "run", trajectory.run.stages[2])
    assert "stage-ep2-ba8.safetensors' is damaged: its class means and counts must" in str(error.value)
    assert ", got torch.float" in str(error.value)
    assert "\n" not in str(error.value)


def test_class_means_without_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path, 2)
    lone = {**weights(2), "tgdd/class_means": torch.zeros(3, 5)}
    add_stage(tmp_path / "run", run, lone, None, epoch=2, batch=8, sample=64)
    with pytest.raises(InputError, match="must be finite float32"):
        Trajectory.open(tmp_path).class_means(tmp_path / "run", run.stages[2])


def test_class_means_of_a_stage_that_is_no_safetensors(tmp_path: Path) -> None:
    trajectory = write_means(tmp_path, torch.zeros(3, 5), torch.zeros(3))
    for content in (b"", b"\x80\x04N."):
        stage_file(tmp_path, 2).write_bytes(content)
        with pytest.raises(InputError, match="stage-ep2-ba8.safetensors' cannot be read"):
            trajectory.class_means(tmp_path / "run", trajectory.run.stages[2])


# Opening what is not.


not_opened = partial(refusal, Trajectory.open)


def test_folder_without_a_run(tmp_path: Path) -> None:
    assert not_opened(tmp_path / "none") == (
        f"There is no trajectory folder '{tmp_path / 'none'}'. Record one with TGDDCallback(folder=...)."
    )
    assert f"The folder '{tmp_path}' has no recorded run" in not_opened(tmp_path)
    assert f"Train with TGDDCallback(folder='{tmp_path}') first." in not_opened(tmp_path)
    (tmp_path / "file").write_text("")
    assert "There is no trajectory folder" in not_opened(tmp_path / "file")
    write_run(tmp_path / "trajectory")
    assert not_opened(tmp_path).endswith(f"(no */manifest.json). Give '{tmp_path}/trajectory', which has one.")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_stages(tmp_path: Path, count: int) -> None:
    write_run(tmp_path, count)
    message = not_opened(tmp_path)
    assert f"has {count} stage(s); TGDD needs at least 2" in message
    assert "lower the callback's interval (it was '1ep')" in message
    if count:
        path = tmp_path / "run" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False}))
        assert "needs at least 2. Its training has not ended: go on with it, train longer or" in not_opened(tmp_path)
    trajectory = Trajectory.open(tmp_path, least=0)
    assert f"{count} stages" in describe_trajectory(trajectory) and trajectory_content(trajectory)["runs"]


def stage_file(folder: Path, number: int = 1) -> Path:
    return folder / "run" / manifest(folder / "run")["stages"][number]["file"]


def test_classes_that_are_not_the_heads_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    content = manifest(tmp_path / "run")
    (tmp_path / "run/manifest.json").write_text(json.dumps({**content, "num_classes": 4}))
    assert "its manifest says 4 classes, and its head 'fc' has weights of shape [3, 4]" in not_opened(tmp_path)
    (tmp_path / "run/manifest.json").write_text(json.dumps({**content, "head": "another"}))
    Trajectory.open(tmp_path)  # where the weights have other names, it shows when they are loaded


def test_missing_stage(tmp_path: Path) -> None:
    write_run(tmp_path)
    stage_file(tmp_path).unlink()
    assert not_opened(tmp_path) == (
        f"The stage file '{tmp_path}/run/stage-ep1-ba4.safetensors' is missing. Copy the whole folder or record the "
        f"run again."
    )
    stage_file(tmp_path).mkdir()
    assert "must be a regular file, got a folder" in not_opened(tmp_path)
    stage_file(tmp_path).rmdir()
    os.mkfifo(stage_file(tmp_path))
    assert "must be a regular file, got a named pipe" in not_opened(tmp_path)


def test_wrong_checksum(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = stage_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "is damaged: its checksum differs from the manifest's. Copy the folder again" in not_opened(tmp_path)
    assert Trajectory.open(tmp_path, check=False).run.name == "run"


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x04N.", b"\xff" * 100, save(weights(1))[:-8]])
def test_stage_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    """With the checksum to match, as in a folder made to deceive."""
    write_run(tmp_path)
    path = stage_file(tmp_path)
    path.write_bytes(content)
    text = (tmp_path / "run/manifest.json").read_text()
    wanted = manifest(tmp_path / "run")["stages"][1]["sha256"]
    (tmp_path / "run/manifest.json").write_text(text.replace(wanted, hashlib.sha256(content).hexdigest()))
    trajectory = Trajectory.open(tmp_path)
    with pytest.raises(InputError, match="stage-ep1-ba4.safetensors' cannot be read: "):
        trajectory.load(tmp_path / "run", trajectory.run.stages[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"format"',
        "[" * 100_000,
        "1" * 5000,
        '{"format": 1}',
        '{"format": 1, "stages": null}',
    ],
)
def test_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    write_run(tmp_path)
    (tmp_path / "run/manifest.json").write_text(text)
    message = not_opened(tmp_path)
    assert f"'{tmp_path}/run/manifest.json' is damaged (" in message
    assert message.endswith(". Copy the folder again, or delete it and record the run again.")


def test_manifest_that_is_not_text(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "run/manifest.json").write_bytes(b'{"name": "\xff"}')
    assert "is damaged (" in not_opened(tmp_path)


def test_manifest_of_a_later_format(tmp_path: Path) -> None:
    write_run(tmp_path)
    content = {**manifest(tmp_path / "run"), "format": 3}
    (tmp_path / "run/manifest.json").write_text(json.dumps(content))
    assert "manifest.json' must be of format 1 or 2, got 3. Update tgdd_plugin to open it." in not_opened(tmp_path)


def put(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """Sets one place of the manifest."""

    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("name", to=3), "`name` must be text, got 3"),
        (put("network", to=[]), r"`network` must be a mapping, got \[\]"),
        (put("network", to={"class": "m:Net"}), "`network.parameters` is missing"),
        (put("head", to=None), "`head` must be text, got None"),
        (put("num_classes", to="3"), "`num_classes` must be a whole number, got '3'"),
        (put("num_classes", to=True), "`num_classes` must be a whole number, got True"),
        (put("classes", to="abc"), "`classes` must be a list, got 'abc'"),
        (put("classes", to=[1, 2]), r"`classes\[0\]` must be text, got 1"),
        (put("mean", to=0.5), "`mean` must be a list, got 0.5"),
        (put("mean", to=["a"]), r"`mean\[0\]` must be a number, got 'a'"),
        (put("input", to={"shape": 3}), "`input.shape` must be a list, got 3"),
        (put("input", to={"shape": [1, 8, 8]}), "`input.mean` is missing"),
        (put("augmentation", to=["flip"]), r"`augmentation` must be text, got \['flip'\]"),
        (put("exemplars", to=True), "`exemplars` must be text, got True"),
        (put("num_classes", to=10**12), "`num_classes` must be less than or equal to 1000000, got 1000000000000"),
        (put("classes", to=["a"]), "`classes` must be as many names as `num_classes` says, got 1"),
        (put("std", to=[-1.0]), r"`std\[0\]` must be greater than 0, got -1.0"),
        (put("mean", to=[float("nan")]), r"`mean\[0\]` must be a finite number, got nan"),
        (put("mean", to=[0.5]), "`mean` and `std` must be equally many values"),
        (
            put("input", to={"shape": [1.5, 8, 8], "mean": [0], "std": [1]}),
            r"`input.shape\[0\]` must be a multiple of 1",
        ),
        (put("input", to={"shape": [3, 8, 8], "mean": [0], "std": [1]}), "`input` must have a mean and std for each"),
        (put("exemplars", to="ab"), "`exemplars` must match pattern"),
        (put("complete", to="no"), "`complete` must be true or false, got 'no'"),
        (put("stages", to={}), "`stages` must be a list, got {}"),
        (put("stages", to=["a", "b"]), r"`stages\[0\]` must be a mapping, got 'a'"),
        (put("stages", 1, to=None), r"`stages\[1\]` must be a mapping, got None"),
        (put("stages", 1, to={"file": "x"}), "missing"),
        (put("stages", 1, "batch", to="4"), r"`stages\[1\].batch` must be a whole number, got '4'"),
        (put("stages", 1, "sha256", to=None), r"`stages\[1\].sha256` must be text, got None"),
        (put("stages", 1, "metrics", to={"loss": "low"}), r"`stages\[1\].metrics.loss` must be a number, got 'low'"),
        (
            put("stages", 1, "file", to="../outside.safetensors"),
            "'../outside.safetensors' is not the name of a safetensors",
        ),
        (put("stages", 1, "file", to="/etc/passwd"), "'/etc/passwd' is not the name of a safetensors"),
        (put("stages", 1, "file", to=".."), "is not the name of a safetensors"),
        (put("stages", 1, "file", to=""), "is not the name of a safetensors"),
        (put("stages", 1, "file", to="a/b.safetensors"), "'a/b.safetensors' is not the name of a safetensors"),
        (put("stages", 1, "file", to="..\\outside"), "is not the name of a safetensors"),
        (put("stages", 1, "batch", to=0), "is not later"),
        (put("stages", 1, "batch", to=99), "is not later"),
        (put("stages", 1, "index", to=0), "is not later"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_damaged_manifest(tmp_path: Path, edit: Callable[[dict[str, Any]], None], reason: str, check: bool) -> None:
    write_run(tmp_path)
    content = manifest(tmp_path / "run")
    edit(content)
    (tmp_path / "run/manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=reason) as error:
        Trajectory.open(tmp_path, check=check)
    assert f"'{tmp_path}/run/manifest.json' is damaged (" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("absolute", [False, True])
def test_file_outside_the_folder_is_never_read(tmp_path: Path, absolute: bool) -> None:
    """Although its checksum and content would fit."""
    write_run(tmp_path)
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(stage_file(tmp_path).read_bytes())
    content = manifest(tmp_path / "run")
    content["stages"][1]["file"] = str(outside) if absolute else "../outside.safetensors"
    (tmp_path / "run/manifest.json").write_text(json.dumps(content))
    assert "outside.safetensors' is not the name of a safetensors file in this folder" in not_opened(tmp_path)


@pytest.mark.parametrize(
    ("edit", "difference"),
    [
        (put("num_classes", to=4), "num_classes is 3 in 'a' and 4 in 'b'"),
        (put("mean", to=[0.5]), r"mean is None in 'a' and \[0.5\] in 'b'"),
        (put("classes", to=["x", "y", "z"]), "classes is None in 'a' and"),
    ],
)
def test_unlike_runs(tmp_path: Path, edit: Callable[[dict[str, Any]], None], difference: str) -> None:
    write_run(tmp_path, name="a")
    write_run(tmp_path, name="b")
    content = manifest(tmp_path / "b")
    edit(content)
    content["std"] = content["mean"]
    (tmp_path / "b/manifest.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=f"not alike: {difference}.*[.] Keep runs that are not alike in folders of their own"
    ):
        Trajectory.open(tmp_path)


# A crash while writing.


@pytest.mark.parametrize("at", ["stage-ep3", "manifest"])
def test_crash_while_a_stage_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """The folder stays what it was before, and the next start sweeps up what was left."""
    run = write_run(tmp_path)
    replace = os.replace

    def crash(source: Any, target: Any) -> None:
        if at in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="No space left"):
            add_stage(tmp_path / "run", run, weights(3), None, epoch=3, batch=12, sample=96)
    (tmp_path / "run/.stage-ep3-ba12.safetensors.abc.tmp").write_bytes(b"killed")  # as SIGKILL leaves it
    again = Trajectory.open(tmp_path).run
    assert [stage.batch for stage in again.stages] == [0, 4, 8]
    write_manifest_and_prune(tmp_path / "run", again)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "manifest.json",
        *(f"stage-ep{number}-ba{4 * number}.safetensors" for number in range(3)),
        again.journal.path.name,
    ]
    add_stage(tmp_path / "run", again, weights(3), None, epoch=3, batch=12, sample=96)
    assert_same(recorded(tmp_path / "run"), {4 * number: weights(number) for number in range(4)})


def test_pruning_leaves_other_files_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (tmp_path / "run/notes.txt").write_text("mine")
    run.stages = run.stages[:1]
    write_manifest_and_prune(tmp_path / "run", run)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "manifest.json",
        "notes.txt",
        "stage-ep0-ba0.safetensors",
        "stages-1.jsonl",
    ]


# What opening costs.


def test_opening_imports_neither_torch_nor_composer_nor_ffcv(tmp_path: Path) -> None:
    """So that ``tgdd show`` answers at once."""
    write_means(tmp_path, torch.zeros(3, 5), torch.zeros(3))
    code = f"""
        import sys
        import tgdd_plugin.trajectory.store, tgdd_plugin.trajectory.manifest, tgdd_plugin.beton.card
        trajectory = tgdd_plugin.trajectory.store.Trajectory.open({str(tmp_path)!r})
        folder, run = next(iter(trajectory.runs.items()))
        assert [trajectory.has_class_means(folder, stage) for stage in run.stages] == [False, False, True]
        assert trajectory.exemplar_count(folder) == 0
        assert list(trajectory.representative_runs) == [folder] and len(trajectory.checksums) == 3
        assert not {{"torch", "composer", "ffcv"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.parametrize(
    ("earlier", "later", "same"),
    [
        # The class has moved between the two recordings; factory and arguments say how it was built.
        ({"class": "a.b:Net", "factory": "p:net"}, {"class": "a.bs:Net", "factory": "p:net"}, True),
        ({"class": "a.b:Net", "factory": "p:net"}, {"class": "a.b:Other", "factory": "p:net"}, False),
        ({"class": "a.b:Net", "factory": "p:net"}, {"class": "a.b:Net", "factory": "p:other"}, False),
        # Nothing says how it was built: classes of other modules are other networks.
        ({"class": "a.b:Net", "factory": None}, {"class": "a.bs:Net", "factory": None}, False),
        ({"class": "a.b:Net", "factory": None}, {"class": "a.b:Net", "factory": None}, True),
        ({"class": "Net"}, {"class": "Net"}, True),
    ],
)
def test_a_class_that_moved_is_the_same_architecture(
    tmp_path: Path, earlier: dict[str, Any], later: dict[str, Any], same: bool
) -> None:
    for name, network in (("a", earlier), ("b", later)):
        run = write_run(tmp_path, name=name)
        run.network = {**run.network, **network}
        run.write(tmp_path / name)
    assert list(Trajectory.open(tmp_path).architectures.values()) == ([0, 0] if same else [0, 1])


# Weights that are not finite.


@pytest.mark.parametrize(
    ("value", "finite"),
    [(1e38, True), (float("nan"), False), (float("inf"), False), (float("-inf"), True)],  # -inf: an attention mask
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_stage_with_weights_that_are_not_finite_is_noted_as_such(tmp_path, value, finite, dtype):
    run = write_run(tmp_path, 2)
    bad = {**weights(2), "steps": torch.tensor(2), "none": torch.empty(0), "bias": torch.ones(5, dtype=dtype)}
    bad["bias"][3] = min(value, torch.finfo(dtype).max) if finite else value
    add_stage(tmp_path / "run", run, bad, None, epoch=2, batch=8, sample=64)
    written = manifest(tmp_path / "run")["stages"]
    # Healthy stages say nothing, so that their manifest stays as it was.
    assert [stage.get("finite") for stage in written] == [None, None, None if finite else False]
    assert [stage.finite for stage in Trajectory.open(tmp_path).run.stages] == [True, True, finite]
