"""ReplayMemory: what it keeps beside herding written out by hand, what it draws, and what Avalanche does with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tgdd_plugin.beton.card import Card, card_path, read_card
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay import memory as memory_module
from tgdd_plugin.replay.avalanche import AvalancheBuffer
from tgdd_plugin.replay.budget import Budget
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.ordering import draw

SHAPE = (3, 4, 6)
BYTES = 3 * 4 * 6
SCALE: dict[str, Any] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
NAMES = ["cat", "dog", "ship", "tree", "car"]


def pictures(count: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator).to(torch.uint8)


def pool(names: list[str], per_class: int = 8, seed: int = 0) -> ImagePool:
    labels = torch.arange(len(names)).repeat(per_class)
    return ImagePool(pictures(len(labels), seed), labels, names)


def beton(path: Path, names: list[str], per_class: int = 3, seed: int = 0, **changes: Any) -> Path:
    labels = torch.arange(len(names)).repeat_interleave(per_class)
    card = Card(classes=names, images=0, images_per_class=per_class, shape=[], **SCALE)
    return write_beton(path, pictures(len(labels), seed), labels, replace(card, **changes))


def herd(images: torch.Tensor, count: int) -> list[int]:
    """iCaRL's algorithm 4 on pixels."""
    rows = images.double().flatten(1).numpy() / 255
    chosen: list[int] = []
    while len(chosen) < count:
        distances = [
            np.linalg.norm(rows.mean(0) - (rows[i] + rows[chosen].sum(0)) / (len(chosen) + 1))
            if i not in chosen
            else np.inf
            for i in range(len(rows))
        ]
        chosen.append(int(np.argmin(distances)))
    return chosen


def best(pool: ImagePool, label: int, count: int) -> torch.Tensor:
    own = pool.images[pool.labels == label]
    return own[herd(own, count)]


def held(memory: ReplayMemory, name: str) -> torch.Tensor:
    return memory.images[memory.labels == memory.classes.index(name)]


def state(memory: ReplayMemory) -> Any:
    return (
        memory.images.tolist(),
        memory.labels.tolist(),
        memory.sources.tolist(),
        memory.decoded.tolist(),
        list(memory.classes),
        list(memory.tasks),
        (memory.mean, memory.std, memory.factor, memory.budget, memory.growing),
    )


BUDGETS = {
    "each class": ({"images_per_class": 3}, [[3] * 2, [3] * 4, [3] * 5]),
    "images": ({"total_images": 14}, [[7, 7], [4, 4, 3, 3], [3, 3, 3, 3, 2]]),
    "bytes": ({"total_bytes": 14 * BYTES + 5}, [[7, 7], [4, 4, 3, 3], [3, 3, 3, 3, 2]]),
    "more than there are": ({"total_images": 1000}, [[8] * 2, [8] * 4, [8] * 5]),
}


@pytest.mark.parametrize(("budget", "shares"), BUDGETS.values(), ids=list(BUDGETS))
def test_each_class_keeps_its_best_images_as_others_come(budget: dict[str, int], shares: list[list[int]]) -> None:
    memory = ReplayMemory(**budget)  # type: ignore[arg-type]
    pools = [pool(NAMES[:2], seed=1), pool(NAMES[2:4], seed=2), pool(NAMES[4:], seed=3)]
    for task, share in enumerate(shares):
        memory.add(pools[task])
        for earlier in pools[: task + 1]:
            for label, name in enumerate(earlier.classes):
                assert torch.equal(held(memory, name), best(earlier, label, share[NAMES.index(name)]))
        assert len(memory) == sum(share)
        assert memory.nbytes == sum(share) * BYTES
        assert memory.counts.tolist() == share
        assert AvalancheBuffer(memory).max_size >= len(memory)
    assert memory.classes == NAMES and memory.shape == SHAPE
    assert [task.name for task in memory.tasks] == ["task 0", "task 1", "task 2"]
    assert memory.sources.unique_consecutive().tolist() == [0, 1, 2]


def test_the_order_is_that_of_the_given_features() -> None:
    """One feature, an image's red mean: the nearest to the class' mean comes first."""
    offered = pool(["cat"], 9)
    memory = ReplayMemory(images_per_class=1)
    memory.add(offered, features=lambda images: images[:, 0].double().mean((1, 2))[:, None])
    red = offered.images[:, 0].double().mean((1, 2))
    assert torch.equal(memory.images[0], offered.images[(red - red.mean()).abs().argmin()])
    with pytest.raises(
        InputError, match=r"`features` must return a row for each of the 9 images, \(9, D\), got shape \(9,\)"
    ):
        ReplayMemory(images_per_class=1).add(offered, features=lambda images: torch.zeros(len(images)))


