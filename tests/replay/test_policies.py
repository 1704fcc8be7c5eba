"""Replay policies, through learn() and the command line, beside loops written from their definitions."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.patterned import learner_pools, patterned
from tgdd_plugin import DistillSettings, InputError, cli, distill, read_beton
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.networks import convnet
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.learner import learn
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.policies import TaskResult, replay_policy, reservoir
from tgdd_plugin.replay.settings import PolicyName, ReplaySettings
from tgdd_plugin.replay.tasks import Task, split_classes

NAMES = get_args(PolicyName)
COUNT = 2
Kept = dict[str, set[bytes]]  # the pixels of the images in a memory, by class


def build(classes: int) -> nn.Module:
    return convnet(classes, 1, 8, depth=1, width=4)


def content(memory: ReplayMemory) -> Kept:
    kept: Kept = defaultdict(set)
    for image, label in zip(memory.images, memory.labels.tolist(), strict=True):
        kept[memory.classes[label]].add(image.numpy().tobytes())
    return kept


def own(pool: ImagePool, name: str) -> torch.Tensor:
    return pool.images[pool.labels == pool.classes.index(name)]


def drawn(task: Task, seed: int) -> Kept:
    """The first images of a random order of each class."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name in task.new:
        images = own(task.train, name)
        order = torch.randperm(len(images), generator=generator).tolist()
        kept[name] = {images[position].numpy().tobytes() for position in order[:COUNT]}
    return kept


def herded(
    task: Task, network: nn.Module, normalization: Normalization, count: int, among: Callable[[str], torch.Tensor]
) -> Kept:
    """Algorithm 4 of iCaRL: always the image that brings the mean of the chosen ones nearest to that of the class."""
    kept = {}
    for name in task.new:
        images = among(name)
        with torch.no_grad():
            features = network.eval().features(normalization(images)).flatten(1).double().numpy()  # type: ignore
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        chosen: list[int] = []
        for size in range(1, count + 1):
            distances = [
                np.inf if i in chosen else np.linalg.norm(features.mean(0) - features[[*chosen, i]].sum(0) / size)
                for i in range(len(images))
            ]
            chosen.append(int(np.argmin(distances)))
        kept[name] = {images[position].numpy().tobytes() for position in chosen}
    return kept


def sampled(tasks: Sequence[Task], budget: int, seed: int) -> Kept:
    """Algorithm R: image number t takes a slot with probability budget / t, whichever it is."""
    generator = torch.Generator().manual_seed(seed)
    slots: dict[int, tuple[str, bytes]] = {}
    seen = 0
    for task in tasks:
        order = torch.randperm(len(task.train), generator=generator).tolist()
        uniform = torch.rand(len(task.train), generator=generator, dtype=torch.float64).tolist()
        for position, u in zip(order, uniform, strict=True):
            slot = seen if seen < budget else int(u * (seen + 1))
            seen += 1
            if slot < budget:
                name = task.train.classes[int(task.train.labels[position])]
                slots[slot] = (name, task.train.images[position].numpy().tobytes())
    kept: Kept = defaultdict(set)
    for name, image in slots.values():
        kept[name].add(image)
    return kept


def distilled(task: Task, place: Path, path: Path, settings: DistillSettings) -> Kept:
    """What distill() makes of the trajectory of the task's training."""
    network = build(task.train.num_classes)
    network.load_state_dict(load_file(place / "network.safetensors"))
    real = None if settings.source == "recorded" else task.train
    given = replace(settings, classes=task.new)
    distill(place / "trajectory", real, path, given, network=network, device="cpu", progress_bar=False)
    images, labels = read_beton(path)
    return {
        name: {image.numpy().tobytes() for image in images[labels == number]} for number, name in enumerate(task.new)
    }


def exemplars(trajectory: Path, task: Task, name: str) -> torch.Tensor:
    """The images of a class that the recording of a task keeps."""
    kept = load_file(trajectory / "training" / "exemplars.safetensors")
    return kept["images"][kept["labels"] == task.train.classes.index(name)]


