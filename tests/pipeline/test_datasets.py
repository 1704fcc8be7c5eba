"""The named data sets: read as they lie in files, no test image where it does not belong, one clear line for errors."""

import gzip
import hashlib
import os
import pickle
import struct
import sys
import urllib.error
import urllib.request
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import cifar as tv_cifar

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.trajectory.manifest import Run

RANDOM = np.random.default_rng(0)


def rows(pool):
    """The pool as a sorted list of (pixels, label), to be compared whatever the order."""
    return sorted((image.numpy().tobytes(), int(label)) for image, label in zip(pool.images, pool.labels, strict=True))


def test_digits_are_scikit_learns_split_by_class():
    from sklearn.datasets import load_digits

    train, test = load_data(DataSettings())
    assert (len(train), len(test), train.shape, train.num_classes) == (1257, 540, (1, 8, 8), 10)
    digits = load_digits()
    pairs = zip(digits.images, digits.target, strict=True)
    wanted = [(np.rint(i * 255 / 16).astype(np.uint8).tobytes(), int(n)) for i, n in pairs]
    assert sorted(wanted) == sorted(rows(train) + rows(test))
    share = test.counts / (train.counts + test.counts)
    assert (share - 0.3).abs().max() < 0.01
    assert rows(load_data(DataSettings())[1]) == rows(test)


# torchvision's own data sets, from tiny files in its layout.


def write_mnist(folder: Path, train: np.ndarray, test: np.ndarray, labels: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for part, images in (("train", train), ("t10k", test)):
        header = struct.pack(">IIII", 0x803, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, len(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels[part].astype(np.uint8).tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_layout(tmp_path, name, folder):
    images = RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = {"train": np.arange(20) % 10, "t10k": np.arange(10)}
    write_mnist(tmp_path / folder / "raw", images[:20], images[20:], labels)
    train, test = load_data(DataSettings(name, root=str(tmp_path)))
    np.testing.assert_array_equal(train.images.numpy()[:, 0], images[:20])
    np.testing.assert_array_equal(test.images.numpy()[:, 0], images[20:])
    assert train.labels.tolist() == labels["train"].tolist() and test.labels.tolist() == list(range(10))
    assert train.classes == (tv.MNIST if name == "mnist" else tv.FashionMNIST).classes


def test_damaged_mnist_is_one_clear_line(tmp_path):
    labels = {"train": np.arange(20) % 10, "t10k": np.arange(10)}
    images = np.zeros((20, 28, 28), np.uint8)
    write_mnist(tmp_path / "MNIST/raw", images, images[:10], labels)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=f"mnist under '{tmp_path}' is damaged .*[.] Delete it there"):
        load_data(DataSettings("mnist", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_layout(tmp_path, monkeypatch, name):
    cls, key, classes = (tv.CIFAR10, "labels", 10) if name == "cifar10" else (tv.CIFAR100, "fine_labels", 100)
    folder = tmp_path / cls.base_folder
    folder.mkdir()
    made = {}
    for i, (file, _) in enumerate([*cls.train_list, *cls.test_list]):
        pixels = np.random.default_rng(i).integers(0, 256, (classes, 3072), dtype=np.uint8)
        made[file] = pixels.reshape(-1, 3, 32, 32)
        content = {"data": pixels, key: list(range(classes)), "coarse_labels": [0] * classes}
        (folder / file).write_bytes(pickle.dumps(content))
    names = [f"class {i}" for i in range(classes)]
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: names}))
    # The files are ours, so their checksums are not the published ones.
    monkeypatch.setattr(cls, "_check_integrity", lambda self: True)
    monkeypatch.setattr(tv_cifar, "check_integrity", lambda *_: True)
    train, test = load_data(DataSettings(name, root=str(tmp_path)))
    np.testing.assert_array_equal(train.images.numpy(), np.concatenate([made[f] for f, _ in cls.train_list]))
    np.testing.assert_array_equal(test.images.numpy(), made[cls.test_list[0][0]])
    assert train.labels.tolist() == list(range(classes)) * len(cls.train_list) and train.classes == names


def test_svhn_layout_and_image_size(tmp_path, monkeypatch):
    made = {}
    for part, (_, file, _) in tv.SVHN.split_list.items():
        made[part] = np.random.default_rng(len(part)).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
        labels = np.array([10, *range(1, 10), 1, 2])[:, None]  # SVHN writes zero as ten
        savemat(tmp_path / file, {"X": made[part], "y": labels})
        digest = hashlib.md5((tmp_path / file).read_bytes()).hexdigest()
        monkeypatch.setitem(tv.SVHN.split_list, part, ["no url", file, digest])
    train, test = load_data(DataSettings("svhn", root=str(tmp_path)))
    np.testing.assert_array_equal(train.images.numpy(), made["train"].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(test.images.numpy(), made["test"].transpose(3, 2, 0, 1))
    assert train.labels.tolist() == [*range(10), 1, 2] and train.num_classes == 10
    small, _ = load_data(DataSettings("svhn", root=str(tmp_path), image_size=16))
    assert small.shape == (3, 16, 16)
    wanted = Image.fromarray(made["train"][..., 3]).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small.images[3].permute(1, 2, 0).numpy(), np.asarray(wanted))


@pytest.mark.skipif("TGDD_DATA" not in os.environ, reason="TGDD_DATA names no folder with real data sets")
@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [("cifar10", (3, 32, 32), [0.4914, 0.4822, 0.4465]), ("fashion_mnist", (1, 28, 28), [0.2860])],
)
def test_real_data(name, shape, mean):
    train, test = load_data(DataSettings(name, root=os.environ["TGDD_DATA"]))
    assert train.shape == shape and len(test) == 10000 and test.counts.tolist() == [1000] * 10
    assert train.statistics()[0] == pytest.approx(mean, abs=1e-3)  # the published numbers


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn"])
def test_a_download_that_fails_is_one_clear_line(tmp_path, monkeypatch, capsys, name):
    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(
        InputError, match=f"{name} is not under '{tmp_path}/x' and cannot be downloaded .*data.root"
    ) as e:
        load_data(DataSettings(name, root=str(tmp_path / "x")))
    assert "\n" not in str(e.value)
    assert capsys.readouterr() == ("", "")


