"""Networks of the user's own, and other surroundings, that distill() is called with."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.patterned import SETTINGS, run, tiny
from tgdd_plugin import InputError, beton_loader, evaluate
from tgdd_plugin.recording.runs import record


class Shrinking(nn.Module):
    """A small network whose features may be computed without a gradient, and which may hold what cannot be copied."""

    def __init__(self, *, detached: bool = False, kept: Any = None) -> None:
        super().__init__()
        self.detached, self.kept = detached, kept
        self.body = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 8), nn.ReLU())
        self.classifier = nn.Linear(8, 3)

    def forward(self, images):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
            features = self.body(images)
        return self.classifier(features)


@pytest.fixture(scope="module")
def shrunk(pool, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shrunk") / "t"
    record(folder, pool, Shrinking, {"epochs": 1, "batch_size": 8}, device="cpu", progress_bar=False)
    return folder


@pytest.mark.parametrize("start", ["herding", "mix"])
@pytest.mark.parametrize(
    "network",
    [
        lambda: Shrinking(kept=threading.Lock()),
        lambda: Shrinking(kept=np),
        lambda: Shrinking().double(),
        lambda: Shrinking().bfloat16(),
        lambda: Shrinking().requires_grad_(False),
    ],
    ids=["lock", "module", "double", "bf16", "frozen"],
)
def test_a_network_that_cannot_be_copied_or_is_of_another_precision_gives_the_same_images(
    shrunk, pool, tmp_path, network, start
):
    settings = replace(SETTINGS, start=start, steps=3)
    wanted = run(shrunk, pool, tmp_path / "a.beton", settings, network=Shrinking)
    assert run(shrunk, pool, tmp_path / "b.beton", settings, network=network).read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: Shrinking(detached=True), "`network` must pass gradients from its features to the images, got Shrink"),
        (lambda: Shrinking().to("meta"), "`network` must have its weights in memory, got a Shrinking on the meta dev"),
        (Shrinking(kept=threading.Lock()), "must be a function that builds it where it cannot be copied"),
    ],
    ids=["detached", "meta", "lock"],
)
def test_a_network_that_nothing_can_be_distilled_by_is_refused(shrunk, pool, tmp_path, network, message):
    with pytest.raises(InputError, match=message):
        run(shrunk, pool, tmp_path / "a.beton", network=network)
    assert not list(tmp_path.glob("*.beton"))


def test_another_default_type_of_torch_can_be_distilled_and_trained_under(pool, tmp_path):
    options = {"device": "cpu", "progress_bar": False}
    try:
        torch.set_default_dtype(torch.float64)
        trajectory = record(tmp_path / "t", pool, tiny, {"epochs": 1, "batch_size": 8}, **options)
        for start in ("herding", "mix", "noise"):
            made = run(trajectory, pool, tmp_path / f"{start}.beton", replace(SETTINGS, start=start, steps=2))
            assert all(images.dtype == torch.float64 for images, _ in beton_loader(made, batch_size=2))
        settings = {"epochs": 1, "seeds": 1, "full_epochs": 1}
        assert len(evaluate(made, pool, pool, {"baselines": ["herding"], "networks": []}, settings, **options)) == 4
    finally:
        torch.set_default_dtype(torch.float32)
