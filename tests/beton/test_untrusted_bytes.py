"""Files that say more than they hold: refused in one line, in little time and memory; nothing in them runs."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tgdd_plugin.beton import ffcv_tables
from tgdd_plugin.beton.card import MEMORY, Card, card_path
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.beton.pt_reader import read_pair
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.replay.memory import ReplayMemory

MOST_MEMORY = 512 * 2**20
MAGIC = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]


def pair(path: Path) -> Any:
    return read_pair([path], -1, f"'{path}'")


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def repacked(content: bytes, change: Callable[[str, bytes], bytes] = lambda _, data: data, **options: Any) -> bytes:
    """A zip archive with its entries changed, and written with other options."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def with_pickle(edit: Callable[[bytes], bytes]) -> bytes:
    return repacked(saved(SMALL), lambda name, data: edit(data) if name.endswith("data.pkl") else data)


SMALL = [torch.zeros(4, 3, 8, 8), torch.arange(4)]
MANY = (768).to_bytes(2, "little")  # the numbers of the images, as they stand in the pickle


def beyond(data: bytes) -> bytes:
    """Of the images, 2^28 in place of 4; and a storage of 2^30 numbers."""
    changed = data.replace(b"M" + MANY, b"J" + struct.pack("<i", 2**30)).replace(b"(K\x04K\x03", b"(J\0\0\0\x10K\x03")
    assert len(changed) == len(data) + 5
    return changed


class Encoded:
    """Bytes that are written in hexadecimal digits again and again: 2^n times as many.

    A few times are refused as many are, and take no memory where they are not.
    """

    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> Any:
        import codecs

        inner: Any = Encoded(self.times - 1) if self.times else b"aaaa"
        return codecs.encode, (inner, "hex_codec")


PT = {
    "compressed": (
        lambda: repacked(saved([torch.zeros(2**22), torch.arange(4)]), compression=zipfile.ZIP_DEFLATED),
        "its entries are compressed",
    ),
    "images of one number": (lambda: saved([torch.zeros(1).expand(10**12), SMALL[1]]), "must hold each number of its"),
    "labels of one number": (lambda: saved([SMALL[0], torch.zeros(1).expand(2**40)]), "must hold each number of its"),
    "a storage beyond the file": (
        lambda: with_pickle(beyond),
        "not a .pt that torch.save wrote, or is damaged",
    ),
    "many lists": (
        lambda: with_pickle(lambda _: b"\x80\x02" + b"]" * 3_000_000 + b"."),
        "data.pkl of at most 1024 KiB",
    ),
    "many lists, before 1.6": (
        lambda: b"".join(pickle.dumps(one, 2) for one in MAGIC) + b"\x80\x02" + b"]" * 30_000_000 + b".",
        "not a .pt that torch.save wrote",
    ),
    "a large storage, before 1.6": (
        lambda: saved(SMALL, _use_new_zipfile_serialization=False).replace(
            b"M" + MANY, b"J" + struct.pack("<i", 2**30)
        ),
        "not a .pt that torch.save wrote, or is damaged",
    ),
    "a text that grows": (lambda: pickled_in_zip(Encoded(8)), "holds a _codecs.encode"),
    "a bytearray of zeros": (
        lambda: with_pickle(lambda _: b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R."),
        "bytearray",
    ),
    "a command": (lambda: with_pickle(lambda _: b"\x80\x02cposix\nsystem\nX\x01\0\0\0:\x85R."), "holds a posix.system"),
    "another archive": (lambda: zipped({"a.txt": b"x"}), "must have one data.pkl"),
    "very many entries": (
        lambda: zipped({f"archive/{number}": b"" for number in range(10_001)}),
        "more than 10,000 entries",
    ),
    "not an archive": (lambda: b"PK\x03\x04" + b"\0" * 100, "is not a zip archive"),
    "not much": (lambda: b"\x80", "not a .pt"),
}


def pickled_in_zip(content: Any) -> bytes:
    # Protocol 2, as torch.save's; hex_codec is Python's own.
    return with_pickle(lambda _: pickle.dumps(content, 2))


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("case", PT)
def test_a_pt_that_asks_for_more_than_it_holds(tmp_path: Path, case: str) -> None:
    make, reason = PT[case]
    path = tmp_path / "x.pt"
    path.write_bytes(make())
    with pytest.raises(InputError, match=reason) as error:
        pair(path)
    assert len(str(error.value)) < 500


def test_a_pt_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """Of both formats, with views of one storage, and with numpy's numbers as DC's files have them."""
    whole = torch.arange(2 * 4 * 3 * 8 * 8).float().reshape(2, 4, 3, 8, 8)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        for images in (whole[0], whole[1].permute(0, 1, 3, 2), torch.nn.Parameter(whole[1])):
            content = {"data": [[images, SMALL[1]]], "accs": {"ConvNet": [np.float64(0.5), np.float32(1)]}}
            (tmp_path / "x.pt").write_bytes(saved(content, **options))
            read = pair(tmp_path / "x.pt")
            assert torch.equal(read[0], images) and torch.equal(read[1], SMALL[1])


def test_a_named_pipe_is_no_pt(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(InputError, match="There is no file|must be a regular file"):
        pair(tmp_path / "x.pt")


def test_a_zip_bomb_is_refused_in_little_memory(tmp_path: Path) -> None:
    """4 GiB of zeros in 4 MiB; in a process of its own, whose memory is that of torch and FFCV alone."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, zipfile.ZipFile(io.BytesIO(saved(SMALL))) as old:
        archive.writestr("archive/data.pkl", old.read("archive/data.pkl"))
        with archive.open("archive/data/0", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(2**22))
    code = f"""
        from tgdd_plugin.beton.pt_reader import read_pair
        from pathlib import Path
        before = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
        try:
            read_pair([Path({str(path)!r})], -1, "it")
        except ValueError as error:
            print(error)
        print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - int(before))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200, check=True
    )
    message, grown = done.stdout.splitlines()
    assert "its entries are compressed" in message and int(grown) < 32 * 1024


