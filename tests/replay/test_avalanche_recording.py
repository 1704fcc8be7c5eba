"""AvalancheRecorder: called as Avalanche's strategies call their plugins, beside what distilling by hand gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.patterned import patterned
from tgdd_plugin import DistillSettings, ImagePool, InputError, ReplayMemory, Trajectory, distill, read_beton
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet
from tgdd_plugin.replay.avalanche import AvalancheBuffer
from tgdd_plugin.replay.avalanche_recording import AvalancheRecorder
from tgdd_plugin.replay.policies import distilled, random_exemplars, reservoir

NAMES = ["rows", "columns", "chess"]
SCALE = {"mean": [0.4], "std": [0.3]}
SETTINGS = DistillSettings(images_per_class=2, factor=1, steps=3, real_per_class=4)


class Items:
    """The data set of an experience: normalized images, their class ids and a task label."""

    def __init__(self, pool: ImagePool) -> None:
        self.images, self.labels = Normalization(**SCALE)(pool.images), pool.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.images[index], int(self.labels[index]), 0


def learn(buffer: AvalancheBuffer, recorder: AvalancheRecorder, network: nn.Module, labels: list[int]) -> None:
    """Trains on the images of some classes for two epochs, as ``Naive`` with ``ReplayPlugin`` does."""
    pool = patterned(1, per_class=6)
    items = Items(pool.subset(torch.isin(pool.labels, torch.tensor(labels)).nonzero()[:, 0]))
    experience = SimpleNamespace(dataset=items, classes_in_this_experience=labels)
    strategy = SimpleNamespace(model=network, experience=experience)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    recorder.before_training_exp(strategy)
    for _ in range(2):
        for part in torch.arange(len(items)).split(4):
            strategy.mb_x, strategy.mb_y = items.images[part], items.labels[part]
            strategy.loss = F.cross_entropy(network(strategy.mb_x), strategy.mb_y)
            optimizer.zero_grad()
            strategy.loss.backward()
            optimizer.step()
            recorder.after_training_iteration(strategy)
        recorder.after_training_epoch(strategy)
    buffer.update(strategy)


def made(folder: Path, policy: Any) -> tuple[ReplayMemory, AvalancheRecorder, AvalancheBuffer, nn.Module]:
    memory = ReplayMemory(NAMES, images_per_class=2, **SCALE)
    recorder = AvalancheRecorder(folder, policy, memory, "none")
    torch.manual_seed(0)
    return memory, recorder, AvalancheBuffer(memory, recorder.collect), convnet(3, 1, 8, depth=1, width=4)


def test_each_experience_is_recorded_and_its_distilled_images_are_kept(tmp_path: Path) -> None:
    memory, recorder, buffer, network = made(tmp_path, distilled(SETTINGS, device="cpu", progress_bar=False))
    learn(buffer, recorder, network, [2, 1])
    run = Trajectory.open(tmp_path / "task0" / "trajectory").run
    assert [stage.epoch for stage in run.stages] == [0, 1, 2] and run.classes == NAMES and run.augmentation == "none"
    learn(buffer, recorder, network, [0])
    assert memory.counts.tolist() == [2, 2, 2] and memory.sources.tolist() == [1, 1, 0, 0, 0, 0]
    pool = patterned(1, per_class=6)
    own = pool.subset((pool.labels == 0).nonzero()[:, 0])
    real = ImagePool(own.images, own.labels, NAMES)
    options: dict[str, Any] = {"network": network, "device": "cpu", "progress_bar": False}
    kept = DistillSettings(**{**vars(SETTINGS), "classes": ("rows",)})
    again = distill(tmp_path / "task1" / "trajectory", real, tmp_path / "again.beton", kept, **options)
    images = {image.numpy().tobytes() for image in read_beton(again)[0]}
    assert images == {image.numpy().tobytes() for image in memory.images[memory.labels == 0]}


def test_a_second_run_replaces_the_experiences_of_the_first(tmp_path: Path) -> None:
    kept = []
    for count in (2, 1):  # the same job again would give the same images
        settings = DistillSettings(**{**vars(SETTINGS), "images_per_class": count})
        memory, recorder, buffer, network = made(tmp_path, distilled(settings, device="cpu", progress_bar=False))
        learn(buffer, recorder, network, [0, 1])
        kept.append(memory.counts.tolist())
    assert kept == [[2, 2, 0], [1, 1, 0]]


def test_a_class_that_comes_back_shares_its_images_among_its_experiences(tmp_path: Path) -> None:
    memory, recorder, buffer, network = made(tmp_path, random_exemplars(2))
    for labels in ([0, 1], [1, 2]):
        learn(buffer, recorder, network, labels)
    assert memory.counts.tolist() == [2, 2, 2] and memory.sources.tolist() == [0, 0, 0, 1, 1, 1]


def test_what_cannot_be_kept_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`memory` must name all classes, .* got none\. Give ReplayMemory the names"):
        AvalancheRecorder(tmp_path, random_exemplars(2), ReplayMemory(total_images=4, **SCALE))
    with pytest.raises(InputError, match="`mean` and `std` must be known to the memory"):
        AvalancheRecorder(tmp_path, random_exemplars(2), ReplayMemory(NAMES, images_per_class=2))
    with pytest.raises(InputError, match="`policy` must be a function, .* got a DistillSettings"):
        made(tmp_path, SETTINGS)
    _, recorder, buffer, network = made(tmp_path, random_exemplars(2))
    recorder.before_training_exp = lambda strategy: None  # as in a strategy that has the recorder not among its plugins
    recorder.after_training_iteration = recorder.after_training_epoch = recorder.before_training_exp
    with pytest.raises(InputError, match="`plugins` of the strategy must hold the AvalancheRecorder"):
        learn(buffer, recorder, network, [0, 1])
    memory, recorder, buffer, network = made(
        tmp_path, lambda result: reservoir([result.task], 4, Normalization(**SCALE))(result)
    )
    with pytest.raises(InputError, match="`policy` must return the images of one experience, got a whole memory"):
        learn(buffer, recorder, network, [0, 1])
    assert len(memory) == 0
