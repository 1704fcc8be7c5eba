"""Augmentation and CutMix in a Trainer: on training batches alone, as often as said, and the same after a resume."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from composer import Callback, Trainer
from composer.algorithms import SAM
from composer.models import ComposerClassifier
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from tests.common import seeded
from tgdd_plugin.augmentation import algorithms as algorithms_module
from tgdd_plugin.augmentation.algorithms import (
    RandomCutMix,
    SiameseAugmentation,
    cutmix_stream,
    draw_cutmix,
    siamese_batch,
    siamese_stream,
)
from tgdd_plugin.augmentation.dsa import augment, draw_augmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization

pytestmark = pytest.mark.numerical

N, K = 24, 3


class Watched(ComposerClassifier):
    """A linear network that keeps what it is given: images in training and evaluation, targets at the loss."""

    def __init__(self, network=None):
        torch.manual_seed(0)
        super().__init__(network or nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, K)), num_classes=K)
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
        images()[:count],
        torch.arange(count) % K,
        Normalization([0.0] * 3, [1.0] * 3),
        batch_size=batch_size,
        shuffle=shuffle,
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


@pytest.mark.parametrize("strategy", ["none", "color", "color_crop_flip", "color_crop_cutout_flip_scale_rotate"])
def test_the_function_augments_one_image_after_another(strategy):
    batch = torch.randn(7, 3, 12, 8, generator=seeded()).requires_grad_()
    came = siamese_batch(batch, strategy, seeded(4))
    draw = draw_augmentation(strategy, 7, (12, 8), seeded(4))
    for i in range(7):
        own = augment(batch[i : i + 1], {name: tensor[i : i + 1] for name, tensor in draw.items()})
        torch.testing.assert_close(came[i : i + 1], own)
    assert torch.equal(came, batch) == (strategy == "none")
    (gradient,) = torch.autograd.grad(came.square().sum(), batch)
    assert gradient.abs().sum() > 0


def test_augmentation_changes_training_batches_and_no_evaluation():
    model = fit([SiameseAugmentation("color_crop_flip")], epochs=2, eval_dataloader=loader(), eval_interval="1ep")
    assert len(model.trained) == len(model.evaluated) == 6
    for came, was in zip(model.trained, plain() * 2, strict=True):
        assert came.shape == was.shape
        assert not any(torch.allclose(a, b) for a, b in zip(came, was, strict=True))
    for came, was in zip(model.evaluated, plain() * 2, strict=True):
        assert torch.equal(came, was)
    assert torch.equal(torch.cat(model.targets[:3]), torch.arange(N) % K)  # labels stay


class OfMappings(ComposerClassifier):
    """The linear network of :class:`Watched` under batches that are mappings."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, K)), num_classes=K)
        self.trained = []

    def forward(self, batch):
        self.trained.append(batch["pixel_values"].clone())
        return self.module(batch["pixel_values"])

    def loss(self, outputs, batch):
        return self._loss_fn(outputs, batch["labels"])

    def get_metrics(self, is_train=False):
        return {}  # its own would look for the labels by position


def batches(*names):
    """Eight images and their labels a batch: a pair, or a mapping with both under names."""
    pixels, labels = (torch.cat(parts) for parts in zip(*loader(), strict=True))

    def collate(items):
        both = default_collate(items)
        return dict(zip(names, both, strict=True)) if names else both

    return DataLoader(TensorDataset(pixels, labels), batch_size=8, collate_fn=collate)


def trained_on(model, batches, algorithm):
    Trainer(
        model=model, train_dataloader=batches, max_duration="1ep", algorithms=[algorithm], device="cpu",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1), progress_bar=False, auto_log_hparams=False, seed=0,
    ).fit()  # fmt: skip
    return model


def test_mappings_are_augmented_as_pairs_are():
    pairs = trained_on(Watched(), batches(), SiameseAugmentation())
    named = trained_on(OfMappings(), batches("pixel_values", "labels"), SiameseAugmentation())
    assert torch.equal(torch.cat(named.trained), torch.cat(pairs.trained))
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), pairs.parameters(), strict=True))


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="tensor of images as its first part or under .*pixel_values.*, got a dict"):
        trained_on(OfMappings(), batches("picture", "labels"), SiameseAugmentation())
    with pytest.raises(InputError, match="pair .images, labels. for RandomCutMix, got a mapping"):
        trained_on(OfMappings(), batches("pixel_values", "labels"), RandomCutMix())


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