def test_classes_are_known_by_their_names(tmp_path: Path) -> None:
    memory = ReplayMemory(NAMES, images_per_class=2, mean=[0.404, 0.5, 0.6], std=SCALE["std"])
    memory.add(beton(tmp_path / "a.beton", ["ship", "cat"], seed=1))  # its labels 0 and 1
    memory.add((pictures(4, 2), torch.tensor([0, 1, 0, 1])), classes=["tree", 4], name="by hand")
    memory.add((pictures(2, 3), torch.tensor([1, 1])))  # without names, ids
    assert memory.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert memory.sources.tolist() == [0, 0, 2, 2, 0, 0, 1, 1, 1, 1]
    images, labels = read_beton(tmp_path / "a.beton")
    assert torch.equal(held(memory, "ship"), images[labels == 0][herd(images[labels == 0], 2)])
    assert {tuple(image.flatten().tolist()) for image in held(memory, "car")} == {
        tuple(image.flatten().tolist()) for image in pictures(4, 2)[1::2]
    }
    assert memory.mean == [0.404, 0.5, 0.6]  # the card's is but rounded


def test_digits_in_any_order_are_known_by_their_names(tmp_path: Path) -> None:
    """A file of the classes 0 and 1 alone, whose labels are 0 and 1, too, in a memory that has other ids for them."""
    path = beton(tmp_path / "a.beton", ["0", "1"])
    images, labels = read_beton(path)
    memory = ReplayMemory(["6", "0", "3", "1"], images_per_class=3)
    memory.add(path)
    buffer = AvalancheBuffer(ReplayMemory(memory.classes, images_per_class=3), collect=lambda agent, experience: path)
    data = Normalised(pictures(2), [1, 3], None)
    buffer.post_adapt(None, SimpleNamespace(dataset=data, classes_in_this_experience=[1, 3]))
    for filled in (memory, buffer.memory):
        assert filled.counts.tolist() == [0, 3, 0, 3]
        assert torch.equal(held(filled, "0"), images[labels == 0][herd(images[labels == 0], 3)])
    unnamed = ReplayMemory(["dog", "cat"], images_per_class=3)
    unnamed.add(path)
    assert unnamed.labels.tolist() == labels.tolist(), "the numbers of a set whose classes have no names are ids"


def test_ids_of_a_head_that_grows(tmp_path: Path) -> None:
    memory = ReplayMemory(total_images=100)
    memory.add(beton(tmp_path / "a.beton", ["dog", "cat"]))
    memory.add(pool(["ship", "none", "car"]).subset(torch.tensor([0, 2, 3, 5])))
    assert memory.classes == ["dog", "cat", "ship", "car"]
    assert memory.normalization() == Normalization(SCALE["mean"], SCALE["std"])
    numbers = ReplayMemory(total_images=100)
    numbers.add(pool(["7", "2"]))
    numbers.add(pool(["0", "1", "2", "3"]).subset(torch.tensor([3, 7])))
    assert numbers.counts.tolist() == [0, 0, 8, 2, 0, 0, 0, 8]
    with pytest.raises(InputError, match="`mean` and `std` must be known to the memory, got neither"):
        numbers.normalization()


def test_a_number_that_is_no_id_of_the_class_is_refused() -> None:
    memory = ReplayMemory(total_images=100)
    memory.add(pool(["cat", "dog"]))
    with pytest.raises(InputError, match="number for a name only where .* got '0' where class 0 is 'cat'. Give other"):
        memory.add(pool(["ship", "0"]), domain=True)
    assert memory.classes == ["cat", "dog"] and memory.counts.tolist() == [8, 8]
    memory.add(pool(["0", "3"]), classes=["zero", "3"])
    assert memory.classes == ["cat", "dog", "zero", "3"]
    folders = ReplayMemory(total_images=100)
    folders.add(pool(["00", "01"]))  # names, as they are written otherwise than the ids
    assert folders.classes == ["00", "01"] and folders.counts.tolist() == [8, 8]


def test_domains_share_a_class() -> None:
    """A prefix of a class has as many of each domain, and each domain's best ones."""
    memory = ReplayMemory(NAMES[:2], total_images=10)
    pools = [pool(NAMES[:2], seed=seed) for seed in range(3)]
    memory.add(pools[0])
    for offered in pools[1:]:
        memory.add(offered, domain=True)
    for label in range(2):
        ranked = [best(offered, label, 2) for offered in pools]
        wanted = [ranked[0][0], ranked[1][0], ranked[2][0], ranked[0][1], ranked[1][1]]
        assert torch.equal(held(memory, NAMES[label]), torch.stack(wanted))
    assert memory.sources.tolist() == [0, 1, 2, 0, 1] * 2


