"""A continual learner: tasks one after another, each learned beside a memory of a few images of the earlier ones.

For each task a network is trained under :class:`TGDDCallback` and :class:`DistilledReplay`, and what a policy of
:mod:`tgdd_plugin.replay.policies` selects of the task is added to the memory, such as its distilled classes. Earlier
tasks are not distilled again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from composer.loggers import LoggerDestination
from composer.utils import dist
from torch import nn

from tgdd_plugin.core.atomic_files import check_writable, sweep
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import check_seed
from tgdd_plugin.core.ranks import locked_on_rank_0
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.logs.destinations import TrainingLogs, as_log_settings
from tgdd_plugin.logs.log_file import log_path
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.networks.classifiers import classifiers
from tgdd_plugin.recording.callback import TGDDCallback
from tgdd_plugin.recording.description import describe_module
from tgdd_plugin.recording.runs import recorder_of
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.algorithm import DistilledReplay
from tgdd_plugin.replay.heads import OneHead, head_sizes, separate_heads
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.replay.network_growth import check_growth, grow, load_network, save_network
from tgdd_plugin.replay.policies import Policy, TaskResult
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.task_folders import (
    FINETUNED,
    MEMORY,
    NETWORK,
    checkpoints_of,
    finished_memory,
    open_scores,
    saved_memory,
)
from tgdd_plugin.replay.tasks import Task, check_policy, check_tasks
from tgdd_plugin.training.fitting import LOGGED
from tgdd_plugin.training.resuming import checkpoint_folder, remove_checkpoints
from tgdd_plugin.training.train import accuracy, train_network


def learn(
    tasks: Sequence[Task],
    build: Callable[[int], nn.Module],
    folder: str | Path,
    select_exemplars: Policy,
    images_per_class: int,
    training: RecordSettings | Mapping[str, Any] | None = None,
    settings: ReplaySettings | Mapping[str, Any] | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    head: str | None = None,
    job: dict[str, Any] | None = None,
    seed: int = 0,
    device: Device | None = None,
    progress_bar: bool = True,
    loggers: Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any] = (),
) -> Scores:
    """Learns tasks one after another; the same call goes on where it stopped.

    What is finished is kept: a task's training, then its memory, then its row of the scores. An interrupted training
    or distillation continues from its last checkpoint.

    Args:
        tasks: The tasks, such as :func:`tgdd_plugin.replay.tasks.split_classes` makes them.
        build: A function from a number of classes to a fresh network with as many outputs. For each task one is built
            for all classes so far, and takes over the weights of the one before.
        folder: The folder of the job; it gets ``scores.json``, ``replay-log.csv`` and, for each task, a folder with its
            network and memory.
        select_exemplars: The policy: a function from a :class:`TaskResult` to what is added to the memory after the
            task, such as :func:`tgdd_plugin.replay.policies.distilled`. It returns an :class:`ImagePool`, whose classes
            are known by their names, or another source with labels 0, 1, ... for ``task.new``; ``None`` for nothing;
            or a whole memory that replaces the one before.
        images_per_class: The memory's budget, in stored images of each class.
        training: How each task is trained and recorded; one network goes on from task to task, so ``runs`` has no
            effect. Default: ``RecordSettings()``; a mapping of its keys will do.
        settings: How the memory is replayed; ``policy`` and ``real_share`` have no effect here. Default:
            ``ReplaySettings()``.
        mean, std: The per-channel normalization, for pixels in [0, 1]; one value is for all channels.
        head: The name of the network's linear head, see :class:`TGDDCallback`.
        job: Whatever else the scores depend on, such as the settings of ``select_exemplars``, as plain values. They are
            noted in ``scores.json``, and compared when it exists. Default: ``None``.
        seed: The seed of the weights, the order of the images and the augmentation. Default: ``0``.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        progress_bar: Whether to show the progress of each training. Default: ``True``.
        loggers: Composer loggers beside the log of the trainings, or :class:`LoggerSettings`, also as a mapping, which
            say what logs are kept. None changes a score, and one that fails is left out with a warning.

    Returns:
        The accuracy on each task after each task.

    Raises:
        InputError: If tasks, network or memory do not fit each other, or ``folder`` is of another job or in use.
    """
    check_seed(seed)
    training, settings = as_settings(RecordSettings, training), as_settings(ReplaySettings, settings)
    normalization, on = Normalization(mean, std), torch_device(device)
    training = replace(training, runs=1)
    check_tasks(tasks)
    normalization.of_channels(tasks[0].train.shape[0])  # which checks how many values there are
    check_policy(select_exemplars, "select_exemplars")
    build = classifiers(build)
    if settings.heads == "task":
        head_sizes(tasks)
    check_growth(build, tasks[0].train.shape, [task.train.num_classes for task in tasks])
    memory = ReplayMemory(tasks[-1].train.classes, images_per_class=images_per_class, mean=mean, std=std, device=on)
    folder = Path(folder)
    log_settings, own_loggers = as_log_settings(loggers)
    logs = TrainingLogs(log_settings, folder.resolve().name, log_path(folder / "replay"), LOGGED, own_loggers)
    learner = _Learner(
        tasks,
        build,
        folder,
        select_exemplars,
        training=training,
        settings=settings,
        normalization=normalization,
        head=head,
        seed=seed,
        device=device,
        progress_bar=progress_bar,
        logs=logs,
    )
    dist.initialize_dist(device)
    with locked_on_rank_0(check_writable(folder / "scores.json")):
        for place in folder.glob("task*"):
            sweep(place)
        scores = open_scores(folder, learner.about(memory.budget.amount, job or {}))
        network: nn.Module | None = None
        for number in range(len(tasks)):
            grown = learner.grown_network(number, network)
            if number < len(scores.rows):
                network, memory = learner.finished_task(number, grown, memory, scores)
                continue
            network = learner.train_task(number, grown, memory)
            memory = learner.add_to_memory(number, network, memory)
            network = learner.finetune(number, network, memory)
            scores = scores.after(learner.accuracies(number, network), len(memory))
            if dist.get_global_rank() == 0:
                scores.write(folder / "scores.json")
            dist.barrier()
    return scores


@dataclass(frozen=True)
class _Learner:
    """The steps of a task; the arguments are those of :func:`learn`."""

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
        """Returns what the scores depend on, as plain values; ``job`` has what the caller of :func:`learn` adds."""
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
