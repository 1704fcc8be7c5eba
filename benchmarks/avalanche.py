"""Memories of this package and Avalanche's own, by Avalanche's runner, stream and metrics.

    python -m venv avalanche --system-site-packages && avalanche/bin/pip install avalanche-lib==0.6.0
    avalanche/bin/python -m benchmarks.avalanche --data DATA --dataset fashion_mnist    # the same command goes on
    python -m benchmarks.avalanche --table

Class-incremental tasks of equal size in an order that the seed draws, learned by ``Naive`` with ``ReplayPlugin``:

class_balanced, reservoir: Avalanche's ``ClassBalancedBuffer`` and ``ReservoirSamplingBuffer``.
gdumb: Avalanche's ``GDumb``, which trains a fresh network on its memory after each task.
random, herding, distilled, hybrid: ``AvalancheBuffer`` with the policies of tgdd_plugin/replay/policies.py.

All memories hold as many images of the same size, see the same augmentation, and are trained on alone for some epochs
after each task (--memory-epochs), but for gdumb, which is trained on nothing else.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.referees import add_options, is_done, run_all, save, table
from tgdd_plugin import DistillSettings, ImagePool, InputError, ReplayMemory
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.networks import convnet
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.replay.avalanche import AvalancheBuffer
from tgdd_plugin.replay.avalanche_recording import AvalancheRecorder
from tgdd_plugin.replay.policies import Policy, replay_policy
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.tasks import split_classes

OURS = ("random", "herding", "distilled", "hybrid")
THEIRS = ("class_balanced", "reservoir", "gdumb")


class Tuning:
    """A plugin that trains on the memory alone after each experience, at a tenth of the learning rate."""

    def __init__(self, policy: Any, epochs: int) -> None:
        self.policy, self.epochs = policy, epochs

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        rate = strategy.optimizer.param_groups[0]["lr"] / 10
        optimizer = torch.optim.SGD(strategy.model.parameters(), lr=rate, momentum=0.9)
        strategy.model.train()
        for _epoch in range(self.epochs):
            for images, labels, *_ in DataLoader(self.policy.buffer, batch_size=32, shuffle=True):
                optimizer.zero_grad()
                F.cross_entropy(strategy.model(images), labels).backward()
                optimizer.step()


def transforms_of(scale: Normalization, size: int) -> tuple[Any, Any]:
    """What makes an input of a uint8 image, in training and in evaluation."""
    from torchvision import transforms

    plain = [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(scale.mean, scale.std)]
    crop = [transforms.RandomCrop(size, padding=size // 8), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*crop, *plain]), transforms.Compose(plain)


def benchmark_of(train: ImagePool, test: ImagePool, looks: tuple[Any, Any], tasks: int, seed: int) -> Any:
    """Avalanche's benchmark of new classes."""
    from avalanche.benchmarks import nc_benchmark

    sets = []
    for pool in (train, test):
        data = TensorDataset(pool.images, pool.labels)
        data.targets = pool.labels.tolist()  # type: ignore[attr-defined]
        sets.append(data)
    return nc_benchmark(*sets, tasks, task_labels=False, seed=seed, train_transform=looks[0], eval_transform=looks[1])


def policy_of(
    method: str, count: int, options: argparse.Namespace, pools: tuple[ImagePool, ImagePool], scale: Normalization
) -> Policy:
    """A policy of this package that keeps ``count`` images of each class."""
    settings = DistillSettings(
        images_per_class=count,
        factor=1,
        start="herding",
        steps=options.steps,
        schedule="constant",
        real_per_class=min(64, options.per_class),
    )
    # Avalanche draws the order of the classes; what is checked of the tasks does not depend on it.
    tasks = split_classes(*pools, ReplaySettings(tasks=options.tasks))
    return replay_policy(method, tasks, settings, scale, "cpu")