@pytest.mark.parametrize("factor", [2, 3])
def test_stored_images_count_and_decoded_ones_are_drawn(tmp_path: Path, factor: int) -> None:
    shape = (3, 6, 12)
    labels = torch.arange(2).repeat_interleave(3)
    card = Card(classes=NAMES[:2], images=0, images_per_class=3, shape=[], factor=factor, packed=True, **SCALE)
    path = write_beton(tmp_path / "packed.beton", pictures(6, shape=shape), labels, card)
    memory = ReplayMemory(total_bytes=4 * 3 * 6 * 12)
    seen = []

    def features(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.flatten(1).double()

    memory.add(path, features=features)
    assert len(memory) == 4 and memory.nbytes == 4 * 3 * 6 * 12
    decoded, of = read_beton(path)
    assert torch.equal(seen[0], decoded)
    means = decoded.double().flatten(1).unflatten(0, (6, -1)).mean(1)  # one row for each stored image
    for label in range(2):
        order = herd(means[3 * label : 3 * label + 3], 2)
        assert torch.equal(held(memory, NAMES[label]), pictures(6, shape=shape)[3 * label :][order])
    images, drawn = memory.sample(4 * factor**2, torch.Generator().manual_seed(0))
    kept = {
        tuple(d.flatten().tolist()): int(c)
        for d, c in zip(decoded, of, strict=True)
        if any(torch.equal(d, one) for one in memory.decoded)
    }
    assert Counter(tuple(image.flatten().tolist()) for image in images) == Counter(list(kept))
    assert all(kept[tuple(i.flatten().tolist())] == int(c) for i, c in zip(images, drawn, strict=True))
    with pytest.raises(
        InputError,
        match=r"`source` must have images of \[3, 6, 12\] .* at factor .* like those in the memory, got .* at factor 1",
    ):
        memory.add((pictures(2, shape=shape), torch.tensor([0, 0])), classes=["ship"])
    again = ReplayMemory.load(memory.save(tmp_path / "memory.beton"))
    assert state(again) == state(memory) and again.factor == factor
    assert torch.equal(read_beton(tmp_path / "memory.beton")[0], memory.decoded)


def test_a_packed_memory_with_fewer_images_of_a_class(tmp_path: Path) -> None:
    memory = ReplayMemory(images_per_class=2)
    memory.add(beton(tmp_path / "a.beton", NAMES[:2], 3, 1, factor=2, packed=True))
    memory.add(beton(tmp_path / "b.beton", NAMES[2:3], 1, 2, factor=2, packed=True))
    assert memory.counts.tolist() == [2, 2, 1]
    again = ReplayMemory.load(memory.save(tmp_path / "memory.beton"))
    assert state(again) == state(memory)
    assert read_beton(tmp_path / "memory.beton")[1].tolist() == [0] * 8 + [1] * 8 + [2] * 4


def filled() -> ReplayMemory:
    memory = ReplayMemory(NAMES, total_images=11, **SCALE)
    memory.add(pool(["ship", "cat"], 4, 1), name="first", label=7)
    memory.add(pool(["dog"], 2, 2))
    memory.add(pool(["dog", "ship"], 4, 3), domain=True)
    return memory


@pytest.mark.parametrize("growing", [False, True])
def test_a_saved_memory_goes_on_as_it_was(tmp_path: Path, growing: bool) -> None:
    memory = filled()
    memory.growing = growing
    again = ReplayMemory.load(memory.save(tmp_path / "memory.beton"))
    assert state(again) == state(memory)
    assert again.counts.tolist() == [4, 3, 4, 0, 0]  # the remainder is of those that came first
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for one, other in zip(again.sample(20, generators[0]), memory.sample(20, generators[1]), strict=True):
        assert torch.equal(one, other)
    for one in (memory, again):
        one.add(pool(["tree"], 9, 4))
    assert state(again) == state(memory)
    assert again.counts.tolist() == [3, 3, 3, 2, 0]
    # For others it is a set like any.
    images, labels = read_beton(tmp_path / "memory.beton")
    assert labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    taken = ReplayMemory(images_per_class=1)
    taken.add(tmp_path / "memory.beton")
    assert taken.classes == NAMES[:3] and len(taken) == 3


def test_a_memory_of_an_earlier_version_noted_no_fingerprints(tmp_path: Path) -> None:
    path = filled().save(tmp_path / "memory.beton")
    card = read_card(path)
    tasks = [{key: value for key, value in task.items() if key != "fingerprint"} for task in card.method["tasks"]]
    replace(card, method={**card.method, "tasks": tasks}).write(path)
    again = ReplayMemory.load(path)
    assert [task.fingerprint for task in again.tasks] == [None] * 3
    again.add(pool(["tree"], 9, 4))
    again.save(path)
    memory = filled()
    memory.save(path)
    assert state(ReplayMemory.load(path)) == state(memory)


def test_a_damaged_memory_is_not_loaded(tmp_path: Path) -> None:
    path = filled().save(tmp_path / "memory.beton")
    card = read_card(path)
    other = beton(tmp_path / "set.beton", NAMES)
    with pytest.raises(InputError, match="is not a saved memory. Any other set can be added"):
        ReplayMemory.load(other)
    for changes, pattern in (
        ({"tasks": card.method["tasks"][:1]}, "The tasks in the card .* are not those of its images"),
        ({"tasks": [{"name": "a"}]}, "lacks what a memory needs .*label"),
        ({"growing": None, "tasks": 3}, "lacks what a memory needs"),
        ({"total_images": None}, "`total_bytes` must be a whole number of at least 1, got nothing"),
    ):
        replace(card, method={**card.method, **changes}).write(path)
        with pytest.raises(InputError, match=pattern):
            ReplayMemory.load(path)
    replace(card, factor=5).write(path)
    with pytest.raises(InputError, match="must say `packed: true` at factor 5"):
        ReplayMemory.load(path)
    card_path(path).unlink()
    with pytest.raises(InputError, match="is not a saved memory"):
        ReplayMemory.load(path)


def test_what_cannot_be_added_changes_nothing(tmp_path: Path) -> None:
    memory = filled()
    before = state(memory)
    one = torch.tensor([0, 0])
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (pool(["cat"]), {}, "`classes` must be new .*, got 'cat' of 'task 3', .*. Say with `classes` .*domain=True"),
        ((pictures(2), one), {}, "`classes` must be new to the memory, got 'cat' of 'task 3', which is in it already"),
        (pool(["bird"]), {}, r"`classes` must be among the memory's classes \(cat, dog, ship, tree, car\), got 'bird'"),
        ((pictures(2), one), {"classes": [5]}, "`classes` must be among the memory's classes .*, got '5'"),
        ((pictures(2), one), {"classes": [-1]}, "`classes` must be among the memory's classes .*, got '-1'"),
        ((pictures(2), one), {"classes": 3}, r"`classes` must be a list of names or whole numbers, got 3\. Say"),
        ((pictures(2), one), {"classes": [3.0]}, r"`classes` must be a list of names or whole numbers, got \[3\.0\]"),
        ((pictures(2), one), {"classes": np.array([3.5])}, "`classes` must be a list of names or whole numbers, got"),
        ((pictures(2), one, one), {}, "`source` must be a .beton, .* got a tuple"),
        (
            pool(["x", "y"]),
            {"classes": ["tree", 3]},
            "`classes` must be another class for each label, got 'tree' for two of them",
        ),
        (pool(["x", "y"]), {"classes": ["tree"]}, "`labels` must be 0..0 for 1 classes, got labels from 0 to 1"),
        (pool(["tree"]), {"name": "first"}, "`name` must be new to the memory, got 'first' again"),
        (
            (pictures(2, shape=(3, 8, 8)), one),
            {"classes": ["tree"]},
            r"images of \[3, 4, 6\] .* like those in the memory, got \[3, 8, 8\]",
        ),
        ((pictures(2, shape=(1, 4, 6)), one), {"classes": ["tree"]}, r"\[1, 4, 6\]"),
        ((pictures(2).float(), one), {"classes": ["tree"]}, r"`images` must be uint8 .*, got torch.float32"),
        ((pictures(2)[:0], one[:0]), {"classes": ["tree"]}, "got 0 images with 0 labels"),
        (
            beton(tmp_path / "a.beton", ["tree"], mean=[0.5] * 3),
            {},
            r"`source` must have the normalization of the memory, mean .*, got mean \[0.5, 0.5, 0.5\] .*Distill all",
        ),
        (tmp_path / "none.beton", {}, "There is no file"),
        ([(pictures(1)[0], 0)], {}, "`source` must be a .beton, .* got a list. Of a data set give ImagePool"),
        (pool(["tree"]), {"features": lambda images: images.flatten(1)}, "floating point"),
    ]
    for source, options, pattern in wrong:
        with pytest.raises(InputError, match=pattern):
            memory.add(source, **options)
        assert state(memory) == before
    with pytest.raises(
        InputError, match="`total_images` must be at least 3, one image for each of 3 classes, got 2. Raise it"
    ):
        AvalancheBuffer(memory).resize(None, 2)
    assert state(memory) == before


