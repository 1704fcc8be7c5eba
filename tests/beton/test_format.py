"""The .beton: the bytes that were given, in a file that stock FFCV reads; nothing half-written; no crash on damage."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import ffcv.writer
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from ffcv.fields import FloatField, IntField, NDArrayField, RGBImageField
from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image

from tests.common import snapshot
from tgdd_plugin.beton.card import Card, card_path, read_card
from tgdd_plugin.beton.ffcv_tables import check_beton
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.beton.loader import beton_loader
from tgdd_plugin.core.errors import InputError

N, K = 23, 4


def made(channels=3, count=N, side=(6, 9), seed=0):
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, channels, *side), dtype=np.uint8))
    return images, torch.arange(count) % K, torch.from_numpy(random.dirichlet(np.ones(K), count)).float()


def card(channels=3, **more):
    values = [0.1, 0.2, 0.3][:channels]
    return Card([f"class {i}" for i in range(K)], 0, 5, [], values, [v + 0.1 for v in values], **more)


def parse(path):
    """Version 2 of the format, read by struct and numpy alone: images (N, H, W, 3), labels, soft labels or None."""
    content = Path(path).read_bytes()
    version, num_fields, page, count, _ = struct.unpack_from("<HHIQQ", content)
    names = [content[24 + 1041 * i + 1 :][:16].rstrip(b"\0").decode() for i in range(num_fields)]
    assert version == 2 and page >= 2**21
    # The image's entry is packed, the others are aligned to 8 bytes.
    width = 24 if num_fields == 2 else 32
    images, labels, soft = [], [], []
    for i in range(count):
        at = 24 + 1041 * num_fields + width * i
        mode, columns, rows, pointer = struct.unpack_from("<BHHQ", content, at)
        assert mode == 1
        images.append(np.frombuffer(content, np.uint8, rows * columns * 3, pointer).reshape(rows, columns, 3))
        labels.append(struct.unpack_from("<q", content, at + 16)[0])
        if num_fields == 3:
            soft.append(np.frombuffer(content, np.float32, K, struct.unpack_from("<Q", content, at + 24)[0]))
    return names, np.stack(images), labels, np.stack(soft) if soft else None


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stock_ffcv_loader_reads_exactly_what_was_written(tmp_path, channels):
    images, labels, soft = made(channels)
    path = write_beton(tmp_path / "set.beton", images, labels, card(channels), soft)
    loader = Loader(
        str(path),
        batch_size=10,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={
            "image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
            "soft_label": [NDArrayDecoder(), ToTensor()],
        },
    )
    read = [torch.cat(parts) for parts in zip(*[[t.clone() for t in batch] for batch in loader], strict=True)]
    assert torch.equal(read[0], images.expand(-1, 3, -1, -1))
    assert torch.equal(read[1], labels) and torch.equal(read[2], soft)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_soft", [False, True])
def test_the_bytes_in_the_file_are_the_ones_given(tmp_path, channels, with_soft):
    images, labels, soft = made(channels)
    # Neither the layout of the tensors nor their integer type matters.
    given = images.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    path = write_beton(tmp_path / "a.beton", given, labels.to(torch.int32), card(channels), soft if with_soft else None)
    names, pixels, numbers, probabilities = parse(path)
    assert names == ["image", "label", "soft_label"][: 2 + with_soft] and numbers == labels.tolist()
    np.testing.assert_array_equal(pixels, images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())
    assert probabilities is None or np.array_equal(probabilities, soft.numpy())
    again = write_beton(tmp_path / "b.beton", images, labels, card(channels), soft if with_soft else None)
    assert again.read_bytes() == path.read_bytes() and card_path(again).read_bytes() == card_path(path).read_bytes()
    assert path.stat().st_size < 2.1 * 2**21


@pytest.mark.parametrize("channels", [1, 3])
def test_read_beton_gives_back_what_was_written_and_its_card(tmp_path, channels):
    images, labels, soft = made(channels, count=1100)  # more than two of the reader's batches
    row = {"name": "distilled", "images": 20, "epochs": 5, "mean_percent": 50.5, "std_points": None}
    entry = {"network": "ConvNet", "seeds": [0], "test_images": 9, "rows": [row], "another": {"key": [1]}}
    written = card(channels, factor=2, method={"alpha": 0.5}, accuracy=[entry])
    path = write_beton(tmp_path / "deep/er/set.beton", images, labels, written, soft)
    threads = torch.get_num_threads()
    read = read_beton(path)
    assert torch.get_num_threads() == threads
    assert torch.equal(read[0], images) and torch.equal(read[1], labels)
    back = read_card(path)
    assert back == written and (back.images, back.shape) == (1100, [channels, 6, 9])
    assert yaml.safe_load(card_path(path).read_text())["format"] == 1


def test_one_process_writes_so_that_the_bytes_repeat(tmp_path, monkeypatch):
    """Several of FFCV's workers write their pages in the order in which they happen to end."""
    workers = []
    start = ffcv.writer.DatasetWriter.__init__

    def noted(self, *arguments, num_workers=-1, **options):
        workers.append(num_workers)
        start(self, *arguments, num_workers=num_workers, **options)

    monkeypatch.setattr(ffcv.writer.DatasetWriter, "__init__", noted)
    images, labels, _ = made(count=700)
    written = {write_beton(tmp_path / f"{i}.beton", images, labels, card()).read_bytes() for i in range(2)}
    assert workers == [1, 1] and len(written) == 1