# Image folders.


def write_folder(root: Path, parts: dict[str, dict[str, int]], size=(6, 6), suffix="png") -> dict[str, list]:
    """Random images ``root/part/class/i.png``; returns, for each part, the (pixels, class) pairs in name order."""
    made: dict[str, list] = {}
    for part, classes in parts.items():
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                height, width = size if isinstance(size, tuple) else size[i % len(size)]
                pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:03d}.{suffix}")
                made.setdefault(part, []).append((pixels, name))
    return made


@pytest.mark.parametrize("test_part", ["val", "test"])
def test_image_folder(tmp_path, test_part):
    made = write_folder(tmp_path, {"train": {"ant": 3, "bee": 2}, test_part: {"ant": 1, "bee": 2}})
    train, test = load_data(DataSettings("image_folder", root=str(tmp_path)))
    for pool, part in ((train, "train"), (test, test_part)):
        np.testing.assert_array_equal(pool.images.permute(0, 2, 3, 1).numpy(), np.stack([p for p, _ in made[part]]))
        assert [pool.classes[label] for label in pool.labels] == [name for _, name in made[part]]
    elsewhere = DataSettings("image_folder", train=str(tmp_path / test_part), test=str(tmp_path / "train"))
    assert [len(pool) for pool in load_data(elsewhere)] == [3, 5]