def test_where_there_is_no_memory_left_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding takes the most memory; the images that are stored then fit those that were decoded."""
    memory = ReplayMemory(images_per_class=3)
    memory.add(beton(tmp_path / "a.beton", NAMES[:2], 3, 1, factor=2, packed=True))
    before, fresh = state(memory), ReplayMemory(images_per_class=3)
    empty = state(fresh)

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(memory_module, "unpack", full)
        for act in (
            lambda: memory.add(beton(tmp_path / "b.beton", NAMES[2:3], 3, 2, factor=2, packed=True)),
            lambda: memory.set_budget(Budget.of(images_per_class=1)),
        ):
            with pytest.raises(torch.OutOfMemoryError):
                act()
            assert state(memory) == before
        with pytest.raises(torch.OutOfMemoryError):
            fresh.add(tmp_path / "a.beton")
        assert state(fresh) == empty
    memory.add(tmp_path / "b.beton", name="later")
    assert [task.name for task in memory.tasks] == ["task 0", "later"] and memory.counts.tolist() == [3] * 3


def test_a_budget_below_one_image_of_each_class() -> None:
    for budget, pattern in (
        ({"total_images": 4}, "`total_images` must be at least 5, one image for each of 5 classes, got 4. Raise it"),
        (
            {"total_bytes": 4},
            "`total_bytes` must be at least 5, one image of 1 bytes for each of 5 classes, got 4. Raise it",
        ),
    ):
        with pytest.raises(InputError, match=pattern):
            ReplayMemory(NAMES, **budget)  # type: ignore[arg-type]
    memory = ReplayMemory(total_bytes=2 * BYTES)
    memory.add(pool(["cat", "dog"]))
    with pytest.raises(InputError, match=f"one image of {BYTES} bytes for each of 3 classes, got {2 * BYTES}."):
        memory.add(pool(["ship"]))
    assert len(memory) == 2 and memory.classes == ["cat", "dog"]
    with pytest.raises(InputError, match=r"`budget` must be a Budget, got 1\. Give Budget\.of"):
        memory.set_budget(1)  # type: ignore[arg-type]
    for wrong in ({}, {"total_images": 3, "total_bytes": 9}, {"images_per_class": 0}, {"total_images": 2.5}):
        with pytest.raises(
            InputError, match="One of `images_per_class`, `total_images` and .* must be .*, got .*. Give exactly one"
        ):
            ReplayMemory(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`classes` must be different names, got a, a, with one name twice"):
        ReplayMemory(["a", "a"], images_per_class=1)
    with pytest.raises(InputError, match=r"`mean` and `std` must be given together, got mean \[0.5\] and std None"):
        ReplayMemory(images_per_class=1, mean=[0.5])
    with pytest.raises(
        InputError, match=r"channel of the images, which have 3, got mean .0.5, 0.5. and std .0.5, 0.5."
    ):
        ReplayMemory(images_per_class=1, mean=[0.5] * 2, std=[0.5] * 2).add(pool(["cat"]))
    single = ReplayMemory(images_per_class=1, mean=[0.5], std=[0.25])
    single.add(pool(["cat"]))
    assert (single.mean, single.std) == ([0.5] * 3, [0.25] * 3), "one value is for all channels"


@pytest.mark.parametrize("growing", [True, False])
def test_class_ids_may_be_numbers_of_any_library(growing: bool) -> None:
    images = pictures(4), torch.tensor([0, 1, 0, 1])
    found = []
    for classes in ([3, 1], np.array([3, 1]), [np.int64(3), np.uint8(1)], torch.tensor([3, 1])):
        memory = ReplayMemory(None if growing else NAMES, images_per_class=2)
        memory.add(images, classes=classes)  # type: ignore[arg-type]
        found.append(state(memory))
    assert found == [found[0]] * 4 and set(found[0][1]) == {1, 3}


def test_a_budget_may_be_a_number_of_any_library(tmp_path: Path) -> None:
    """And is saved as a plain one, which can be loaded."""
    for number in (np.int64(3), np.uint8(3), torch.tensor(3)):
        memory = ReplayMemory(images_per_class=number, **SCALE)  # type: ignore[arg-type]
        memory.add(pool(["cat", "dog"]))
        memory.save(tmp_path / "memory.beton", overwrite=True)
        assert ReplayMemory.load(tmp_path / "memory.beton").budget == Budget("images_per_class", 3)
        AvalancheBuffer(memory).resize(None, number)  # type: ignore[arg-type]
        assert len(memory) == 3
    for wrong in (np.float64(3), True, "3", torch.tensor(3.0), np.array([3, 4])):
        with pytest.raises(
            InputError, match="`total_bytes` must be a whole number of at least 1, got images_per_class="
        ):
            ReplayMemory(images_per_class=wrong)  # type: ignore[arg-type]


def test_an_empty_memory(tmp_path: Path) -> None:
    memory = ReplayMemory(images_per_class=1)
    assert (len(memory), memory.nbytes, memory.classes, memory.shape) == (0, 0, [], None)
    with pytest.raises(
        InputError, match=r"`classes` must be named for a memory of images_per_class, .* or total_images"
    ):
        AvalancheBuffer(memory).max_size  # noqa: B018
    assert AvalancheBuffer(ReplayMemory(NAMES, images_per_class=3)).max_size == 15
    assert len(AvalancheBuffer(memory).buffer) == 0 and AvalancheBuffer(memory).buffer.targets == []
    assert AvalancheBuffer(ReplayMemory(total_images=200)).max_size == 200
    with pytest.raises(InputError, match="The memory is empty. Add a set"):
        memory.sample(1, torch.Generator())
    with pytest.raises(InputError, match="The memory is empty, and is not written"):
        memory.save(tmp_path / "memory.beton")
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, known in (("gpu", "'cpu' where torch finds no GPU"), ("tpu", "'cpu', 'gpu' or a torch device")):
        with pytest.raises(InputError, match=f"`device` must be {known}, got '{device}'"):
            ReplayMemory(total_images=2, device=device)
        with pytest.raises(InputError, match=f"`device` must be {known}, got '{device}'"):
            ReplayMemory(total_images=2).to(device)


@pytest.mark.parametrize("count", [-1, 2.5, "3", None, True, torch.tensor(2.5)])
def test_a_number_of_images_that_cannot_be_drawn_is_refused(count: Any) -> None:
    memory = ReplayMemory(images_per_class=2)
    memory.add((torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])))
    with pytest.raises(InputError, match=re.escape(f"`count` must be a whole number of at least 0, got {count!r}")):
        memory.sample(count, torch.Generator())
    assert memory.sample(0, torch.Generator())[0].shape == (0, 1, 4, 4)
    with pytest.raises(InputError, match=r"`generator` must be a torch\.Generator, got None\. Give torch\.Generator"):
        memory.sample(1, None)  # type: ignore[arg-type]


def test_draws() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 5])
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(9)
    for count in (1, 2, 3, 7, 9, 20):
        for _ in range(300):
            index = draw(labels, count, generator)
            numbers = Counter(labels[index].tolist())
            assert index.shape == (count,)
            assert max(numbers.values()) - min(numbers.get(c, 0) for c in (0, 2, 5)) <= 1
            for c, size in ((0, 3), (2, 5), (5, 1)):  # each image as often as the others of its class, up to one
                times = [int((index == i).sum()) for i in range(9) if labels[i] == c]
                assert len(times) == size and max(times) - min(times) <= 1
            if count == 2:
                seen += torch.bincount(index, minlength=9)
    # 600 draws, a third of them of each class.
    assert stats.chisquare(seen.numpy(), np.repeat([200 / 3, 200 / 5, 200], [3, 5, 1])).pvalue > 1e-4
    seen = sum(torch.bincount(draw(labels, 4, generator, balanced=False), minlength=9) for _ in range(300))  # type: ignore
    assert stats.chisquare(seen.numpy()).pvalue > 1e-4  # type: ignore[union-attr]
    assert torch.bincount(draw(labels, 18, generator, balanced=False)).tolist() == [2] * 9
    same = [draw(labels, 20, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*same)


def test_samples_are_its_images() -> None:
    memory = filled()
    images, labels = memory.sample(30, torch.Generator().manual_seed(1))
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert Counter(labels.tolist()) == {0: 10, 1: 10, 2: 10}
    for image, label in zip(images, labels.tolist(), strict=True):
        assert any(torch.equal(image, one) for one in memory.images[memory.labels == label])
    assert len({tuple(image.flatten().tolist()) for image in images}) == len(memory)


# Avalanche.


class Normalised:
    """An experience's data set: normalised in evaluation, shifted in training, with task labels if asked."""

    def __init__(self, images: torch.Tensor, labels: list[int], task: int | None, training: bool = True) -> None:
        self.images, self.labels, self.task, self.training = images, labels, task, training

    def eval(self) -> Normalised:
        return type(self)(self.images, self.labels, self.task, training=False)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        shift, scale = (torch.tensor(SCALE[key]).view(-1, 1, 1) for key in ("mean", "std"))
        image = (self.images[index].float() / 255 - shift) / scale + self.training
        return (image, self.labels[index], *(() if self.task is None else (self.task,)))