# .beton


def made(folder: Path) -> Path:
    card = Card(["a", "b"], 0, 2, [], [0.5] * 3, [0.5] * 3)
    return write_beton(folder / "x.beton", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, card)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        pytest.param(2, "<H", 65535, id="fields"),
        pytest.param(4, "<I", 2**31, id="page"),
        pytest.param(8, "<Q", 10**12, id="samples"),
        pytest.param(8, "<Q", 2**63, id="more samples"),
        pytest.param(16, "<Q", 2**62, id="table"),
    ],
)
def test_a_header_that_says_more_than_the_file_holds(tmp_path: Path, offset: int, form: str, value: int) -> None:
    path = made(tmp_path)
    card_path(path).unlink()
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)
    with pytest.raises(InputError, match="its header says more than it holds"):
        read_beton(path)


def test_an_image_that_is_said_to_hold_very_many(tmp_path: Path) -> None:
    """Packed: 4 images of 64 x 64 pixels, whose card says that each is one of 64 x 64 parts."""
    card = Card(["a"], 0, 4, [], [0.5] * 3, [0.5] * 3, factor=2, packed=True)
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    path = write_beton(tmp_path / "x.beton", images, torch.zeros(4, dtype=torch.int64), card)
    assert len(read_beton(path)[0]) == 16
    content = yaml.safe_load(card_path(path).read_text())
    card_path(path).write_text(yaml.safe_dump({**content, "factor": 64, "images": 4 * 64**2}))
    with pytest.raises(InputError, match="49152 bytes cannot hold 16384 images of 64x64"):
        read_beton(path)


def test_samples_that_all_name_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffcv.reader import Reader

    path = made(tmp_path)
    card_path(path).unlink()
    reader = Reader(str(path))
    content = bytearray(path.read_bytes())
    start = content.index(reader.metadata.tobytes())
    metadata = reader.metadata.copy()
    metadata["f0"]["data_ptr"] = metadata["f0"]["data_ptr"][0]
    monkeypatch.setattr(ffcv_tables, "MOST_EXPANSION", 3)
    monkeypatch.setattr(ffcv_tables, "ALWAYS", 0)
    assert len(read_beton(path)[0]) == 4
    content[start : start + metadata.nbytes] = metadata.tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="192 bytes cannot hold 4 images of 8x8"):
        read_beton(path)


def jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("said", [(8, 8), (6000, 6000)])
def test_a_jpeg_bomb(tmp_path: Path, said: tuple[int, int]) -> None:
    """A JPEG of 36 million pixels, in a file of 4 MiB that says so, or that says 64."""
    from ffcv.fields import BytesField, IntField, RGBImageField
    from ffcv.reader import Reader
    from ffcv.writer import DatasetWriter

    bomb, path = jpeg(6000, 6000), tmp_path / "x.beton"
    written = {"image": RGBImageField(write_mode="jpg"), "label": IntField(), "more": BytesField()}
    small = np.zeros((8, 8, 3), np.uint8)
    rows = [(small, 0, np.frombuffer(bomb, np.uint8))] * 5
    DatasetWriter(str(path), written, page_size=2**22, num_workers=1).from_indexed_dataset(rows)
    reader = Reader(str(path))
    content = bytearray(path.read_bytes())
    start = content.index(reader.metadata.tobytes())
    metadata = reader.metadata.copy()
    metadata["f0"]["height"], metadata["f0"]["width"] = said
    metadata["f0"]["data_ptr"] = metadata["f2"]["ptr"]
    content[start : start + metadata.nbytes] = metadata.tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="Image 0 of .* is damaged|cannot hold 5 images of 6000x6000"):
        read_beton(path)


def test_a_memory_that_says_more_images_than_it_holds(tmp_path: Path) -> None:
    path = made(tmp_path)
    content = yaml.safe_load(card_path(path).read_text())
    tasks = [{"name": "first", "label": None, "images": [10**12, 2]}]
    content["method"] = {"name": MEMORY, "images_per_class": 2, "growing": False, "tasks": tasks}
    card_path(path).write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="The tasks in the card of .* are not those of its images"):
        ReplayMemory.load(path)
