"""Fashion-MNIST two classes at a time in Avalanche, with a memory of distilled images in its ReplayPlugin.

pip install avalanche-lib==0.6.0
python recipes/replay_avalanche.py --epochs 4 --steps 100
"""

import argparse

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from tgdd_plugin import DistillSettings, ReplayMemory
from tgdd_plugin.networks import convnet
from tgdd_plugin.replay.avalanche import AvalancheBuffer
from tgdd_plugin.replay.avalanche_recording import AvalancheRecorder
from tgdd_plugin.replay.policies import distilled

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="data", help="folder of torchvision's data sets")
parser.add_argument("--epochs", type=int, default=4, help="of each task")
parser.add_argument("--steps", type=int, default=100, help="of each distillation")
parser.add_argument("--per-class", type=int, default=10, help="images of each class in the memory")
parser.add_argument("--width", type=int, default=32)
options = parser.parse_args()

mean, std = [0.2860], [0.3530]
plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
train_set, test_set = (FashionMNIST(options.data, train=train, download=True) for train in (True, False))
stream = nc_benchmark(train_set, test_set, 5, task_labels=False, seed=0, train_transform=plain, eval_transform=plain)

# The memory knows the classes by their names, in the order of Avalanche's ids.
memory = ReplayMemory(train_set.classes, images_per_class=options.per_class, mean=mean, std=std)
settings = DistillSettings(images_per_class=options.per_class, factor=1, steps=options.steps, start="herding")
recorder = AvalancheRecorder("avalanche", distilled(settings), memory, augmentation="none")
buffer = AvalancheBuffer(memory, recorder.collect)

network = convnet(len(train_set.classes), in_channels=1, image_size=28, width=options.width)
strategy = Naive(
    model=network,
    optimizer=torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9),
    criterion=torch.nn.CrossEntropyLoss(),
    train_mb_size=32,
    train_epochs=options.epochs,
    eval_mb_size=256,
    plugins=[recorder, ReplayPlugin(buffer.max_size, storage_policy=buffer)],
    evaluator=EvaluationPlugin(accuracy_metrics(stream=True), forgetting_metrics(stream=True), loggers=[]),
)
for number, experience in enumerate(stream.train_stream, 1):
    strategy.train(experience)
    figures = strategy.eval(stream.test_stream[:number])
    print(f"after task {number}, classes {experience.classes_in_this_experience}: {figures}")
memory.save("avalanche/memory.beton", overwrite=True)
