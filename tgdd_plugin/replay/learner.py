"""A continual learner: tasks one after another, each learned beside a memory of a few images of those before.

For each task a network is trained under :class:`TGDDCallback` and :class:`DistilledReplay`, its new classes are
distilled, and what comes of it goes into the memory. Earlier tasks are never distilled again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.core.atomic_files import check_writable, difference, write_whole
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.renamed_keys import with_current_keys
from tgdd_plugin.core.weights import weights_content
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.recording.callback import TGDDCallback
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.algorithm import DistilledReplay
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.replay.policies import Moment
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.sources import Source
from tgdd_plugin.replay.tasks import Task, _check
from tgdd_plugin.training.train import accuracy, check_network, train

NETWORK, MEMORY, TUNED = "network.safetensors", "memory.beton", "tuned.safetensors"


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
    folder, on, normalization = Path(folder), torch_device(device), Normalization(mean, std)
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
                DeviceLoader(pool.images, pool.labels, normalization, batch_size=size, seed=seed, device=on),
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
                        mean=list(normalization.mean),
                        std=list(normalization.std),
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
        if settings.finetune_epochs and len(memory):
            network = train(
                network,
                DeviceLoader(
                    memory.decoded, memory.decoded_labels, normalization, batch_size=size, seed=seed, device=on
                ),
                classes,
                replace(training, epochs=settings.finetune_epochs, learning_rate=training.learning_rate / 10),
                seed=seed,
                device=device,
                title=f"task {number + 1}/{len(tasks)}, memory" if progress_bar else None,
            )
            _save(network, place / TUNED)
        found = [accuracy(network, each.test, normalization) for each in tasks[: number + 1]]
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
    other = difference("", with_current_keys(scores.about), with_current_keys(about))
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