def test_each_pass_over_a_batch_has_the_same_draws():
    """Under SAM, which takes a step's gradient twice."""
    algorithms = [SAM(rho=0.05, interval=1), SiameseAugmentation("color"), RandomCutMix(1.0)]
    model = fit(algorithms)
    assert len(model.trained) == 6
    for first, second in zip(model.trained[::2], model.trained[1::2], strict=True):
        assert torch.equal(first, second)


def test_draws_follow_from_the_seed():
    first, again = (fit([SiameseAugmentation("color", seed=5)]).trained for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = fit([SiameseAugmentation("color", seed=6)]).trained
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    algorithm = SiameseAugmentation("color", seed=5)
    # Neither the Trainer's seed nor CutMix beside it has a part in them.
    assert all(torch.equal(a, b) for a, b in zip(first, fit([algorithm], seed=8).trained, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, fit([algorithm]).trained, strict=True))
    # The same object in a second Trainer begins anew.
    assert all(torch.equal(a, b) for a, b in zip(first, fit([algorithm]).trained, strict=True))


def test_cutmix_draws_follow_from_the_seed():
    def given(*algorithms, **options):
        model = fit([*algorithms], epochs=2, **options)
        return [
            torch.cat([a.flatten(), b.float().flatten()]) for a, b in zip(model.trained, model.targets, strict=True)
        ]

    first = given(RandomCutMix(0.7, seed=5))
    for again in (given(RandomCutMix(0.7, seed=5), seed=8), given(SiameseAugmentation("none"), RandomCutMix(0.7, 5))):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = given(RandomCutMix(0.7, seed=6))
    assert any(len(a) != len(b) or not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_every_seed_rank_batch_and_algorithm_has_a_stream_of_its_own(monkeypatch):
    numbers = []
    for stream in (siamese_stream, cutmix_stream):
        for seed in range(3):
            for rank in range(3):
                monkeypatch.setattr(algorithms_module.dist, "get_global_rank", lambda rank=rank: rank)
                for batch in range(3):
                    state = SimpleNamespace(timestamp=SimpleNamespace(batch=SimpleNamespace(value=batch)))
                    drawn, again = (torch.rand(100, generator=stream(seed, state), dtype=torch.float64) for _ in "ab")
                    assert torch.equal(drawn, again)
                    numbers += drawn.tolist()
    assert len(set(numbers)) == len(numbers) == 2 * 27 * 100


class StopAfter(Callback):
    def __init__(self, batches):
        self.batches = batches

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == self.batches:
            raise RuntimeError("pulled the plug")


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def algorithms():
        return [SiameseAugmentation("color_crop_flip", seed=3), RandomCutMix(0.5, seed=3)]

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
    for came, wanted in zip(resumed.targets, whole.targets[8:], strict=True):
        assert came.shape == wanted.shape and torch.equal(came, wanted)
    assert {target.ndim for target in resumed.targets} == {1, 2}  # mixed batches and others
    for came, wanted in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(came, wanted)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_cutmix_comes_to_a_share_p_of_the_batches(p):
    epochs = 100 if 0 < p < 1 else 4
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


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (5, 16)])
def test_mixed_labels_are_shares_of_pixels(soft, size, monkeypatch):
    """Every image has a colour of its own, so that its pixels can be counted."""
    count = 6
    pixels = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, *size)
    labels = torch.rand(count, K, generator=seeded()).softmax(1) if soft else torch.arange(count) % K
    batches = DeviceLoader(pixels, labels, Normalization([0.0], [1 / 255]), batch_size=count, shuffle=False)
    network = nn.Sequential(nn.Flatten(), nn.Linear(size[0] * size[1], K))
    model = Watched(network)
    trainer = Trainer(
        model=model,
        train_dataloader=batches,
        max_duration="12ep",
        optimizers=torch.optim.SGD(network.parameters(), lr=0.1),
        algorithms=[RandomCutMix(1.0, seed=2)],
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    rows = labels if soft else torch.eye(K)[labels]
    mixed = 0
    for came, targets in zip(model.trained, model.targets, strict=True):
        for i in range(count):
            wanted, colours = torch.zeros(K), came[i].round().int().flatten().tolist()
            for colour in colours:
                wanted += rows[colour - 1] / len(colours)
            torch.testing.assert_close(targets[i], wanted)
            mixed += len(set(colours)) > 1
    assert mixed > count * 3


def by_the_paper(count, size, random):
    """Boxes (top, left, bottom, right) as in Yun et al.: side times sqrt(share), share and centre uniform, clipped."""
    boxes = []
    for _ in range(count):
        share, box = random.uniform(), []
        for side in size:
            centre, cut = random.uniform(0, side), side * np.sqrt(share)
            box.append((np.clip(centre - cut / 2, 0, side), np.clip(centre + cut / 2, 0, side)))
        boxes.append([box[0][0], box[1][0], box[0][1], box[1][1]])
    return np.array(boxes)


@pytest.mark.parametrize("size", [(900, 500), (32, 32)])
def test_cutmix_boxes_are_those_of_the_paper(size):
    stream = seeded(1)
    drawn = [draw_cutmix(9, size, stream) for _ in range(3000)]
    assert all(order.sort().values.tolist() == list(range(9)) for order, _ in drawn)
    firsts = np.bincount([int(order[0]) for order, _ in drawn], minlength=9)
    assert stats.chisquare(firsts).pvalue > 1e-3
    boxes = np.array([box for _, box in drawn])
    assert boxes.dtype == np.int64
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= size).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
    wanted = by_the_paper(3000, size, np.random.default_rng(0)) + np.random.default_rng(1).uniform(-0.5, 0.5, (3000, 4))
    blurred = boxes + np.random.default_rng(2).uniform(-0.5, 0.5, boxes.shape)  # so that neither is whole numbers
    inside = ((boxes[:, :2] > 0) & (boxes[:, 2:] < size)).all(1)
    for values in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 3],
                   lambda b: (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])):  # fmt: skip
        assert stats.ks_2samp(values(blurred), values(wanted)).pvalue > 1e-3
    # What was not clipped has the image's proportions.
    heights, widths = (boxes[inside, i + 2] - boxes[inside, i] for i in range(2))
    assert inside.sum() > 200 and np.abs(heights / size[0] - widths / size[1]).max() <= 1 / size[0] + 1 / size[1]


