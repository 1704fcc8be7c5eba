"""A finished `.beton`: the same job is not done twice, another one does not take its place unasked."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.common import snapshot
from tests.patterned import SETTINGS, Crash, patterned, run, tiny
from tgdd_plugin import ImagePool, InputError, read_card
from tgdd_plugin.beton.card import card_path
from tgdd_plugin.distillation.finished import find_difference
from tgdd_plugin.distillation.inputs import resolve_inputs
from tgdd_plugin.distillation.result import result_card
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory

QUICK = replace(SETTINGS, steps=2)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory, pool: ImagePool) -> Trajectory:
    settings = RecordSettings(epochs=2, runs=2, batch_size=8, learning_rate=0.05)
    folder = tmp_path_factory.mktemp("finished") / "trajectory"
    return record(folder, pool, tiny, settings, device="cpu", progress_bar=False)


@pytest.fixture(scope="module")
def finished(trajectory: Trajectory, pool: ImagePool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = run(trajectory, pool, tmp_path_factory.mktemp("file") / "a.beton", QUICK)
    card = read_card(path)
    card.accuracy = [{"network": "ConvNet", "seeds": [0], "test_images": 3, "rows": []}]
    card.write(path)
    return snapshot(path.parent)


@pytest.fixture
def file(finished: dict[str, bytes], tmp_path: Path) -> Path:
    """That file with its card, in a folder of its own."""
    for name, content in finished.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path / "a.beton"


def test_the_same_job_again_returns_at_once(trajectory, pool, file, finished, capsys):
    for options in ({}, {"overwrite": True}, {"head": "classifier"}, {"network": tiny}):
        assert run(trajectory, pool, file, QUICK, callbacks=[Crash(1)], progress_bar=True, **options) == file
        assert f"'{file}' is already done: it is of this job" in capsys.readouterr().err
        assert snapshot(file.parent) == finished


def test_checkpoints_that_a_kill_left_over_are_removed(
    trajectory: Trajectory, pool: ImagePool, file: Path, finished: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this job's: another one's may still be gone on with, under ``overwrite``."""
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, file.with_name("b.beton"), QUICK, callbacks=[Crash(1)], checkpoint_interval="1ba")
    file.with_name("b-log.csv").unlink()
    (begun,) = file.parent.glob(".distill-b-*")
    left = begun.rename(begun.with_name(begun.name.replace("-b-", "-a-")))
    other = file.parent / ".distill-a-0123456789ab"
    other.mkdir()
    assert run(trajectory, pool, file, QUICK) == file
    assert not left.exists() and other.exists()
    other.rmdir()
    assert snapshot(file.parent) == finished


