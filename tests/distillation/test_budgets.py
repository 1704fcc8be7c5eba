"""Sets that are made for a budget of image passes: how large they are, and how they are retrained on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.patterned import patterned, run, tiny
from tgdd_plugin import DistillSettings, ImagePool, InputError, RetrainSettings, read_beton, read_card, retrain
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.policies import replay_policy
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.tasks import split_classes
from tgdd_plugin.trajectory.store import Trajectory


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("passes", [1, 2_000, 10_000, 40_000, 10**6])
def test_each_image_is_seen_about_so_often(passes: int, classes: int) -> None:
    """As the rule says in words: 500 images, then 1,000, then a twentieth; and a class has one image at least."""
    sized = DistillSettings(budget=passes).sized(classes)
    images = sized.images_per_class * sized.factor**2 * classes
    wanted = {1: 0.25, 2_000: 500, 10_000: 1_000, 40_000: 2_000, 10**6: 50_000}[passes]
    if sized.images_per_class == 1:
        assert wanted < 1.5 * classes and images == classes
    else:
        assert images == pytest.approx(wanted, rel=0.05)  # as many of each class
    assert sized.alpha == (10 if passes <= 10_000 else 2.5)


def test_without_a_budget_a_set_is_of_the_published_size_and_takes_a_tenth_of_the_steps() -> None:
    sized = DistillSettings().sized(10)
    assert (sized.images_per_class, sized.factor, sized.start, sized.steps) == (10, 2, "herding", 1_000)
    assert (sized.schedule, DistillSettings().resolved(32).learning_rate) == ("linear", 5 * 0.2)
    assert DistillSettings(schedule="constant").resolved(32).learning_rate == 0.2
    assert DistillSettings(images_per_class=50).resolved(32).alpha == 0.5
    assert DistillSettings(images_per_class=10).resolved(32).alpha == 2.5


@pytest.mark.parametrize(("side", "factor"), [(8, 1), (14, 1), (16, 2), (28, 2), (32, 2), (33, 1), (128, 2), (225, 1)])
def test_images_that_are_too_small_to_be_halved_or_odd_are_not(side: int, factor: int) -> None:
    assert DistillSettings().resolved(side).factor == factor == DistillSettings().sized(10, side).factor
    assert DistillSettings(factor=4).resolved(side).factor == 4
    one, quartered = DistillSettings(images_per_class=1), 4 if side in (28, 32, 128) else factor
    assert one.resolved(side).factor == quartered == one.sized(10, side).factor
    assert replace(one, factor=2).resolved(side).factor == replace(one, factor=2).sized(10, side).factor == 2
    assert DistillSettings(budget=2_000).resolved(side).factor == 1


@pytest.mark.parametrize(
    ("sides", "one", "several"),
    [((32, 25), 1, 1), ((32, 30), 2, 2), ((64, 8), 1, 1), ((32, 64), 4, 2), ((28, 32), 4, 2), ((16, 32), 2, 2)],
)
def test_a_factor_divides_both_sides(sides: tuple[int, int], one: int, several: int) -> None:
    assert DistillSettings(images_per_class=1).resolved(sides).factor == one
    assert DistillSettings().resolved(sides).factor == several == DistillSettings().sized(3, sides).factor


@pytest.mark.parametrize(
    "key",
    [
        {"images_per_class": 3},
        {"factor": 2},
        {"start": "noise"},
        {"steps": 7},
        {"alpha": 0.25},
        {"schedule": "constant"},
    ],
)
def test_a_key_that_is_given_wins(key: dict[str, Any]) -> None:
    usual = asdict(DistillSettings(budget=2_000).resolved(32, classes=10))
    own = asdict(DistillSettings(budget=2_000, **key).resolved(32, classes=10))
    # The published one rises with the number of images, and is higher where it falls to 0 later.
    rate = {"learning_rate"} if {"images_per_class", "schedule"} & set(key) else set()
    assert {name for name in own if own[name] != usual[name]} == set(key) | rate
    assert own[next(iter(key))] == next(iter(key.values()))


def test_a_rate_that_falls_starts_from_five_times_the_published_one() -> None:
    for side, published in ((32, 0.06), (128, 0.6)):
        falling = DistillSettings(images_per_class=3, schedule="linear").resolved(side)
        assert falling.learning_rate == pytest.approx(5 * published)
        assert (
            DistillSettings(images_per_class=3, schedule="linear", learning_rate=0.1).resolved(side).learning_rate
            == 0.1
        )


@pytest.fixture(scope="module")
def real() -> ImagePool:
    return patterned(1, per_class=30)


@pytest.fixture(scope="module")
def trajectory(real: ImagePool, tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    folder = tmp_path_factory.mktemp("budget") / "trajectory"
    settings = RecordSettings(epochs=2, batch_size=16, augmentation="crop", cutmix=0.0)
    return record(folder, real, lambda: tiny(1), settings, device="cpu", progress_bar=False)


BUDGET = 4 * 3 * 4  # four images of each of three classes, four times
SETTINGS = DistillSettings(budget=BUDGET, steps=2, real_per_class=8)


@pytest.fixture
def file(trajectory: Trajectory, real: ImagePool, tmp_path: Path) -> Path:
    path = run(trajectory, real, tmp_path / "set.beton", SETTINGS)
    return path.path


def test_a_file_is_sized_to_its_budget_and_says_so(file: Path, trajectory: Trajectory, real: ImagePool) -> None:
    card, (images, labels) = read_card(file), read_beton(file)
    assert card.images_per_class == 4 and labels.bincount().tolist() == [4] * 3 and images.shape[-1] == 8
    assert card.method["budget"] == BUDGET and card.method["start"] == "herding" and card.method["steps"] == 2
    before = file.read_bytes()
    run(trajectory, real, file, SETTINGS)  # the same job
    assert file.read_bytes() == before
    with pytest.raises(InputError, match=rf"distill\.budget was {BUDGET} and is now {2 * BUDGET}"):
        run(trajectory, real, file, replace(SETTINGS, budget=2 * BUDGET))


def test_the_images_are_those_of_the_same_size_without_a_budget(
    file: Path, trajectory: Trajectory, real: ImagePool, tmp_path: Path
) -> None:
    sized = {"images_per_class": 4, "factor": 1, "start": "herding", "alpha": 10.0, "steps": 2, "schedule": "linear"}
    same = DistillSettings(**sized, real_per_class=8)
    assert torch.equal(read_beton(run(trajectory, real, tmp_path / "same.beton", same))[0], read_beton(file)[0])


@pytest.mark.parametrize(
    ("how", "budget", "passes"),
    [
        ({}, BUDGET, BUDGET),
        ({"passes": 24}, BUDGET, 24),
        ({"epochs": 3}, BUDGET, 3 * 12),
        ({"protocol": "paper", "epochs": 3}, BUDGET, 3 * 12),
        ({"epochs": 2}, 10**18, 2 * 12),
        ({"passes": 12}, "many", 12),
    ],
)
def test_retraining_takes_as_many_passes(
    file: Path, real: ImagePool, how: dict[str, Any], budget: Any, passes: int
) -> None:
    card = read_card(file)
    card.method["budget"] = budget
    card.write(file)
    settings = RetrainSettings(seeds=1, full_epochs=0, augmentation="none", precision="fp32", compile=False, **how)
    rows = retrain(file, real, settings, real=real, network=lambda: tiny(1), device="cpu", progress_bar=False)
    assert {row.image_passes for row in rows} == {passes}


def test_a_length_from_elsewhere_does_not_train_for_ever() -> None:
    usual = RetrainSettings()
    for budget in (10**18, 0, -5, True, 2.5, "9", None, [1]):
        assert usual.made_for(budget, images=100) == usual
    assert usual.made_for(5_000, images=100) == RetrainSettings(passes=5_000)
    assert RetrainSettings(protocol="paper").made_for(5_000, images=100) == RetrainSettings(protocol="paper")


def test_replay_has_no_budget(real: ImagePool) -> None:
    tasks = split_classes(real, real, ReplaySettings(tasks=3))
    for policy in ("distilled", "herding"):
        with pytest.raises(InputError, match=r"`distill\.budget` must be null in replay, got 2000: .* Leave it out\."):
            replay_policy(policy, tasks, DistillSettings(budget=2_000), Normalization([0.5], [0.5]))


def test_files_are_named_after_the_budget() -> None:
    assert read_recipe(None, ["data.name=digits"]).beton.name == "digits-ipc10.beton"
    assert read_recipe(None, ["data.name=digits", "distill.budget=2000"]).beton.name == "digits-2000passes.beton"