def test_image_folder_of_several_sizes_wants_image_size(tmp_path):
    write_folder(tmp_path, {"train": {"a": 3, "b": 3}, "val": {"a": 3, "b": 3}}, size=[(10, 14), (12, 12), (20, 9)])
    with pytest.raises(
        InputError, match=r"image 1 .'.*/train/a/001.png'. of 12x12 .*first of 10x14 .*image_size in a recipe"
    ):
        load_data(DataSettings("image_folder", root=str(tmp_path)))
    train, test = load_data(DataSettings("image_folder", root=str(tmp_path), image_size=8))
    assert train.shape == test.shape == (3, 8, 8)
    # 10x14: the shorter side becomes 8, the longer 11, of which the middle is kept.
    resized = Image.open(tmp_path / "train/a/000.png").resize((11, 8), Image.Resampling.BILINEAR)
    left = round((11 - 8) / 2)
    np.testing.assert_array_equal(train.images[0].permute(1, 2, 0).numpy(), np.asarray(resized)[:, left : left + 8])
    grayscale, _ = load_data(DataSettings("image_folder", root=str(tmp_path), image_size=8, grayscale=True))
    assert grayscale.shape == (1, 8, 8)


def test_image_folder_problems_are_clear_lines(tmp_path):
    with pytest.raises(
        InputError, match=rf"no folder '{tmp_path}/train'. Set `data.root` to a folder with train/<class>/"
    ):
        load_data(DataSettings("image_folder", root=str(tmp_path)))
    write_folder(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"a": 1, "c": 1}})
    only = f"class 'b' only in '{tmp_path}/train', class 'c' only in '{tmp_path}/val'"
    with pytest.raises(InputError, match=f"different class folders. Give both the same names: {only}[.]$"):
        load_data(DataSettings("image_folder", root=str(tmp_path)))
    (tmp_path / "empty/train").mkdir(parents=True)
    (tmp_path / "empty/val").mkdir()
    with pytest.raises(InputError, match="must have a folder for each class, got none. Put the images at <class>"):
        load_data(DataSettings("image_folder", root=str(tmp_path / "empty")))
    (tmp_path / "empty/train/a").mkdir()
    with pytest.raises(InputError, match=r"'.*/empty/train/a' must have images .*, got none") as caught:
        load_data(DataSettings("image_folder", root=str(tmp_path / "empty")))
    assert "\n" not in str(caught.value)
    write_folder(tmp_path / "one", {"train": {"a": 1}, "val": {"a": 1}})
    with pytest.raises(InputError, match=r"one/train' must have folders of at least 2 classes, got 'a' alone. Put"):
        load_data(DataSettings("image_folder", root=str(tmp_path / "one")))


def test_class_folders_that_differ_in_how_an_accent_is_written_are_told_apart(tmp_path):
    write_folder(tmp_path, {"train": {"a": 1, "\u00dc": 1}, "val": {"a": 1, "U\u0308": 1}})
    with pytest.raises(InputError, match=r"class '\\xdc' only in '.*/train', class 'U\\u0308' only in '.*/val'"):
        load_data(DataSettings("image_folder", root=str(tmp_path)))


def test_a_class_folder_named_in_another_encoding(tmp_path):
    latin = os.fsdecode("\u00dcbersicht".encode("latin-1"))
    write_folder(tmp_path, {part: {"a": 2, latin: 2} for part in ("train", "val")})
    train, _ = load_data(DataSettings("image_folder", root=str(tmp_path)))
    assert train.classes == ["a", "\\udcdcbersicht"]
    run = Run("run", {"class": "m:C", "parameters": 1, "factory": None, "arguments": {}, "algorithms": []}, "fc", 2)
    run = replace(run, classes=["a", latin])  # as a callback finds it in the data set
    run.write(tmp_path)
    assert Run.read(tmp_path).classes == train.classes