def check_memories(
    policy: str, folder: Path, tasks: Sequence[Task], normalization: Normalization, settings: DistillSettings
) -> None:
    """Compares the memory after each task with what the policy is defined to keep, the random seed being 0."""
    wanted: Kept = {}
    for number, task in enumerate(tasks):
        place = folder / f"task{number}"
        network = build(task.train.num_classes)
        network.load_state_dict(load_file(place / "network.safetensors"))
        if policy == "random":
            wanted |= drawn(task, 0)
        elif policy == "herding":
            wanted |= herded(task, network, normalization, COUNT, functools.partial(own, task.train))
        elif policy == "hybrid":
            among = functools.partial(own, task.train)
            if settings.source == "recorded":
                among = functools.partial(exemplars, place / "trajectory", task)
            real = herded(task, network, normalization, 1, among)
            made = distilled(task, place, folder / f"again{number}.beton", replace(settings, images_per_class=1))
            wanted |= {name: real[name] | made[name] for name in task.new}
        elif policy == "reservoir":
            wanted = sampled(tasks[: number + 1], COUNT * tasks[-1].train.num_classes, 0)
        else:
            wanted |= distilled(task, place, folder / f"again{number}.beton", settings)
        memory = ReplayMemory.load(place / "memory.beton")
        assert content(memory) == wanted and memory.classes == tasks[-1].train.classes
        assert policy == "reservoir" or {len(images) for images in wanted.values()} == {COUNT}


def test_a_reservoir_of_other_tasks_than_those_learned_is_refused(tmp_path: Path) -> None:
    """Equal ones included, as a second call of split_classes() makes them."""
    pools = patterned(1, per_class=4).split(1 / 2, torch.Generator().manual_seed(0))
    ours, theirs = (split_classes(*pools, ReplaySettings(tasks=2)) for _ in range(2))
    result = TaskResult(theirs[0], build(1), tmp_path, tmp_path / "trajectory", 0)
    policy = reservoir(ours, 4, Normalization([0.4], [0.3]))
    with pytest.raises(InputError, match=r"`tasks` of reservoir\(\) must be the tasks that are learned, got 2 without"):
        policy(result)
    assert isinstance(policy(replace(result, task=ours[0])), ReplayMemory)


@pytest.mark.parametrize("name", ["random", "reservoir"])
def test_the_seed_of_the_learner_is_that_of_the_draw(tmp_path: Path, name: PolicyName) -> None:
    tasks = split_classes(*learner_pools(), ReplaySettings(tasks=1))
    policy = replay_policy(name, tasks, DistillSettings(images_per_class=COUNT), Normalization([0.4], [0.3]))
    kept = []
    for seed in (0, 3):
        memory: Any = policy(TaskResult(tasks[0], build(3), tmp_path, tmp_path / "trajectory", seed))
        kept.append(content(memory))
        assert kept[-1] == (drawn(tasks[0], seed) if name == "random" else sampled(tasks, COUNT * 3, seed))
    assert kept[0] != kept[1]


@pytest.mark.parametrize("policy", NAMES)
def test_a_memory_has_what_its_policy_keeps(tmp_path: Path, policy: PolicyName) -> None:
    pools = patterned(1, per_class=12).split(1 / 3, torch.Generator().manual_seed(0))
    tasks = split_classes(*pools, ReplaySettings(tasks=2, order=1))
    settings = DistillSettings(images_per_class=COUNT, factor=1, start="mix", steps=3, source="recorded")
    training = RecordSettings(epochs=1, batch_size=5, cutmix=0.0, augmentation="crop", exemplars=4)
    normalization = Normalization([0.4], [0.3])
    learn(
        tasks,
        build,
        tmp_path,
        replay_policy(policy, tasks, settings, normalization, "cpu"),
        COUNT,
        training,
        mean=[0.4],
        std=[0.3],
        device="cpu",
        progress_bar=False,
    )
    check_memories(policy, tmp_path, tasks, normalization, settings)


# The command, on six of the embedded digits of each class.

