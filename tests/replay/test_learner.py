"""learn(): tasks in miniature beside what they are made of; broken off anywhere it ends with the same files."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from composer import Callback, Logger, State
from composer.loggers import InMemoryLogger
from safetensors.torch import load_file
from torch import nn

from tests.common import Crash, recorded, snapshot
from tests.patterned import learner_pools
from tgdd_plugin import DistillSettings, ImagePool, InputError, Trajectory, cli, distill, read_beton
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.core.tables import text_table
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay import network_growth, policies, task_steps
from tgdd_plugin.replay.heads import separate_heads
from tgdd_plugin.replay.learner import learn
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.replay.network_growth import grow
from tgdd_plugin.replay.policies import TaskResult, distilled
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.tasks import Task, check_tasks, split_classes
from tgdd_plugin.training import resuming
from tgdd_plugin.training.train import accuracy, train_network

MEAN, STD = [0.4], [0.3]
NORMALIZATION = Normalization(MEAN, STD)
NAMES = ["rows", "columns", "chess"]
THREE = ReplaySettings(tasks=3)
TRAINING = RecordSettings(epochs=2, batch_size=5, learning_rate=0.02, cutmix=0.0, augmentation="crop", exemplars=4)
DISTILL = DistillSettings(images_per_class=2, factor=1, steps=4, source="recorded")
OPTIONS: dict[str, Any] = {"device": "cpu", "progress_bar": False}


def build(classes: int, **changes: Any) -> nn.Module:
    return convnet(classes, 1, 8, **{"depth": 1, "width": 4, **changes})


def three(settings: ReplaySettings = THREE) -> list[Task]:
    return split_classes(*learner_pools(), settings)


def keep(count: int = 2) -> Callable[[TaskResult], ImagePool]:
    """The first real images of each class of a task."""

    def select_exemplars(result: TaskResult) -> ImagePool:
        pool = result.task.train
        first = [(pool.labels == label).nonzero()[:count, 0] for label in pool.counts.nonzero().flatten()]
        return pool.subset(torch.cat(first))

    return select_exemplars


def nothing(result: TaskResult) -> None:
    return None


def run(folder: Path, select_exemplars: Any = None, tasks: Sequence[Task] | None = None, **options: Any) -> Scores:
    """learn() with these settings, distilling two images of each class."""
    given: dict[str, Any] = {"images_per_class": 2, "training": TRAINING, "settings": THREE, **options}
    policy = select_exemplars or distilled(DISTILL, **OPTIONS)
    made = three() if tasks is None else tasks
    return learn(made, given.pop("build", build), folder, policy, mean=MEAN, std=STD, **OPTIONS, **given)


def lasting(folder: Path) -> dict[str, Any]:
    """What a later call may not make otherwise; manifests and the last column of logs tell of seconds that differ."""
    kept = {name: content for name, content in snapshot(folder).items() if not name.endswith(".json")}
    logs = {name: [line.rpartition(b",")[0] for line in content.splitlines()] for name, content in kept.items()}
    return {name: logs[name] if name.endswith("-log.csv") else content for name, content in kept.items()}


@contextmanager
def training(act: Callable[[str], dict[str, Any]]) -> Iterator[list[str]]:
    """Calls ``act(title)`` before each training, for more of its options; gives the folders of what was trained."""
    trained: list[str] = []

    def spied(*arguments: Any, **options: Any) -> nn.Module:
        if "callbacks" not in options:  # tuning
            return train_network(*arguments, **options)
        place = Path(options["callbacks"][0].folder).parent.name
        more = act(place)
        trained.append(place)
        options["callbacks"] = [*options["callbacks"], *more.get("callbacks", [])]
        return train_network(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_steps, "train_network", spied)
        yield trained


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``done``, left by an uninterrupted call, and ``before1``, ``before2``: as it was before a task."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")

    def act(place: str) -> dict[str, Any]:
        copy = folder / place.replace("task", "before")
        shutil.copytree(folder / "done", copy, ignore=shutil.ignore_patterns("*.lock"))  # which holds while it goes on
        return {}

    with training(act) as trained:
        run(folder / "done")
    assert trained == ["task0", "task1", "task2"]
    return folder


# Tasks.


def test_every_class_is_in_one_task_with_its_own_images() -> None:
    train_pool, test_pool = learner_pools()
    tasks = three()
    assert [task.new for task in tasks] == [["rows"], ["columns"], ["chess"]]
    assert [task.train.classes for task in tasks] == [NAMES[:1], NAMES[:2], NAMES]
    for number, task in enumerate(tasks):
        for pool, real in ((task.train, train_pool), (task.test, test_pool)):
            assert pool.labels.unique().tolist() == [number] and pool.num_classes == number + 1
            assert torch.equal(pool.images, real.images[real.labels == number])


def test_data_sets_are_split_as_pools_are() -> None:
    pools = learner_pools()
    sets = [list(zip(pool.images, pool.labels.tolist(), strict=True)) for pool in pools]
    for task, of_pool in zip(split_classes(*sets, THREE), three(), strict=True):
        assert task.new == [str(NAMES.index(name)) for name in of_pool.new]
        for found, wanted in ((task.train, of_pool.train), (task.test, of_pool.test)):
            assert torch.equal(found.images, wanted.images) and torch.equal(found.labels, wanted.labels)


@pytest.mark.parametrize(("count", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (5, [1] * 5)])
def test_uneven_splits_differ_by_one_class(count: int, sizes: list[int]) -> None:
    labels = torch.arange(20) % 5
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4) * 10
    pool = ImagePool(images, labels, list("abcde"))
    tasks = split_classes(pool, pool, ReplaySettings(tasks=count, order=3))
    assert [len(task.new) for task in tasks] == sizes
    order = tasks[-1].train.classes
    assert sorted(order) == list("abcde") and order != list("abcde"), "a seed gives an order"
    assert order == [name for task in tasks for name in task.new]
    for task in tasks:
        for image, label in zip(task.train.images, task.train.labels.tolist(), strict=True):
            assert (
                "abcde"[int(image.max()) // 10] == task.train.classes[label] and task.train.classes[label] in task.new
            )


def numbered(per_class: int = 12) -> ImagePool:
    """Images of five classes, each with its own number in its pixels."""
    labels = torch.arange(5 * per_class) % 5
    return ImagePool(torch.arange(5 * per_class, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), labels)


def test_tasks_of_the_sizes_that_are_given() -> None:
    pool = numbered()
    tasks = split_classes(pool, pool, ReplaySettings(tasks=(3, 1, 1), order=2))
    assert [len(task.new) for task in tasks] == [3, 1, 1] and [task.train.num_classes for task in tasks] == [3, 4, 5]
    even = split_classes(pool, pool, ReplaySettings(tasks=2, order=2))
    assert even[-1].train.classes == tasks[-1].train.classes
    with pytest.raises(InputError, match=r"must add up to 5, the number of classes, got \[3, 1\], which is 4. Say for"):
        split_classes(pool, pool, ReplaySettings(tasks=(3, 1)))


def test_a_share_of_each_class_comes_back_in_later_tasks() -> None:
    """Of 12 images 6: three each in two later tasks, six in one; those of the last class have none to come back in."""
    pool = numbered()
    tasks = split_classes(pool, pool, ReplaySettings(tasks=(2, 2, 1), returning=0.5))
    assert [task.train.counts.tolist() for task in tasks] == [[6, 6], [3, 3, 6, 6], [3, 3, 6, 6, 12]]
    assert [task.new for task in tasks] == [list("01"), list("0123"), list("01234")]
    assert [task.test.counts.tolist() for task in tasks] == [[12, 12], [0, 0, 12, 12], [0, 0, 0, 0, 12]]
    came = torch.cat([task.train.images[:, 0, 0, 0] for task in tasks]).tolist()
    assert sorted(came) == list(range(60)), "each image once"
    check_tasks(tasks)


def test_the_order_is_the_seeds() -> None:
    labels = torch.arange(10)
    pool = ImagePool(torch.zeros(10, 1, 4, 4, dtype=torch.uint8), labels)
    orders = [split_classes(pool, pool, ReplaySettings(order=seed))[-1].train.classes for seed in (None, 0, 0, 1)]
    assert orders[0] == [str(number) for number in range(10)] and orders[1] == orders[2]
    assert len({tuple(order) for order in orders}) == 3


def test_classes_that_cannot_be_split() -> None:
    train_pool, test_pool = learner_pools()
    with pytest.raises(InputError, match=r"`replay.tasks` must be at most 3, the number of classes, got 4. Lower it."):
        split_classes(train_pool, test_pool, ReplaySettings(tasks=4))
    for without in (train_pool.subset((train_pool.labels != 1).nonzero()[:, 0]), train_pool):
        lacking = test_pool if without is not train_pool else test_pool.subset((test_pool.labels != 1).nonzero()[:, 0])
        with pytest.raises(
            InputError, match="Class 'columns' has no .* images. Give some of each class for training and test"
        ):
            split_classes(without, lacking, THREE)


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": 0},
        {"order": -1},
        {"ratio": 0.0},
        {"ratio": float("inf")},
        {"weight": 1.5},
        {"weight": -0.1},
        {"finetune_epochs": -1},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        ReplaySettings(**change)


# Networks that grow.


def test_a_grown_network_is_the_earlier_one_with_more_outputs() -> None:
    """Batch norm's buffers included; the new rows are those that it was initialised with."""
    make = partial(convnet, in_channels=1, image_size=8, depth=2, width=4, norm="batch")
    earlier = make(2)
    earlier(torch.rand(9, 1, 8, 8))  # moves the running statistics
    fresh = make(5)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    assert grow(fresh, earlier) is fresh
    old, now = earlier.state_dict(), fresh.state_dict()
    assert any(name.endswith("running_var") for name in now) and any(tensor.ndim == 0 for tensor in now.values())
    for name, tensor in now.items():
        if name.startswith("classifier"):
            assert torch.equal(tensor[:2], old[name]) and torch.equal(tensor[2:], before[name][2:])
        else:
            assert torch.equal(tensor, old[name]), name
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(fresh.eval()(images)[:, :2], earlier.eval()(images))
    weight = old["classifier.weight"].clone()
    fresh.classifier.weight.data.zero_()
    assert torch.equal(earlier.classifier.weight, weight), "they share no memory"