def test_one_image(tmp_path):
    images, labels, _ = made(count=1)
    assert torch.equal(read_beton(write_beton(tmp_path / "one.beton", images, labels, card()))[0], images)


def test_a_sample_as_large_as_a_page_still_fits(tmp_path):
    """Image and soft label must lie in one page; FFCV's writer would otherwise wait for ever."""
    images = torch.zeros(2, 3, 512, 1365, dtype=torch.uint8)  # 512 bytes short of 2 MiB
    classes = [str(i) for i in range(200)]
    soft = torch.full((2, 200), 1 / 200)
    big = Card(classes, 0, 1, [], [0.0] * 3, [1.0] * 3)
    path = write_beton(tmp_path / "big.beton", images, torch.zeros(2, dtype=torch.int64), big, soft)
    assert struct.unpack_from("<HHI", path.read_bytes())[2] == 2**22


# Checked before FFCV's writer starts.

IMAGES, LABELS, SOFT = made()
REFUSED = {
    "floats": ((IMAGES.float(), LABELS, None), r"`images` must be uint8 \(N, C, H, W\), .* got torch.float32"),
    "channels last": ((IMAGES.permute(0, 2, 3, 1), LABELS, None), r"must be uint8 \(N, C, H, W\), C 1 or 3"),
    "two channels": ((IMAGES[:, :2], LABELS, None), "C 1 or 3"),
    "no images": ((IMAGES[:0], LABELS[:0], None), "for 0 images"),
    "fewer labels": ((IMAGES, LABELS[:-1], None), r"`labels` must .* got torch.int64 of shape \(22,\) for 23 images"),
    "label columns": ((IMAGES, LABELS[:, None], None), r"got torch.int64 of shape \(23, 1\)"),
    "fractions for labels": ((IMAGES, LABELS + 0.5, None), "`labels` must .* got torch.float32"),
    "negative label": ((IMAGES, LABELS - 1, None), r"labels run from -1 to 2, the card names 4 classes[.] Correct"),
    "label too high": ((IMAGES, LABELS + 1, None), r"labels run from 1 to 4, the card names 4 classes[.] Correct"),
    "soft labels of another number": (
        (IMAGES, LABELS, SOFT[:-1]),
        r"`soft_labels` must be finite values of shape \(23, 4\), got shape \(22, 4\)",
    ),
    "soft labels of other classes": ((IMAGES, LABELS, SOFT[:, :2]), r"`soft_labels` must .* got shape \(23, 2\)"),
    "infinite soft labels": ((IMAGES, LABELS, SOFT / 0), "finite values"),
    "logits for soft labels": (
        (IMAGES, LABELS, SOFT.log()),
        r"at least 0 and sum to 1 for each image, got -.* as the le",
    ),
    "soft labels of half": (
        (IMAGES, LABELS, SOFT / 2),
        r"another sum for 23 of 23 images[.] Give a probability for each",
    ),
    "grayscale under a colour card": ((IMAGES[:, :1], LABELS, None), r"must have 1 value.*got mean \[0.1, 0.2, 0.3\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_ffcv_would_hang_on_is_refused_before_it_starts(tmp_path, monkeypatch, case):
    def started(*_, **__):
        raise AssertionError("FFCV's writer was started")

    monkeypatch.setattr(ffcv.writer.DatasetWriter, "__init__", started)
    (images, labels, soft), pattern = REFUSED[case]
    with pytest.raises(InputError, match=pattern):
        write_beton(tmp_path / "x.beton", images, labels, card(), soft)
    assert os.listdir(tmp_path) == []


def test_a_normalization_that_could_not_be_read_again_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"each std above 0, got mean \[0.1, 0.2, 0.3\] and std \[1.0, 0.0, 1.0\]"):
        write_beton(tmp_path / "x.beton", IMAGES, LABELS, replace(card(), std=[1.0, 0.0, 1.0]))
    assert os.listdir(tmp_path) == []
    given = replace(card(), mean=np.array([0.5, 0.25, 0.5]), std=torch.tensor([0.5, 0.25, 0.5]))
    write_beton(tmp_path / "x.beton", IMAGES, LABELS, given)
    read = read_card(tmp_path / "x.beton")
    assert read.mean == read.std == [0.5, 0.25, 0.5]


def test_a_full_disk_is_found_out_before_ffcv_starts(tmp_path, monkeypatch):
    path = write_beton(tmp_path / "x.beton", *made()[:2], card())
    needed = path.stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match="MiB left.*Make room there"):
        write_beton(path, *made(seed=1)[:2], card())
    assert sorted(os.listdir(tmp_path)) == ["x.beton", "x.beton.yaml"]


