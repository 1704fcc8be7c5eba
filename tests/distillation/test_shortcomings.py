"""Distilling runs that diverged, or did not come to their end: what is left out, and what is told."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.common import At, Pictures, fit, manifest, recorded, tiny_network
from tests.patterned import patterned, tiny
from tgdd_plugin import DistillSettings, ImagePool, TGDDCallback, Trajectory, distill
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.cli import main
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.pipeline.show import describe_trajectory
from tgdd_plugin.recording.runs import record as record_runs
from tgdd_plugin.recording.settings import RecordSettings

SETTINGS = DistillSettings(images_per_class=1, factor=1, steps=8, real_per_class=4, learning_rate=0.5)
POOL = ImagePool.from_dataset(Pictures(32))


def record(folder: Path, diverges_after: int | None = None, name: str = "run", seed: int = 0) -> None:
    """Four epochs of four batches, a stage each; from one batch on with a learning rate that no training survives."""

    def explode(state: Any) -> None:
        state.optimizers[0].param_groups[0]["lr"] = 3e38

    callbacks: list[Any] = [TGDDCallback(str(folder), mean=[0.0], std=[1.0])]
    if diverges_after is not None:
        callbacks.append(At(diverges_after, explode))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the training diverged")
        fit(tiny_network(seed), callbacks=callbacks, max_duration="4ep", run_name=name, seed=seed)


def edit(folder: Path, run: str = "run", **fields: Any) -> None:
    path = folder / run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def truncated(folder: Path, to: Path, stages: int) -> Path:
    """A copy of a folder that never had the later stages of its run."""
    shutil.copytree(folder, to)
    edit(to, stages=manifest(to / "run")["stages"][:stages])
    return to


def as_earlier_versions(folder: Path, to: Path) -> Path:
    """A copy of a folder whose manifest does not say which stages are not finite."""
    shutil.copytree(folder, to)
    for path in to.glob("*/manifest.json"):
        stages = [{k: v for k, v in stage.items() if k != "finite"} for stage in manifest(path.parent)["stages"]]
        edit(to, path.parent.name, stages=stages)
    return to


def images(folder: Path, output: Path, real: Any = POOL, settings: DistillSettings = SETTINGS) -> torch.Tensor:
    path = distill(folder, real, output, settings, network=tiny_network(), device="cpu", progress_bar=False)
    return read_beton(path)[0]


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diverges in the third epoch, so that stages 3 and 4 are not finite."""
    folder = tmp_path_factory.mktemp("diverged")
    record(folder, 9)
    assert [stage.get("finite", True) for stage in manifest(folder / "run")["stages"]] == [
        True,
        True,
        True,
        False,
        False,
    ]
    return folder


TOLD = (
    "the training diverged at epoch 3 (run 'run'): its stages from batch 12 on hold values that are not finite and are "
    "left out"
)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize(
    "change", [{}, {"source": "recorded"}, {"start": "herding"}, {"stages": "last"}], ids=lambda c: str([*c.values()])
)
def test_stages_that_are_not_finite_are_left_out_and_named(diverged, tmp_path, noted, change):
    folder = diverged if noted else as_earlier_versions(diverged, tmp_path / "earlier")
    settings = replace(SETTINGS, **change)
    real = None if settings.source == "recorded" else POOL
    with pytest.warns(UserWarning) as told:
        found = images(folder, tmp_path / "a.beton", real, settings)
    assert [str(each.message) for each in told] == [TOLD]
    wanted = images(truncated(diverged, tmp_path / "cut", 3), tmp_path / "b.beton", real, settings)
    assert torch.equal(found, wanted)