DATA = DataSettings(name="digits", per_class=6)
RECIPE = """
device: cpu
data: {name: digits, per_class: 6}
network: {name: convnet, depth: 1, width: 4}
record: {epochs: 1, augmentation: crop, cutmix: 0.0}
distill: {images_per_class: 2, factor: 1, steps: 2, real_per_class: 3}
replay: {tasks: 2, order: 3}
"""
DISTILL = DistillSettings(images_per_class=COUNT, factor=1, start="mix", steps=2, real_per_class=3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replay(*overrides: str) -> int:
    return cli.main(["replay", "recipe.yaml", *overrides])


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outputs" / "scores.json").read_text())


def refused(capfd: pytest.CaptureFixture[str], *overrides: str) -> str:
    capfd.readouterr()
    assert replay(*overrides) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tgdd: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("policy", NAMES)
def test_the_command_follows_the_policy_of_the_recipe(here: Path, policy: str) -> None:
    assert replay(f"replay.policy={policy}", "distill.start=mix") == 0
    train, test = load_data(DATA)
    tasks = split_classes(train, test, ReplaySettings(tasks=2, order=3))
    check_memories(policy, here / "outputs", tasks, Normalization(*train.statistics()), DISTILL)
    about = scores(here)["about"]
    assert about["policy"] == policy and "policy" not in about["replay"]
    assert ("distill" in about) == (policy in ("distilled", "hybrid"))
    assert about.get("real_share") == (0.5 if policy == "hybrid" else None)


def test_another_policy_is_another_job(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert replay() == 0
    before = scores(here)
    assert "is of another job (policy was 'distilled' and is now 'random')" in refused(capfd, "replay.policy=random")
    assert scores(here) == before


def test_a_folder_of_before_the_key_goes_on(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert replay() == 0
    whole = scores(here)
    earlier = {**whole, "about": {name: value for name, value in whole["about"].items() if name != "policy"}}
    earlier |= {key: whole[key][:1] for key in ("rows", "memory")}
    (here / "outputs" / "scores.json").write_text(json.dumps(earlier))
    assert "(policy was 'distilled' and is now 'herding')" in refused(capfd, "replay.policy=herding")
    assert replay() == 0 and scores(here) == whole


def test_settings_of_distilling_are_the_distilled_policys_alone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A factor that does not divide the side, and classes of one's own."""
    wrong = ["distill.factor=3", "distill.classes=['0']"]
    assert "`distill.classes` must be left out in replay" in refused(capfd, *wrong[1:])
    assert not (here / "outputs" / "scores.json").exists()
    assert replay("replay.policy=random", *wrong) == 0
    done = scores(here)
    assert replay("replay.policy=random", "distill.steps=7") == 0 and scores(here) == done, "it is the same job"
    assert "images_per_class was 2 and is now 3" in refused(capfd, "replay.policy=random", "distill.images_per_class=3")


@pytest.mark.parametrize("policy", ["random", "herding"])
def test_too_few_images_are_found_out_before_any_training(
    here: Path, capfd: pytest.CaptureFixture[str], policy: str
) -> None:
    error = refused(capfd, f"replay.policy={policy}", "distill.images_per_class=7")
    assert "`images_per_class` must be at most 6, as class '" in error and "got 7. Lower it" in error
    assert not (here / "outputs" / "scores.json").exists()


def test_without_exemplars_a_hybrid_memory_has_no_real_images(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line tells it; with the images, or with one image of each class, the same job goes through."""
    hybrid = ["replay.policy=hybrid", "distill.source=recorded", "distill.start=noise", "record.exemplars=0"]
    assert "`record.exemplars` must be at least 1 for replay.policy 'hybrid'" in refused(capfd, *hybrid)
    assert replay(*hybrid, "distill.images_per_class=1", "output=one") == 0
    assert replay(*hybrid[:1], *hybrid[2:], "output=sampled") == 0


@pytest.mark.parametrize("factor", [1, 2])
def test_each_kind_has_its_share(tmp_path: Path, factor: int) -> None:
    """Of four images of each class three are real at a share of 0.75, and with a factor each holds four of them."""
    pools = patterned(1, per_class=24).split(1 / 3, torch.Generator().manual_seed(0))
    tasks = split_classes(*pools, ReplaySettings(tasks=1))
    settings = DistillSettings(images_per_class=4, factor=factor, steps=3, real_per_class=4, packed=factor > 1)
    policy = replay_policy("hybrid", tasks, settings, Normalization([0.4], [0.3]), "cpu", real_share=0.75)
    training = RecordSettings(epochs=1, batch_size=16, cutmix=0.0, augmentation="crop")
    learn(tasks, build, tmp_path, policy, 4, training, mean=[0.4], std=[0.3], device="cpu", progress_bar=False)
    memory = ReplayMemory.load(tmp_path / "task0" / "memory.beton")
    assert memory.counts.tolist() == [4] * 3 and memory.factor == factor
    side = 8 // factor
    small = F.interpolate(pools[0].images.float(), size=(side, side), mode="bilinear", antialias=True)
    parts = memory.images.float().unfold(2, side, side).unfold(3, side, side)
    parts = parts.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (N, f², C, h, w): what each stored image holds
    # Every part of a real one is a real image, shrunk, but for the rounding to uint8.
    real = (parts[:, :, None] - small).abs().amax((-3, -2, -1)).amin(2).amax(1) <= 0.51
    assert memory.labels[real].bincount().tolist() == [3, 3, 3]


@pytest.mark.parametrize("count", [4, 16])  # of 16
def test_the_real_images_are_others_than_those_that_the_distilled_ones_start_from(tmp_path: Path, count: int) -> None:
    """Of a rate of 0 the distilled images are those of the start; together the two kinds are what herding selects."""
    pools = patterned(1, per_class=24).split(1 / 3, torch.Generator().manual_seed(0))
    (task,) = split_classes(*pools, ReplaySettings(tasks=1))
    settings = DistillSettings(
        images_per_class=count, factor=1, steps=1, real_per_class=4, start="herding", learning_rate=0.0
    )
    normalization = Normalization([0.4], [0.3])
    training = RecordSettings(epochs=1, batch_size=16, cutmix=0.0, augmentation="crop")
    how: dict[str, Any] = {"mean": [0.4], "std": [0.3], "device": "cpu", "progress_bar": False}
    policy = replay_policy("hybrid", [task], settings, normalization, "cpu")
    learn([task], build, tmp_path, policy, count, training, **how)
    network = build(3)
    network.load_state_dict(load_file(tmp_path / "task0" / "network.safetensors"))
    memory = ReplayMemory.load(tmp_path / "task0" / "memory.beton")
    assert content(memory) == herded(task, network, normalization, count, functools.partial(own, task.train))


def test_real_images_are_not_made_up(tmp_path: Path) -> None:
    """As the start of a distilled image is where a class has too few: a memory of both kinds needs them."""
    pool = patterned(1, per_class=24)
    few = pool.subset(torch.arange(23, 72))  # one image of the first class
    (task,) = split_classes(few, pool, ReplaySettings(tasks=1))
    settings, normalization = (
        DistillSettings(images_per_class=4, factor=2, start="mix", real_per_class=4),
        Normalization([0.4], [0.3]),
    )
    with pytest.raises(InputError, match="Class 'rows' must have at least 8 images in each .* got 1. Lower images_per"):
        replay_policy("hybrid", [task], settings, normalization)
    with pytest.raises(InputError, match="Class 'rows' must have at least 16 images"):
        replay_policy("hybrid", [task], replace(settings, start="herding"), normalization)
    replay_policy("hybrid", [task], replace(settings, images_per_class=1), normalization)  # which keeps no real one
    with pytest.raises(InputError, match="`factor` must divide both sides of the images, 8x8 pixels, got 3"):
        replay_policy("distilled", [task], replace(settings, factor=3), Normalization([0.4], [0.3]))


def test_a_policy_that_is_not_known(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    error = refused(capfd, "replay.policy=icarl")
    assert "`replay.policy` must be" in error and "got 'icarl'" in error and all(name in error for name in NAMES)
    with pytest.raises(InputError, match="`policy` must be .*, got 'icarl'"):
        ReplaySettings(policy="icarl")  # type: ignore[arg-type]
