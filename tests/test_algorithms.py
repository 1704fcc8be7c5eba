"""Augmentation and CutMix in a Trainer: on training batches alone, as often as said, and the same after a resume."""

import numpy as np
import pytest
import torch
from composer import Callback, Trainer
from composer.models import ComposerClassifier
from scipy import stats
from torch import nn

from tgdd_plugin import algorithms as algorithms_module
from tgdd_plugin.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.augment import augment
from tgdd_plugin.errors import InputError
from tgdd_plugin.loader import DeviceLoader

N, K = 24, 3


class Watched(ComposerClassifier):
    """A linear network that keeps what it is given: images in training and evaluation, targets at the loss."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, K)), num_classes=K)
        self.trained, self.evaluated, self.targets = [], [], []

    def forward(self, batch):
        (self.trained if self.training else self.evaluated).append(batch[0].clone())
        return super().forward(batch)

    def loss(self, outputs, batch):
        self.targets.append(batch[1].clone())
        return super().loss(outputs, batch)


def images():
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (N, 3, 8, 8), dtype=np.uint8))


def loader(batch_size=8, shuffle=False, count=N):
    return DeviceLoader(
        images()[:count], torch.arange(count) % K, [0.0] * 3, [1.0] * 3, batch_size=batch_size, shuffle=shuffle
    )


def plain(batch_size=8):
    return [batch for batch, _ in loader(batch_size)]


def fit(algorithms, epochs=1, batch_size=8, shuffle=False, seed=0, count=N, model=None, **options):
    model = model or Watched()
    trainer = Trainer(
        model=model,
        train_dataloader=loader(batch_size, shuffle, count),
        max_duration=f"{epochs}ep",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=algorithms,
        device="cpu",
        progress_bar=False,
        seed=seed,
        **options,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    return model


def test_augmentation_changes_training_batches_and_no_evaluation():
    model = fit([SiameseAugmentation("color_crop_flip")], epochs=2, eval_dataloader=loader(), eval_interval="1ep")
    assert len(model.trained) == len(model.evaluated) == 6
    for came, was in zip(model.trained, plain() * 2, strict=True):
        assert came.shape == was.shape
        assert not any(torch.allclose(a, b) for a, b in zip(came, was, strict=True))
    for came, was in zip(model.evaluated, plain() * 2, strict=True):
        assert torch.equal(came, was)
    assert torch.equal(torch.cat(model.targets[:3]), torch.arange(N) % K)  # labels stay


def test_every_image_has_a_draw_of_its_own(monkeypatch):
    """What the network gets is augment() of the plain images under the draws, one for each image."""
    draws = []
    original = algorithms_module.draw_augmentation

    def kept(*arguments):
        draws.append(original(*arguments))
        return draws[-1]

    monkeypatch.setattr(algorithms_module, "draw_augmentation", kept)
    model = fit([SiameseAugmentation("color")], epochs=2)
    assert len(draws) == 6
    for came, was, draw in zip(model.trained, plain() * 2, draws, strict=True):
        assert torch.equal(came, augment(was, draw))
    every = torch.cat([draw["brightness"] for draw in draws])
    assert len(every.unique()) == 2 * N


def test_microbatches_of_a_batch_have_draws_of_their_own():
    model = fit([SiameseAugmentation("color")], batch_size=8, device_train_microbatch_size=2)
    shifts = torch.stack([c.mean() / w.mean() for c, w in zip(model.trained, plain(2), strict=True)])
    assert len(shifts.unique()) == 12


def test_draws_follow_from_seed_and_rank(monkeypatch):
    first, again = (fit([SiameseAugmentation("color", seed=5)]).trained for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = fit([SiameseAugmentation("color", seed=6)]).trained
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    algorithm = SiameseAugmentation("color", seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first, fit([algorithm]).trained, strict=True))
    # The same object in a second Trainer begins anew.
    assert all(torch.equal(a, b) for a, b in zip(first, fit([algorithm]).trained, strict=True))


class StopAfter(Callback):
    def __init__(self, batches):
        self.batches = batches

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == self.batches:
            raise RuntimeError("pulled the plug")


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def algorithms():
        return [SiameseAugmentation("color_crop_flip", seed=3), RandomCutMix()]

    whole = fit(algorithms(), epochs=6, shuffle=True)
    options = {
        "epochs": 6,
        "shuffle": True,
        "save_folder": str(tmp_path),
        "save_interval": "2ba",
        "autoresume": True,
        "run_name": "x",
    }
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(algorithms(), callbacks=[StopAfter(9)], **options)
    resumed = fit(algorithms(), **options)
    assert len(resumed.trained) == 18 - 8  # goes on from batch 8, in the middle of an epoch
    for came, wanted in zip(resumed.trained, whole.trained[8:], strict=True):
        assert torch.equal(came, wanted)
    for came, wanted in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(came, wanted)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_cutmix_comes_to_a_share_p_of_the_batches(p):
    epochs = 100
    model = fit([RandomCutMix(p)], epochs=epochs)
    mixed = 0
    for came, was, targets in zip(model.trained, plain() * epochs, model.targets, strict=True):
        if targets.ndim == 1:
            assert torch.equal(came, was)
            continue
        mixed += 1
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    assert mixed == 3 * epochs * p if p in (0.0, 1.0) else stats.binomtest(mixed, 3 * epochs, p).pvalue > 1e-4


def test_cutmix_mixes_pixels_and_labels_in_the_same_share():
    model = fit([RandomCutMix(1.0)], epochs=5)
    shares = set()
    for came, (was, labels), targets in zip(model.trained, [*loader()] * 5, model.targets, strict=True):
        box = ~(came == was).all(1).all(0)  # (H, W): where any image of the batch is not its own
        share = 1 - float(box.float().mean())
        shares.add(share)
        classes = torch.eye(K)[labels]
        for i in range(len(came)):
            # Inside the box is one other image of the batch, in the same place (or itself).
            (partner, *_) = [j for j in range(len(was)) if torch.equal(came[i][:, box], was[j][:, box])]
            torch.testing.assert_close(targets[i], share * classes[i] + (1 - share) * classes[partner])
    assert len(shares) > 5


def test_cutmix_leaves_evaluation_alone():
    model = fit([RandomCutMix(1.0)], eval_dataloader=loader(), eval_interval="1ep")
    assert all(torch.equal(came, was) for came, was in zip(model.evaluated, plain(), strict=True))


def test_both_together_augment_first():
    model = fit([SiameseAugmentation("color"), RandomCutMix(1.0)])
    alone = fit([SiameseAugmentation("color")])
    for mixed, augmented in zip(model.trained, alone.trained, strict=True):
        # Pixels come from augmented images, each with its own colours.
        found = (mixed[:, None] == augmented[None]).all(2).any(1)
        assert found.all()


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_arguments_out_of_range_are_refused(p):
    with pytest.raises(InputError, match="wanted a share of batches from 0 to 1"):
        RandomCutMix(p)
    with pytest.raises(InputError, match="known are"):
        SiameseAugmentation("colour")
    with pytest.raises(InputError, match="seed is -1"):
        SiameseAugmentation(seed=-1)
