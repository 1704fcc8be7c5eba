"""Soft labels are those of a loop that loads the last stages itself."""

import copy

import pytest
import torch
from torch import nn

from tests.common import CLASSES, Pictures, differ, fit, manifest, recorded, tiny_network
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data import batch_size
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.evaluation.soft_labels import find_teachers, predict_soft_labels
from tgdd_plugin.recording.callback import TGDDCallback
from tgdd_plugin.trajectory.store import Trajectory

pytestmark = pytest.mark.numerical

MEAN, STD = [0.3], [0.2]
IMAGES = ImagePool.from_dataset(Pictures(23)).images


def record(folder, name, seed, **options):
    network = tiny_network(seed, norm=True, dropout=0.5)
    fit(network, callbacks=[TGDDCallback(str(folder), mean=MEAN, std=STD, **options)], run_name=name, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of three epochs."""
    folder = tmp_path_factory.mktemp("trajectory")
    record(folder, "a", 0)
    record(folder, "b", 1)
    return folder


def by_hand(run_folders):
    """Softmax of the last stages' logits, image by image, averaged over the runs."""
    total = torch.zeros(len(IMAGES), CLASSES, dtype=torch.float64)
    for run_folder in run_folders:
        network = tiny_network(9, norm=True)
        stages = recorded(run_folder)
        assert max(stages) == manifest(run_folder)["stages"][-1]["batch"] == 12
        names = {name: tensor.float() for name, tensor in stages[12].items()}
        network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in names.items()})
        network.double().eval()
        for i, image in enumerate(IMAGES):
            with torch.no_grad():
                powers = network((image[None].double() / 255 - 0.3) / 0.2)[0].exp()
            total[i] += powers / powers.sum() / len(run_folders)
    return total.float()


@pytest.mark.parametrize("at_once", [512, 5, 1])
def test_they_are_the_mean_of_what_the_last_stages_say(folder, at_once, monkeypatch):
    monkeypatch.setattr(batch_size, "MOST_AT_ONCE", at_once)
    network = tiny_network(5, norm=True, dropout=0.5).train()
    before, stream = copy.deepcopy(network), torch.get_rng_state()
    labels = predict_soft_labels(Trajectory.open(folder), [network], IMAGES, Normalization(MEAN, STD))
    torch.testing.assert_close(labels, by_hand([folder / "a", folder / "b"]), rtol=1e-4, atol=1e-6)
    assert labels.shape == (23, CLASSES) and labels.dtype == torch.float32 and not labels.requires_grad
    torch.testing.assert_close(labels.sum(1), torch.ones(23))
    # The network is as it was, and nothing was drawn.
    assert not differ(network.state_dict(), before.state_dict())
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), stream)


def test_of_one_run_alone(folder):
    one, other = (
        predict_soft_labels(Trajectory.open(folder / run), [tiny_network(norm=True)], IMAGES, Normalization(MEAN, STD))
        for run in "ab"
    )
    torch.testing.assert_close(one, by_hand([folder / "a"]), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one, other, atol=1e-3)


def test_half_precision_stages(tmp_path):
    record(tmp_path, "half", 0, dtype="float16")
    labels = predict_soft_labels(Trajectory.open(tmp_path), [tiny_network(norm=True)], IMAGES, Normalization(MEAN, STD))
    torch.testing.assert_close(labels, by_hand([tmp_path / "half"]), rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_refused(folder, tmp_path, monkeypatch):
    trajectory = Trajectory.open(folder)
    with pytest.raises(InputError, match="TinyNetwork does not fit stage .*stage-ep3-ba12"):
        predict_soft_labels(trajectory, [tiny_network(num_classes=4, norm=True)], IMAGES, Normalization(MEAN, STD))
    with pytest.raises(InputError, match="Linear does not fit stage"):
        predict_soft_labels(trajectory, [nn.Linear(2, 3)], IMAGES, Normalization(MEAN, STD))
    load = Trajectory.load
    monkeypatch.setattr(Trajectory, "load", lambda *a: {n: t * 1e30 for n, t in load(*a).items()})
    with pytest.raises(
        InputError,
        match="The output of stage '.*' must be finite, got infinite or undefined values. Train",
    ):
        predict_soft_labels(trajectory, [tiny_network(norm=True)], IMAGES, Normalization(MEAN, STD))


def test_a_run_that_diverged_teaches_by_its_last_finite_stage(folder, tmp_path, monkeypatch):
    trajectory = Trajectory.open(folder)
    load, lost = Trajectory.load, trajectory.run.stages[-1]

    def diverged(self, run_folder, stage):
        weights = load(self, run_folder, stage)
        return {n: t * torch.nan for n, t in weights.items()} if stage is lost else weights

    monkeypatch.setattr(Trajectory, "load", diverged)
    with pytest.warns(UserWarning, match=r"diverged at epoch 3 \(run 'a'\): its stages from batch 12 on hold") as told:
        teachers = find_teachers(trajectory)
    assert len(told) == 1
    runs = list(trajectory.runs.values())
    assert teachers == [runs[0].stages[-2], runs[1].stages[-1]]
    labels = predict_soft_labels(trajectory, [tiny_network(norm=True)], IMAGES, Normalization(MEAN, STD))
    monkeypatch.undo()
    del runs[0].stages[-1]
    wanted = predict_soft_labels(trajectory, [tiny_network(norm=True)], IMAGES, Normalization(MEAN, STD))
    assert torch.equal(labels, wanted)
    monkeypatch.setattr(Trajectory, "load", lambda *a: {n: t * torch.nan for n, t in load(*a).items()})
    with pytest.raises(
        InputError, match="weights of run 'a' must be finite, got none .* again at a lower learning rate"
    ):
        find_teachers(trajectory)


def test_a_teacher_that_was_cut_short_is_told(folder):
    trajectory = Trajectory.open(folder)
    trajectory.run.complete = False
    with pytest.warns(UserWarning, match="run 'a' is not complete: it was cut short after epoch 3, or is still being"):
        find_teachers(trajectory)