@pytest.mark.parametrize("failure", ["in the writer", "in the card", "at the last moment"])
def test_a_failure_midway_leaves_the_earlier_file_as_it_was(tmp_path, monkeypatch, failure):
    path = write_beton(tmp_path / "x.beton", *made()[:2], card())
    before = snapshot(tmp_path)
    more = {}
    if failure == "in the writer":

        def half(self, dataset):
            Path(self.fname).write_bytes(b"half a file")
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(ffcv.writer.DatasetWriter, "from_indexed_dataset", half)
    elif failure == "in the card":
        more = {"method": {"alpha": np.float64(0.5)}}  # YAML has no numpy
    else:

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("tgdd_plugin.core.atomic_files.os.replace", killed)
    with pytest.raises((OSError, yaml.YAMLError, KeyboardInterrupt)):
        write_beton(path, *made(seed=1)[:2], card(**more))
    assert snapshot(tmp_path) == before


# Cards.


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "set.beton"
    write_beton(path, *made()[:2], card())
    return path


@pytest.fixture
def copy(written, tmp_path):
    for source in (written, card_path(written)):
        shutil.copy(source, tmp_path)
    return tmp_path / written.name


def test_a_card_that_is_missing_damaged_or_of_another_file(copy):
    text = card_path(copy).read_text()
    content = yaml.safe_load(text)

    def refused(pattern, new=None):
        card_path(copy).write_text(text if new is None else new)
        with pytest.raises(InputError, match=pattern) as caught:
            read_card(copy)
        assert "\n" not in str(caught.value)

    refused("damaged .*[.] Copy it again", text.replace("classes:", "classes: ]["))
    refused("damaged", yaml.safe_dump({**content, "mean": [0.5]}))
    refused("damaged", yaml.safe_dump({**content, "shape": 7}))
    refused("damaged", yaml.safe_dump({key: value for key, value in content.items() if key != "std"}))
    row = {"name": "distilled", "images": 1, "epochs": 1, "mean_percent": 50.0, "std_points": -1.0}
    entry = {"network": "ConvNet", "seeds": [0], "test_images": 9, "rows": [row]}
    refused(
        "std_points` must be greater than or equal to 0, got -1.0", yaml.safe_dump({**content, "accuracy": [entry]})
    )
    refused("must be of format 1 or 2, got 3[.] Update tgdd_plugin", yaml.safe_dump({**content, "format": 3}))
    refused("not the card of a .beton", "just words")
    refused("not the card of a .beton", "")
    refused("not the card of a .beton", "a: 1")
    card_path(copy).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="damaged"):
        read_card(copy)
    # A field of a later version of the same format is passed over.
    card_path(copy).write_text(yaml.safe_dump({**content, "colour": "red"}))
    assert read_card(copy).classes == content["classes"]
    # One of a version that packed nothing.
    del content["packed"]
    card_path(copy).write_text(yaml.safe_dump(content))
    assert read_card(copy).packed is False and len(read_beton(copy)[0]) == N
    card_path(copy).write_text(text)
    copy.write_bytes(copy.read_bytes() + b"\0")
    refused("not the one that 'set.beton.yaml' describes .*Copy both again")
    card_path(copy).unlink()
    with pytest.raises(InputError, match="has no card 'set.beton.yaml' beside it. Copy both files"):
        read_card(copy)
    with pytest.raises(InputError, match="There is no file"):
        read_card(copy.with_name("none.beton"))


