"""Real images: any form comes in as the same bytes, draws are fair, large pools are mapped, bad input is one line."""

import gc
import hashlib
import io
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.common import seeded
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data import allocation
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.mixing import mixed_images
from tgdd_plugin.data.normalization import Normalization

RANDOM = np.random.default_rng(0)
GRAYSCALE = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def numbered_pool(counts: list[int]) -> ImagePool:
    """Images whose pixels hold their own position, so that any of them can be recognised; classes interleaved."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=seeded(7))]
    return ImagePool(torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels)


def palette_image() -> Image.Image:
    image = Image.frombytes("P", (7, 5), RANDOM.integers(0, 4, 35, dtype=np.uint8).tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    return image


def truncated_image() -> Image.Image:
    """An image that PIL opens, and cannot load."""
    whole = io.BytesIO()
    Image.fromarray(COLOUR).save(whole, "PNG")
    return Image.open(io.BytesIO(whole.getvalue()[:60]))


PALETTE = palette_image()
FORMS = {
    "PIL L": (Image.fromarray(GRAYSCALE), GRAYSCALE[None]),
    "PIL RGB": (Image.fromarray(COLOUR), COLOUR.transpose(2, 0, 1)),
    "PIL RGBA": (Image.fromarray(np.dstack([COLOUR, GRAYSCALE])), COLOUR.transpose(2, 0, 1)),
    "PIL LA": (Image.merge("LA", [Image.fromarray(GRAYSCALE)] * 2), GRAYSCALE[None]),
    "PIL 1": (Image.fromarray(GRAYSCALE > 99), np.where(GRAYSCALE > 99, 255, 0).astype(np.uint8)[None]),
    "PIL P": (PALETTE, (10 * (3 * np.array(PALETTE)[..., None] + [1, 2, 3])).astype(np.uint8).transpose(2, 0, 1)),
    "array (H, W)": (GRAYSCALE, GRAYSCALE[None]),
    "array (H, W, 1)": (GRAYSCALE[:, :, None], GRAYSCALE[None]),
    "array (H, W, 3)": (COLOUR, COLOUR.transpose(2, 0, 1)),
    "array, not contiguous, read only": (np.broadcast_to(GRAYSCALE.T[:, ::-1], (7, 5)), GRAYSCALE.T[:, ::-1][None]),
    "tensor uint8": (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR.transpose(2, 0, 1)),
    "tensor uint8 (H, W)": (torch.from_numpy(GRAYSCALE), GRAYSCALE[None]),
    "tensor float": (torch.from_numpy(COLOUR / 255).permute(2, 0, 1).float(), COLOUR.transpose(2, 0, 1)),
    "tensor float64 grayscale": (torch.from_numpy(GRAYSCALE / 255)[None], GRAYSCALE[None]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_comes_in_as_the_same_bytes(form):
    image, wanted = FORMS[form]
    read = ImagePool.from_dataset([(image, 1), (image, 0)])
    assert read.images.dtype == torch.uint8
    np.testing.assert_array_equal(read.images.numpy(), np.stack([wanted, wanted]))
    assert read.labels.tolist() == [1, 0] and read.shape == wanted.shape


@pytest.mark.parametrize(
    "label", [1, np.int64(1), np.uint8(1), torch.tensor(1), torch.tensor(1, dtype=torch.int16), True]
)
def test_every_form_of_a_whole_number_is_a_label(label):
    assert ImagePool.from_dataset([(GRAYSCALE, label)]).labels.tolist() == [1]


def test_all_256_levels_survive_a_float_tensor():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    read = ImagePool.from_dataset([(levels.float() / 255, 0), (levels.double().div(255), 0)])
    assert all(torch.equal(image, levels) for image in read.images)
    between = torch.tensor([[[7.4, 7.6, 254.6, 0.4]]]) / 255
    assert ImagePool.from_dataset([(between, 0)]).images.flatten().tolist() == [7, 8, 255, 0]


def test_classes_are_named_by_the_caller_else_by_the_data_set_else_numbered():
    class Named(list):
        classes = ["cat", "dog", "eel"]

    items = [(GRAYSCALE, 1), (GRAYSCALE, 0)]
    assert ImagePool.from_dataset(Named(items)).classes == ["cat", "dog", "eel"]
    assert ImagePool.from_dataset(Named(items), classes=["x", "y"]).classes == ["x", "y"]
    assert ImagePool.from_dataset(items).classes == ["0", "1"]
    images = torch.stack([torch.from_numpy(GRAYSCALE)] * 2)[:, None]
    assert ImagePool.from_dataset(Subset(TensorDataset(images, torch.tensor([3, 0])), [1])).classes == ["0"]


BAD = {
    "empty": ([], "is empty"),
    "no pair": ([(GRAYSCALE, 0), GRAYSCALE], "Item 1 .* must be a pair .* got a ndarray"),
    "three parts": ([(GRAYSCALE, 0, 1)], "must be a pair .* got a tuple of 3"),
    "a dictionary": (
        [{"picture": GRAYSCALE, "label": 0}],
        "Item 0 .* must have an image .* got picture, label",
    ),
    "soft label": (
        [(GRAYSCALE, 0), (GRAYSCALE, np.array([0.1, 0.9]))],
        r"label of item 1 must be one integer class id, got array",
    ),
    "soft label tensor": (
        [(GRAYSCALE, torch.tensor([0.1, 0.9]))],
        r"label of item 0 must be one integer class id, got tensor",
    ),
    "fraction": ([(GRAYSCALE, 0.5)], "label of item 0 must be one integer class id, got 0.5"),
    "text": ([(GRAYSCALE, "3")], "label of item 0 must be one integer class id, got '3'"),
    "infinity": ([(GRAYSCALE, float("inf"))], "label of item 0 must be one integer class id, got inf"),
    "nothing": ([(GRAYSCALE, None)], "label of item 0 must be .*, got None"),
    "negative label": (
        [(GRAYSCALE, 0), (GRAYSCALE, -1)],
        "`labels` must be numbers from 0 on, got labels from -1 to 0",
    ),
    "only negative labels": ([(GRAYSCALE, -1)], "got labels from -1 to -1"),
    "an id for a label": ([(GRAYSCALE, 10**9)], "got labels up to 1000000000"),
    "several sizes": ([(GRAYSCALE, 0), (GRAYSCALE.T, 0)], r"image 1 of 7x5 .*first of 5x7 .*Resize"),
    "several channels": (
        [(GRAYSCALE, 0), (COLOUR, 0)],
        r"image 1 .* of 3 channel.* first .* of 1 channel.*Convert all to colour",
    ),
    "normalised": (
        [(torch.randn(3, 4, 4, generator=seeded()) * 2, 0)],
        r"must have values in \[0, 1\], got values from -\d.*Normalize",
    ),
    "0 to 255 as floats": (
        [(torch.full((1, 4, 4), 200.0), 0)],
        r"values in \[0, 1\], got values from 200.00 to 200.00. Divide them by 255",
    ),
    "not a number": ([(torch.full((1, 4, 4), float("nan")), 0)], r"values in \[0, 1\], got .* nan"),
    "float array": ([(GRAYSCALE / 255, 0)], "must be uint8 .*, got a float64 array"),
    "16 bits": (
        [(Image.fromarray(GRAYSCALE.astype(np.uint16) * 200), 0)],
        "must have 8 bits a channel, .* mode 'I;16'",
    ),
    "truncated": (
        [(COLOUR, 0), (truncated_image(), 1)],
        r"Item 1 of the data set cannot be read \(.+\)\. Fix or remove",
    ),
    "32 bits": ([(Image.fromarray(GRAYSCALE.astype(np.float32)), 0)], "must have 8 bits a channel, .* mode 'F'"),
    "integers": ([(torch.zeros(1, 4, 4, dtype=torch.int64), 0)], r"Image 0 must be \(C, H, W\) .* got torch.int64"),
    "channels last": ([(torch.from_numpy(COLOUR), 0)], r"must be \(C, H, W\) with 1 or 3 .* of shape \(5, 7, 3\)"),
    "two channels": ([(COLOUR[:, :, :2], 0)], r"must be \(C, H, W\) with 1 or 3 .* of shape \(2, 5, 7\)"),
    "a batch": ([(torch.zeros(2, 3, 4, 4), 0)], r"must be \(C, H, W\) .* of shape \(2, 3, 4, 4\)"),
    "a path": ([("cat.png", 0)], "Image 0 must be a PIL image, .* got a str"),
    "a loader": (
        DataLoader(TensorDataset(torch.zeros(2, 1, 2, 2), torch.zeros(2))),
        "must be a map-style data set, .* got a DataLoader",
    ),
    "an iterator": (iter([(GRAYSCALE, 0)]), "must be a map-style data set, .* got a list_iterator"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case):
    dataset, pattern = BAD[case]
    with pytest.raises(InputError, match=pattern) as caught:
        ImagePool.from_dataset(dataset)
    assert "\n" not in str(caught.value)


def test_a_label_beyond_the_named_classes_is_refused():
    with pytest.raises(InputError, match=r"`labels` must be 0..1 for 2 classes, got labels from 0 to 2"):
        ImagePool.from_dataset([(GRAYSCALE, 0), (GRAYSCALE, 2)], classes=["a", "b"])
    pool = ImagePool.from_dataset([(GRAYSCALE, 0), (GRAYSCALE, 2)])
    with pytest.raises(InputError, match=r"must be 0..1 for 2 classes, got labels from 0 to 2"):
        pool.name_classes(["a", "b"])


OTHERS = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8), np.zeros((2, 3, 4, 4), np.uint8)]


@pytest.mark.parametrize("images", OTHERS)
def test_a_pool_of_other_tensors_is_refused(images):
    with pytest.raises(InputError, match=r"`images` must be uint8 \(N, C, H, W\) .* got (torch|a ndarray)"):
        ImagePool(images, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="got 2 images with 3 labels"):
        ImagePool(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_labels_may_be_a_list_or_an_array():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for labels in ([1, 0], np.array([1, 0]), np.array([1, 0], np.uint16), np.uint64([1, 0]), torch.tensor([1.0, 0.0])):
        assert ImagePool(images, labels).labels.tolist() == [1, 0]
    assert repr(ImagePool(images, [1, 0])) == "ImagePool(2 images of 1x4x4 in 2 classes, on cpu)"


@pytest.mark.parametrize("labels", [torch.eye(2), torch.zeros(2, 1), [0.5, 1], [float("nan"), 1]])
def test_labels_that_are_no_class_ids_are_refused(labels):
    with pytest.raises(InputError, match=r"`labels` must be one whole number for each image, .*, got torch.float32"):
        ImagePool(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels)


def test_a_pool_is_taken_as_it_is():
    pool = ImagePool(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0, 1], ["a", "b"])
    assert ImagePool.from_dataset(pool) is pool
    named = ImagePool.from_dataset(pool, classes=["c", "d", "e"])
    assert named.classes == ["c", "d", "e"] and named.images is pool.images


def test_draw_is_of_the_right_class_without_replacement_and_repeats():
    pool = numbered_pool([40, 60, 100])
    classes = torch.tensor([2, 0, 1, 0])
    drawn = pool.draw(classes, 25, seeded(3))
    assert drawn.shape == (4, 25)
    for row, label in zip(drawn, classes, strict=True):
        assert len(set(row.tolist())) == 25
        assert (pool.labels[row] == label).all()
    assert torch.equal(drawn, pool.draw(classes, 25, seeded(3)))
    assert not torch.equal(drawn, pool.draw(classes, 25, seeded(4)))
    assert sorted(pool.draw(torch.tensor([1]), 60, seeded())[0].tolist()) == (pool.labels == 1).nonzero()[:, 0].tolist()
    # The images that come are the ones at the positions that were drawn.
    assert torch.equal(pool.take(drawn)[..., 0, 0, 0].long(), drawn)


def test_draw_is_uniform():
    pool, generator, times = numbered_pool([20, 30]), seeded(1), 4000
    seen = torch.zeros(50)
    for _ in range(times):
        seen[pool.draw(torch.tensor([1]), 6, generator)[0]] += 1
    assert seen[pool.labels == 0].sum() == 0
    expected = times * 6 / 30
    chi_square = ((seen[pool.labels == 1] - expected) ** 2 / expected).sum()
    # Without replacement the variance is (1 - 6/30) of the multinomial's; 52 is beyond its 99.9 % by far.
    assert 8 < chi_square < 52


def test_too_few_images_say_which_class_and_what_to_do():
    pool = numbered_pool([3, 8])
    with pytest.raises(
        InputError, match=r"Class 0 \('0'\) has 3 real images, 5 were asked for the trial. Ask for at most 3"
    ):
        pool.draw(torch.tensor([1, 0]), 5, seeded(), "the trial")
    absent = ImagePool(pool.images, pool.labels, ["a", "b", "c"])
    with pytest.raises(InputError, match=r"Class 2 \('c'\) has no real images, 1 were"):
        absent.draw(torch.arange(3), 1, seeded())


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_disjoint_complete_and_even(fraction):
    pool = numbered_pool([40, 60, 100])
    kept, held = pool.split(fraction, seeded(5))
    ids = [part.images[:, 0, 0, 0].tolist() for part in (kept, held)]
    assert not set(ids[0]) & set(ids[1]) and sorted(ids[0] + ids[1]) == list(range(200))
    assert held.counts.tolist() == [round(n * fraction) for n in (40, 60, 100)]
    for part, own in zip((kept, held), ids, strict=True):
        assert torch.equal(part.labels, pool.labels[torch.tensor(own)])
    assert pool.split(fraction, seeded(6))[1].images[:, 0, 0, 0].tolist() != ids[1]


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_split_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(InputError, match="Choose a share that leaves some in both parts"):
        numbered_pool([4, 4]).split(fraction, seeded())


def test_what_is_moved_is_not_the_callers_own():
    pool = ImagePool(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    moved = pool.to("meta")
    assert moved.images.device.type == "meta" and pool.images.device.type == "cpu"
    assert moved.classes == pool.classes and torch.equal(moved.counts, pool.counts)


def test_subset_copies():
    pool = numbered_pool([4, 4])
    part = ImagePool(pool.images.clone(), pool.labels).subset(torch.tensor([5, 1]))
    assert part.images[:, 0, 0, 0].tolist() == [5, 1] and part.labels.tolist() == pool.labels[[5, 1]].tolist()
    assert part.num_classes == 2


def test_statistics_are_numpys():
    images = np.random.default_rng(2).integers(0, 256, (5000, 3, 4, 4), dtype=np.uint8)
    images[:, 2] //= 8
    mean, std = ImagePool(torch.from_numpy(images), torch.zeros(5000)).statistics()
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 2, 3)), rtol=1e-9)
    constant = ImagePool(torch.full((3, 1, 2, 2), 9, dtype=torch.uint8), torch.zeros(3)).statistics()
    assert constant[0] == pytest.approx([9 / 255]) and 0 < constant[1][0] < 1e-5


class Largest(TorchDispatchMode):
    """Notes the most bytes of a tensor that any operation returns."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.most = max(self.most, found.numel() * found.element_size())
        return found


