"""An ordinary Composer script that learns CIFAR-10 two classes at a time, and keeps ten distilled images of each.

In the end it prints the accuracy on every task after every task.

python recipes/replay_tasks.py --epochs 20 --steps 1000
"""

import argparse
from dataclasses import replace

import torch
from composer import Evaluator, Trainer
from composer.models import ComposerClassifier
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10

from tgdd_plugin import DistilledReplay, DistillSettings, ReplayMemory, TGDDCallback, distill
from tgdd_plugin.networks import convnet
from tgdd_plugin.replay.metrics import Scores

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="data", help="folder of torchvision's data sets")
parser.add_argument("--epochs", type=int, default=20, help="of each task")
parser.add_argument("--steps", type=int, default=1000, help="of each distillation")
parser.add_argument("--width", type=int, default=128)
options = parser.parse_args()

mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
plain = [transforms.ToTensor(), transforms.Normalize(mean, std)]
augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
train_set = CIFAR10(options.data, train=True, transform=transforms.Compose([*augment, *plain]), download=True)
test_set = CIFAR10(options.data, train=False, transform=transforms.Compose(plain), download=True)


def loader(dataset, classes, **loading):
    chosen = [i for i, label in enumerate(dataset.targets) if label in classes]
    return DataLoader(Subset(dataset, chosen), batch_size=64, **loading)


network = convnet(num_classes=10, width=options.width)  # goes on from task to task
memory = ReplayMemory(train_set.classes, images_per_class=10, mean=mean, std=std)
settings = DistillSettings(images_per_class=10, factor=1, steps=options.steps)
tasks = [[first, first + 1] for first in range(0, 10, 2)]
scores = Scores({"tasks": [[train_set.classes[label] for label in task] for task in tasks]})
for number, new in enumerate(tasks):
    name = f"task{number}"
    trainer = Trainer(
        model=ComposerClassifier(network, num_classes=10),
        train_dataloader=loader(train_set, new, shuffle=True),
        eval_dataloader=[Evaluator(label=f"task{j}", dataloader=loader(test_set, tasks[j])) for j in range(number + 1)],
        eval_interval=f"{options.epochs}ep",
        optimizers=torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        max_duration=f"{options.epochs}ep",
        run_name=name,
        algorithms=[DistilledReplay(memory)],  # nothing yet in the first task
        callbacks=[TGDDCallback("replay/{run_name}")],
    )
    trainer.fit()
    trainer.close()
    metrics = trainer.state.eval_metrics
    scores = scores.after([float(metrics[f"task{j}"]["MulticlassAccuracy"].compute()) for j in range(number + 1)])
    # From the trajectory alone: no image of the task is read any more.
    own = replace(settings, classes=[train_set.classes[label] for label in new])
    memory.add(distill(f"replay/{name}", None, f"replay/{name}.beton", own))
memory.save("replay/memory.beton")
print(scores.table())