class Untouched(ImagePool):
    """Real images that nobody may read."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} was read")


def test_other_settings_are_refused_before_any_image_is_read(trajectory, file, finished):
    pool = object.__new__(Untouched)
    for changed, words in (
        ({"steps": 5}, r"distill.steps was 2 and is now 5"),
        ({"alpha": 0.1}, r"distill.alpha was 2.5 and is now 0.1"),
        ({"packed": True, "factor": 2}, r"distill.factor was 1 and is now 2"),
        ({"classes": ["rows"]}, r"distill.classes was None and is now \['rows'\]"),
    ):
        with pytest.raises(InputError, match=rf"'.*a.beton' is of another job \({words}\). Choose another output"):
            run(trajectory, pool, file, replace(QUICK, **changed))
    assert snapshot(file.parent) == finished


def test_other_images_and_runs_are_refused_before_any_step(trajectory, pool, file, finished):
    single = Trajectory.open(next(iter(trajectory.runs)))
    fewer, other = pool.subset(torch.arange(59)), patterned()
    other.images = other.images.flip(-1)
    for stages, real, words in (
        (trajectory, fewer, "real.images was 60 and is now 59"),
        (trajectory, other, "real.fingerprint was '.{8}[.]{3}' and is now '.{8}[.]{3}'"),
        (single, pool, r"trajectory.runs was \['seed0', 'seed1'\] and is now \['seed0'\]"),
        (trajectory, None, "distill.source was 'sampled' and is now 'recorded'"),
    ):
        with pytest.raises(InputError, match=rf"is of another job \({words}\)"):
            run(stages, real, file, QUICK, callbacks=[Crash(1)])
    assert snapshot(file.parent) == finished
    run(trajectory, fewer, file, QUICK, overwrite=True)
    assert read_card(file).real["images"] == 59 and read_card(file).accuracy == []


def test_normalization_head_network_and_stages_belong_to_the_job(trajectory, pool, file):
    def job(head=None, **changes):
        card = result_card(resolve_inputs(trajectory, pool, QUICK, None), head)
        return replace(card, **changes)

    assert find_difference(file, job()) is None and find_difference(file, job("classifier")) is None
    assert find_difference(file, job("other")) == "head was None and is now 'other'"
    assert re.fullmatch(r"mean was \[.*\] and is now \[0.0\]", find_difference(file, job(mean=[0.0])) or "")
    other = {**job().network, "parameters": 7}
    assert re.fullmatch(r"network.parameters was \d+ and is now 7", find_difference(file, job(network=other)) or "")
    stages = {**job().trajectory, "stages": [*trajectory.checksums[:-1], "0" * 64]}
    assert "trajectory.checksum was" in (find_difference(file, job(trajectory=stages)) or "")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: card_path(file).unlink(), "has no card"),
        (lambda file: card_path(file).write_text("format: 1\nclasses: 3\n"), "is damaged"),
        (lambda file: card_path(file).write_text("a note"), "is not the card"),
        (lambda file: file.write_bytes(b"somebody's"), "checksums differ"),
    ],
)
def test_what_nothing_is_known_of_is_not_replaced(trajectory, pool, file, finished, damage, words):
    damage(file)
    before = snapshot(file.parent)
    with pytest.raises(
        InputError, match=f"'.*a.beton' is there already, and nothing says what it is. .*{words}.*"
    ) as e:
        run(trajectory, object.__new__(Untouched), file, QUICK)
    assert "\n" not in str(e.value) and snapshot(file.parent) == before
    run(trajectory, pool, file, QUICK, overwrite=True)
    assert file.read_bytes() == finished["a.beton"]


def test_a_call_killed_between_card_and_file_is_made_again(trajectory, pool, tmp_path, finished, monkeypatch):
    """The card comes first: alone, it stands in nobody's way. A file alone would be one that nothing is known of."""
    move = os.replace

    def killed(source, target):
        if Path(target).name == "a.beton":
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        run(trajectory, pool, tmp_path / "a.beton", QUICK)
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"a-log.csv", "a.beton.yaml"}
    run(trajectory, pool, tmp_path / "a.beton", QUICK)
    assert snapshot(tmp_path).keys() == finished.keys()
    assert (tmp_path / "a.beton").read_bytes() == finished["a.beton"]


def test_the_last_finite_images_replace_no_other_file(trajectory, pool, tmp_path, monkeypatch):
    bank = StageBank.__getitem__

    def poisoned(self, position):
        return {name: tensor * float("nan") for name, tensor in bank(self, position).items()}

    monkeypatch.setattr(StageBank, "__getitem__", poisoned)
    mine = tmp_path / "a-step0.beton"
    mine.write_text("mine")
    for _ in range(2):  # the same job leaves the same file
        with pytest.raises(InputError, match="no longer finite at step 0.*in '.*a-step0-2.beton'"):
            run(trajectory, pool, tmp_path / "a.beton", replace(QUICK, start="real"))
        assert mine.read_text() == "mine"
        assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [
            "a-log.csv",
            "a-step0-2.beton",
            "a-step0-2.beton.yaml",
            "a-step0.beton",
        ]