def test_images_of_any_mode_become_rgb_and_transparency_is_dropped(tmp_path):
    write_folder(tmp_path, {"train": {"a": 1, "b": 3}, "val": {"a": 1, "b": 1}})
    gray = RANDOM.integers(0, 256, (6, 6), dtype=np.uint8)
    hidden = np.dstack([np.full((6, 6), value, np.uint8) for value in (255, 7, 0, 0)])  # all of it transparent
    palette = Image.frombytes("P", (6, 6), (gray % 2).tobytes())
    palette.putpalette([10, 20, 30, 40, 50, 60])
    for number, image in enumerate((Image.fromarray(gray), palette, Image.fromarray(hidden))):
        image.save(tmp_path / f"train/b/{number:03}.png", transparency=0 if image is palette else None)
    train, _ = load_data(DataSettings("image_folder", root=str(tmp_path)))
    indexed = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)[gray % 2]
    wanted = np.stack([np.dstack([gray] * 3), indexed, hidden[..., :3]]).transpose(0, 3, 1, 2)
    assert np.array_equal(train.images[train.labels == 1], wanted)


@pytest.mark.parametrize("grayscale", [True, False])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_of_16_bits_are_refused(tmp_path, grayscale, suffix):
    write_folder(tmp_path, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    deep = tmp_path / f"train/b/001.{suffix}"
    Image.fromarray(RANDOM.integers(0, 2**16, (6, 6), dtype=np.uint16)).save(deep)
    with pytest.raises(InputError, match=f"Image '{deep}' must have 8 bits a channel, got a PIL image of mode 'I;16'"):
        load_data(DataSettings("image_folder", root=str(tmp_path), grayscale=grayscale))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)], ids=["colour", "colour, alpha", "gray, alpha"])
