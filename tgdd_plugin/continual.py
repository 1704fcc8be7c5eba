"""A continual learner: tasks one after another, each learned beside a memory of a few images of those before.

For each task a network is trained under :class:`TGDDCallback` and :class:`DistilledReplay`, its new classes are
distilled, and what comes of it goes into the memory. Earlier tasks are never distilled again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.callback import TGDDCallback
from tgdd_plugin.distillation import distill
from tgdd_plugin.errors import InputError
from tgdd_plugin.files import check_writable, difference, weights_content, write_whole
from tgdd_plugin.forgetting import Scores
from tgdd_plugin.loader import DeviceLoader
from tgdd_plugin.memory import ReplayMemory
from tgdd_plugin.memory_source import Source
from tgdd_plugin.pool import ImagePool
from tgdd_plugin.recording import RecordSettings
from tgdd_plugin.replay import DistilledReplay
from tgdd_plugin.settings import DistillSettings
from tgdd_plugin.training import accuracy, check_network, torch_device, train

NETWORK, MEMORY, TUNED = "network.safetensors", "memory.beton", "tuned.safetensors"


@dataclass(frozen=True)
class ReplaySettings:
    """How tasks are made and old ones replayed.

    Args:
        tasks: Into how many the classes are split, as evenly as may be. Default: ``5``.
        order: Seed of the order of the classes. Default: ``None``, as the data has them.
        ratio: Images from the memory for each new one in a batch. Default: ``1.0``.
        weight: Share of the memory in the loss, from 0 to 1. Default: ``None``, every image counts alike.
        tune: Epochs of training on the memory alone once it has the task's classes, too: balanced fine-tuning (F. M.
            Castro et al., "End-to-End Incremental Learning", ECCV 2018), the learning rate a tenth of the training's,
            as there. What tells a kept image from a new one (a synthetic look, above all) is then no longer what tells
            old classes from new ones. Default: ``0``.

    Raises:
        InputError: For a value out of range.
    """

    tasks: int = 5
    order: int | None = None
    ratio: float = 1.0
    weight: float | None = None
    tune: int = 0

    def __post_init__(self) -> None:
        if self.tasks < 1 or (self.order is not None and self.order < 0):
            raise InputError(f"tasks is {self.tasks} and order {self.order}; wanted at least 1 and 0")
        if self.tune < 0:
            raise InputError(f"tune is {self.tune}; wanted a number of epochs, or 0 for none")
        if not 0 < self.ratio < float("inf") or not 0 <= (self.weight or 0) <= 1:
            raise InputError(f"ratio is {self.ratio} and weight {self.weight}; wanted above 0, and from 0 to 1")


@dataclass(frozen=True)
class Task:
    """What comes at once.

    Args:
        train, test: Real images, whose classes are those of all tasks so far, the new ones last.
        new: Names of the classes that the images are of.
    """

    train: ImagePool
    test: ImagePool
    new: list[str]


def split_classes(train: ImagePool, test: ImagePool, settings: ReplaySettings) -> list[Task]:
    """Class-incremental tasks: every class belongs to one.

    Raises:
        InputError: If there are fewer classes than tasks, or a class has no images.
    """
    count = train.num_classes
    if settings.tasks > count:
        raise InputError(f"{count} classes cannot be split into {settings.tasks} tasks; lower tasks (replay.tasks)")
    order = torch.arange(count)
    if settings.order is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.order))
    names, place, tasks = [train.classes[i] for i in order.tolist()], order.argsort(), []
    for part in torch.arange(count).tensor_split(settings.tasks):
        seen = names[: int(part[-1]) + 1]
        pools = []
        for pool in (train, test):
            labels = place[pool.labels]
            index = torch.isin(labels, part).nonzero()[:, 0]
            missing = [names[i] for i in part.tolist() if not bool((labels == i).any())]
            if missing:
                raise InputError(f"class '{missing[0]}' has no images; a task needs some of each for training and test")
            pools.append(ImagePool(pool.take(index), labels[index], seen))
        tasks.append(Task(pools[0], pools[1], [names[i] for i in part.tolist()]))
    return tasks


@dataclass(frozen=True)
class Moment:
    """The end of a task's training: what there is to make a memory of.

    Args:
        task: The task.
        network: As trained, on the device.
        folder: Of the task, for files.
        trajectory: The trajectory folder of the training.
        seed: Of the learner.
    """

    task: Task
    network: nn.Module
    folder: Path
    trajectory: Path
    seed: int


def distilled(settings: DistillSettings, **options: Any) -> Callable[[Moment], Source]:
    """What to keep of a task: its classes, distilled from its own trajectory.

    Args:
        settings: Of the distillation; with ``source='recorded'`` none of the task's images is read.
        options: More of :func:`tgdd_plugin.distill`.

    Raises:
        InputError: If the settings name classes.
    """
    if settings.classes is not None:
        raise InputError(f"classes is {settings.classes}, but each task has its own; leave it out (distill.classes)")

    def remember(moment: Moment) -> Source:
        path = moment.folder / "distilled.beton"
        real = None if settings.source == "recorded" else moment.task.train
        own = replace(settings, classes=moment.task.new)
        return distill(moment.trajectory, real, path, own, network=moment.network, **options)

    return remember


def learn(
    tasks: Sequence[Task],
    build: Callable[[int], nn.Module],
    folder: str | Path,
    remember: Callable[[Moment], Source | ReplayMemory | None],
    images_per_class: int,
    training: RecordSettings | None = None,
    settings: ReplaySettings | None = None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    head: str | None = None,
    job: dict[str, Any] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress_bar: bool = True,
) -> Scores:
    """Learns tasks one after another; the same call goes on where it stopped.

    What is finished is kept: a task's training, then its memory, then its row of the scores. A training that was broken
    off begins anew, a distillation goes on from its last checkpoint.

    Args:
        tasks: Such as :func:`split_classes` makes.
        build: From a number of classes to a fresh network with as many outputs. For each task one is built for all
            classes so far, and takes over the weights of the one before.
        folder: Gets for each task a folder with its network and memory, and ``scores.json``.
        remember: What to put into the memory after a task, such as :func:`distilled`: an :class:`ImagePool`, whose
            classes are known by their names, or another source with labels 0, 1, ... for ``task.new``; ``None`` for
            nothing; or a whole memory, to take the place of the one before.
        images_per_class: The memory's budget, stored images of each class.
        training: How each task is trained and recorded. Default: ``RecordSettings()``.
        settings: How the memory is replayed. Default: ``ReplaySettings()``.
        mean, std: Per-channel normalisation for pixels in [0, 1].
        head: See :class:`TGDDCallback`.
        job: Whatever else the scores depend on, such as the settings of ``remember``, as plain values; noted in
            ``scores.json`` and compared when it exists. Default: ``None``.
        seed: Of weights, order and augmentation. Default: ``0``.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        progress_bar: Default: ``True``.

    Raises:
        InputError: If tasks, network or memory do not fit each other, or ``folder`` is of another job.
    """
    training, settings = training or RecordSettings(), settings or ReplaySettings()
    folder, on = Path(folder), torch_device(device)
    _check(tasks)
    smaller = None
    for count in sorted({task.train.num_classes for task in tasks}):
        check_network(functools.partial(build, count), tasks[0].train.shape, count)
        with torch.random.fork_rng():
            smaller = grow(build(count), smaller)
    names = tasks[-1].train.classes
    memory = ReplayMemory(names, images_per_class=images_per_class, mean=mean, std=std, device=on)
    depends = {"training": asdict(training), "replay": asdict(settings), "images_per_class": images_per_class}
    scores = _begin(folder, tasks, {**depends, "mean": list(mean), "std": list(std), "seed": seed, **(job or {})})
    network: nn.Module | None = None
    size = training.batch_size
    for number, task in enumerate(tasks):
        place = folder / f"task{number}"
        classes = task.train.num_classes
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            grown = grow(build(classes), network)
        if number < len(scores.rows):  # done before
            network = _load(grown, place / (TUNED if (place / TUNED).is_file() else NETWORK)).to(on)
            if (place / MEMORY).is_file():
                memory = ReplayMemory.load(place / MEMORY, device=on)
            continue
        if (place / NETWORK).is_file():  # trained before
            network = _load(grown, place / NETWORK).to(on)
        else:
            pool = task.train.to(on)
            network = train(
                grown,
                DeviceLoader(pool.images, pool.labels, mean, std, batch_size=size, seed=seed, device=on),
                classes,
                training,
                seed=seed,
                device=device,
                title=f"task {number + 1}/{len(tasks)}" if progress_bar else None,
                # Before the augmentation, which is then that of old and new images alike.
                replay=DistilledReplay(memory, settings.ratio, weight=settings.weight, augmentation="none", seed=seed),
                callbacks=[
                    TGDDCallback(
                        str(place / "trajectory"),
                        training.interval,
                        max_stages=training.max_stages,
                        dtype=training.dtype,
                        head=head,
                        classes=task.train.classes,
                        mean=list(mean),
                        std=list(std),
                        exemplars=training.exemplars,
                        overwrite=True,  # what lies there is of this job, and was broken off
                    )
                ],
                run_name="training",
            )
            _save(network, place / NETWORK)
        if (remembered := _remembered(place, on)) is not None:  # before
            memory = remembered
        else:
            kept = remember(Moment(task, network, place, place / "trajectory", seed))
            if isinstance(kept, ReplayMemory):
                memory = kept.to(on)
            elif kept is not None:
                named = kept.classes if isinstance(kept, ImagePool) else task.new
                memory.add(kept, classes=named, domain=any(name in task.new for name in _held(memory)))
            if dist.get_global_rank() == 0 and len(memory):
                memory.save(place / MEMORY)
        if settings.tune and len(memory):
            network = train(
                network,
                DeviceLoader(memory.decoded, memory.decoded_labels, mean, std, batch_size=size, seed=seed, device=on),
                classes,
                replace(training, epochs=settings.tune, learning_rate=training.learning_rate / 10),
                seed=seed,
                device=device,
                title=f"task {number + 1}/{len(tasks)}, memory" if progress_bar else None,
            )
            _save(network, place / TUNED)
        found = [accuracy(network, each.test, mean, std) for each in tasks[: number + 1]]
        scores = scores.after(found)
        if dist.get_global_rank() == 0:
            scores.write(folder / "scores.json")
        dist.barrier()
    return scores


def grow(network: nn.Module, earlier: nn.Module | None) -> nn.Module:
    """Copies the weights of an earlier network with fewer outputs into a fresh one, in place.

    The head's rows of the earlier classes come first; those of new classes stay as they were initialised.

    Raises:
        InputError: If the networks differ in more than the number of outputs.
    """
    if earlier is None:
        return network
    old, new = earlier.state_dict(), network.state_dict()
    for name, tensor in new.items():
        there, here = old[name].shape if name in old else None, tensor.shape
        if there is None or (len(there), there[1:]) != (len(here), here[1:]) or there[:1] > here[:1]:
            raise InputError(
                f"'{name}' is {tuple(here)} in the network for more classes, and in the one before "
                f"{'missing' if there is None else tuple(there)}; build networks that differ in their outputs alone"
            )
    with torch.no_grad():
        for name, tensor in new.items():
            tensor[tuple(slice(size) for size in old[name].shape)] = old[name].to(tensor.device)
    return network


def _save(network: nn.Module, path: Path) -> None:
    if dist.get_global_rank() == 0:
        write_whole(path, weights_content(network.state_dict()))


def _load(network: nn.Module, path: Path) -> nn.Module:
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"'{path}' cannot be used ({str(error).splitlines()[0]}); delete '{path.parents[1]}' to learn the tasks "
            f"anew"
        ) from error
    return network


def _remembered(place: Path, device: torch.device) -> ReplayMemory | None:
    """The memory after a task, if it was saved, and wholly: of a file without its card it is made again."""
    dist.barrier()
    if not (place / MEMORY).is_file():
        return None
    try:
        return ReplayMemory.load(place / MEMORY, device=device)
    except InputError:
        return None


def _held(memory: ReplayMemory) -> list[str]:
    return [memory.classes[label] for label in set(memory.labels.tolist())]


def _check(tasks: Sequence[Task]) -> None:
    """Raises an InputError if the tasks do not fit each other."""
    if not tasks:
        raise InputError("no tasks came; wanted at least one")
    names, shape = tasks[-1].train.classes, tasks[0].train.shape
    for number, task in enumerate(tasks, 1):
        seen, shapes = task.train.classes, (task.train.shape, task.test.shape)
        if seen != names[: len(seen)] or task.test.classes != seen:
            raise InputError(
                f"task {number} has the classes {', '.join(seen[:12])} for training and "
                f"{', '.join(task.test.classes[:12])} for testing, all tasks {', '.join(names[:12])}; wanted the first "
                f"of these for both: classes keep their numbers, and new ones come last"
            )
        held = [seen[label] for label in task.train.counts.nonzero().flatten().tolist()]
        if sorted(held) != sorted(task.new):
            raise InputError(
                f"task {number} has images of {', '.join(held[:12])}, but its new classes are "
                f"{', '.join(task.new[:12])}; name those that it has images of"
            )
        if shapes != (shape, shape):
            raise InputError(
                f"task {number} has images of {list(shapes[0])} for training and {list(shapes[1])} for testing, the "
                f"first task {list(shape)}; give all of one size"
            )


def _begin(folder: Path, tasks: Sequence[Task], about: dict[str, Any]) -> Scores:
    path = check_writable(folder / "scores.json")
    about = {
        **about,
        "tasks": [task.new for task in tasks],
        "images": [task.train.fingerprint() for task in tasks],
        "test_images": [len(task.test) for task in tasks],
    }
    about = json.loads(json.dumps(about))
    scores = Scores.read(path) if path.is_file() else Scores({})
    other = difference("", scores.about, about)
    # A job that failed before it had trained anything binds nobody.
    if other and path.is_file() and (scores.rows or (folder / "task0" / NETWORK).is_file()):
        raise InputError(f"'{folder}' is of another job ({other}); choose another folder, or delete it")
    if other and dist.get_global_rank() == 0:
        if not path.is_file():  # it was deleted, to learn the tasks anew
            for name in (NETWORK, MEMORY, TUNED):
                for stale in folder.glob(f"task*/{name}"):
                    stale.unlink()
        Scores(about, scores.rows).write(path)
    dist.barrier()
    return Scores(about, scores.rows)