@pytest.mark.parametrize("task", [None, 3])
def test_a_buffer_takes_and_gives_normalised_images(task: int | None) -> None:
    memory = ReplayMemory(total_images=4, **SCALE)
    data = Normalised(pictures(6), [4, 4, 2, 4, 2, 2], task)
    avalanche = AvalancheBuffer(memory)
    avalanche.update(SimpleNamespace(experience=SimpleNamespace(dataset=data)), lot="more")
    assert memory.counts.tolist() == [0, 0, 2, 0, 2]
    buffer = avalanche.buffer
    assert buffer.targets == [2, 2, 4, 4] and len(buffer) == 4
    plain = data.eval()
    for i, wanted in enumerate(herd(pictures(6)[[2, 4, 5]], 2)):
        item = buffer[i]
        torch.testing.assert_close(item[0], plain[[2, 4, 5][wanted]][0])
        assert item[1].shape == () and int(item[1]) == 2
        assert item[2:] == (() if task is None else (task,))
    assert torch.equal(memory.images[0], pictures(6)[[2, 4, 5]][herd(pictures(6)[[2, 4, 5]], 1)[0]])
    avalanche.resize(None, 3)
    assert avalanche.max_size == 3 and avalanche.buffer.targets == [2, 2, 4]
    with pytest.raises(InputError, match="must have values in .0, 1., got values from"):
        other = ReplayMemory(total_images=4, mean=[0.0] * 3, std=[1.0] * 3)
        AvalancheBuffer(other).post_adapt(None, SimpleNamespace(dataset=data))


