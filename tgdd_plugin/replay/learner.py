"""A continual learner: tasks one after another, each learned beside a memory of a few images of the earlier ones.

For each task a network is trained under :class:`TGDDCallback` and :class:`DistilledReplay`, and what a policy of
:mod:`tgdd_plugin.replay.policies` selects of the task is added to the memory, such as its distilled classes. Earlier
tasks are not distilled again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.loggers import LoggerDestination
from composer.utils import dist
from torch import nn

from tgdd_plugin.core.atomic_files import check_writable, sweep
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import check_seed
from tgdd_plugin.core.ranks import locked_on_rank_0
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.logs.destinations import TrainingLogs, as_log_settings
from tgdd_plugin.logs.log_file import log_path
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.networks.classifiers import classifiers
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.heads import head_sizes
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.replay.network_growth import check_growth
from tgdd_plugin.replay.policies import Policy
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.task_folders import (
    open_scores,
)
from tgdd_plugin.replay.task_steps import TaskSteps
from tgdd_plugin.replay.tasks import Task, check_policy, check_tasks
from tgdd_plugin.training.fitting import LOGGED


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
    steps = TaskSteps(
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
        scores = open_scores(folder, steps.about(memory.budget.amount, job or {}))
        network: nn.Module | None = None
        for number in range(len(tasks)):
            grown = steps.grown_network(number, network)
            if number < len(scores.rows):
                network, memory = steps.finished_task(number, grown, memory, scores)
                continue
            network = steps.train_task(number, grown, memory)
            memory = steps.add_to_memory(number, network, memory)
            network = steps.finetune(number, network, memory)
            scores = scores.after(steps.accuracies(number, network), len(memory))
            if dist.get_global_rank() == 0:
                scores.write(folder / "scores.json")
            dist.barrier()
    return scores
