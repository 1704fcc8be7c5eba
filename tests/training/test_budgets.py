"""Trainings of so many image passes, and the schedules that they go by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from composer import Callback, Logger, State

from tests.common import tiny_network
from tgdd_plugin import InputError, RetrainSettings
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.training.protocols import FAST_EPOCHS, fast, paper
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import train_each, train_network

K = 3


def loader(count: int, batch_size: int) -> DeviceLoader:
    images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    return DeviceLoader(images, torch.arange(count) % K, Normalization([0.5], [0.3]), batch_size=batch_size)


class Seen(Callback):
    """What each batch had: its images and its learning rate."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.rates: list[float] = []

    def after_forward(self, state: State, logger: Logger) -> None:
        self.sizes.append(state.batch_get_item(0).shape[:-3].numel())
        self.rates.append(state.optimizers[0].param_groups[0]["lr"])


def seen(settings: TrainSettings, count: int, batch_size: int) -> Seen:
    found = Seen()
    train_network(tiny_network(), loader(count, batch_size), K, settings, device="cpu", callbacks=[found])
    return found


PLAIN = TrainSettings(augmentation="none", cutmix=0.0, learning_rate=0.1)


@pytest.mark.parametrize(
    ("passes", "count", "batch_size", "sizes"),
    [
        (20, 10, 4, [4, 4, 2] * 2),  # two epochs
        (25, 10, 4, [4, 4, 2, 4, 4, 2, 4, 4]),  # and two batches of the third
        (6, 100, 4, [4, 4]),  # a part of the first
        (4, 100, 4, [4]),
        (7, 3, 64, [3, 3, 3]),  # a set smaller than a batch
    ],
)
def test_passes_end_where_so_many_images_were_seen(passes: int, count: int, batch_size: int, sizes: list[int]) -> None:
    settings = replace(PLAIN, passes=passes, batch_size=batch_size)
    assert seen(settings, count, batch_size).sizes == sizes
    together = Seen()
    nets = [tiny_network(seed) for seed in range(2)]
    both = [loader(count, batch_size) for _ in nets]
    train_each(nets, both, K, settings, seeds=range(2), at_once=True, device="cpu", callbacks=[together])
    assert together.sizes == [2 * size for size in sizes]


def test_fewer_passes_than_a_batch_are_refused() -> None:
    with pytest.raises(
        InputError, match="`passes` must be at least one batch of 8 images, got 7. Give more, or a smal"
    ):
        seen(replace(PLAIN, passes=7), 100, 8)
    with pytest.raises(InputError, match="at least one batch of 3 images, got 2"):
        seen(replace(PLAIN, passes=2), 3, 8)


def test_one_cycle_rises_for_three_tenths_and_falls_to_nothing() -> None:
    """On two straight lines; a batch has the rate of the middle of the one before, as Composer asks then."""
    rates = seen(replace(PLAIN, schedule="one-cycle", epochs=5), 8, 4).rates
    middles = [(max(step - 1, 0) + 0.5) / 10 for step in range(10)]
    assert rates == pytest.approx([0.1 * (m / 0.3 if m < 0.3 else (1 - m) / 0.7) for m in middles], abs=1e-12)
    (single,) = seen(replace(PLAIN, schedule="one-cycle", passes=4), 8, 4).rates
    assert single == pytest.approx(0.1 * 0.5 / 0.7)


def test_nesterov_is_that_of_the_formula() -> None:
    """v = 0.9 v + g, then w -= lr (g + 0.9 v), with g of the loss and the weight decay; two whole batches."""
    net, hand = tiny_network(), tiny_network()
    settings = replace(PLAIN, epochs=2, nesterov=True, weight_decay=0.01)
    train_network(net, loader(4, 4), K, settings, device="cpu")
    velocity = [torch.zeros_like(p) for p in hand.parameters()]
    for images, labels in [batch for _ in range(2) for batch in loader(4, 4)]:
        gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(hand(images), labels), [*hand.parameters()])
        with torch.no_grad():
            for p, v, g in zip(hand.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(0.1 * (g + 0.01 * p + 0.9 * v))
    for trained, wanted in zip(net.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(trained, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("at_once", [False, True])
def test_smoothed_labels_are_shares_of_the_classes(at_once: bool) -> None:
    """Two steps with labels of 0.8 for the class and 0.1 for each other one: smoothing by 0.3."""
    net, hand = tiny_network(), tiny_network()
    settings = replace(PLAIN, epochs=2, label_smoothing=0.3, momentum=0.0, weight_decay=0.0)
    train_each([net], [loader(6, 6)], K, settings, seeds=[0], at_once=at_once, device="cpu")
    for images, labels in [batch for _ in range(2) for batch in loader(6, 6)]:
        shares = torch.full((6, K), 0.1).scatter(1, labels[:, None], 0.8)
        loss = -(shares * hand(images).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, [*hand.parameters()])
        with torch.no_grad():
            for p, g in zip(hand.parameters(), gradients, strict=True):
                p.sub_(0.1 * g)
    for trained, wanted in zip(net.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(trained, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "images", "wanted"),
    [
        ({"protocol": "paper"}, 100, {**paper(), "epochs": 1500, "passes": None}),
        ({"protocol": "paper", "epochs": 300}, 100, {**paper(), "epochs": 300, "passes": None}),
        ({"protocol": "paper", "passes": 777}, 100, {**paper(), "passes": 777}),
        ({}, 100, {**fast(FAST_EPOCHS * 100), "passes": FAST_EPOCHS * 100}),
        ({"epochs": 3}, 50, {**fast(150), "passes": 150}),
        ({"passes": 10_000}, 100, {**fast(10_000), "passes": 10_000}),
        ({"passes": 10_000, "learning_rate": 0.3, "cutmix": 0.5, "batch_size": 5, "weight_decay": 0.0},
         100, {**fast(10_000), "learning_rate": 0.3, "cutmix": 0.5, "batch_size": 5, "weight_decay": 0.0}),
        ({"precision": "bf16", "compile": False}, 100, {"precision": "bf16", "compile": False}),
    ],
)  # fmt: skip
def test_protocols_fill_in_what_is_not_given(given: dict[str, Any], images: int, wanted: dict[str, Any]) -> None:
    how = RetrainSettings(**given).training(images)
    assert {name: getattr(how, name) for name in wanted} == wanted


def test_the_full_training_is_made_for_all_of_its_passes() -> None:
    """Of 20 x 1,257 passes the protocol's batch is 32; of 1,257 it would be 8."""
    full = RetrainSettings(full_epochs=20).full_training(1257)
    assert (full.epochs, full.batch_size) == (20, 32)


def test_paper_protocol_is_the_one_that_was_the_only_one() -> None:
    how = RetrainSettings(protocol="paper").training(100)
    assert how == TrainSettings(epochs=1500)
    assert RetrainSettings(protocol="paper").full_training(50_000) == TrainSettings(epochs=60)
    assert RetrainSettings(protocol="paper").at_equal_passes(100) == replace(how, passes=150_000)
    filled = RetrainSettings(protocol="paper", cutmix=0.0).filled()
    assert (filled.epochs, filled.batch_size, filled.learning_rate, filled.cutmix) == (1500, 64, 0.01, 0.0)


def test_passes_and_epochs_are_not_both_given() -> None:
    with pytest.raises(
        InputError,
        match=r"`passes` must be null where epochs are given \(3\), got 100. Leave one out .*by retrain.epochs=null",
    ):
        RetrainSettings(epochs=3, passes=100)
