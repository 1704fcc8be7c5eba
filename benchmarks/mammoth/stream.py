"""What Mammoth lacks for a small comparison: its class streams on the first images of each class, and a ConvNet.

Mammoth makes options of the arguments here by their annotations, which therefore must not be strings.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbone import MammothBackbone, register_backbone
from datasets import register_dataset
from datasets.seq_cifar10 import TCIFAR10, MyCIFAR10, SequentialCIFAR10
from datasets.seq_cifar100 import TCIFAR100, MyCIFAR100, SequentialCIFAR100
from datasets.seq_mnist import MyMNIST
from datasets.utils.continual_dataset import store_masked_loaders
from torchvision import transforms
from torchvision.datasets import FashionMNIST as PlainFashionMNIST

from tgdd_plugin.networks import convnet


class FashionMNIST(MyMNIST):
    """The files of torchvision's FashionMNIST, which have the names of MNIST's."""

    @property
    def raw_folder(self) -> str:
        return str(Path(self.root) / "FashionMNIST" / "raw")


def first_of_each(dataset: Any, count: int) -> Any:
    """Leaves the first ``count`` images of each class in a data set, and returns it."""
    labels = np.asarray(dataset.targets)
    kept = np.sort(np.concatenate([(labels == label).nonzero()[0][:count] for label in np.unique(labels)]))
    dataset.data, dataset.targets = dataset.data[kept], labels[kept]
    return dataset


class Some:
    """Some of the images of a stream in the place of all; its arguments become Mammoth's."""

    FILES: tuple[Any, Any]

    def __init__(self, args: Any, data_root: str = "data", per_class: int = 1000, test_per_class: int = 1000) -> None:
        super().__init__(args)
        self.data_root, self.counts = data_root, (per_class, test_per_class)

    def get_data_loaders(self) -> Any:
        plain = transforms.Compose([transforms.ToTensor(), self.get_normalization_transform()])
        new, old = self.FILES
        train = first_of_each(new(self.data_root, train=True, transform=self.TRANSFORM), self.counts[0])
        test = first_of_each(old(self.data_root, train=False, transform=plain), self.counts[1])
        return store_masked_loaders(train, test, self)


@register_dataset("seq-cifar10-small")
class SomeCIFAR10(Some, SequentialCIFAR10):
    NAME, FILES = "seq-cifar10-small", (MyCIFAR10, TCIFAR10)


@register_dataset("seq-cifar100-small")
class SomeCIFAR100(Some, SequentialCIFAR100):
    NAME, FILES = "seq-cifar100-small", (MyCIFAR100, TCIFAR100)


@register_dataset("seq-fmnist-small")
class SomeFashionMNIST(SomeCIFAR10):
    """Split Fashion-MNIST in the form of Mammoth's Split CIFAR-10."""

    NAME, FILES = "seq-fmnist-small", (FashionMNIST, PlainFashionMNIST)
    SIZE = (28, 28)
    MEAN, STD = (0.2860,), (0.3530,)
    TRANSFORM = transforms.Compose(
        [
            transforms.RandomCrop(28, padding=3),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    @staticmethod
    def get_transform() -> Any:
        return transforms.Compose([transforms.ToPILImage(), SomeFashionMNIST.TRANSFORM])

    @staticmethod
    def get_normalization_transform() -> Any:
        return transforms.Normalize(SomeFashionMNIST.MEAN, SomeFashionMNIST.STD)


class Small(MammothBackbone):
    """ConvNet-3, with Mammoth's choice of what is returned."""

    def __init__(self, num_classes: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        self.network = convnet(num_classes, in_channels=channels, image_size=size, width=width)

    @property
    def classifier(self) -> torch.nn.Module:
        """The linear head, which Mammoth's ``fill_buffer`` asks for."""
        return self.network.classifier

    def forward(self, x: torch.Tensor, returnt: str = "out") -> Any:
        features = self.network.features(x).flatten(1)
        if returnt == "features":
            return features
        outputs = self.network.classifier(features)
        return outputs if returnt == "out" else (outputs, features)


@register_backbone("tgdd-convnet")
def small_convnet(
    num_classes: int, convnet_channels: int = 3, convnet_size: int = 32, convnet_width: int = 32
) -> MammothBackbone:
    return Small(num_classes, convnet_channels, convnet_size, convnet_width)