def test_large_images_are_copied_a_few_at_a_time(monkeypatch):
    images = torch.randint(0, 256, (600, 3, 128, 128), dtype=torch.uint8, generator=seeded())
    pool = ImagePool(images, torch.zeros(600))
    order = torch.randperm(600, generator=seeded())
    taken = []
    take = ImagePool.take

    def noted(self, index):
        taken.append(len(index))
        return take(self, index)

    monkeypatch.setattr(ImagePool, "take", noted)
    assert torch.equal(pool.subset(order).images, images[order])
    mixed, _ = mixed_images(images[:1], torch.zeros(1), pool, 600, 0.0, 0)
    assert torch.equal(mixed.flatten(1).sum(1).sort().values, images.flatten(1).sum(1).sort().values)
    assert sum(taken) == 1200
    assert max(taken) * 128**2 <= 4096 * 32**2


def test_statistics_of_large_images_take_no_more_memory_than_of_small_ones():
    images = torch.randint(0, 256, (600, 3, 128, 128), dtype=torch.uint8, generator=seeded())
    pool = ImagePool(images, torch.zeros(600))
    with Largest() as largest:
        mean, std = pool.statistics()
    assert largest.most <= 4096 * 3 * 32 * 32 * 8
    np.testing.assert_allclose(mean, (images.numpy() / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (images.numpy() / 255).std((0, 2, 3)), rtol=1e-9)
    wanted = hashlib.sha256(pool.labels.numpy().tobytes() + images.numpy().tobytes()).hexdigest()
    assert pool.fingerprint() == wanted


def test_a_large_pool_is_mapped_and_leaves_nothing_behind(monkeypatch, tmp_path):
    items = [(RANDOM.integers(0, 256, (16, 16), dtype=np.uint8), i % 3) for i in range(60)]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_memory = ImagePool.from_dataset(items)
    monkeypatch.setattr(allocation, "MEMORY_LIMIT", 1000)
    mapped = ImagePool.from_dataset(items)
    (mapping,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{tmp_path}/tgdd-pool-" in line]
    assert mapping.split()[1] == "rw-s"  # it is mapped, so that pages can go back to the disk ...
    assert os.listdir(tmp_path) == []  # ... from a file that has no name any more
    assert torch.equal(mapped.images, in_memory.images) and mapped.statistics() == in_memory.statistics()
    parts = [p.split(0.5, seeded()) for p in (mapped, in_memory)]
    assert all(torch.equal(a.images, b.images) for a, b in zip(*parts, strict=True))
    assert os.listdir(tmp_path) == []
    del mapped, parts
    gc.collect()
    assert f"{tmp_path}/tgdd-pool-" not in Path("/proc/self/maps").read_text()


def test_a_disk_too_small_for_the_mapping_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(allocation, "MEMORY_LIMIT", 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="No space left on device.*TMPDIR"):
        ImagePool.from_dataset([(GRAYSCALE, 0)])


def test_a_class_with_fewer_images_may_repeat_them_all_equally_often():
    pool = numbered_pool([3, 8])
    drawn = pool.draw(torch.tensor([0, 1]), 7, seeded(5), repeat=True)
    assert sorted(pool.take(drawn[0])[:, 0, 0, 0].unique(return_counts=True)[1].tolist()) == [2, 2, 3]
    assert len(set(drawn[1].tolist())) == 7, "the other class has enough, and repeats none"
    # Where every class has enough, nothing is drawn differently.
    assert torch.equal(
        pool.draw(torch.tensor([0, 1]), 3, seeded(5), repeat=True), pool.draw(torch.tensor([0, 1]), 3, seeded(5))
    )


@pytest.mark.parametrize("repeat", [False, True])
def test_a_class_without_images_is_named(repeat):
    pool = ImagePool(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), ["cat", "dog", "owl"])
    with pytest.raises(InputError, match=r"Class 1 \('dog'\) has no real images, 5 .* or leave it out") as error:
        pool.draw(torch.tensor([1]), 5, seeded(), repeat=repeat)
    assert "at most 0" not in str(error.value)


@pytest.mark.parametrize("classes", [3, {"cat": 0, "dog": 1}], ids=["a number", "a mapping"])
def test_what_is_no_list_of_names_names_no_class(classes):
    class Odd(list):
        pass

    items = Odd([(GRAYSCALE, 1), (GRAYSCALE, 0)])
    items.classes = classes
    assert ImagePool.from_dataset(items).classes == ["0", "1"]


def test_names_that_are_refused_leave_the_pool_as_it_was():
    pool = ImagePool.from_dataset([(GRAYSCALE, 2), (GRAYSCALE, 0)])
    with pytest.raises(InputError, match="`labels` must be 0..1 for 2 classes"):
        pool.name_classes(["cat", "dog"])
    assert pool.classes == ["0", "1", "2"] and pool.counts.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(9, 8, [7, 2]), (17, 8, [8, 7, 2]), (4, 3, [2, 2]), (10, 8, [8, 2]), (8, 8, [8]), (1, 8, [1]), (3, 2, [2, 1])],
)
def test_no_image_is_left_alone_in_the_last_batch(count, batch_size, sizes):
    images, labels = torch.arange(count).view(-1, 1, 1, 1).to(torch.uint8), torch.arange(count)
    loader = DeviceLoader(images, labels, Normalization([0.0], [1.0]), batch_size=batch_size)
    for _ in range(2):
        found = [own for _, own in loader]
        assert [len(own) for own in found] == sizes and torch.cat(found).sort().values.tolist() == list(range(count))
    assert len(loader) == len(sizes) and loader.batch_sizes() == Counter(sizes)
