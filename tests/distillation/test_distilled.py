"""What distill() returns, settings as plain dictionaries, and what objects say of themselves."""

import csv
import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import tgdd_plugin
from tests.patterned import run, tiny
from tgdd_plugin import (
    ImagePool,
    InputError,
    ReplayMemory,
    beton_loader,
    distill,
    evaluate,
    rank_networks,
    read_card,
    retrain,
)
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.distillation.distilled import Distilled
from tgdd_plugin.recording.runs import record
from tgdd_plugin.trajectory.store import Trajectory

QUICK = {"images_per_class": 2, "factor": 1, "steps": 3, "real_per_class": 8}


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory, pool: ImagePool) -> Trajectory:
    settings = {"epochs": 1, "batch_size": 16, "augmentation": "none"}
    return record(tmp_path_factory.mktemp("trajectory"), pool, tiny, settings, device="cpu", progress_bar=False)


@pytest.fixture(scope="module")
def distilled(trajectory: Trajectory, pool: ImagePool, tmp_path_factory: pytest.TempPathFactory) -> Distilled:
    return run(trajectory, pool, tmp_path_factory.mktemp("file") / "a.beton", QUICK)


def test_it_stands_wherever_its_path_does(distilled, pool, tmp_path):
    path = Path(str(distilled))
    assert os.fspath(distilled) == str(path) == f"{distilled}" == str(distilled.path)
    assert distilled == path and path == distilled and distilled == Distilled(path) and distilled != path.parent
    assert {distilled: 1}[path] == 1
    assert distilled.parent == path.parent and distilled.read_bytes() == path.read_bytes()
    with open(distilled, "rb") as file:
        assert file.read() == path.read_bytes()
    shutil.copy(distilled, tmp_path / "b")
    assert pickle.loads(pickle.dumps(distilled)) == path
    assert not hasattr(distilled, "no_such_name") and not hasattr(distilled, "_private")
    assert read_card(distilled) == distilled.card and len(beton_loader(distilled)) == 1
    memory = ReplayMemory(pool.classes, images_per_class=2)
    memory.add(distilled)
    assert torch.equal(memory.images, read_beton(path)[0])


def test_retraining_searching_and_evaluating_take_it_with_settings_as_dictionaries(distilled, pool):
    how = {"passes": 12, "seeds": 1, "full_epochs": 0}
    rows = retrain(distilled, pool, how, device="cpu", progress_bar=False)
    assert rows[0].passes == 12 and len(rows[0].accuracies) == 1
    ranked = rank_networks({"tiny": tiny}, distilled, pool, how, device="cpu", progress_bar=False)
    assert len(ranked) == 1
    few = {"baselines": ["random"], "networks": [], "soft_labels": False, "worth": False}
    rows = evaluate(distilled, pool, pool, few, how, device="cpu", progress_bar=False)
    assert [row.name for row in rows] == ["distilled", "random", "full data, equal passes"]


def test_it_reads_what_lies_there(distilled):
    path = distilled.path
    images, labels = read_beton(path)
    assert torch.equal(distilled.images, images) and torch.equal(distilled.labels, labels)
    assert distilled.card.method["steps"] == 3
    with path.with_name("a-log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert distilled.losses["match"] == [float(row["match"]) for row in rows] and len(rows) == 3
    assert distilled.losses["step"] == [1, 2, 3] and "seconds" not in distilled.losses
    assert distilled.seconds == float(rows[-1]["seconds"]) > 0
    assert repr(distilled) == f"Distilled('{path}': 6 images of 3 classes, 192 values each)"


def test_jupyter_shows_it_as_a_picture(distilled):
    names = [text.get_text() for axes in distilled.figure().axes for text in axes.get_yticklabels()]
    assert names == ["rows", "columns", "chess"]
    with Image.open(io.BytesIO(distilled._repr_png_())) as picture:
        assert picture.format == "PNG" and min(picture.size) > 50


def test_an_earlier_file_gives_the_same_and_without_a_log_no_losses(trajectory, pool, distilled, tmp_path):
    for name in ("a.beton", "a.beton.yaml"):
        shutil.copy(distilled.parent / name, tmp_path / name)
    again = run(trajectory, pool, tmp_path / "a.beton", QUICK)
    assert isinstance(again, Distilled) and again.losses == {} and again.seconds is None
    shutil.copy(distilled.parent / "a-log.csv", tmp_path)
    assert again.losses == distilled.losses and again.seconds == distilled.seconds
    (tmp_path / "a.beton").unlink()
    assert repr(again).startswith(f"Distilled('{tmp_path}/a.beton': There is no file")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "`steps` must be .*1.* got 0"),
        ({"step": 5}, "`step`.*did you mean `steps`|There is no.*`step`.*`steps`|`step`.*steps"),
        ({"start": "mixed"}, "`start` must be"),
        (5, "`settings` must be DistillSettings or a mapping of its keys, got int"),
    ],
)
def test_errors_in_dictionaries_are_those_of_recipes(trajectory, pool, tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as error:
        distill(trajectory, pool, tmp_path / "a.beton", settings)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_objects_say_what_they_are(trajectory, pool, distilled):
    assert "distill" in dir(tgdd_plugin) and set(tgdd_plugin.__all__) <= set(dir(tgdd_plugin))
    assert repr(trajectory) == (
        f"Trajectory('{trajectory.folder}': 1 run(s) of tgdd_plugin.networks:convnet, 3 classes, 2 stages)"
    )
    loader = beton_loader(distilled, batch_size=4)
    assert repr(loader) == "DeviceLoader(6 images of 3x8x8 in 2 batches of 4, shuffled, on cpu)"
    ffcv = beton_loader(distilled, batch_size=4, backend="ffcv", shuffle=False)
    assert repr(ffcv) == f"FFCVLoader(2 batches of 4 from '{distilled}')"
    memory = ReplayMemory([*pool.classes, "other"], images_per_class=2)
    memory.add(distilled)
    assert repr(memory) == (
        "ReplayMemory(6 images of 3 of 4 classes from 1 tasks, 1,152 bytes, images_per_class=2, on cpu)"
    )


def test_a_card_is_shown_in_one_line(distilled):
    assert repr(distilled.card).startswith(f"Card({distilled.card.images} images of 3x8x8 in 3 classes;")


def test_the_public_names_are_those_with_a_home():
    assert list(tgdd_plugin._HOMES) == tgdd_plugin.__all__, "a literal list for type checkers, see typed_script.py"