def test_reading_an_experience_leaves_the_random_streams_as_they_were() -> None:
    """Its transforms draw, for training and, of a data set without others, for evaluation."""

    class Drawn(Normalised):
        def __getitem__(self, index: int) -> tuple[Any, ...]:
            drawn.append(float(torch.rand(())) + np.random.rand())
            return super().__getitem__(index)

        def eval(self) -> Drawn:
            return self

    drawn: list[float] = []
    experience = SimpleNamespace(dataset=Drawn(pictures(4), [0, 1, 0, 1], None, training=False))
    own = pictures(2), torch.tensor([0, 1])
    for collect in (None, lambda agent, experience: own):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
        AvalancheBuffer(ReplayMemory(images_per_class=2, **SCALE), collect).post_adapt(None, experience)
        assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    assert len(set(drawn[:4])) == 4, "each image has draws of its own"


def test_an_experience_that_cannot_be_read_is_told_in_one_line() -> None:
    class Unequal(Normalised):
        def __getitem__(self, index: int) -> tuple[Any, ...]:
            image, *rest = super().__getitem__(index)
            return (image[:, : 4 - index], *rest)

    class Unreadable(Normalised):
        def __getitem__(self, index: int) -> tuple[Any, ...]:
            raise OSError("its file is gone")

    buffer = AvalancheBuffer(ReplayMemory(total_images=4, **SCALE))
    for data, pattern in (
        (Unequal(pictures(2), [0, 1], None), "All images must have one size, got image 1 of 3x6 .* first of 4x6"),
        (Unreadable(pictures(2), [0, 1], None), "Item 0 of the data set cannot be read .*its file is gone"),
        (Normalised(pictures(2)[:0], [], None), "The data set Experience is empty. Give at least one"),
    ):
        with pytest.raises(InputError, match=pattern):
            buffer.post_adapt(None, SimpleNamespace(dataset=data))


