"""The benchmark of continual learning, on a few epochs and steps of the embedded digits; and the loop by hand."""

from __future__ import annotations

import argparse
import hashlib
import json
import runpy
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from benchmarks import harness, replay, results
from tests.common import refused, timeless
from tgdd_plugin import ImagePool, Trajectory
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.networks import convnet
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.replay import policies
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import train_network

ROOT = Path(__file__).parents[2]


RECIPE = str(ROOT / "recipes" / "digits.yaml")
SMALL = "device=cpu data.per_class=12 network.depth=1 network.width=4 record.epochs=2 record.batch_size=16".split()
SMALL += "distill.images_per_class=2 distill.steps=3 distill.real_per_class=4 retrain.epochs=4 retrain.seeds=1".split()
SMALL.append("retrain.protocol=paper")
SMALL += ["replay.tasks=2"]
LEARNERS = ["finetune", "random", "reservoir", "herding", "distilled-sampled", "distilled-recorded"]
LEARNERS += ["hybrid-sampled", "hybrid-recorded"]
SCRATCH = [f"{name}-scratch" for name in LEARNERS if name not in ("finetune", "reservoir")]


def run(output: Path, *options: str, small: list[str] = SMALL) -> int:
    return replay.main([RECIPE, "--output", str(output), *options, "--", *small])


def content(folder: Path, order: int = 0) -> dict[str, Any]:
    """The rows of an order by name, without seconds."""
    begin = f"digits-classes-order{order}-"
    return {row["name"].removeprefix(begin): timeless(row) for row in results.read_rows(folder) if begin in row["name"]}


def work(folder: Path, name: str) -> Path:
    (found,) = (path for path in (folder / "work").glob(f"*-{name}-*") if path.name.rpartition("-")[0].endswith(name))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted command, with a second order for the cheapest method."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, "--orders", "0", "--gdumb", "each") == 0
    assert run(folder, "--orders", "0", "1", "--methods", "finetune", "joint") == 0
    return folder


def test_a_recipe_that_leaves_the_size_of_the_memory_out_has_the_packages(tmp_path: Path) -> None:
    recipe = read_recipe(
        RECIPE, [*SMALL, "distill.images_per_class=null", "distill.factor=null", "record.exemplars=10"]
    )
    options = argparse.Namespace(
        orders=[0], methods=["herding", "distilled"], source=["sampled", "recorded"], gdumb=None, domain=False,
        images_per_class=None, output=tmp_path, networks=1, minutes=None,
    )  # fmt: skip
    comparison = replay.Comparison(harness.Bench(recipe, options), options)
    assert comparison.count == 10
    made = [case.distill for case in comparison.cases if case.distill]
    assert [(each.images_per_class, each.factor, each.packed) for each in made] == [(10, 1, False)] * 2


def test_a_row_for_each_method_all_of_the_same_bytes(whole: Path) -> None:
    found = content(whole)
    assert set(found) == {*LEARNERS, *SCRATCH, "joint"}
    for name, row in found.items():
        (entry,) = row["networks"]
        lengths = [len(line) for line in entry["matrix"]]
        assert lengths == ([2] if name == "joint" else [1, 2])
        assert entry["accuracy"] == pytest.approx(mean(entry["matrix"][-1]))
        if name in ("finetune", "joint"):
            assert not row.get("stored") and "images_per_class" not in row["settings"]
        else:
            assert (row["stored"], row["bytes"]) == (20, 20 * 64)
        assert len(row["tasks"]) == 2 and row["classes_seen"] == [5, 10]
    assert found["distilled-recorded"]["settings"]["distill"]["source"] == "recorded"
    assert not list((whole / "work").glob("*/task*/trajectory")), "they would fill a disk"