# The checksum is of the file; the card itself can be edited.

MISFITS = {
    "more images": ({"images": 24}, "there are 23 images, the card says 24"),
    "grids that are none": ({"packed": True}, "5x8, which the card's factor 2 does not divide"),
    "grids that are counted": ({"packed": True, "factor": 1}, "the card's 4 classes of 5 .* factor 1 are 20"),
    "packed at another factor": ({"packed": True, "factor": 5, "shape": [3, 5, 8]}, "factor 5 does not divide"),
    "another size": ({"shape": [3, 8, 5]}, r"the images are 5x8, the card's shape is \[3, 8, 5\]"),
    "two channels": ({"shape": [2, 5, 8], "mean": [0.5] * 2, "std": [0.5] * 2}, r"the card's shape is \[2, 5, 8\]"),
    "too few classes": ({"classes": ["a", "b", "c"]}, "labels run from 0 to 3, the card names 3 classes"),
    "more classes than were distilled": (
        {"classes": list("abcde"), "method": {"name": "TGDD"}},
        "there are 23 images, the card's 5 classes of 5 stored ones at factor 2 are 100",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_card_that_contradicts_its_file(tmp_path, case):
    changes, pattern = MISFITS[case]
    path = write_beton(tmp_path / "set.beton", *made(side=(5, 8))[:2], card(factor=2))
    content = yaml.safe_load(card_path(path).read_text())
    card_path(path).write_text(yaml.safe_dump({**content, **changes}))
    for read in (read_beton, lambda path: beton_loader(path, backend="ffcv")):
        if changes.get("packed") and read is not read_beton:
            continue  # refused for that alone
        with pytest.raises(InputError, match=f"'{path}' and its card do not fit.*{pattern}.*[.] Copy both again, or"):
            read(path)


def test_a_grey_card_of_coloured_images(tmp_path):
    path = write_beton(tmp_path / "set.beton", *made()[:2], card())
    content = yaml.safe_load(card_path(path).read_text())
    grayscale = {"shape": [1, 6, 9], "mean": [0.5], "std": [0.5]}
    card_path(path).write_text(yaml.safe_dump({**content, **grayscale}))
    with pytest.raises(InputError, match="Image 0 of .* has colors, and its card says one channel"):
        read_beton(path)


# Packed files.


def decoded(stored, factor):
    """Part by part, in PyTorch's own words."""
    height, width = stored.shape[2] // factor, stored.shape[3] // factor
    parts = [
        image[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
        for image in stored.float()
        for i in range(factor)
        for j in range(factor)
    ]
    large = F.interpolate(torch.stack(parts), stored.shape[2:], mode="bilinear", align_corners=False)
    return large.round().to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [2, 4])
def test_a_packed_file_holds_the_stored_images_and_is_read_decoded(tmp_path, channels, factor):
    stored, labels, _ = made(channels, count=20, side=(8, 12))
    path = write_beton(tmp_path / "packed.beton", stored, labels, card(channels, factor=factor, packed=True))
    _, pixels, numbers, _ = parse(path)
    np.testing.assert_array_equal(pixels, stored.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())
    assert numbers == labels.tolist()
    images, read_labels = read_beton(path)
    assert torch.equal(images, decoded(stored, factor))
    assert torch.equal(read_labels, labels.repeat_interleave(factor**2)) and read_labels.dtype == torch.int64
    back = read_card(path)
    assert (back.packed, back.images, back.shape) == (True, 20 * factor**2, [channels, 8, 12])
    # An earlier version passes over `packed`, and must not take the grids for images.
    assert yaml.safe_load(card_path(path).read_text())["format"] == 2
    # The two lines of the module's docstring.
    plain = write_beton(tmp_path / "plain.beton", *read_beton(path), replace(read_card(path), packed=False))
    assert torch.equal(read_beton(plain)[0], images) and torch.equal(read_beton(plain)[1], read_labels)
    np.testing.assert_array_equal(parse(plain)[1][..., 0], images[:, 0].numpy())
    assert yaml.safe_load(card_path(plain).read_text())["format"] == 1


@pytest.mark.parametrize(
    ("changes", "soft", "pattern"),
    [
        ({"factor": 5}, None, "6x9, which the card's factor 5 does not divide[.] Correct the card"),
        (
            {"images_per_class": 4},
            None,
            "there are 180 images, the card's 4 classes of 4 .* factor 3 are 144[.] Correct",
        ),
        ({"factor": 11}, None, "The card's factor must be at most 10 for packed images, got 11[.] Write them decoded"),
        ({}, SOFT[:20], "`soft_labels` must be left out for packed images"),
    ],
)
def test_packed_images_that_could_not_be_read_back_are_not_written(tmp_path, changes, soft, pattern):
    with pytest.raises(InputError, match=pattern):
        wanted = replace(card(factor=3, packed=True), **changes)
        write_beton(tmp_path / "x.beton", IMAGES[:20], LABELS[:20], wanted, soft)
    assert os.listdir(tmp_path) == []


def test_a_wrong_checksum_is_found_before_ffcv_parses_anything(copy, monkeypatch):
    def parsed(*_, **__):
        raise AssertionError("FFCV parsed the file")

    monkeypatch.setattr("ffcv.reader.Reader.__init__", parsed)
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(InputError, match="checksums differ"):
        read_beton(copy)


# Files that are damaged or not ours, without a card: FFCV alone would crash, hang or make things up.


def test_truncated_and_foreign_bytes_are_clear_lines(copy, tmp_path):
    card_path(copy).unlink()
    content = copy.read_bytes()
    table = struct.unpack_from("<HHIQQ", content)[4]
    metadata, page = 24 + 2 * 1041, 2**21
    cuts = [0, 1, 23, 24, 100, 24 + 1041, metadata, metadata + 24, metadata + 24 * 11, metadata + 24 * N, page - 1]
    cuts += [page, page + 100, 2 * page - 1, table, table + 23, table + 24, table + 24 * (N - 1), len(content) - 1]
    cases = {f"cut at {cut}": content[:cut] for cut in cuts}
    image = io.BytesIO()
    Image.new("RGB", (9, 9)).save(image, "PNG")
    cases |= {"a png": image.getvalue(), "text": b"format: 1\n" * 300, "zeros": bytes(5000), "ones": b"\xff" * 5000}
    cases["text of the right version"] = struct.pack("<HH", 2, 2) + b"words " * 2000
    for name, blob in cases.items():
        (tmp_path / f"{name}.bin").write_bytes(blob)
    script = """
        import json, sys
        from pathlib import Path
        from tgdd_plugin.beton.format import read_beton
        from tgdd_plugin.core.errors import InputError
        found = {}
        for path in Path(sys.argv[1]).glob("*.bin"):
            try:
                found[path.stem] = len(read_beton(path)[0])
            except InputError as error:
                found[path.stem] = str(error)
        print(json.dumps(found))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == cases.keys()
    for name, message in found.items():
        assert isinstance(message, str) and "\n" not in message, (name, message)
        assert "is not an FFCV file, or is damaged" in message or "is damaged" in message, (name, message)


def test_every_pointer_is_checked(copy):
    """Flips bytes all over the header, the sample entries and the table: whatever passes points into the file."""
    card_path(copy).unlink()
    content = copy.read_bytes()
    table = struct.unpack_from("<HHIQQ", content)[4]
    metadata = range(24 + 2 * 1041, 24 + 2 * 1041 + 24 * N)
    random, refused = np.random.default_rng(0), 0
    spots = [*range(24), 24, 24 + 1041, *random.choice(metadata, 150), *random.choice(range(table, len(content)), 80)]
    for spot in spots:
        changed = bytearray(content)
        changed[spot] ^= int(random.integers(1, 256))
        copy.write_bytes(changed)
        try:
            tables = check_beton(copy)
        except InputError:
            refused += 1
            continue
        at = 24 + 2 * 1041
        pointers = [struct.unpack_from("<BHHQ", changed, at + 24 * i) for i in range(len(tables.labels))]
        assert all((w, h) == (tables.width, tables.height) for _, w, h, _ in pointers)
        assert all(pointer + 3 * h * w <= len(content) for mode, w, h, pointer in pointers if mode == 1)
    assert refused > 120
    copy.write_bytes(content)
    assert len(check_beton(copy).labels) == N


def test_entries_that_would_lead_out_of_an_image_or_of_the_file(copy):
    card_path(copy).unlink()
    content = copy.read_bytes()
    table, entry = struct.unpack_from("<HHIQQ", content)[4], 24 + 2 * 1041
    (pointer,) = struct.unpack_from("<Q", content, entry + 5)
    (row,) = [at for at in range(table, len(content), 24) if struct.unpack_from("<Q", content, at + 8)[0] == pointer]
    size, end = 3 * 6 * 9, len(content)
    cases = {
        "a size that is not its pixels'": [(row + 16, "<Q", size + 1)],
        "rows that are not its bytes'": [(entry + 3, "<H", 7)],
        "a pointer that is in no table": [(entry + 5, "<Q", pointer + 1)],
        "an image over the end": [(entry + 5, "<Q", end - size + 1), (row + 8, "<Q", end - size + 1)],
        "a pointer beyond the end": [(entry + 5, "<Q", 2**63), (row + 8, "<Q", 2**63)],
        "a huge JPEG": [(entry, "<B", 0), (row + 16, "<Q", 2**64 - 1)],
    }
    for name, changes in cases.items():
        changed = bytearray(content)
        for at, form, value in changes:
            struct.pack_into(form, changed, at, value)
        copy.write_bytes(changed)
        with pytest.raises(InputError, match="is damaged: its images are not where it says"):
            pytest.fail(f"{name}: {len(read_beton(copy)[0])} images were read")


class Items:
    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, index):
        return tuple(column[index] for column in self.columns)


def foreign(path, fields, *columns):
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Items(*columns))
    return path


def test_a_file_of_jpegs_that_somebody_else_wrote(tmp_path):
    ramp = np.linspace(0, 200, 32, dtype=np.uint8)
    pictures = [
        np.dstack([ramp[None].repeat(24, 0) + i, np.full((24, 32), 9 * i), np.full((24, 32), 40)]) for i in range(5)
    ]
    pictures = [picture.astype(np.uint8) for picture in pictures]
    # Other fields, in another order, with a page of another size.
    path = foreign(
        tmp_path / "jpg.beton",
        {"z": NDArrayField(np.dtype("f4"), (2,)), "label": IntField(), "image": RGBImageField("jpg"), "w": IntField()},
        [np.zeros(2, np.float32)] * 5,
        [3, 1, 4, 1, 5],
        pictures,
        [9] * 5,
    )  # fmt: skip
    images, labels = read_beton(path)
    assert labels.tolist() == [3, 1, 4, 1, 5] and images.shape == (5, 3, 24, 32)
    error = images.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(pictures)
    assert 0 < np.abs(error).max() <= 9  # JPEG, with red, green and blue in their places
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xd8\xff")
    content[start : start + 300] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(InputError, match="Image 0 of .* is damaged"):
        read_beton(path)


FOREIGN = {
    "several sizes": (
        {"image": RGBImageField(), "label": IntField()},
        ([np.zeros((8, 8 + i, 3), np.uint8) for i in range(3)], [0, 1, 2]),
        r"must be of one size, got several sizes, from 8x8 to 8x10 \(H x W\)",
    ),
    "no label": (
        {"image": RGBImageField()},
        ([np.zeros((8, 8, 3), np.uint8)],),
        r"must have the fields image .*, got image \(RGBImageField\)",
    ),
    "float label": (
        {"image": RGBImageField(), "label": FloatField()},
        ([np.zeros((8, 8, 3), np.uint8)], [0.5]),
        r"label \(IntField\), got .*label \(FloatField\)",
    ),
    "array image": (
        {"image": NDArrayField(np.dtype("f4"), (3, 2, 2)), "label": IntField()},
        ([np.zeros((3, 2, 2), np.float32)], [0]),
        r"image \(NDArrayField\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_that_does_not_fit_is_a_clear_line(tmp_path, case):
    fields, columns, pattern = FOREIGN[case]
    with pytest.raises(InputError, match=pattern):
        read_beton(foreign(tmp_path / "x.beton", fields, *columns))


def test_a_file_without_images_is_a_clear_line(copy):
    content = bytearray(copy.read_bytes())
    struct.pack_into("<Q", content, 8, 0)
    card_path(copy).unlink()
    copy.write_bytes(content)
    with pytest.raises(InputError, match="holds no images"):
        read_beton(copy)


def test_the_first_use_of_ffcv_leaves_the_thread_numbers_alone(written, tmp_path):
    """Importing FFCV sets torch to one thread, for the whole process; nor has Numba anything to compile for it."""
    script = """
        import sys, torch, numba
        from numba.core.compiler import CompilerBase
        CompilerBase.compile_extra = lambda *_: sys.exit("compiled")
        torch.set_num_threads(3)
        threads = 3, numba.get_num_threads()
        from tgdd_plugin.beton.format import read_beton, write_beton
        from tgdd_plugin.beton.card import Card
        images, labels = read_beton(sys.argv[1])
        assert threads == (torch.get_num_threads(), numba.get_num_threads()), "reading"
        for name in [name for name in sys.modules if name.startswith("ffcv")]:
            del sys.modules[name]
        write_beton(sys.argv[2], images[:1], torch.tensor([0]), Card(["a"], 0, 1, [], [0.0] * 3, [1.0] * 3))
        assert "ffcv" in sys.modules
        assert threads == (torch.get_num_threads(), numba.get_num_threads()), "writing"
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(written), str(tmp_path / "w.beton")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