def test_a_transform_takes_the_place_of_the_normalization() -> None:
    """As of training images, which are augmented: from the uint8 image to what the network gets."""
    memory = ReplayMemory(total_images=4, **SCALE)
    buffer = AvalancheBuffer(memory, transform=lambda image: image.flip(2).double() / 255).buffer
    assert len(buffer) == 0
    memory.add((pictures(2), torch.tensor([0, 1])))
    buffer = AvalancheBuffer(memory, transform=lambda image: image.flip(2).double() / 255).buffer
    assert torch.equal(buffer[1][0], memory.images[1].flip(2).double() / 255) and int(buffer[1][1]) == 1


def test_what_is_collected_of_an_experience_is_the_users_choice(tmp_path: Path) -> None:
    given = iter([beton(tmp_path / "a.beton", ["cat"]), None])
    memory = ReplayMemory(images_per_class=2)
    buffer = AvalancheBuffer(memory, collect=lambda agent, experience: next(given))
    experience = SimpleNamespace(dataset=Normalised(pictures(2), [0, 0], None))
    buffer.post_adapt(None, experience)
    buffer.post_adapt(None, experience)
    assert len(memory.tasks) == 1 and torch.equal(memory.images, pictures(3)[herd(pictures(3), 2)])


@pytest.mark.parametrize("named", [True, False])
def test_classes_keep_the_ids_of_the_strategy(tmp_path: Path, named: bool) -> None:
    """A file of the classes 3 and 4 alone, whose labels are 0 and 1, as the second experience brings it."""
    memory = ReplayMemory(NAMES if named else None, images_per_class=2)
    given = iter([beton(tmp_path / "a.beton", ["cat", "dog", "ship"]), beton(tmp_path / "b.beton", ["tree", "car"])])
    buffer = AvalancheBuffer(memory, collect=lambda agent, experience: next(given))
    data = Normalised(pictures(2), [0, 0], None)
    buffer.post_adapt(None, SimpleNamespace(dataset=data, classes_in_this_experience=[0, 1, 2]))
    buffer.post_adapt(None, SimpleNamespace(dataset=data, classes_in_this_experience=[3, 4]))
    assert buffer.buffer.targets == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_other_ids_than_those_of_the_strategy_are_refused(tmp_path: Path) -> None:
    path = beton(tmp_path / "b.beton", ["tree", "car"])
    memory = ReplayMemory(total_images=10)
    buffer = AvalancheBuffer(memory, collect=lambda agent, experience: path)
    experience = SimpleNamespace(dataset=Normalised(pictures(2), [0, 0], None), classes_in_this_experience=[3, 4])
    with pytest.raises(
        InputError, match=r"which are 3, 4 in this experience, got 0 for 'tree'\. Give ReplayMemory the n"
    ):
        buffer.post_adapt(None, experience)
    assert len(memory) == 0 and memory.classes == []


def test_the_remainder_of_a_budget_is_filled() -> None:
    """100 images of 6 classes are 17, 17, 17, 17, 16 and 16, and no class gains an image as others come."""
    memory = ReplayMemory(total_images=100)
    before: list[int] = []
    for task in range(8):
        memory.add(pool([f"class {task}"], per_class=100, seed=task))
        counts = memory.counts.tolist()
        assert sum(counts) == 100 and max(counts) - min(counts) <= 1
        assert all(now <= earlier for now, earlier in zip(counts, before, strict=False))
        before = counts


def test_a_memory_is_its_own_buffer_for_one_more_release(tmp_path: Path) -> None:
    """The way of version 0.1, with a warning that names the adapter."""
    warned = {"match": r"will go with the next release; use tgdd_plugin.replay.avalanche.AvalancheBuffer"}
    given = beton(tmp_path / "a.beton", ["cat", "dog"])
    with pytest.warns(DeprecationWarning, **warned):
        memory = ReplayMemory(total_images=4, collect=lambda agent, experience: given)
    experience = SimpleNamespace(dataset=Normalised(pictures(2), [0, 0], None))
    with pytest.warns(DeprecationWarning, **warned):
        memory.post_adapt(None, experience)
    assert memory.counts.tolist() == [2, 2]
    with pytest.warns(DeprecationWarning, **warned):
        memory.resize(None, 2)
    with pytest.warns(DeprecationWarning, **warned):
        assert memory.max_size == 2
    with pytest.warns(DeprecationWarning, **warned):
        assert memory.buffer.targets == [0, 1]
    whole = ReplayMemory(total_images=4, **SCALE)
    with pytest.warns(DeprecationWarning, **warned):
        whole.update(SimpleNamespace(experience=experience))
    assert whole.counts.tolist() == [2]
    with pytest.raises(AttributeError, match="'ReplayMemory' object has no attribute 'size'"):
        whole.size()