def test_the_bank_holds_the_finite_stages_alone(diverged, tmp_path):
    record(tmp_path / "t", name="a")
    shutil.copytree(diverged / "run", tmp_path / "t" / "b")
    edit(tmp_path / "t", "b", name="b")
    with pytest.warns(UserWarning, match=r"run 'b'"):
        bank = StageBank(Trajectory.open(tmp_path / "t"), [tiny_network()], recorded=True)
    assert bank.sizes == [5, 3] and len(bank.stacked[0]["fc.weight"]) == 8
    held = [*recorded(tmp_path / "t" / "a").values(), *recorded(tmp_path / "t" / "b").values()][:8]
    for position, weights in enumerate(held):
        for name, tensor in bank[position].items():
            assert torch.equal(tensor, weights[name])
        assert (bank.means[position] is None) == (position in (0, 5))
    pairs = [bank.draw(7, torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert {pair.late for pair in pairs} == set(range(1, 5)) | {6, 7}
    assert bank.names[7] == "run 'b', epoch 2, batch 8"


@pytest.mark.parametrize("noted", [True, False])
def test_a_run_that_diverged_at_once_says_what_to_do(tmp_path, noted):
    record(tmp_path / "t", 1)
    folder = tmp_path / "t" if noted else as_earlier_versions(tmp_path / "t", tmp_path / "earlier")
    # Where the manifest says it, before any image is read.
    real = object() if noted else POOL
    with pytest.raises(
        InputError, match="run 'run' diverged at epoch 1: 1 of its 5 stages .* at a lower learning"
    ) as e:
        images(folder, tmp_path / "a.beton", real)
    assert "learning_rate" not in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "a.beton").exists()


def test_show_marks_them(diverged, tmp_path):
    lines = describe_trajectory(Trajectory.open(diverged)).splitlines()
    ends = [line.split()[-1] for line in lines if line.strip() and line.split()[0].isdigit()]
    assert ends == ["finite"] * 5 and sum("not finite" in line for line in lines) == 2
    assert "finite" not in describe_trajectory(Trajectory.open(truncated(diverged, tmp_path / "cut", 3)))


# Runs that did not come to their end.


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    record(folder, name="a")
    record(folder, name="b", seed=1)
    return folder


def test_a_run_that_is_not_complete_is_distilled_with_one_warning(pair, tmp_path):
    folder = tmp_path / "t"
    shutil.copytree(pair, folder)
    gap = {"epoch": 3, "batch": 12, "reason": "the stage at epoch 3 failed: OSError: [Errno 28] No space left"}
    edit(folder, "a", complete=False, stages=manifest(folder / "a")["stages"][:4])
    edit(folder, "b", gaps=[gap])
    with pytest.warns(UserWarning) as told:
        images(folder, tmp_path / "a.beton")
    assert [str(each.message) for each in told] == [
        "run 'a' is not complete: it was cut short after epoch 3, or is still being recorded; its stages so far are "
        "used; run 'b' has gaps: 1 part(s) of it could not be recorded (the stage at epoch 3 failed: OSError: [Errno "
        "28] No space left)"
    ]


def test_complete_runs_are_distilled_without_a_word(pair, tmp_path):
    images(pair, tmp_path / "a.beton")  # warnings are errors


def test_many_of_them_are_counted(pair, tmp_path):
    for number in range(5):
        shutil.copytree(pair / "a", tmp_path / "t" / f"r{number}")
        edit(tmp_path / "t", f"r{number}", name=f"r{number}", complete=False)
    with pytest.warns(UserWarning, match="run 'r2' is not .* used; and so in 2 more run.s.$") as told:
        images(tmp_path / "t", tmp_path / "a.beton")
    assert len(told) == 1 and "'r3'" not in str(told[0].message)


def test_the_command_line_says_it_too(tmp_path):
    folder = tmp_path / "t"
    settings = RecordSettings(epochs=2, runs=1, batch_size=16)
    record_runs(folder, patterned(), tiny, settings, device="cpu", progress_bar=False)
    edit(folder, "seed0", complete=False)
    keys = ["images_per_class=1", "factor=1", "steps=2", "learning_rate=0.5"]
    with pytest.warns(UserWarning, match="run 'seed0' is not complete: it was cut short after epoch 2, or") as told:
        main(["distill", str(folder), f"output={tmp_path}/out", "device=cpu", *(f"distill.{key}" for key in keys)])
    assert [text for each in told if "complete" in (text := str(each.message))] == [
        "run 'seed0' is not complete: it was cut short after epoch 2, or is still being recorded; its stages so far "
        "are used"
    ]
    main(["distill", str(folder), f"output={tmp_path}/out", "device=cpu", *(f"distill.{key}" for key in keys)])  # done
