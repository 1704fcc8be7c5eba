"""The steps of one task of a continual learner: to train beside the memory, to add to the memory, to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from composer.loggers import LoggerDestination
from composer.utils import dist
from torch import nn

from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.logs.destinations import TrainingLogs
from tgdd_plugin.recording.callback import TGDDCallback
from tgdd_plugin.recording.description import describe_module
from tgdd_plugin.recording.runs import recorder_of
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.algorithm import DistilledReplay
from tgdd_plugin.replay.heads import OneHead, head_sizes, separate_heads
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.replay.network_growth import grow, load_network, save_network
from tgdd_plugin.replay.policies import Policy, TaskResult
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.task_folders import (
    FINETUNED,
    MEMORY,
    NETWORK,
    checkpoints_of,
    finished_memory,
    saved_memory,
)
from tgdd_plugin.replay.tasks import Task
from tgdd_plugin.training.resuming import checkpoint_folder, remove_checkpoints
from tgdd_plugin.training.train import accuracy, train_network


@dataclass(frozen=True)
class TaskSteps:
    """The steps of a task; the arguments are those of :func:`tgdd_plugin.replay.learner.learn`."""

    tasks: Sequence[Task]
    build: Callable[[int], nn.Module]
    folder: Path
    select_exemplars: Policy
    training: RecordSettings
    settings: ReplaySettings
    normalization: Normalization
    head: str | None
    seed: int
    device: Device | None
    progress_bar: bool
    logs: TrainingLogs

    def about(self, images_per_class: int, job: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the scores depend on, as plain values; ``job`` has what the caller of ``learn`` adds."""
        callers = ("policy", "real_share")  # what a policy was made of
        with forked_streams(self.seed):
            built = describe_module(self.build(self.tasks[-1].train.num_classes))
        return {
            "training": asdict(self.training),
            "replay": {name: value for name, value in asdict(self.settings).items() if name not in callers},
            "images_per_class": images_per_class,
            "mean": list(self.normalization.mean),
            "std": list(self.normalization.std),
            "seed": self.seed,
            "architecture": {name: built[name] for name in ("class", "factory", "arguments")},
            **job,
            "tasks": [task.new for task in self.tasks],
            "images": [task.train.fingerprint() for task in self.tasks],
            "test_images": [len(task.test) for task in self.tasks],
            "tested_on": [task.test.fingerprint() for task in self.tasks],
        }

    def grown_network(self, number: int, earlier: nn.Module | None) -> nn.Module:
        """Builds a network for the classes of a task, with the weights of the earlier one."""
        with forked_streams(self.seed):
            network = grow(self.build(self.tasks[number].train.num_classes), earlier)
        if self.settings.heads == "task":
            return separate_heads(network, head_sizes(self.tasks[: number + 1]))
        return network

    def finished_task(
        self, number: int, grown: nn.Module, memory: ReplayMemory, scores: Scores
    ) -> tuple[nn.Module, ReplayMemory]:
        """Loads the network and the memory after a task that was finished by an earlier call."""
        place, on = self._place(number), torch_device(self.device)
        network = load_network(grown, place / (FINETUNED if (place / FINETUNED).is_file() else NETWORK)).to(on)
        kept = finished_memory(place, scores, number, on)
        return network, memory if kept is None else kept

    def train_task(self, number: int, grown: nn.Module, memory: ReplayMemory) -> nn.Module:
        """Trains the network on a task beside the memory, unless that is done."""
        path, on = self._place(number) / NETWORK, torch_device(self.device)
        if path.is_file():
            return load_network(grown, path).to(on)
        pool, settings = self.tasks[number].train.to(on), self.settings
        loader = self._loader(pool.images, pool.labels)
        network = train_network(
            grown,
            loader,
            pool.num_classes,
            self.training,
            seed=self.seed,
            device=self.device,
            title=self._title(number),
            # Before the augmentation, which is then that of old and new images alike.
            replay=DistilledReplay(memory, settings.ratio, weight=settings.weight, augmentation="none", seed=self.seed),
            logs=self._logs(number, "task"),
            callbacks=[self._recorder(number)],
            checkpoints=self._checkpoints(path, grown, loader, memory),
            run_name="training",
        )
        self._save(network, path)
        return network

    def add_to_memory(self, number: int, network: nn.Module, memory: ReplayMemory) -> ReplayMemory:
        """Adds what the policy selects of a task, unless that is done; returns the memory after the task."""
        task, place, on = self.tasks[number], self._place(number), torch_device(self.device)
        if (saved := saved_memory(place, on)) is not None:
            return saved
        selected = self.select_exemplars(TaskResult(task, network, place, place / "trajectory", self.seed))
        if isinstance(selected, ReplayMemory):
            memory = selected.to(on)
        elif selected is not None:
            named = selected.classes if isinstance(selected, ImagePool) else task.new
            known = [memory.classes[label] for label in set(memory.labels.tolist())]
            memory.add(selected, classes=named, domain=any(name in task.new for name in known))
        if dist.get_global_rank() == 0 and len(memory):
            memory.save(place / MEMORY, overwrite=True)
        return memory

    def finetune(self, number: int, network: nn.Module, memory: ReplayMemory) -> nn.Module:
        """Trains the network on the memory alone, if the settings say so."""
        if not self.settings.finetune_epochs or not len(memory):
            return network
        rate, path = self.training.learning_rate / 10, self._place(number) / FINETUNED
        loader = self._loader(memory.decoded, memory.decoded_labels)
        network = train_network(
            network,
            loader,
            self.tasks[number].train.num_classes,
            replace(self.training, epochs=self.settings.finetune_epochs, passes=None, learning_rate=rate),
            seed=self.seed,
            device=self.device,
            title=self._title(number, ", memory"),
            logs=self._logs(number, "memory"),
            checkpoints=self._checkpoints(path, network, loader, memory),
        )
        self._save(network, path)
        return network

    def accuracies(self, number: int, network: nn.Module) -> list[float]:
        """Returns the accuracy on the test images of each task up to this one."""
        told = self.settings.heads == "task"
        return [
            accuracy(OneHead(network, task) if told else network, task.test, self.normalization)
            for task in self.tasks[: number + 1]
        ]

    def _checkpoints(self, path: Path, network: nn.Module, loader: DeviceLoader, memory: ReplayMemory) -> Path:
        """The folder of the checkpoints of the training that ends with the file ``path``."""
        replayed = self._loader(memory.decoded, memory.decoded_labels).fingerprint() if len(memory) else None
        depends = [asdict(self.training), asdict(self.settings), replayed]
        return checkpoint_folder(path.parent, checkpoints_of(path.name), [network], [loader], depends)

    def _save(self, network: nn.Module, path: Path) -> None:
        save_network(network, path)
        remove_checkpoints(path.parent, checkpoints_of(path.name))

    def _place(self, number: int) -> Path:
        return self.folder / f"task{number}"

    def _title(self, number: int, what: str = "") -> str | None:
        return f"task {number + 1}/{len(self.tasks)}{what}" if self.progress_bar else None

    def _logs(self, number: int, images: str) -> list[LoggerDestination]:
        return self.logs.of(f"task{number + 1} {images}", {"task": number + 1, "images": images})

    def _loader(self, images: torch.Tensor, labels: torch.Tensor) -> DeviceLoader:
        size, on = self.training.batch_size, torch_device(self.device)
        return DeviceLoader(images, labels, self.normalization, batch_size=size, seed=self.seed, device=on)

    def _recorder(self, number: int) -> TGDDCallback:
        folder, classes = self._place(number) / "trajectory", self.tasks[number].train.classes
        # What lies there is of this job, and was interrupted.
        return recorder_of(folder, self.training, classes, self.normalization, self.head, overwrite=True)