# Of avalanche-lib itself only what its replay imports on the way, and never uses here, is put aside.
AVALANCHE = """
import sys
from unittest.mock import MagicMock

import torch
import torchmetrics
import torchvision

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.replay.avalanche import AvalancheBuffer
from tgdd_plugin.replay.memory import ReplayMemory

for name in {unused}:
    sys.modules[name] = MagicMock()
from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

torch.manual_seed(0)
labels = torch.arange(48) % 4
data = TensorDataset((torch.rand(48, 1, 8, 8) * 255).round() / 255 * 2 - 1, labels)
data.targets = labels.tolist()
NAMES, SCALE = ["a", "b", "c", "d"], dict(mean=[0.5], std=[0.5])


def distilled(agent, experience):
    # As distilling an experience leaves it: its classes alone, by their names, labelled from 0 on.
    own = [NAMES[i] for i in sorted(experience.classes_in_this_experience)]
    card = Card(classes=own, images=0, images_per_class=5, shape=[], **SCALE)
    images = torch.randint(256, (10, 1, 8, 8)).to(torch.uint8)
    return write_beton(f"{folder}/{{own[0]}}.beton", images, torch.arange(2).repeat_interleave(5), card)


for aware, collect in ((False, None), (True, None), (False, distilled)):
    if aware:
        benchmark = nc_benchmark(data, data, 2, task_labels=True, fixed_class_order=[0, 1, 2, 3])
    else:
        sets = as_classification_dataset(data)
        both = dict(train=sets, test=sets)
        benchmark = class_incremental_benchmark(both, num_experiences=2, class_order=[0, 1, 2, 3])
    memory = ReplayMemory(NAMES if collect else None, total_images=10, **SCALE)
    buffer = AvalancheBuffer(memory, collect)
    replay = ReplayPlugin(mem_size=10, batch_size_mem=5, storage_policy=buffer)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    network.seen = []
    network.register_forward_pre_hook(lambda module, inputs: module.seen.append(inputs[0]))
    strategy = Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=1,
        plugins=[replay],
    )
    sizes, targets = [], []
    for experience in benchmark.train_stream:
        network.seen.clear()
        strategy.train(experience)
        sizes.append([len(images) for images in network.seen])
        if sum(sizes[-1]) > 24:
            known = {{tuple(item[0].flatten().tolist()) for item in before}}
            for images in network.seen:
                assert sum(tuple(image.flatten().tolist()) in known for image in images) == 5
        before = buffer.buffer
        targets.append(before.targets)
    assert sizes == [[8, 8, 8], [13, 13, 13]], sizes
    assert targets == [[0] * 5 + [1] * 5, [0] * 3 + [1] * 3 + [2] * 2 + [3] * 2], targets
    assert len(buffer.buffer[0]) == 2 + aware
    if aware:
        assert [int(buffer.buffer[i][2]) for i in range(10)] == [0] * 6 + [1] * 4
print("replayed", strategy.__class__.__module__)
"""
UNUSED = (
    *("wandb", "GPUtil", "gdown", "qpsolvers", "tensorboard", "torch.utils.tensorboard"),
    *("pytorchcv", "pytorchcv.models", "pytorchcv.models.mobilenet", "pytorchcv.model_provider"),
    *("matplotlib", "matplotlib.axes", "matplotlib.figure", "matplotlib.pyplot"),
)


def test_avalanche_replays_from_it(tmp_path: Path) -> None:
    """The real ``ReplayPlugin`` of avalanche-lib in a ``Naive`` strategy."""
    install = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")),
        *("--retries", "0", "--timeout", "10", "--disable-pip-version-check", "avalanche-lib==0.6.0", "dill"),
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"avalanche-lib cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[2])])
    ran = subprocess.run(
        [sys.executable, "-c", AVALANCHE.format(unused=UNUSED, folder=tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "replayed avalanche.training" in ran.stdout


def test_a_memory_saved_again_replaces_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "memory.beton"
    earlier, memory = filled(), filled()
    memory.add(pool(["tree"], 4, 5))
    for each in (earlier, memory, earlier):  # as it grows, and from the start again
        assert state(ReplayMemory.load(each.save(path))) == state(each)
    before = path.read_bytes()
    other = ReplayMemory(NAMES, total_images=11, **SCALE)
    other.add(pool(["ship", "cat"], 4, 1), name="another")
    darker = ReplayMemory(NAMES, total_images=11, mean=[0.1] * 3, std=[0.2] * 3)
    darker.add((pictures(2), torch.tensor([0, 1])), name="first")
    for each, words in ((other, r"tasks was \['first'\] and is now \['another'\]"), (darker, r"mean was .* is now .*")):
        with pytest.raises(InputError, match=rf"'.*memory.beton' is of another job \({words}\). Choose another"):
            each.save(path)
    larger, images = filled(), ReplayMemory(NAMES, total_images=11, **SCALE)
    larger.set_budget(Budget("total_images", 12))
    images.add(pool(["ship", "cat"], 4, 9), name="first", label=7)
    for each, words in ((larger, "budget.total_images was 11 and is now 12"), (images, "images was .* is now .*")):
        with pytest.raises(InputError, match=rf"'.*memory.beton' is of another job \({words}\). Choose another"):
            each.save(path)
    assert path.read_bytes() == before
    assert ReplayMemory.load(other.save(path, overwrite=True)).tasks[0].name == "another"
    set_ = beton(tmp_path / "set.beton", NAMES)
    bare = tmp_path / "bare.beton"
    bare.write_text("mine")
    for file, words in ((set_, "method was None and is now 'replay memory'"), (bare, "has no card")):
        before = file.read_bytes()
        with pytest.raises(InputError, match=words):
            other.save(file)
        assert file.read_bytes() == before
