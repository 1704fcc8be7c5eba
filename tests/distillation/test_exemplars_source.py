"""Distillation from the real images that a trajectory keeps, in place of the data set."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.patterned import patterned, tiny
from tgdd_plugin import DistillSettings, InputError, distill, read_beton, read_card
from tgdd_plugin.cli import main
from tgdd_plugin.distillation import sources
from tgdd_plugin.distillation.sources import source_without_images
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.tensor_files import read_exemplars

ENOUGH = 8
SETTINGS = DistillSettings(images_per_class=2, factor=2, steps=4, learning_rate=0.5)
RECORD = RecordSettings(epochs=3, batch_size=8, learning_rate=0.05, exemplars=ENOUGH)


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ENOUGH", ENOUGH)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    return recorded(tmp_path_factory.mktemp("trajectory"), RECORD)


def recorded(folder: Path, settings: RecordSettings) -> Trajectory:
    return record(folder, patterned(), tiny, settings, device="cpu", progress_bar=False)


def run(trajectory, path, settings=SETTINGS, real=None):
    return distill(trajectory, real, path, settings, device="cpu", progress_bar=False)


def test_is_the_published_way_with_these_images_as_the_data(trajectory, tmp_path):
    images = trajectory.exemplars()
    file = run(trajectory, tmp_path / "kept.beton")
    given = run(
        trajectory, tmp_path / "given.beton", replace(SETTINGS, source="sampled", real_per_class=ENOUGH), images
    )
    assert torch.equal(read_beton(file)[0], read_beton(given)[0])
    card = read_card(file.path)
    assert card.method["source"] == "exemplars" and card.method["real_per_class"] == ENOUGH
    assert card.method["augmentation"] == read_card(given.path).method["augmentation"]


@pytest.mark.parametrize("start", ["mix", "herding"])
@pytest.mark.parametrize("source", ["exemplars", "recorded"])
def test_an_image_that_several_runs_kept_is_started_from_once(tmp_path, start, source):
    """Of 20 images of each class both runs kept 16; a job is known by all of them, as it was when copies were taken."""
    trajectory = recorded(tmp_path / "t", replace(RECORD, runs=2, epochs=1, exemplars=16))
    kept = trajectory.exemplars()
    different = {image.numpy().tobytes() for image in kept.images}
    assert len(different) <= 60 < len(kept) == 96
    settings = DistillSettings(source, images_per_class=14, factor=1, start=start, steps=1, learning_rate=0.0)
    file = run(trajectory, tmp_path / "a.beton", settings)
    found = {image.numpy().tobytes() for image in read_beton(file)[0]}
    assert len(found) == 42 and found < different
    assert read_card(file.path).real["fingerprint"] == kept.fingerprint()
    more = replace(settings, images_per_class=30)  # which no class has without copies
    assert len(read_beton(run(trajectory, tmp_path / "b.beton", more).path)[0]) == 90


def test_given_images_are_sampled_and_the_kept_ones_count_where_they_are_chosen(trajectory, tmp_path):
    file = run(trajectory, tmp_path / "a.beton", replace(SETTINGS, real_per_class=4), patterned())
    assert read_card(file.path).method["source"] == "sampled"
    chosen = replace(SETTINGS, source="exemplars", real_per_class=4)
    file = run(trajectory, tmp_path / "b.beton", chosen, patterned())
    alone = run(trajectory, tmp_path / "c.beton", chosen)
    assert torch.equal(read_beton(file)[0], read_beton(alone)[0]), "images beside them changed something"


def test_few_images_leave_the_matching_to_the_means(tmp_path):
    few = recorded(tmp_path / "few", replace(RECORD, exemplars=ENOUGH - 1))
    assert source_without_images(few) == "recorded"
    one = replace(SETTINGS, images_per_class=1)
    assert read_card(run(few, tmp_path / "a.beton", one).path).method["source"] == "recorded"
    two = recorded(tmp_path / "two", replace(RECORD, exemplars=ENOUGH - 1, runs=2))
    assert source_without_images(two) == "exemplars", "of all runs together"


def test_only_the_classes_that_are_distilled_must_have_enough(trajectory, tmp_path):
    folder = tmp_path / "rare"
    shutil.copytree(trajectory.folder, folder)
    rare = Trajectory.open(folder, check=False)
    (place,) = rare.runs
    images, labels = read_exemplars(place, 3)
    kept = torch.cat([(labels != 1).nonzero(), (labels == 1).nonzero()[:3]])[:, 0]
    _write(place, images[kept], labels[kept])
    assert rare.exemplar_counts() == [ENOUGH, 3, ENOUGH]
    assert source_without_images(rare) == "recorded"
    assert source_without_images(rare, ["rows", "chess"]) == "exemplars"


def _write(place, images, labels):
    from safetensors.torch import save_file

    save_file({"images": images, "labels": labels}, place / "exemplars.safetensors")


def test_images_are_mirrored_only_where_the_training_did_so():
    for trained_with, wanted in (
        ("crop_flip", "color_crop_cutout_flip"),
        (None, "color_crop_cutout_flip"),
        ("crop", "color_crop_cutout"),
        ("none", "color_crop_cutout"),
    ):
        assert SETTINGS.resolved(8, source="exemplars", trained_with=trained_with).augmentation == wanted


def test_the_command_on_a_folder_alone_takes_them(trajectory, tmp_path, capsys):
    command = ["distill", str(trajectory.folder), f"file={tmp_path}/a.beton", "device=cpu"]
    keys = ["distill.images_per_class=2", "distill.steps=2"]
    assert main([*command, *keys]) == 0
    assert read_card(tmp_path / "a.beton").method["source"] == "exemplars"
    means = ["distill.source=recorded", "overwrite=true"]
    assert main([*command, *keys, *means]) == 0
    assert read_card(tmp_path / "a.beton").method["source"] == "recorded"


def test_the_same_job_given_again_is_done_though_fewer_images_are_kept_than_asked_for(trajectory, tmp_path, capsys):
    assert run(trajectory, tmp_path / "a.beton").card.method["real_per_class"] == ENOUGH < SETTINGS.real_per_class
    written = (tmp_path / "a.beton").read_bytes()
    run(trajectory, tmp_path / "a.beton")
    command = ["distill", str(trajectory.folder), f"file={tmp_path}/a.beton", "device=cpu"]
    keys = ["distill.images_per_class=2", "distill.factor=2", "distill.steps=4", "distill.learning_rate=0.5"]
    assert main([*command, *keys]) == 0
    assert "already done" in capsys.readouterr().out
    assert (tmp_path / "a.beton").read_bytes() == written
    with pytest.raises(InputError, match="real_per_class was 8 and is now 4"):
        run(trajectory, tmp_path / "a.beton", replace(SETTINGS, real_per_class=4))


def test_a_set_of_fewer_kept_images_is_another_job(trajectory, tmp_path):
    run(trajectory, tmp_path / "a.beton", replace(SETTINGS, real_per_class=4))
    with pytest.raises(InputError, match="real_per_class was 4 and is now 8"):
        run(trajectory, tmp_path / "a.beton")


def test_a_trajectory_that_keeps_none_is_told(tmp_path):
    bare = recorded(tmp_path / "bare", replace(RECORD, exemplars=0))
    assert source_without_images(bare) == "recorded"
    with pytest.raises(InputError, match="where the trajectory keeps no real images, got 'exemplars'"):
        run(bare, tmp_path / "a.beton", replace(SETTINGS, source="exemplars", start="noise"))


def test_few_images_are_matched_where_no_means_were_recorded(tmp_path):
    """As where CutMix mixed every image."""
    mixed = recorded(tmp_path / "mixed", replace(RECORD, exemplars=ENOUGH - 1, cutmix=1.0))
    one = replace(SETTINGS, images_per_class=1)
    assert read_card(run(mixed, tmp_path / "a.beton", one).path).method["source"] == "exemplars"
    with pytest.raises(InputError, match=r"has no stage with means .* match the images that were kept \(source 'exem"):
        run(mixed, tmp_path / "b.beton", replace(one, source="recorded"))
    with pytest.raises(InputError, match="`distill.classes` must be"):
        run(mixed, tmp_path / "b.beton", replace(one, classes=["zzz"]))