def strategy_of(
    method: str, seed: int, options: argparse.Namespace, pools: tuple[ImagePool, ImagePool], scale: Normalization
) -> Any:
    """Avalanche's strategy with the memory of a method."""
    from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
    from avalanche.training.supervised import GDumb, Naive

    torch.manual_seed(seed)
    train = pools[0]
    network = convnet(train.num_classes, in_channels=train.shape[0], image_size=train.shape[1], width=options.width)
    metrics = [*accuracy_metrics(experience=True, stream=True), *forgetting_metrics(stream=True)]
    common = {
        "model": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=options.lr, momentum=0.9),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 32,
        "eval_mb_size": 256,
        "evaluator": EvaluationPlugin(*metrics, loggers=[]),
    }
    if method == "gdumb":
        return GDumb(**common, mem_size=options.buffer, train_epochs=options.gdumb_epochs)
    plugins: list[Any] = []
    if method in OURS:
        count = options.buffer // train.num_classes
        memory = ReplayMemory(train.classes, images_per_class=count, mean=scale.mean, std=scale.std)
        policy = policy_of(method, count, options, pools, scale)
        work = options.output / "work" / f"{options.dataset}-{method}-seed{seed}"
        recorder = AvalancheRecorder(work, policy, memory, "crop_flip", seed)
        storage: Any = AvalancheBuffer(memory, recorder.collect, transforms_of(scale, train.shape[1])[0])
        plugins.append(recorder)
    elif method == "class_balanced":
        storage = ClassBalancedBuffer(options.buffer, adaptive_size=True)
    else:
        storage = ReservoirSamplingBuffer(options.buffer)
    plugins += [ReplayPlugin(options.buffer, storage_policy=storage), Tuning(storage, options.memory_epochs)]
    return Naive(**common, train_epochs=options.epochs, plugins=plugins)


def run(method: str, seed: int, options: argparse.Namespace, pools: tuple[ImagePool, ImagePool]) -> None:
    """Does one run, unless its file is there."""
    names = ("buffer", "per_class", "tasks", "epochs", "lr", "width", "steps", "memory_epochs", "gdumb_epochs")
    train, test = pools
    settings = {name: getattr(options, name) for name in names} | {"test_images": len(test)}
    about = {"library": "avalanche", "data": options.dataset, "method": method, "seed": seed, "images": options.buffer}
    about["settings"] = settings
    if is_done(options.output, about):
        return
    print(f"{method}, seed {seed}", flush=True)
    began = time.perf_counter()
    scale = Normalization(*train.statistics())
    stream = benchmark_of(train, test, transforms_of(scale, train.shape[1]), options.tasks, seed)
    strategy = strategy_of(method, seed, options, pools, scale)
    matrix, seen = [], []
    for number, experience in enumerate(stream.train_stream):
        strategy.train(experience)
        found = strategy.eval(stream.test_stream[: number + 1])
        of = {key.split("/")[-1]: value for key, value in found.items() if key.startswith("Top1_Acc_Exp")}
        matrix.append([of[f"Exp{other:03d}"] for other in range(number + 1)])
        seen.append(100 * next(value for key, value in found.items() if key.startswith("Top1_Acc_Stream")))
    lost = next(value for key, value in found.items() if key.startswith("StreamForgetting"))
    printed = {"seen": seen, "forgetting": 100 * lost}
    save(options.output, about, matrix, printed, time.perf_counter() - began)


def prepare(options: argparse.Namespace) -> Callable[[str, int], None]:
    """Reads the data, and returns a function that does one run."""
    if find_spec("avalanche") is None:
        raise InputError("Avalanche is not installed. Install avalanche-lib==0.6.0, best into an environment apart.")
    train, test = load_data(DataSettings(name=options.dataset, root=options.data, per_class=options.per_class))
    if options.test_per_class is not None:
        own = [(test.labels == label).nonzero()[: options.test_per_class, 0] for label in range(test.num_classes)]
        test = test.subset(torch.cat(own))
    if options.buffer < train.num_classes:
        raise InputError(f"`--buffer` must be at least {train.num_classes}, one image of each class.")
    return lambda method, seed: run(method, seed, options, (train, test))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "avalanche", [*THEIRS, *OURS])
    parser.add_argument("--dataset", default="fashion_mnist", help="a named data set (default fashion_mnist)")
    parser.add_argument("--tasks", type=int, default=5, help="(default 5)")
    parser.add_argument("--test-per-class", type=int, help="test images of each class (default: all)")
    parser.add_argument("--width", type=int, default=32, help="of ConvNet-3 (default 32)")
    parser.add_argument("--gdumb-epochs", type=int, default=256, help="of GDumb, on its memory (default 256)")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(options.output))
        return 0
    return run_all(options, lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main())