def test_memories_hold_images_of_the_training_set(whole: Path) -> None:
    """Real ones for all but the distilled; of each class as many, but for the reservoir."""
    train_pool, _ = load_data(DataSettings(per_class=12))
    real = {(image.numpy().tobytes(), train_pool.classes[label]) for image, label in _pairs(train_pool)}
    for name in LEARNERS[1:]:
        memory = ReplayMemory.load(work(whole, name) / "task1" / "memory.beton")
        held = [(image.numpy().tobytes(), memory.classes[label]) for image, label in _pairs(memory)]
        made = name.startswith(("distilled", "hybrid"))
        assert (set(held) <= real) == (not made), name
        if name.startswith("hybrid"):
            assert sum(each in real for each in held) == 10, "half of them"
        assert name == "reservoir" or memory.counts.tolist() == [2] * 10
        assert len(memory) == 20 and (made or len(set(held)) == 20)


def _pairs(pool: Any) -> list[tuple[torch.Tensor, int]]:
    return list(zip(pool.images, pool.labels.tolist(), strict=True))


def test_herding_is_icarls_by_the_network_of_that_task(whole: Path) -> None:
    place = work(whole, "herding") / "task1"
    memory = ReplayMemory.load(place / "memory.beton")
    network = convnet(10, 1, 8, depth=1, width=4).eval()
    network.load_state_dict(load_file(place / "network.safetensors"))
    train_pool, _ = load_data(DataSettings(per_class=12))
    shift, scale = train_pool.statistics()
    for label in range(5, 10):
        own = train_pool.images[train_pool.labels == train_pool.classes.index(memory.classes[label])]
        with torch.no_grad():
            features = network.features((own.float() / 255 - shift[0]) / scale[0]).flatten(1).double().numpy()
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        chosen: list[int] = []
        for size in (1, 2):
            distances = [
                np.inf if i in chosen else np.linalg.norm(features.mean(0) - features[[*chosen, i]].sum(0) / size)
                for i in range(len(own))
            ]
            chosen.append(int(np.argmin(distances)))
        kept = {image.numpy().tobytes() for image in memory.images[memory.labels == label]}
        assert kept == {own[i].numpy().tobytes() for i in chosen}


def test_from_scratch_is_a_training_on_the_memory_alone(whole: Path) -> None:
    place = work(whole, "herding")
    (entry,) = content(whole)["herding-scratch"]["networks"]
    train_pool, test_pool = load_data(DataSettings(per_class=12))
    scale = train_pool.statistics()
    normalization = Normalization(*scale)
    settings = TrainSettings(epochs=4, augmentation="color_crop")
    for number, count in ((0, 5), (1, 10)):
        memory = ReplayMemory.load(place / f"task{number}" / "memory.beton")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = convnet(count, 1, 8, depth=1, width=4)
        loader = DeviceLoader(memory.images, memory.labels, normalization, batch_size=64, device="cpu")
        train_network(network, loader, count, settings, device="cpu")
        found = []
        for part in (range(0, 5), range(5, 10))[: number + 1]:
            names = [memory.classes[label] for label in part]
            own = [i for i, label in enumerate(test_pool.labels.tolist()) if test_pool.classes[label] in names]
            answers = network.eval()((test_pool.images[own].float() / 255 - scale[0][0]) / scale[1][0]).argmax(1)
            wanted = [memory.classes.index(test_pool.classes[label]) for label in test_pool.labels[own].tolist()]
            found.append((answers == torch.tensor(wanted)).double().mean().item())
        assert entry["matrix"][number] == pytest.approx(found)


def test_every_image_of_a_stream_is_as_likely_to_be_in_the_reservoir() -> None:
    sizes, budget, trials = [7, 3, 6], 4, 4000
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(trials):
        kept = policies.sample_stream(sizes, budget, seed)
        assert len(kept) == len(set(kept)) == budget
        counts.update(kept)
    stream = [(task, position) for task, size in enumerate(sizes) for position in range(size)]
    wanted = trials * budget / len(stream)
    spread = (trials * 0.25 * 0.75) ** 0.5
    assert all(abs(counts[one] - wanted) < 5 * spread for one in stream)
    assert sorted(policies.sample_stream([3], budget, 0)) == [(0, 0), (0, 1), (0, 2)], "fewer than there is room for"


def test_the_reservoir_of_a_task_goes_on_from_the_one_before() -> None:
    earlier, later = (policies.sample_stream(sizes, 5, 1) for sizes in ([30], [30, 4]))
    assert sum(one == other for one, other in zip(earlier, later, strict=True)) >= 1
    assert {one for one in later if one[0] == 0} <= set(earlier)


