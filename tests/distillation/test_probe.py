"""A probe says how well a network learns the images so far, and leaves the distillation as it was."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from composer import Callback

from tests.patterned import SETTINGS, Crash, run, tiny
from tgdd_plugin import ImagePool, InputError
from tgdd_plugin.recording.runs import record
from tgdd_plugin.trajectory.store import Trajectory


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory, pool: ImagePool) -> Trajectory:
    settings = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05}
    return record(tmp_path_factory.mktemp("t"), pool, tiny, settings, device="cpu", progress_bar=False)


class RandomNumbers(Callback):
    """Numbers that another callback draws from the global generators after each step."""

    def __init__(self):
        self.seen = []

    def batch_end(self, state, logger):
        self.seen.append((random.random(), float(np.random.rand()), float(torch.rand(()))))


def test_it_changes_nothing_also_of_a_resumed_run(trajectory, pool, tmp_path, monkeypatch):
    monkeypatch.setattr("tgdd_plugin.distillation.probe.PASSES", 60)
    without, numbers = RandomNumbers(), RandomNumbers()
    bare = run(trajectory, pool, tmp_path / "bare.beton", callbacks=[without])
    whole = run(trajectory, pool, tmp_path / "whole.beton", callbacks=[numbers], probe_interval=4)
    assert whole.read_bytes() == bare.read_bytes() and numbers.seen == without.seen
    accuracies = whole.losses["probe_accuracy"]
    assert [step for step, value in enumerate(accuracies, 1) if value == value] == [4, 8, 12]
    options = {"checkpoint_interval": "5ba", "loggers": {"probe_interval": 4}}
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", callbacks=[Crash(9)], **options)
    again = run(trajectory, pool, tmp_path / "a.beton", **options)
    assert again.read_bytes() == bare.read_bytes()
    np.testing.assert_array_equal(again.losses["probe_accuracy"], accuracies)
    assert "probe_accuracy" not in bare.losses


def test_it_learns_from_images_that_can_be_learned_and_not_from_noise(trajectory, pool, tmp_path):
    classes = ["rows", "chess"]  # positions 0 and 1 are the classes 0 and 2 of the network
    some = replace(SETTINGS, classes=classes, images_per_class=8, steps=1)
    learned = run(trajectory, pool, tmp_path / "a.beton", replace(some, learning_rate=0.0), probe_interval=1)
    noise = run(
        trajectory, pool, tmp_path / "b.beton", replace(some, start="noise", learning_rate=0.0), probe_interval=1
    )
    assert learned.losses["probe_accuracy"][-1] > 0.8 > noise.losses["probe_accuracy"][-1]


def test_it_needs_real_images(trajectory, tmp_path):
    with pytest.raises(InputError, match="`probe_interval` must be 0 where no real images are read"):
        run(trajectory, None, tmp_path / "a.beton", replace(SETTINGS, source="recorded"), probe_interval=4)


def test_one_that_fails_ends_nothing(trajectory, pool, tmp_path, monkeypatch):
    bare = run(trajectory, pool, tmp_path / "bare.beton", replace(SETTINGS, steps=4)).read_bytes()

    def fails(*args, **kwargs):
        raise RuntimeError("out of something")

    monkeypatch.setattr("tgdd_plugin.distillation.probe.train_network", fails)
    with pytest.warns(
        UserWarning, match="a probe failed, and there are no more.*RuntimeError: out of something"
    ) as caught:
        path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=4), probe_interval=1)
    assert sum(issubclass(warning.category, UserWarning) for warning in caught) == 1 and path.read_bytes() == bare
