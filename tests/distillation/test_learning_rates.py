"""Learning rates and weights of the loss that no distillation survives: no file is written in silence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from composer import Callback
from safetensors.torch import load_file, save_file

from tests.common import manifest
from tests.patterned import SETTINGS, patterned, run, tiny
from tgdd_plugin import RetrainSettings, Trajectory, retrain
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.evaluation.scorer import Row, Scorer
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.training.settings import TrainSettings


def recorded(folder):
    settings = RecordSettings(epochs=2, batch_size=8, learning_rate=0.05)
    return record(folder, patterned(), tiny, settings, device="cpu", progress_bar=False)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    return recorded(tmp_path_factory.mktemp("t"))


@pytest.mark.parametrize("steps", [2, 12])
@pytest.mark.parametrize("change", [{"learning_rate": 3e38}, {"learning_rate": 1e5}, {"alpha": 1e30}])
def test_steps_across_the_whole_range_end_the_run(trajectory, tmp_path, steps, change):
    with pytest.raises(InputError, match=r"`learning_rate` must .* moves 100 % of them .*Lower learning_rate or") as e:
        run(trajectory, patterned(), tmp_path / "a.beton", replace(SETTINGS, steps=steps, **change))
    assert f"at step {min(steps, 8)} " in str(e.value) and "\n" not in str(e.value)
    assert not [*tmp_path.glob("*.beton*")]


def test_steps_that_are_merely_long_are_told(trajectory, tmp_path):
    with pytest.warns(UserWarning, match=r"learning_rate should move .* moves \d\d % of them"):
        run(trajectory, patterned(), tmp_path / "a.beton", replace(SETTINGS, steps=3, learning_rate=200.0))
    run(trajectory, patterned(), tmp_path / "b.beton", replace(SETTINGS, steps=12, learning_rate=5.0))


def test_the_share_of_pixels_that_jump():
    synthetic = SyntheticImages(torch.rand(1, 1, 1, 2, 4))
    assert synthetic.jumping(1.0) == 0
    synthetic.pixels.grad = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1, -0.3, 3.0, -1e30]).view(1, 1, 1, 2, 4)
    assert [float(synthetic.jumping(rate)) for rate in (1e-40, 0.5, 4.0, 3e38)] == [0.0, 0.5, 0.75, 1.0]


class Overflow(Callback):
    """Makes the gradient infinite in some steps, as a float16 or bfloat16 pass may."""

    def __init__(self, steps):
        self.steps = steps

    def after_backward(self, state, logger):
        if state.timestamp.batch.value in self.steps:
            state.model.synthetic.pixels.grad.mul_(torch.inf)


def test_a_gradient_that_is_never_finite_ends_the_run(trajectory, tmp_path):
    with pytest.raises(InputError, match="not finite in any of 8 steps up to step 8, so that no pixel moves"):
        run(trajectory, patterned(), tmp_path / "a.beton", callbacks=[Overflow(range(100))])
    assert not [*tmp_path.glob("*.beton*")]


def test_steps_that_moved_nothing_are_counted(trajectory, tmp_path):
    with pytest.warns(UserWarning, match="^3 of 12 steps had a gradient that is not finite, and moved no pixel"):
        path = run(trajectory, patterned(), tmp_path / "a.beton", callbacks=[Overflow((0, 4, 9))])
    assert read_beton(path)[0].shape == (6, 3, 8, 8)


@pytest.mark.parametrize(
    ("part", "enlarged"),
    [("features", lambda t: t * 1e30), ("classifier", lambda t: torch.full_like(t, 3e38))],
    ids=["features", "logits"],
)
def test_a_stage_that_had_all_but_diverged_is_named(tmp_path, part, enlarged):
    """Its weights are finite, but so large that nothing that comes out of them is: no logits, or no features either."""
    trajectory = recorded(tmp_path / "t")
    folder = tmp_path / "t" / "seed0"
    path = folder / trajectory.run.stages[-1].file
    weights = {n: enlarged(t) if part in n else t for n, t in load_file(path).items()}
    assert all(t.isfinite().all() for t in weights.values())
    save_file(weights, path)
    content = manifest(folder)
    content["stages"][-1]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match="no longer finite at step .*had diverged by then: .*epoch 2, batch 16 are not"
    ):
        run(tmp_path / "t", patterned(), tmp_path / "a.beton")


# Trainings on the set.


def test_a_row_whose_training_diverges_is_named_with_its_rate(trajectory, tmp_path):
    path = run(trajectory, patterned(), tmp_path / "a.beton", replace(SETTINGS, steps=1))
    settings = RetrainSettings(epochs=8, seeds=2, full_epochs=0, learning_rate=3e38, at_once=False)
    with pytest.warns(UserWarning) as told:
        rows = retrain(path, patterned(), settings, device="cpu", progress_bar=False)
    assert [str(each.message) for each in told if "diverged" in str(each.message)] == [
        "the training of row 'distilled' (ConvNet) diverged for 2 of 2 seed(s) at learning_rate=3e+38: outputs are not "
        "finite, and the accuracy is that of guessing; lower retrain.learning_rate"
    ]
    assert rows[0].mean == pytest.approx(100 / 3, abs=0.1)


def test_a_trial_rate_may_diverge_without_a_word(trajectory):
    pool = patterned()
    scorer = Scorer(pool, trajectory.run.normalization, [0], 3, "cpu", False, False)
    settings = TrainSettings(epochs=2, batch_size=8)
    images = lambda seed: (pool.images, pool.labels)  # noqa: E731
    assert scorer.tune_learning_rate([3e38, 0.05], pool, Row("x"), tiny, images, settings).learning_rate == 0.05
