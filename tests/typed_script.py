"""A script of a user's, which ``make lint`` checks by mypy and nothing runs: the public names and what they take."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tgdd_plugin import (
    Card,
    DistilledReplay,
    DistillSettings,
    EvaluateSettings,
    ImagePool,
    InputError,
    RandomCutMix,
    ReplayMemory,
    RetrainSettings,
    SiameseAugmentation,
    TGDDCallback,
    Trajectory,
    TrajectoryRecorder,
    beton_loader,
    describe_run,
    distill,
    evaluate,
    mixed_loader,
    rank_networks,
    read_beton,
    read_card,
    retrain,
    write_beton,
)
from tgdd_plugin.networks import convnet


def main() -> None:
    pool = ImagePool(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), [0, 1, 0, 1])
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    recorder = TrajectoryRecorder("runs")
    recorder.start(describe_run("run0", network, num_classes=2), network)
    callbacks = [TGDDCallback(folder="runs"), RandomCutMix(), SiameseAugmentation()]
    trajectory: Trajectory = Trajectory.open("runs")
    try:
        made = distill(trajectory, pool, Path("set.beton"), DistillSettings(images_per_class=2, learning_rate="auto"))
    except InputError as error:
        print(error, callbacks)
        return
    rows = retrain(made, pool, RetrainSettings(epochs=1), real=pool)  # a result stands wherever its path does
    rows += evaluate("set.beton", pool, pool, EvaluateSettings(baselines=["herding"]))
    best: float = max(row.mean for row in rows)
    card: Card = read_card(made)
    images, labels = read_beton(made)
    copied: Path = write_beton("copy.beton", images, labels, card)
    memory = ReplayMemory(images_per_class=2)
    memory.add(made)
    replay = DistilledReplay(memory)
    ranked = rank_networks({"a": lambda: convnet(2, 1, 8, depth=1, width=4)}, made, pool)
    for loader in (beton_loader(made, batch_size=2), mixed_loader(made, pool, 10)):
        for batch, targets in loader:
            print(batch.shape, targets.shape, best, copied, replay, ranked)