def test_stopped_anywhere_the_same_command_ends_with_the_same_rows(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def over(self: Any) -> bool:
        nonlocal asked
        asked += 1
        return asked % 5 == 0

    monkeypatch.setattr(harness.Deadline, "over", over)
    options = "--orders 0 --gdumb each --source recorded --methods joint distilled".split()
    stops = 0
    while (status := run(tmp_path, *options)) == results.TIME_UP:
        stops += 1
    assert status == 0 and stops > 3
    wanted = content(whole)
    assert content(tmp_path) == {n: wanted[n] for n in ("joint", "distilled-recorded", "distilled-recorded-scratch")}


def test_finished_rows_need_no_work_and_a_lost_memory_is_made_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in whole.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    earlier = content(tmp_path)
    assert run(tmp_path, "--orders", "0", "--gdumb", "each") == 0
    assert content(tmp_path) == earlier and not (tmp_path / "work").exists()
    (path,) = tmp_path.glob("*random-scratch.json")
    path.unlink()
    assert run(tmp_path, "--orders", "0", "--gdumb", "each", "--methods", "random") == 0
    assert content(tmp_path) == earlier


def test_rows_and_work_of_version_0_1_go_on(whole: Path, tmp_path: Path) -> None:
    """A row of before the keys were renamed is taken for what it is, and its folder of work has the name it had."""

    def earlier(settings: Any) -> Any:
        names = {"grayscale": "grey", "finetune_epochs": "tune"}
        return {names.get(n, n): earlier(v) for n, v in settings.items()} if isinstance(settings, dict) else settings

    (path,) = whole.glob("*order0-random.json")
    row = json.loads(path.read_text())
    settings = earlier(row["settings"])
    assert settings["replay"] == {"tasks": 2, "order": 0, "ratio": 1.0, "weight": None, "tune": 0}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    assert work(whole, "random").name == f"{row['name']}-{key}"
    (tmp_path / path.name).write_text(json.dumps({**row, "settings": settings}))
    assert run(tmp_path, "--orders", "0", "--methods", "random") == 0
    assert content(tmp_path)["random"]["networks"] == content(whole)["random"]["networks"]
    assert not (tmp_path / "work").exists()


def test_the_table_has_means_over_orders(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["--table", "--output", str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    table = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    assert [(line["memory"], line["source"], line["form"]) for line in table] == [
        ("finetune", "", "replay"),
        ("joint", "", ""),
        ("random", "", "replay"),
        ("reservoir", "", "replay"),
        ("herding", "", "replay"),
        ("distilled", "recorded", "replay"),
        ("distilled", "sampled", "replay"),
        ("hybrid", "recorded", "replay"),
        ("hybrid", "sampled", "replay"),
        ("random", "", "from scratch"),
        ("herding", "", "from scratch"),
        ("distilled", "recorded", "from scratch"),
        ("distilled", "sampled", "from scratch"),
        ("hybrid", "recorded", "from scratch"),
        ("hybrid", "sampled", "from scratch"),
    ]
    matrices = [content(whole, order)["finetune"]["networks"][0]["matrix"] for order in (0, 1)]
    forgotten = [100 * (matrix[0][0] - matrix[1][0]) for matrix in matrices]
    assert table[0]["forgetting"] == f"{mean(forgotten):.1f} ± {stdev(forgotten):.1f} (2)"
    assert table[1]["average accuracy"] and not table[1]["forgetting"], "of the last task alone"
    assert (table[2]["images"], table[2]["memory, KiB"]) == ("20", "1.2") and not table[0]["images"]
    text = "\n".join(lines)
    assert "test images" in text and ("Plot: " in text or "No plot: matplotlib is not installed." in text)


def test_domains_are_the_same_classes_in_another_appearance(tmp_path: Path) -> None:
    train_pool, test_pool = load_data(DataSettings(per_class=12))
    tasks = replay.domain_tasks(train_pool, test_pool, replay.ReplaySettings(tasks=5, order=2))
    looks = [lambda x: x, lambda x: 255 - x, lambda x: np.rot90(x, axes=(2, 3)), lambda x: x // 2 + 64]
    assert len(tasks) == 4
    used, seen = [], set()
    for task in tasks:
        assert task.new == task.train.classes == train_pool.classes and task.train.counts.tolist() == [3] * 10
        (look,) = (i for i, f in enumerate(looks) if np.array_equal(f(test_pool.images.numpy()), task.test.images))
        used.append(look)
        turned = [looks[look](image[None].numpy())[0].tobytes() for image in train_pool.images]
        seen |= {turned.index(image.numpy().tobytes()) for image in task.train.images}
    assert sorted(used) == [0, 1, 2, 3] and len(seen) == 120, "no image comes twice"
    options = ["--domain", "--orders", "0", "--methods", "random", "distilled", "--source", "recorded"]
    assert run(tmp_path, *options) == 0
    found = results.read_rows(tmp_path)
    assert {row["stored"] for row in found} == {2 * 10 * 2} and {row["scenario"] for row in found} == {"domains"}


def test_bad_input_ends_in_one_line(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = partial(refused, capsys, replay.main)
    output = ["--output", str(tmp_path), "--orders", "0"]
    assert "name a recipe" in told()
    assert "invalid choice: 'icarl'" in told(RECIPE, "--methods", "icarl")
    assert "`replay.tasks` must be at most 10, the number of classes, got 11. Lower it." in told(
        RECIPE, *output, "--", *SMALL, "replay.tasks=11"
    )
    many = told(RECIPE, *output, "--methods", "random", "--images-per-class", "13", "--", *SMALL)
    assert "`images_per_class` must be at most 12, as class" in many and "got 13. Lower it" in many
    assert "give record.exemplars=" in told(
        RECIPE, *output, "--images-per-class", "12", "--", *SMALL, "record.exemplars=4"
    )
    there = ["--output", str(whole), "--orders", "0"]
    assert "replay.ratio was 1.0 and is now 2.0" in told(
        RECIPE, *there, "--methods", "random", "--", *SMALL, "replay.ratio=2"
    )
    assert not list(tmp_path.iterdir())


# The loop written by hand.


class Ten(Dataset):
    """In place of torchvision's CIFAR10: eight images of each class, whose colour is the class'."""

    classes = [f"class {label}" for label in range(10)]

    def __init__(self, root: str, train: bool, transform: Any, download: bool) -> None:
        self.targets = [label for label in range(10) for _ in range(8 if train else 2)]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        generator = np.random.default_rng(index)
        pixels = generator.integers(
            20 * self.targets[index], 20 * self.targets[index] + 60, (32, 32, 3), dtype=np.uint8
        )
        return self.transform(Image.fromarray(pixels)), self.targets[index]


def test_the_script_learns_all_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = (ROOT / "recipes" / "replay_tasks.py").read_text()
    small = tmp_path / "script.py"
    small.write_text(script.replace("images_per_class=10, factor=1", "images_per_class=2, factor=1"))
    assert small.read_text() != script
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Ten)
    monkeypatch.setattr(sys, "argv", [str(small), "--epochs", "1", "--steps", "1", "--width", "4"])
    runpy.run_path(str(small))
    table = capfd.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:7]]
    for number, (task, *row) in enumerate(cells, 1):
        known = [float(cell) for cell in row[:number]]
        assert int(task) == number and row[number:5] == [""] * (5 - number)
        assert float(row[-1]) == pytest.approx(sum(known) / number, abs=0.1)
    assert "average accuracy" in table[-1]
    memory = ReplayMemory.load("replay/memory.beton")
    assert memory.classes == Ten.classes and memory.counts.tolist() == [2] * 10 and memory.factor == 1
    for number in range(5):
        run = Trajectory.open(f"replay/task{number}").run
        assert run.classes == Ten.classes and run.augmentation == "crop_flip"
    assert isinstance(Trajectory.open("replay/task4").exemplars(), ImagePool)
    assert json.loads(Path("replay/task4/task4/manifest.json").read_text())["exemplars"]