def test_cutmix_shares_are_uniform_before_clipping_and_centres_anywhere(monkeypatch):
    """With a centre in the middle nothing is clipped; and a share of nothing leaves the centre."""
    uniform = torch.rand

    def boxes(kept, otherwise):
        """Of draws (share, centre) whose ``kept`` numbers are drawn."""
        kept, otherwise = torch.tensor(kept), torch.tensor(otherwise)
        monkeypatch.setattr(
            algorithms_module.torch, "rand", lambda n, generator: uniform(n, generator=generator).where(kept, otherwise)
        )
        stream = seeded(3)
        return np.array([draw_cutmix(2, (1000, 1000), stream)[1] for _ in range(2000)])

    drawn = boxes([True, False, False], [0.5, 0.5, 0.5])
    areas = (drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1]) / 1e6
    assert stats.kstest(areas, "uniform").pvalue > 1e-3
    drawn = boxes([False, True, True], [0.0, 0.5, 0.5])
    assert (drawn[:, :2] == drawn[:, 2:]).all()
    for axis in range(2):
        assert stats.kstest(drawn[:, axis] / 1000, "uniform").pvalue > 1e-3


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
    with pytest.raises(InputError, match=rf"`p` must be a share of the batches from 0 to 1, got {p}\. Give"):
        RandomCutMix(p)
    with pytest.raises(
        InputError, match="must be operations of color, crop, .* joined by _, or none, got 'colour'. Correct colour"
    ):
        SiameseAugmentation("colour")
    for algorithm in (SiameseAugmentation, RandomCutMix):
        for seed in (-1, 0.5):
            with pytest.raises(InputError, match=f"`seed` must be a whole number of at least 0, got {seed}"):
                algorithm(seed=seed)
