"""The names that examples in Python use without saying where they come from: a data set, a loader, a network."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tgdd_plugin import ImagePool
from tgdd_plugin.networks import convnet

CLASSES = ["cat", "dog", "ship"]
MEAN, STD = [0.3, 0.3, 0.3], [0.35, 0.35, 0.35]


def build_network() -> nn.Module:
    return convnet(num_classes=len(CLASSES), in_channels=3, image_size=16, depth=1, width=4)


def build_other() -> nn.Module:
    return convnet(num_classes=len(CLASSES), in_channels=3, image_size=16, depth=2, width=4)


def training_images() -> Dataset:
    """The training images as a loader of the reader's gives them: normalized tensors."""
    normalized = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return ImageFolder("photos/train", transform=normalized)


def example_names() -> dict[str, Any]:
    """What each page may use, from the photos in the current folder."""
    torch.manual_seed(0)
    data, network = training_images(), build_network()
    train_set, test_set = (ImagePool.from_dataset(ImageFolder(f"photos/{part}")) for part in ("train", "val"))
    tasks = []
    for new in (["cat"], ["dog", "ship"]):
        own = [position for position, label in enumerate(data.targets) if CLASSES[label] in new]
        tasks.append((DataLoader(Subset(data, own), batch_size=20, shuffle=True), new))
    names = {
        "classes": CLASSES,
        "num_classes": len(CLASSES),
        "mean": MEAN,
        "std": STD,
        "epochs": 2,
        "network": network,
        "build_network": build_network,
        "build_other": build_other,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9),
        "loader": DataLoader(data, batch_size=64, shuffle=True),
        "train_set": train_set,
        "test_set": test_set,
        "held_out_images": test_set,
        "tasks": tasks,
    }
    return names | ({"benchmark": _benchmark()} if importlib.util.find_spec("avalanche") else {})


def _benchmark() -> Any:
    """The classes one after another, as Avalanche has them."""
    from avalanche.benchmarks import class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset

    images = as_classification_dataset(training_images())
    return class_incremental_benchmark({"train": images, "test": images}, num_experiences=3, class_order=[0, 1, 2])