def test_the_first_network_is_left_as_it_is() -> None:
    network = build(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in grow(network, None).state_dict().items())


@pytest.mark.parametrize(
    ("later", "pattern"),
    [
        (
            convnet(3, 1, 8, depth=1, width=6),
            r"'.*weight' of \(6, 1, 3, 3\) .* and \(4, 1, 3, 3\) in the network before",
        ),
        (convnet(3, 1, 8, depth=2, width=4), r"of \(4, 4, 3, 3\) .* and missing in the network before"),
        (convnet(1, 1, 8, depth=1, width=4), r"'classifier.weight' of \(1, 64\) .* \(2, 64\) in the network before"),
    ],
)
def test_networks_that_differ_in_more_than_their_outputs(later: nn.Module, pattern: str) -> None:
    if "6, 1" in pattern:  # wider, of which the earlier one would fit into a part
        pattern = "in the network before"
    before = {name: tensor.clone() for name, tensor in later.state_dict().items()}
    with pytest.raises(InputError, match=pattern):
        grow(later, build(2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in later.state_dict().items())


# Learning.


def test_scores_are_those_of_the_saved_networks(whole: Path) -> None:
    scores = Scores.read(whole / "done" / "scores.json")
    wanted = []
    for number in range(3):
        network = build(number + 1)
        network.load_state_dict(load_file(whole / "done" / f"task{number}" / "network.safetensors"))
        row = []
        for task in three()[: number + 1]:
            answers = network.eval()((task.test.images.float() / 255 - MEAN[0]) / STD[0]).argmax(1)
            row.append((answers == task.test.labels).double().mean().item())
        wanted.append(row)
    assert [pytest.approx(row) for row in wanted] == scores.rows
    assert scores.rows[0] == [1.0], "a single class is all that the first network knows"


def test_the_first_task_is_trained_as_without_a_memory(whole: Path) -> None:
    pool = three()[0].train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(1)
    train_network(
        network,
        DeviceLoader(pool.images, pool.labels, NORMALIZATION, batch_size=5),
        1,
        TRAINING,
        device="cpu",
    )
    for name, tensor in load_file(whole / "done" / "task0" / "network.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_each_task_goes_on_from_the_network_before_and_knows_no_later_class(whole: Path) -> None:
    for number in range(3):
        place = whole / "done" / f"task{number}"
        stages = recorded(place / "trajectory" / "training")
        assert Trajectory.open(place / "trajectory").run.classes == NAMES[: number + 1]
        last = {f"module.{name}": tensor for name, tensor in load_file(place / "network.safetensors").items()}
        spelt = {name if name in last else f"module.{name}": tensor for name, tensor in stages[max(stages)].items()}
        assert all(torch.equal(tensor, spelt[name]) for name, tensor in last.items())
        if number:
            earlier = load_file(whole / "done" / f"task{number - 1}" / "network.safetensors")
            for name, tensor in stages[0].items():
                old = earlier[name.removeprefix("module.")]
                assert torch.equal(tensor[: len(old)], old), "in the order of the classes, whose rows come first"


def test_later_tasks_leave_the_files_of_earlier_ones_alone(whole: Path) -> None:
    done = snapshot(whole / "done")
    for number in (1, 2):
        for name, content in snapshot(whole / f"before{number}").items():
            assert name in ("scores.json", "replay-log.csv") or done[name] == content, name  # of all tasks
        assert not (whole / f"before{number}" / f"task{number}").exists()


def test_the_memorys_images_are_not_augmented_apart(tmp_path: Path) -> None:
    """They come into a batch as they are drawn, and what augments it is for both."""
    batches = []

    class Keep(Callback):
        def before_forward(self, state: State, logger: Logger) -> None:
            batches.append([tensor.clone() for tensor in state.batch])

    with training(lambda place: {"callbacks": [Keep()]} if place == "task1" else {}):
        settings = replace(THREE, tasks=(2, 1))
        run(tmp_path, keep(), three(settings), settings=settings, training=replace(TRAINING, augmentation="none"))
    memory = ReplayMemory.load(tmp_path / "task0" / "memory.beton")
    for number, (images, labels) in enumerate(batches[:4]):  # of 5 images of the task each, and as many of the memory
        old, meant = memory.sample(5, keyed_generator(0, 0, number, 2, 1))
        assert torch.equal(images[5:], NORMALIZATION(old)) and torch.equal(labels[5:], meant)


def test_the_memory_holds_the_distilled_images_of_every_class_seen(whole: Path) -> None:
    for number in range(3):
        memory = ReplayMemory.load(whole / "done" / f"task{number}" / "memory.beton")
        assert memory.classes == NAMES and memory.counts.tolist() == [2] * (number + 1) + [0] * (2 - number)
        assert [task.name for task in memory.tasks] == [f"task {i}" for i in range(number + 1)]
        for task in range(number + 1):
            images, _ = read_beton(whole / "done" / f"task{task}" / "distilled.beton")
            kept = memory.images[memory.labels == task]
            assert sorted(image.numpy().tobytes() for image in kept) == sorted(i.numpy().tobytes() for i in images)


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


class StopAt(Callback):
    """Raises at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def batch_end(self, state: Any, logger: Any) -> None:
        if state.timestamp.batch.value == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "again"),
    [
        ("between two tasks", ["task1", "task2"]),
        ("in a training", ["task2"]),
        ("in a distillation", []),
        ("in writing the memory", []),
        ("in scoring", []),
    ],
)
def test_broken_off_anywhere_the_same_call_ends_with_the_same_files(
    whole: Path, tmp_path: Path, where: str, again: list[str]
) -> None:
    """And what is finished is not done again: a training, the earlier tasks."""
    done, folder = whole / "done", tmp_path / "job"
    shutil.copytree(whole / ("before1" if where == "between two tasks" else "before2"), folder)
    with (
        pytest.MonkeyPatch.context() as patch,
        training(lambda place: {"callbacks": [Crash(2)]} if where == "in a training" else {}),
    ):
        policy = distilled(DISTILL, callbacks=[StopAt(3)], checkpoint_interval="2ba", **OPTIONS)
        if where == "between two tasks":
            patch.setattr(task_steps, "train_network", stop)
        if where == "in writing the memory":
            patch.setattr(ReplayMemory, "save", stop)
        if where == "in scoring":
            patch.setattr(task_steps, "accuracy", stop)
        with pytest.raises(RuntimeError if where == "in a training" else KeyboardInterrupt):
            run(folder, policy if where == "in a distillation" else None)
    assert len(Scores.read(folder / "scores.json").rows) == (1 if where == "between two tasks" else 2)
    left = [path for path in (folder / "task2").glob(".distill-*")] if where == "in a distillation" else [folder]
    assert left, "a checkpoint to go on from"
    with training(lambda place: {}) as trained:
        scores = run(folder)
    assert trained == again
    assert scores == Scores.read(done / "scores.json") == Scores.read(folder / "scores.json")
    assert lasting(folder) == lasting(done)


def test_tuning_is_a_training_on_the_memory_alone_from_which_the_next_task_goes_on(tmp_path: Path) -> None:
    settings = replace(THREE, finetune_epochs=3)
    scores = run(tmp_path / "done", keep(), settings=settings)
    for number in range(3):
        place = tmp_path / "done" / f"task{number}"
        network = build(number + 1)
        network.load_state_dict(load_file(place / "network.safetensors"))
        memory = ReplayMemory.load(place / "memory.beton")
        loader = DeviceLoader(memory.decoded, memory.decoded_labels, NORMALIZATION, batch_size=5)
        train_network(network, loader, number + 1, replace(TRAINING, epochs=3, learning_rate=0.002), device="cpu")
        tuned = load_file(place / "tuned.safetensors")
        assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in tuned.items())
        assert scores.rows[number] == [accuracy(network, task.test, NORMALIZATION) for task in three()[: number + 1]]
        if number < 2:
            start = recorded(tmp_path / "done" / f"task{number + 1}" / "trajectory" / "training")[0]
            for name, tensor in start.items():
                old = tuned[name.removeprefix("module.")]
                assert torch.equal(tensor[: len(old)], old)


def test_a_tuning_takes_its_own_epochs_where_tasks_are_trained_for_image_passes(tmp_path: Path) -> None:
    training = replace(TRAINING, passes=60)
    run(tmp_path, keep(), settings=replace(THREE, finetune_epochs=2), training=training)
    rows = csv.DictReader((tmp_path / "replay-log.csv").read_text().splitlines())
    found = Counter((row["task"], row["images"]) for row in rows)
    # 60 passes in batches of 5; two epochs of 2, 4 and 6 images.
    assert [found[number, "task"] for number in "123"] == [12, 12, 12]
    assert [found[number, "memory"] for number in "123"] == [2, 2, 4]


def test_a_tuning_that_was_broken_off_is_done_again(tmp_path: Path) -> None:
    settings = replace(THREE, finetune_epochs=3)
    expected = run(tmp_path / "done", keep(), settings=settings)
    write = network_growth.write_whole

    def broken(path: Path, *content: Any) -> None:
        if path.name == "tuned.safetensors" and path.parent.name == "task1":
            raise KeyboardInterrupt
        write(path, *content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_growth, "write_whole", broken)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "job", keep(), settings=settings)
    assert run(tmp_path / "job", keep(), settings=settings) == expected
    assert lasting(tmp_path / "job") == lasting(tmp_path / "done")


def test_the_log_has_every_training_on_a_task_and_on_its_memory_once(tmp_path: Path) -> None:
    """As a run without a stop writes it, also after one; the losses are those that Composer logs."""
    settings, seen = replace(THREE, finetune_epochs=2), InMemoryLogger()
    run(tmp_path / "whole", keep(), settings=settings, loggers=[seen])
    rows = list(csv.DictReader((tmp_path / "whole/replay-log.csv").read_text().splitlines()))
    # 20 images of a class in batches of 5; 2, 4 and 6 of the memory.
    expected = [(task, images, steps) for task, few in (("1", 1), ("2", 1), ("3", 2)) for images, steps in
                (("task", 8), ("memory", 2 * few))]  # fmt: skip
    found = Counter((row["task"], row["images"]) for row in rows)
    assert [(*key, count) for key, count in found.items()] == expected
    logged = [float(loss) for _, loss in seen.data["loss/train/mean"]]
    assert [float(row["loss"]) for row in rows] == pytest.approx(logged[-len(rows) :], rel=1e-5)
    with training(lambda place: {"callbacks": [Crash(3)]} if place == "task1" else {}), pytest.raises(RuntimeError):
        run(tmp_path / "stopped", keep(), settings=settings)
    run(tmp_path / "stopped", keep(), settings=settings)
    assert lasting(tmp_path / "stopped")["replay-log.csv"] == lasting(tmp_path / "whole")["replay-log.csv"]
    run(tmp_path / "none", keep(), loggers={"csv": False})
    assert not [*(tmp_path / "none").rglob("*-log.csv")]


def test_a_training_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "SAVED_EVERY", 0.0)
    settings = replace(THREE, finetune_epochs=2)
    run(tmp_path / "whole", keep(), settings=settings)
    begun: list[int] = []

    class Begun(Callback):
        def fit_start(self, state: State, logger: Logger) -> None:
            begun.append(state.timestamp.batch.value)

    with training(lambda place: {"callbacks": [Crash(5)]} if place == "task1" else {}), pytest.raises(RuntimeError):
        run(tmp_path / "stopped", keep(), settings=settings)
    assert list((tmp_path / "stopped").rglob(".training-*/*.pt"))
    with training(lambda here: {"callbacks": [Begun()]}):
        run(tmp_path / "stopped", keep(), settings=settings)
    assert lasting(tmp_path / "stopped") == lasting(tmp_path / "whole")
    assert begun == [5, 0], "the second task goes on, and the third is trained"
    assert not list((tmp_path / "stopped").rglob(".training-*"))


def test_a_finished_job_is_not_touched(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "done", tmp_path / "job")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "job").rglob("*")}
    with training(lambda place: {}) as trained:
        scores = run(tmp_path / "job", stop)
        assert run(tmp_path / "job", stop, images_per_class=np.int64(2)) == scores
    assert not trained and scores == Scores.read(whole / "done" / "scores.json")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "job").rglob("*")} == before


def test_a_job_of_an_earlier_version_noted_no_test_images(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "done", tmp_path / "job")
    path = tmp_path / "job" / "scores.json"
    content = json.loads(path.read_text())
    del content["about"]["tested_on"]
    path.write_text(json.dumps(content))
    assert run(tmp_path / "job", stop).rows == Scores.read(whole / "done" / "scores.json").rows


def corrected() -> list[Task]:
    """Tasks of the same training images, and as many test images, of which some are others."""
    *others, last = three()
    return [*others, replace(last, test=ImagePool(255 - last.test.images, last.test.labels, last.test.classes))]


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"tasks": corrected()}, "tested_on was"),
        ({"images_per_class": 3}, "images_per_class was 2 and is now 3"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"settings": replace(THREE, ratio=2.0)}, "replay.ratio was 1.0 and is now 2.0"),
        ({"training": replace(TRAINING, epochs=3)}, "training.epochs was 2 and is now 3"),
        ({"tasks": three(ReplaySettings(tasks=2))}, "tasks was"),
        ({"job": {"distill": {"steps": 9}}}, "distill was None and is now"),
        ({"build": lambda count: build(count, pooling="max")}, "architecture.arguments.pooling was 'avg' and is now"),
    ],
)
def test_another_job_in_the_same_folder_is_refused(
    whole: Path, tmp_path: Path, change: dict[str, Any], pattern: str
) -> None:
    shutil.copytree(whole / "before2", tmp_path / "job")
    before = snapshot(tmp_path / "job")
    with pytest.raises(
        InputError, match=f"is of another job .*{pattern}.*. Choose another folder .output=.* this one."
    ):
        run(tmp_path / "job", stop, **change)
    assert snapshot(tmp_path / "job") == before


def test_a_job_that_came_to_nothing_binds_nobody(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(task_steps, "train_network", stop)
        run(tmp_path, nothing)
    assert run(tmp_path, nothing, seed=1).about["seed"] == 1


def test_without_its_scores_a_job_is_learned_anew(tmp_path: Path) -> None:
    """As the error about a damaged file says; nothing of the earlier one comes into it, not even a memory."""
    tasks = three(replace(THREE, tasks=1))
    run(tmp_path, keep(), tasks)
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(InputError, match="Delete it to learn the tasks anew"):
        run(tmp_path, keep(), tasks)
    (tmp_path / "scores.json").unlink()
    with training(lambda place: {}) as trained:
        run(tmp_path, nothing, tasks, seed=1)
    assert trained == ["task0"] and not (tmp_path / "task0" / "memory.beton").exists()


def test_a_damaged_network_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "before2", tmp_path / "job")
    (tmp_path / "job" / "task1" / "network.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="task1/network.safetensors' cannot be used .*. Delete") as error:
        run(tmp_path / "job")
    assert "\n" not in str(error.value)


# What is kept.


class Sealed(ImagePool):
    """Whose images nobody may read while it is sealed."""

    sealed = False

    def __getattribute__(self, name: str) -> Any:
        if name == "images" and object.__getattribute__(self, "sealed"):
            raise AssertionError("a real image was read")
        return super().__getattribute__(name)


@pytest.mark.parametrize("source", ["recorded", "sampled"])
def test_with_recorded_statistics_no_real_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (task,) = three(replace(THREE, tasks=1))
    pool = Sealed(task.train.images, task.train.labels, task.train.classes)
    given = []

    def spied(trajectory: Any, real: Any, *arguments: Any, **options: Any) -> Path:
        given.append(real)
        return distill(trajectory, real, *arguments, **options)

    monkeypatch.setattr(policies, "distill", spied)

    def select_exemplars(result: TaskResult) -> Any:
        pool.sealed = True
        try:
            return distilled(replace(DISTILL, source=source, real_per_class=5), **OPTIONS)(result)
        finally:
            pool.sealed = False

    tasks = [replace(task, train=pool)]
    if source == "sampled":
        with pytest.raises(AssertionError, match="a real image was read"):
            run(tmp_path, select_exemplars, tasks)
        return
    run(tmp_path, select_exemplars, tasks)
    assert given == [None]
    assert ReplayMemory.load(tmp_path / "task0" / "memory.beton").counts.tolist() == [2] * 3


def test_the_budget_is_kept_whatever_comes(tmp_path: Path) -> None:
    """The classes of a pool are known by name, those of bare images are the task's new ones in their order."""
    tasks, seen = three(replace(THREE, tasks=2, order=0)), []

    def select_exemplars(result: TaskResult) -> Any:
        chosen = keep(5)(result)
        seen.append(chosen)
        return chosen if len(seen) == 1 else (chosen.images, torch.zeros(5, dtype=torch.int64))

    run(tmp_path, select_exemplars, tasks, images_per_class=3)
    memory = ReplayMemory.load(tmp_path / "task1" / "memory.beton")
    assert memory.classes == tasks[1].train.classes and memory.counts.tolist() == [3, 3, 3]
    offered = {label: pool.images[pool.labels == label] for pool in seen for label in pool.labels.unique().tolist()}
    for image, label in zip(memory.images, memory.labels.tolist(), strict=True):
        assert offered[label].eq(image).flatten(1).all(1).any()


def test_a_whole_memory_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    tasks = three()

    def select_exemplars(result: TaskResult) -> ReplayMemory:
        memory = ReplayMemory(NAMES, images_per_class=9, mean=MEAN, std=STD)
        memory.add(keep(len(result.task.new) * 4)(result))
        return memory

    run(tmp_path, select_exemplars, tasks)
    held = [ReplayMemory.load(tmp_path / f"task{number}" / "memory.beton").counts.tolist() for number in range(3)]
    assert held == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]


def test_replay_matters(tmp_path: Path) -> None:
    """Without it the last class is all that is left; two images of each class are enough for these patterns."""
    longer = replace(TRAINING, epochs=5, learning_rate=0.05)
    without = run(tmp_path / "without", nothing, training=longer)
    with_memory = run(tmp_path / "with", keep(), training=longer)
    assert without.rows[-1] == [0.0, 0.0, 1.0] and without.forgetting == 1.0
    assert with_memory.rows[-1][0] > 0.7 and with_memory.average_accuracy > 0.7


def test_the_same_classes_in_another_appearance(tmp_path: Path) -> None:
    """Domain-incremental: all classes in each task, which share the budget of each class."""
    train_pool, test_pool = learner_pools()
    turned = [ImagePool(255 - pool.images, pool.labels, pool.classes) for pool in (train_pool, test_pool)]
    tasks = [Task(train_pool, test_pool, NAMES), Task(turned[0], turned[1], NAMES)]
    scores = run(tmp_path, None, tasks)
    assert [len(row) for row in scores.rows] == [1, 2]
    memories = [ReplayMemory.load(tmp_path / f"task{number}" / "memory.beton") for number in range(2)]
    assert [memory.counts.tolist() for memory in memories] == [[2] * 3, [2] * 3]
    assert memories[0].sources.tolist() == [0] * 6 and memories[1].sources.tolist() == [0, 1] * 3
    stages = recorded(tmp_path / "task1" / "trajectory" / "training")
    for name, tensor in load_file(tmp_path / "task0" / "network.safetensors").items():
        start = stages[0].get(name, stages[0].get(f"module.{name}"))
        assert torch.equal(start, tensor), "the head goes on as it was, too"


def test_a_class_that_comes_again_has_images_of_both_tasks(tmp_path: Path) -> None:
    pool, test_pool = learner_pools()
    parts = [(pool.labels < 2), (pool.labels > 0)]
    names = [NAMES[:2], NAMES]
    tasks = []
    for part, seen in zip(parts, names, strict=True):
        index = part.nonzero()[:, 0]
        images = ImagePool(pool.take(index), pool.labels[index], seen)
        known = (test_pool.labels < len(seen)).nonzero()[:, 0]
        tasks.append(Task(images, ImagePool(test_pool.take(known), test_pool.labels[known], seen), seen[-2:]))
    run(tmp_path, keep(2), tasks)
    memory = ReplayMemory.load(tmp_path / "task1" / "memory.beton")
    assert memory.counts.tolist() == [2, 2, 2] and memory.sources.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_number_of_runs_has_no_effect(tmp_path: Path) -> None:
    """Nor has one that an earlier version noted."""
    scores = run(tmp_path, keep(2), training=replace(TRAINING, runs=2))
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["about"]["training"]["runs"] == 1
    content["about"]["training"]["runs"] = 2
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert run(tmp_path, keep(2)).rows == scores.rows


def test_a_returning_class_has_images_of_its_tasks_in_the_memory(tmp_path: Path) -> None:
    settings = ReplaySettings(tasks=3, returning=0.4)
    scores = run(tmp_path, keep(2), split_classes(*learner_pools(), settings), settings=settings)
    memory = ReplayMemory.load(tmp_path / "task2" / "memory.beton")
    assert memory.counts.tolist() == [2, 2, 2] and memory.sources.tolist() == [0, 1, 1, 2, 2, 2]
    assert [len(row) for row in scores.rows] == [1, 2, 3]


def test_with_a_head_for_each_task_the_loss_is_that_of_the_images_own_head() -> None:
    """Gradients of ordinary cross-entropy beside those of each image's own slice of the outputs."""
    torch.manual_seed(0)
    network, images = build(5).double(), torch.randn(6, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 3, 4])
    weights = list(network.parameters())
    outputs, loss = network(images), torch.zeros(())
    for image, label in enumerate(labels.tolist()):
        own = slice(0, 2) if label < 2 else slice(2, 5)
        loss = loss + F.cross_entropy(outputs[image, own], torch.tensor(label - own.start)) / 6
    wanted = torch.autograd.grad(loss, weights)
    separate_heads(network, [2, 3])
    found = torch.autograd.grad(F.cross_entropy(network(images), labels), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_told_the_task_a_network_chooses_within_it(tmp_path: Path) -> None:
    """Two heads, beside the outputs of the saved networks cut by hand; a head of one class is always right."""
    settings = ReplaySettings(tasks=(2, 1), heads="task")
    tasks = split_classes(*learner_pools(), settings)
    scores = run(tmp_path, keep(2), tasks, settings=settings)
    assert scores.rows[1][1] == 1.0
    network = build(3).eval()
    network.load_state_dict(load_file(tmp_path / "task1" / "network.safetensors"))
    with torch.no_grad():
        outputs = network(NORMALIZATION(tasks[0].test.images))[:, :2]
    assert scores.rows[1][0] == pytest.approx((outputs.argmax(1) == tasks[0].test.labels).double().mean().item())
    assert run(tmp_path, stop, tasks, settings=settings).rows == scores.rows, "a finished job"


def test_one_value_normalizes_all_channels(tmp_path: Path) -> None:
    def colour(pool: ImagePool) -> ImagePool:
        return ImagePool(pool.images.repeat(1, 3, 1, 1), pool.labels, pool.classes)

    settings = ReplaySettings(tasks=(2, 1))
    tasks = [Task(colour(task.train), colour(task.test), task.new) for task in three(settings)]

    def run_with(count: int) -> Scores:
        mean, std = MEAN * count, STD * count
        policy = policies.herding_exemplars(1, Normalization(mean, std))
        return learn(
            tasks,
            lambda classes: convnet(classes, 3, 8, depth=1, width=4),
            tmp_path / str(count),
            policy,
            1,
            TRAINING,
            settings,
            mean=mean,
            std=std,
            **OPTIONS,
        )

    assert run_with(1).rows == run_with(3).rows
    with pytest.raises(InputError, match="`mean` and `std` must have one value for each channel .* which have 3, got"):
        run_with(2)
    assert not (tmp_path / "2").exists(), "before anything is trained"


def test_heads_need_classes_of_one_task_each(tmp_path: Path) -> None:
    settings = ReplaySettings(tasks=3, returning=0.4, heads="task")
    with pytest.raises(InputError, match=r"`replay.heads` must be 'one' where classes come back, as 'rows' does"):
        run(tmp_path / "job", stop, split_classes(*learner_pools(), settings), settings=settings)
    assert not (tmp_path / "job").exists()


# What cannot work: found out before anything is trained, in one line.


def renamed(task: Task, names: list[str], new: list[str] | None = None) -> Task:
    pools = [ImagePool(pool.images, pool.labels, names) for pool in (task.train, task.test)]
    return Task(pools[0], pools[1], task.new if new is None else new)


def small(task: Task) -> Task:
    return replace(task, train=ImagePool(task.train.images[..., :6, :6], task.train.labels, task.train.classes))


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda tasks: [], "`tasks` must have at least one task, got none"),
        (
            lambda tasks: [tasks[0], renamed(tasks[1], ["rows", "rows"], ["rows"])],
            "`classes` must be different names, got rows, rows, with one name twice",
        ),
        (
            lambda tasks: [renamed(tasks[0], ["chess"]), *tasks[1:]],
            "Task 1 must have the first classes of all tasks .*, got chess for training",
        ),
        (
            lambda tasks: tasks[::-1],
            "Task 1 must have the first classes of all tasks .*, got rows, columns, chess for training",
        ),
        (
            lambda tasks: [replace(tasks[0], test=tasks[1].test), *tasks[1:]],
            "for training and rows, columns for testing",
        ),
        (
            lambda tasks: [tasks[0], replace(tasks[1], new=["rows"])],
            "`new` of task 2 must be the classes that it has images of, columns, got rows",
        ),
        (
            lambda tasks: [tasks[0], small(tasks[1]), tasks[2]],
            r"Task 2 must have images of \[1, 8, 8\] like the first task, got \[1, 6, 6\] for training",
        ),
    ],
)
def test_tasks_that_do_not_fit_each_other(tmp_path: Path, change: Callable[[list[Task]], Any], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as error:
        run(tmp_path / "job", stop, change(three()))
    assert "\n" not in str(error.value) and not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("factory", "pattern"),
    [
        (lambda classes: build(3), r"logits of shape \(2, 1\) for 2 images of \[1, 8, 8\], got \(2, 3\)"),
        (lambda classes: convnet(classes, 3, 8, depth=1, width=4), "must return logits .*, got an error .* from "),
        (
            lambda classes: convnet(classes, 1, 8, depth=1, width=4 * classes),
            "networks that differ in their outputs alone",
        ),
    ],
)
def test_a_factory_whose_networks_do_not_fit(tmp_path: Path, factory: Any, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        run(tmp_path / "job", stop, build=factory)
    assert not (tmp_path / "job").exists()


def test_settings_in_place_of_a_policy_are_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`select_exemplars` must be a function, .* got a DistillSettings. Give"):
        run(tmp_path / "job", DISTILL)
    assert not (tmp_path / "job").exists()


def test_a_budget_of_no_image_and_classes_of_ones_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images_per_class=0"):
        run(tmp_path / "job", stop, images_per_class=0)
    with pytest.raises(
        InputError, match=r"`distill.classes` must be left out in replay, got \['rows'\]. Each task has its own"
    ):
        distilled(replace(DISTILL, classes=["rows"]))


# The command.

MODULE = """
import sys
sys.path.insert(0, {path!r})
from tests.patterned import learner_pools

def sets():
    return [[(image, int(label)) for image, label in zip(p.images, p.labels)] for p in learner_pools()]
"""
RECIPE = {
    "output": "out",
    "device": "cpu",
    "data": {"name": "replay_test_data:sets"},
    "network": {"name": "convnet", "depth": 1, "width": 4},
    "record": {"epochs": 1, "augmentation": "crop", "cutmix": 0.0},
    "distill": {"images_per_class": 2, "factor": 2, "steps": 2, "real_per_class": 5, "augmentation": "crop"},
    "replay": {"tasks": 2, "order": 1},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a data set of the user's and a recipe."""
    (tmp_path / "replay_test_data.py").write_text(MODULE.format(path=str(Path(__file__).parents[2])))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    before = snapshot(folder)
    assert cli.main(["replay", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tgdd: ") and err.count("\n") == 1 and snapshot(folder) == before
    return err


def test_the_command_learns_the_tasks_and_keeps_what_is_done(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", "recipe.yaml"]) == 0
    out, err = capfd.readouterr()
    scores = Scores.read(here / "out" / "scores.json")
    assert scores.table(text_table) in out and out.endswith("results   out/scores.json\n")
    assert (here / "out" / "scores.md").read_text().strip() == scores.table()
    assert [len(row) for row in scores.rows] == [1, 2] and sorted(sum(scores.about["tasks"], [])) == ["0", "1", "2"]
    for word in ("Warning", "warn", "Traceback"):
        assert word not in err
    memory = ReplayMemory.load(here / "out" / "task1" / "memory.beton")
    assert memory.factor == 2 and memory.counts.tolist() == [2] * 3 and len(memory.decoded) == 24
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*.*") if "out" in path.parts}
    with training(lambda place: {}) as trained:
        assert cli.main(["replay", "recipe.yaml"]) == 0
    assert not trained and capfd.readouterr().out == out.rstrip("\n") + ": already done\n"
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*.*") if "out" in path.parts}
    assert {path for path in before if before[path] != after[path]} <= {here / "out" / "scores.md"}
    changed = refused(capfd, here, "recipe.yaml", "distill.steps=3")
    assert "is of another job (distill.steps was 2 and is now 3)" in changed
    assert "is of another job (mean was" in refused(capfd, here, "recipe.yaml", "data.name=digits")
    assert json.loads((here / "out" / "scores.json").read_text())["rows"] == scores.rows


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("replay.tasks=4", "`replay.tasks` must be at most 3, the number of classes, got 4. Lower it."),
        (
            "replay.tasks=0",
            "`replay.tasks` must be a whole number of at least 1, or a list of whole numbers of at least 1, got 0",
        ),
        ("replay.task=2", "Did you mean `replay.tasks`?"),
        ("replay.weight=2", "`replay.weight` must be a finite number of at least 0 and of at most 1, or null, got 2"),
        ("distill.classes=[rows]", "`distill.classes` must be left out in replay, got ['rows']. Each task has its own"),
        ("network.depth=9", "`network.depth` must be at most 3 with image_size 8, as each block halves the image, got"),
        ("output=recipe.yaml", "Cannot write 'recipe.yaml/scores.json'"),
    ],
)
def test_what_the_command_cannot_do(here: Path, capfd: pytest.CaptureFixture[str], override: str, pattern: str) -> None:
    assert pattern in refused(capfd, here, "recipe.yaml", override)


def test_a_recipe_that_is_not_there(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "There is no 'trajectory'. Give a recipe (YAML)" in refused(capfd, here, "trajectory")


def test_a_memory_that_is_gone_is_told(whole: Path, tmp_path: Path) -> None:
    """Later tasks would be learned without it, and nobody would know."""
    shutil.copytree(whole / "before2", tmp_path / "job")
    (tmp_path / "job" / "task0" / "memory.beton").unlink()
    with pytest.raises(InputError, match="'.*task0/memory.beton' must be there, as the memory after task 1 had images"):
        run(tmp_path / "job", stop)
    scores = Scores.read(tmp_path / "job" / "scores.json")
    assert scores.memory == [2, 4][: len(scores.rows)] and scores.has_memory_after(0)
    assert not Scores({}, [[0.5], [0.5, 0.5]], [3]).has_memory_after(0), "an earlier version did not note it"
    assert Scores({}, [[0.5], [0.5, 0.5]], [3]).has_memory_after(1) and not Scores({}, [[0.5]], [0]).has_memory_after(0)
