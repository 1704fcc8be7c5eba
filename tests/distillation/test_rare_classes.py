"""Classes with few real images or none: they rule no number for the others, and are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.common import seeded
from tests.patterned import SETTINGS, patterned, run, tiny
from tgdd_plugin import (
    DistillSettings,
    EvaluateSettings,
    ImagePool,
    RetrainSettings,
    Trajectory,
    evaluate,
    read_card,
    retrain,
)
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.rare_classes import warn_of_rare_classes
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.evaluation.baselines import Baselines
from tgdd_plugin.evaluation.compact_set import CompactSet
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings

RECORD = RecordSettings(epochs=2, batch_size=8, learning_rate=0.05, cutmix=0.0)


def of_the_last(count: int) -> ImagePool:
    """20 images of the first two classes, and fewer of the third."""
    whole = patterned()
    return ImagePool(whole.images[: 40 + count], whole.labels[: 40 + count], whole.classes)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    return record(tmp_path_factory.mktemp("t"), patterned(), tiny, RECORD, device="cpu", progress_bar=False)


def test_a_rare_class_repeats_its_images_and_the_others_draw_what_they_drew(trajectory):
    synthetic, settings = SyntheticImages(torch.rand(3, 2, 3, 8, 8)), replace(SETTINGS, real_per_class=8).resolved(8)
    bank = StageBank(trajectory, [tiny()])
    for step in range(20):
        drawn = Draws(settings, bank, of_the_last(3), synthetic)(step)["real"]
        whole = Draws(settings, bank, patterned(), synthetic)(step)["real"]
        assert torch.equal(drawn[:2], whole[:2])
        assert sorted((drawn[2] - 40).bincount(minlength=3).tolist()) == [2, 3, 3]


def test_distilling_names_them_once(trajectory, tmp_path):
    settings = replace(SETTINGS, images_per_class=5, steps=2)
    with pytest.warns(UserWarning) as told:
        path = run(trajectory, of_the_last(3), tmp_path / "a.beton", settings)
    assert [str(each.message) for each in told] == [
        "class 'chess': 3 real images, fewer than real_per_class=8: each step repeats them; class 'chess': 3 real "
        "images, fewer than the 5 that start 'mix' takes: the others start from noise"
    ]
    assert read_beton(path)[1].bincount().tolist() == [5, 5, 5]


def test_where_no_class_has_enough_those_with_fewer_than_half_are_named():
    """Half of 7 is 3.5: 3 are fewer, 4 are not."""
    settings, whole = replace(SETTINGS, real_per_class=7).resolved(8), patterned(per_class=7)
    few, enough = (ImagePool(whole.images[:count], whole.labels[:count], whole.classes) for count in (17, 18))
    with pytest.warns(UserWarning, match="^class 'chess': 3 real images, fewer than real_per_class=7: each step rep"):
        warn_of_rare_classes(settings, few, None, [0, 1, 2])
    warn_of_rare_classes(settings, enough, None, [0, 1, 2])  # warnings are errors


def test_where_no_class_has_enough_a_step_takes_all_of_the_largest(trajectory, tmp_path):
    given, most = (replace(SETTINGS, real_per_class=number) for number in (21, 20))
    made = run(trajectory, patterned(), tmp_path / "a.beton", given)
    before = made.read_bytes()
    assert read_card(made).method["real_per_class"] == 20
    for same in (given, most):
        run(trajectory, patterned(), made, same)  # it is the same job
    assert made.read_bytes() == before
    with pytest.raises(InputError, match="distill.real_per_class was 20 and is now 19"):
        run(trajectory, patterned(), made, replace(SETTINGS, real_per_class=19))


def test_a_budget_that_is_too_large_is_what_is_named(trajectory, tmp_path):
    wanted = (
        "`budget` must make images_per_class at most 20 for class 'rows', which has 20 real images to start from, got "
        "300, which makes it 25: start 'herding' takes images_per_class = 25 of each. Choose a smaller budget or "
        "images_per_class=20, or choose start 'noise'."
    )
    with pytest.raises(InputError) as told:
        run(trajectory, patterned(), tmp_path / "a.beton", DistillSettings(budget=300, real_per_class=8))
    assert str(told.value) == wanted
    settings = DistillSettings(budget=300, real_per_class=8, images_per_class=21)
    with pytest.raises(InputError, match="^`images_per_class` must be at most 20 .*, got 21"):
        run(trajectory, patterned(), tmp_path / "a.beton", settings)


@pytest.mark.parametrize(("start", "factor", "parts"), [("real", 2, 1), ("mix", 1, 1), ("mix", 2, 4)])
@pytest.mark.parametrize("few", [3, 0])
def test_a_start_lacks_images_of_a_rare_class_alone(start, factor, parts, few):
    shape = (3, 2, 3, 8, 8) if parts == 4 else (3, 6, 3, 8, 8)
    pixels = start_pixels(start, shape, factor, of_the_last(few), seeded(3))
    whole = start_pixels(start, shape, factor, patterned(), seeded(3))
    assert torch.equal(pixels[:2], whole[:2])
    side = 8 if parts == 1 else 4
    images = pixels[2].unfold(-2, side, side).unfold(-2, side, side).transpose(1, 3).reshape(-1, 3 * side * side)
    assert len({image.numpy().tobytes() for image in images}) == len(images), "copies would stay copies"
    assert pixels.min() >= 0 and pixels.max() <= 1
    if parts == 1:
        real = {image.numpy().tobytes() for image in of_the_last(few).images[40:].float().div(255).flatten(1)}
        assert sum(image.numpy().tobytes() in real for image in images) == few


def test_it_rules_no_number_of_plain_distribution_matching_either(trajectory, tmp_path):
    path = run(trajectory, patterned(), tmp_path / "a.beton", replace(SETTINGS, steps=1))
    compact = CompactSet.open(path)
    assert Baselines(compact, of_the_last(3), tmp_path, "cpu").matching().real_per_class == 8
    assert Baselines(compact, patterned(per_class=5), tmp_path, "cpu").matching().real_per_class == 5
    del compact.card.method["schedule"]  # as in cards of earlier versions, whose rate was constant
    assert Baselines(compact, patterned(), tmp_path, "cpu").matching().schedule == "constant"


# Classes without images.


def test_a_class_without_images_is_named_with_the_remedy_which_works(trajectory, tmp_path):
    pool = of_the_last(0)
    with pytest.raises(
        InputError, match=r"class 'chess' must have real images .*got none in 40 images.*\['rows', 'columns'\]"
    ) as error:
        run(trajectory, pool, tmp_path / "a.beton")
    assert "to 0" not in str(error.value)
    path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, classes=["rows", "columns"], steps=2))
    assert read_card(path).classes == ["rows", "columns"]
    # The same data, whose third class has no image, then scores it.
    settings = RetrainSettings(epochs=1, seeds=1, full_epochs=0)
    rows = retrain(path, pool, settings, real=pool, device="cpu", progress_bar=False)
    assert [row.name for row in rows] == ["distilled", "random", "full data, equal passes"]
    for lacking in (patterned(), ImagePool(pool.images, pool.labels, ["a", "b", "c"])):
        with pytest.raises(InputError, match="must be of at most 2 classes"):
            retrain(path, lacking, settings, device="cpu", progress_bar=False)


def test_a_class_that_was_never_trained_on_has_no_means(tmp_path):
    with pytest.warns(UserWarning, match="class 'chess': no training image, so that no class means are recorded"):
        trajectory = record(tmp_path / "t", of_the_last(0), tiny, RECORD, device="cpu", progress_bar=False)
    told = pytest.warns(UserWarning, match="class 'chess': 0 real images, fewer than the 2 that start 'mix'")
    refused = pytest.raises(
        InputError, match="class 'chess' must have recorded means .*Leave it out .`classes`, in a recipe"
    )
    with told, refused as error:
        run(trajectory, None, tmp_path / "a.beton")
    assert "intervals" not in str(error.value)
    run(trajectory, None, tmp_path / "a.beton", replace(SETTINGS, classes=["rows", "columns"], steps=2))


def test_random_images_repeat_none(trajectory, tmp_path):
    path = run(trajectory, patterned(), tmp_path / "a.beton", replace(SETTINGS, steps=1))
    settings = RetrainSettings(epochs=1, seeds=1)
    with pytest.warns(UserWarning, match="^class 'chess': fewer than 2 real images, all of which the random baseline"):
        rows = retrain(path, patterned(), settings, real=of_the_last(1), device="cpu", progress_bar=False)
    assert [(row.name, row.images) for row in rows][:2] == [("distilled", 6), ("random", 5)]
    with pytest.raises(InputError, match=r"Class 2 \('chess'\) has no real images, 2 were"):
        retrain(path, patterned(), settings, real=of_the_last(0), device="cpu", progress_bar=False)
    herding = EvaluateSettings(baselines=["herding"], networks=[], soft_labels=False)
    with pytest.raises(InputError, match="class 'chess' must have at least 2 real images for baseline 'herding'"):
        evaluate(path, patterned(), of_the_last(1), herding, settings, device="cpu", progress_bar=False)
