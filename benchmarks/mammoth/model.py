"""A Mammoth model: experience replay from a memory that a policy fills, and balanced fine-tuning on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models import register_model
from models.utils.continual_model import ContinualModel
from utils.args import add_rehearsal_args
from utils.buffer import Buffer

from tgdd_plugin import DistillSettings, ImagePool, ReplayMemory, TrajectoryRecorder, describe_run
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay.policies import TaskResult, replay_policy
from tgdd_plugin.replay.tasks import Task


@register_model("tgdd")
class Tgdd(ContinualModel):
    """Mammoth's ``er``, but the buffer holds ``buffer_size // classes`` images of each class of earlier tasks."""

    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser(parser: Any) -> Any:
        add_rehearsal_args(parser)
        parser.add_argument("--policy", choices=["random", "herding", "distilled", "hybrid"], default="distilled")
        parser.add_argument("--distill_steps", type=int, default=300)
        parser.add_argument("--real_per_class", type=int, default=64, help="and step of distilling")
        parser.add_argument("--real_share", type=float, default=0.5, help="of the policy hybrid")
        parser.add_argument("--memory_epochs", type=int, default=30, help="on the memory alone, after each task")
        parser.add_argument("--work", required=True, help="folder for trajectories and distilled sets")
        return parser

    def __init__(self, backbone: Any, loss: Any, args: Any, transform: Any, dataset: Any = None) -> None:
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(args.buffer_size)
        self.scale = Normalization(dataset.MEAN, dataset.STD)
        count = args.buffer_size // self.num_classes
        self.names = [str(label) for label in range(self.num_classes)]
        self.memory = ReplayMemory(self.names, images_per_class=count, mean=self.scale.mean, std=self.scale.std)
        self.settings = DistillSettings(
            images_per_class=count,
            factor=1,
            start="herding",
            steps=args.distill_steps,
            schedule="constant",
            real_per_class=args.real_per_class,
        )

    def begin_task(self, dataset: Any) -> None:
        self.folder = Path(self.args.work) / f"task{self.current_task}"
        self.recorder = TrajectoryRecorder(str(self.folder / "trajectory"), overwrite=True)
        scale = {"mean": self.scale.mean, "std": self.scale.std}
        about = describe_run("run0", self.net, self.num_classes, classes=self.names, augmentation="crop_flip", **scale)
        self.recorder.start(about, self.net)

    def observe(self, inputs: Any, labels: Any, not_aug_inputs: Any, epoch: int | None = None) -> float:
        if not self.buffer.is_empty():
            old = self.buffer.get_data(self.args.minibatch_size, transform=self.transform, device=self.device)
            inputs, labels = torch.cat([inputs, old[0]]), torch.cat([labels, old[1]])
        loss = self.step(inputs, labels)
        self.recorder.batch(inputs, labels)
        return loss

    def end_epoch(self, epoch: int, dataset: Any) -> None:
        self.recorder.stage(epoch + 1)

    def end_task(self, dataset: Any) -> None:
        self.recorder.finish()
        items = [dataset.train_loader.dataset[i] for i in range(len(dataset.train_loader.dataset))]
        images = torch.stack([255 * item[2] for item in items]).round().to(torch.uint8)
        pool = ImagePool(images, torch.tensor([int(item[1]) for item in items]), self.names)
        task = Task(pool, pool, [self.names[label] for label in pool.labels.unique().tolist()])
        policy = replay_policy(
            self.args.policy, [task], self.settings, self.scale, "cpu", real_share=self.args.real_share
        )
        result = TaskResult(task, self.net, self.folder, self.folder / "trajectory", self.args.seed or 0)
        selected, came = policy(result), len(self.memory)
        self.memory.add(selected, classes=self.names if isinstance(selected, ImagePool) else task.new)
        images, labels = self.memory.images[came:], self.memory.labels[came:]
        self.buffer.add_data(images.float() / 255, labels)  # in their order, as the buffer has room for all
        self.tune()

    def tune(self) -> None:
        """Trains on the buffer alone, at a tenth of the learning rate."""
        self.opt = self.get_optimizer(lr=self.args.lr / 10)
        for _ in range(self.args.memory_epochs):
            images, labels = self.buffer.get_data(len(self.buffer), transform=self.transform, device=self.device)
            for part in torch.randperm(len(labels)).split(self.args.minibatch_size):
                self.step(images[part], labels[part])

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.item()