def test_images_of_16_bits_in_several_channels_are_refused(tmp_path, kind, channels):
    """PIL opens them as images of 8 bits, of which 12-bit values fill a sixteenth."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    write_folder(tmp_path, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    deep = tmp_path / "train/b/001.png"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 6, 16, kind, 0, 0, 0))
    rows = b"".join(b"\0" + RANDOM.integers(0, 2**12, (6, channels)).astype(">u2").tobytes() for _ in range(6))
    deep.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    message = "must have 8 bits a channel, got a PIL image of mode '[RGBLA]+;16B'"
    with pytest.raises(InputError, match=f"Image '{deep}' {message}"):
        load_data(DataSettings("image_folder", root=str(tmp_path)))
    with Image.open(deep) as opened, pytest.raises(InputError, match=f"Image 0 {message}"):
        ImagePool.from_dataset([(opened, 0)])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    write_folder(tmp_path, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    broken = tmp_path / "train/b/001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=rf"Item 3 \('{broken}'\) of the data set cannot be read") as caught:
        load_data(DataSettings("image_folder", root=str(tmp_path)))
    assert "\n" not in str(caught.value)
    Image.fromarray(np.zeros((9, 6, 3), np.uint8)).save(broken)
    with pytest.raises(InputError, match=rf"got image 3 \('{broken}'\) of 9x6 .* and the first of 6x6"):
        load_data(DataSettings("image_folder", root=str(tmp_path)))


def test_files_that_are_not_read_are_counted_by_suffix(tmp_path):
    write_folder(tmp_path, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    for name in ("train/a/one.gif", "train/b/two.GIF", "train/b/notes.txt", "train/b/README", "train/a/.hidden"):
        (tmp_path / name).write_bytes(b"")
    wanted = rf"^4 file\(s\) in '{tmp_path}/train' are not read \(2 of .gif, 1 of .txt, 1 of no suffix\)"
    with pytest.warns(UserWarning, match=wanted):
        train, test = load_data(DataSettings("image_folder", root=str(tmp_path)))
    assert (len(train), len(test)) == (4, 2)


@pytest.mark.parametrize("part", ["train", "val"])
def test_hidden_folders_are_neither_classes_nor_images(tmp_path, part):
    write_folder(tmp_path, {"train": {"a": 2, "b": 2}, "val": {"a": 1, "b": 1}})
    plain = load_data(DataSettings("image_folder", root=str(tmp_path)))
    for name in (".ipynb_checkpoints", "a/.ipynb_checkpoints"):
        (tmp_path / part / name).mkdir()
        Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(tmp_path / part / name / "0-checkpoint.png")
        (tmp_path / part / name / "notes.txt").write_bytes(b"")
    for pool, same in zip(load_data(DataSettings("image_folder", root=str(tmp_path))), plain, strict=True):
        assert pool.classes == ["a", "b"] and rows(pool) == rows(same)
    for image in (tmp_path / "train/a").glob("*.png"):
        image.unlink()
    with pytest.raises(InputError, match=r"train/a' must have images"):
        load_data(DataSettings("image_folder", root=str(tmp_path)))


@pytest.mark.parametrize("names", [("image", "label"), ("img", "labels"), ("pixel_values", "target")])
def test_items_that_are_mappings(names):
    items = [dict(zip(names, (np.full((4, 4), i, np.uint8), i % 2), strict=True)) for i in range(4)]
    pool = ImagePool.from_dataset(items)
    assert pool.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3] and pool.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match="an image under one of the keys pixel_values, .* label, .*, got x, y. Rename"):
        ImagePool.from_dataset([{"x": 1, "y": 2}])


def test_a_class_without_test_images_keeps_its_place(tmp_path, monkeypatch):
    (tmp_path / "some_data_7.py").write_text(
        "import numpy as np\n"
        "def sets():\n"
        "    return [[(np.full((4, 4), i, np.uint8), i % 3) for i in range(n)] for n in (9, 2)]\n"
        "def alone():\n    return 7\n"
        "def broken():\n    raise KeyError('my own mistake')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    train, test = load_data(DataSettings("some_data_7:sets"))
    assert (len(train), len(test)) == (9, 2) and test.classes == train.classes == ["0", "1", "2"]
    with pytest.raises(InputError, match="`data.name` must be a function that returns two data sets, .*, got int from"):
        load_data(DataSettings("some_data_7:alone"))
    with pytest.raises(KeyError, match="my own mistake"):  # the user's own function: its traceback is what helps
        load_data(DataSettings("some_data_7:broken"))


@pytest.mark.parametrize("name", ["no_such_module:sets", ":sets", "broken_module_7:sets"])
def test_a_function_that_cannot_be_imported_is_one_clear_line(tmp_path, monkeypatch, name):
    (tmp_path / "broken_module_7.py").write_text("def sets(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError, match=f"`data` must be a function that can be imported, got '{name}' .*current folder"
    ):
        load_data(DataSettings(name))
    sys.modules.pop("broken_module_7", None)


# What settings choose.


def test_per_class_takes_as_many_of_each_class_out_of_the_training_images():
    full, test = load_data(DataSettings())
    train, same_test = load_data(DataSettings(per_class=20))
    assert train.counts.tolist() == [20] * 10
    assert set(rows(train)) <= set(rows(full)) and rows(same_test) == rows(test)
    assert rows(load_data(DataSettings(per_class=20))[0]) == rows(train)
    with pytest.raises(InputError, match="has .* real images, 500 were asked for data.per_class"):
        load_data(DataSettings(per_class=500))


def test_holdout_scores_on_training_images_and_touches_no_test_image():
    full, test = load_data(DataSettings())
    train, held = load_data(DataSettings(holdout=0.2))
    assert sorted(rows(train) + rows(held)) == rows(full)
    assert held.counts.tolist() == [round(n * 0.2) for n in full.counts.tolist()]
    tested = {pixels for pixels, _ in rows(test)} - {pixels for pixels, _ in rows(full)}
    assert tested and not tested & {pixels for pixels, _ in rows(train) + rows(held)}
    both = load_data(DataSettings(per_class=50, holdout=0.2))
    assert [pool.counts.tolist() for pool in both] == [[40] * 10, [10] * 10]


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"name": "imagenette"}, "`name` must be one of digits, .*module:function, got 'imagenette'"),
        ({"holdout": 1.0}, "`holdout` must be a finite number of at least 0 and below 1, got 1.0"),
        ({"holdout": -0.1}, "`holdout` must be a finite number of at least 0 and below 1, got -0.1"),
        ({"per_class": 0}, "`per_class` must be a whole number of at least 1, or null, got 0"),
        ({"name": "cifar10", "image_size": 0}, "`image_size` must be a whole number of at least 1, or null, got 0"),
        ({"image_size": 16}, "`image_size` must be left out for data 'digits', where it has no effect"),
        ({"name": "cifar10", "grayscale": True}, "`grayscale` must be left out for data 'cifar10'"),
        ({"name": "mnist", "train": "x"}, "`train` must be left out for data 'mnist'"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings, pattern):
    with pytest.raises(InputError, match=pattern):
        DataSettings(**settings)


def test_a_holdout_of_nothing_is_refused():
    with pytest.raises(InputError, match="leaves 1257 and 0 images"):
        load_data(DataSettings(holdout=0.001))


def test_beton_files_with_and_without_cards(tmp_path):
    images = torch.from_numpy(RANDOM.integers(0, 256, (9, 1, 8, 8), dtype=np.uint8))
    labels = torch.arange(9) % 3
    for name, n in (("train", 9), ("test", 2)):
        card = Card(["a", "b", "c"], 0, 3, [], [0.5], [0.5])
        write_beton(tmp_path / f"{name}.beton", images[:n], labels[:n], card)
    paths = {name: str(tmp_path / f"{name}.beton") for name in ("train", "test")}
    train, test = load_data(DataSettings("beton", **paths))
    assert torch.equal(train.images, images) and torch.equal(train.labels, labels) and test.classes == ["a", "b", "c"]
    for name in paths:
        (tmp_path / f"{name}.beton.yaml").unlink()
    train, test = load_data(DataSettings("beton", **paths))
    assert train.shape == (3, 8, 8) and torch.equal(train.images, images.expand(-1, 3, -1, -1))
    assert test.classes == train.classes == ["0", "1", "2"]  # though the test file has no image of class 2
    with pytest.raises(
        InputError,
        match="`data.train` and `data.test` must be .beton files .*, got .*[.] Give data.train=... and data.test=...",
    ):
        load_data(DataSettings("beton", train=paths["train"]))
    with pytest.raises(InputError, match="There is no file"):
        load_data(DataSettings("beton", train=paths["train"], test="none.beton"))


def test_gz_files_of_mnist_are_unpacked(tmp_path, monkeypatch):
    """What lies there packed, as downloaded, is used without a download."""
    images = np.zeros((10, 28, 28), np.uint8)
    write_mnist(tmp_path / "MNIST/raw", images, images, {"train": np.arange(10), "t10k": np.arange(10)})
    checksums = []
    for file in sorted((tmp_path / "MNIST/raw").iterdir()):
        packed = gzip.compress(file.read_bytes())
        file.with_name(file.name + ".gz").write_bytes(packed)
        checksums.append((file.name + ".gz", hashlib.md5(packed).hexdigest()))
        file.unlink()
    monkeypatch.setattr(tv.MNIST, "resources", checksums)
    assert len(load_data(DataSettings("mnist", root=str(tmp_path)))[0]) == 10


def test_test_images_of_fewer_classes_or_another_order_keep_their_names(tmp_path, monkeypatch):
    """Each image is a number that tells its class."""
    (tmp_path / "some_data_8.py").write_text(
        "import numpy as np\n"
        "class Named(list):\n    pass\n"
        "def named(*classes):\n"
        "    found = Named((np.full((4, 4), 'abc'.index(name), np.uint8), i) for i, name in enumerate(classes))\n"
        "    found.classes = classes\n"
        "    return found\n"
        "def fewer():\n    return named(*'abc'), named(*'bc')\n"
        "def order():\n    return named(*'abc'), named(*'cab')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("fewer", "order"):
        train, test = load_data(DataSettings(f"some_data_8:{name}"))
        assert test.classes == train.classes == ["a", "b", "c"]
        assert test.labels.tolist() == test.images[:, 0, 0, 0].tolist()
