"""The published loop of the benchmarks, against losses and an optimizer step written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from benchmarks import published_loop as published
from tgdd_plugin.augmentation.dsa import augment
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.losses import distribution_constraint, stage_matching
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.networks import convnet

CLASSES, SIDE, REAL, COUNT, FACTOR, ALPHA = 3, 8, 5, 2, 2, 0.7
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def factory() -> nn.Module:
    return convnet(CLASSES, 3, SIDE, depth=2, width=4)


def make(folder: Path, build: Callable[[], nn.Module] = factory, *, runs: int = 2, stages: int = 4, **settings):
    """A loop on random images and networks of random weights, and its pool."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(COUNT * FACTOR**2 + 2)
    images = torch.randint(256, (len(labels), 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    pool = ImagePool(images, labels)
    trajectory = published.random_trajectory(folder, factory, CLASSES, runs=runs, stages=stages)
    defaults = {"images_per_class": COUNT, "factor": FACTOR, "real_per_class": REAL, "alpha": ALPHA}
    chosen = DistillSettings(**{**defaults, **settings})
    return published.PublishedLoop(trajectory, pool, chosen, build, MEAN, STD), pool


def noted(monkeypatch: pytest.MonkeyPatch, loop: Any, name: str) -> list[Any]:
    """A list that every answer of the loop's method is added to."""
    answers: list[Any] = []
    method = getattr(loop, name)

    def note(*arguments: Any) -> Any:
        answers.append(method(*arguments))
        return answers[-1]

    monkeypatch.setattr(loop, name, note)
    return answers


def decode_by_hand(stored: torch.Tensor) -> torch.Tensor:
    """Cuts each stored image into its grid, row by row, and enlarges each part."""
    side = SIDE // FACTOR
    rows = [image[:, i * side : (i + 1) * side] for image in stored for i in range(FACTOR)]
    parts = [row[:, :, j * side : (j + 1) * side] for row in rows for j in range(FACTOR)]
    return F.interpolate(torch.stack(parts), size=SIDE, mode="bilinear", align_corners=False)


def loss_by_formula(pixels, pool, label, draw, early, late):
    """The two terms of one class' loss, by the package's own losses."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def seen(images):
        return augment(((images - mean) / std)[None], draw.augmentation)[0]

    decoded = decode_by_hand(pixels[label])
    synthetic = seen(decoded if draw.chosen is None else decoded[draw.chosen[0]])
    real = seen(pool.images[draw.real] / 255)
    features = [early.features(images).flatten(1)[None] for images in (real, synthetic)]
    return stage_matching(*features), distribution_constraint(late(synthetic)[None], torch.tensor([label]))


@pytest.mark.parametrize("most", [200, 3], ids=["all decoded images", "three of them"])
def test_steps_are_those_of_the_formula_and_of_sgd_with_momentum(tmp_path, monkeypatch, most):
    """Three iterations, class after class; a large learning rate, so that some pixels are clamped."""
    loop, pool = make(tmp_path, max_decoded=most, learning_rate=2.0)
    stages, draws = noted(monkeypatch, loop, "draw_stages"), noted(monkeypatch, loop, "draw_class")
    pixels = loop.pixels.detach().clone()
    losses = [loop.step() for _ in range(3)]

    velocity = torch.zeros_like(pixels)
    remaining = iter(draws)
    for pair, loss in zip(stages, losses, strict=True):
        early, late = factory(), factory()
        for network, (folder, stage) in zip((early, late), pair, strict=True):
            content = load_file(folder / stage.file)
            network.load_state_dict({name: tensor for name, tensor in content.items() if not name.startswith("tgdd/")})
        sums = [0.0, 0.0, 0.0]
        for label in range(CLASSES):
            draw = next(remaining)
            assert len(draw.real) == len(draw.real.unique()) == REAL and (pool.labels[draw.real] == label).all()
            assert (draw.chosen is None) == (most == 200)
            pixels.requires_grad_()
            match, constraint = loss_by_formula(pixels, pool, label, draw, early, late)
            total = match + ALPHA * constraint
            (gradient,) = torch.autograd.grad(total, pixels)
            velocity = 0.5 * velocity + gradient
            pixels = (pixels.detach() - 1.0 * velocity).clamp(0, 1)
            sums = [one + float(other.detach()) for one, other in zip(sums, (match, constraint, total), strict=True)]
        assert [loss["match"], loss["constraint"], loss["total"]] == pytest.approx(sums, rel=1e-4)
    torch.testing.assert_close(loop.pixels.detach(), pixels, rtol=0, atol=1e-5)
    assert (pixels == 0).any() and (pixels == 1).any(), "no pixel was clamped"


def test_a_step_builds_two_trainable_networks_and_passes_as_many_images_as_published(tmp_path):
    built, passed = [], []

    def build():
        network = factory()
        network.register_forward_hook(lambda module, inputs, output: passed.append((module, len(inputs[0]))))
        built.append(network)
        return network

    loop, _ = make(tmp_path, build)
    for _ in range(2):
        built.clear()
        passed.clear()
        loop.step()
        early, late = built
        decoded = COUNT * FACTOR**2
        assert passed == [(early, REAL), (early, decoded), (late, decoded)] * CLASSES
        # Of its last layer the early network's features know nothing; all other gradients are computed for nothing.
        without = {name for name, parameter in early.named_parameters() if parameter.grad is None}
        assert without == {"classifier.weight", "classifier.bias"}
        assert all(parameter.grad is not None for parameter in late.parameters())


def test_stages_are_drawn_from_one_run_and_the_late_one_within_reach(tmp_path):
    loop, _ = make(tmp_path, runs=2, stages=4, max_gap=3)
    seen = set()
    for _ in range(500):
        early, late = loop.draw_stages()
        assert early[0] == late[0]
        seen.add((early[0].name, early[1].index, late[1].index))
    pairs = {(j, k) for j in range(4) for k in range(j, min(j + 2, 3) + 1)}
    assert seen == {(name, *pair) for name in ("random0", "random1") for pair in pairs}


def test_settings_are_the_published_ones_and_the_seed_decides(tmp_path):
    loop, pool = make(tmp_path, alpha=None)
    group = loop.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], loop.alpha) == (0.01 * COUNT, 0.5, 2.5)
    assert loop.augmentation == "color_crop_cutout_flip"
    assert loop.pixels.shape == (CLASSES, COUNT, 3, SIDE, SIDE)
    results = []
    for seed in (0, 0, 1):
        settings = DistillSettings(images_per_class=COUNT, real_per_class=REAL, seed=seed)
        again = published.PublishedLoop(loop.trajectory, pool, settings, factory, MEAN, STD)
        results.append((again.step(), again.pixels.detach()))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert results[0][0] != results[2][0]
