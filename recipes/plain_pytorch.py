"""An ordinary PyTorch training loop, without Composer, that records its trajectory as it trains.

python recipes/plain_pytorch.py --epochs 20
tgdd distill plain/trajectory data.name=fashion_mnist
"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from tgdd_plugin import TrajectoryRecorder, describe_run
from tgdd_plugin.networks import convnet

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="data", help="folder of torchvision's data sets")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--width", type=int, default=128)
options = parser.parse_args()

mean, std = (0.2860,), (0.3530,)
transform = transforms.Compose([transforms.RandomCrop(28, 4), transforms.ToTensor(), transforms.Normalize(mean, std)])
train_set = FashionMNIST(options.data, train=True, transform=transform, download=True)
loader = DataLoader(train_set, batch_size=128, shuffle=True)
network = convnet(num_classes=10, in_channels=1, image_size=28, width=options.width)
optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

recorder = TrajectoryRecorder("plain/trajectory")
run = describe_run("run0", network, 10, classes=train_set.classes, mean=mean, std=std, augmentation="crop")
recorder.start(run, network)  # stage 0: the initial weights
for epoch in range(1, options.epochs + 1):
    for images, labels in loader:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.batch(images, labels, {"loss": loss})
    recorder.stage(epoch)
    print(f"epoch {epoch}: {recorder.run_folder} has {len(recorder.run.stages)} stages")
recorder.finish()
