"""An ordinary Composer script that trains CIFAR-10, with one line added: it records its trajectory as it trains.

python recipes/train_cifar10.py --epochs 20
tgdd distill cifar10/trajectory data.name=cifar10
"""

import argparse

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from tgdd_plugin import TGDDCallback
from tgdd_plugin.networks import convnet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="data", help="folder of torchvision's data sets")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--width", type=int, default=128)
parser.add_argument("--run-name", default="cifar10")
options = parser.parse_args()

normalize = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
augment = transforms.Compose(
    [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
)
plain = transforms.Compose([transforms.ToTensor(), normalize])
train_set = CIFAR10(options.data, train=True, transform=augment, download=True)
test_set = CIFAR10(options.data, train=False, transform=plain, download=True)

network = convnet(num_classes=10, width=options.width)
trainer = Trainer(
    model=ComposerClassifier(network, num_classes=10),
    train_dataloader=DataLoader(train_set, batch_size=128, shuffle=True, num_workers=2),
    eval_dataloader=DataLoader(test_set, batch_size=512, num_workers=2),
    optimizers=torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
    max_duration=f"{options.epochs}ep",
    run_name=options.run_name,
    callbacks=[TGDDCallback()],  # the one added line
)
trainer.fit()
