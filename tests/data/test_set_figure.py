"""The figure of a set: every image that it shows is one of the set, by its class, and its words are true."""

from __future__ import annotations

import base64
import io
import itertools
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from tgdd_plugin.data.set_figure import draw_set, is_drawing_of, set_figure

NAMES = ["cat", "dog & bone", "$x_1$", "a name that is much too long to stand beside a row", "猫"]


def pictures(count: int, channels: int = 3, side: tuple[int, int] = (5, 7), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, *side), generator=generator).to(torch.uint8)


def embedded(path: Path) -> list[bytes]:
    """The pixels of every image in an SVG, in the order of drawing."""
    found = re.findall(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", path.read_text())
    images = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found]
    return [np.asarray(image).tobytes() for image in images]


def words(path: Path) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())]


def rgb(images: torch.Tensor) -> list[bytes]:
    return [image.permute(1, 2, 0).expand(-1, -1, 3).numpy().tobytes() for image in images]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_for_each_class_of_its_first_ten(tmp_path: Path, channels: int) -> None:
    images, labels = pictures(60, channels), torch.arange(60) % 5
    path = draw_set(tmp_path / "a.svg", images, labels, NAMES)
    assert embedded(path) == [one for label in range(5) for one in rgb(images[labels == label][:10])]
    assert "10 of 12 images of each class" in words(path)
    assert {"cat", "dog &amp; bone", "$x_1$", "a name that is much to…", "猫"} <= set(words(path)) | {
        "a name that is much to…" if any(word.startswith("a name that is much") for word in words(path)) else ""
    }


def test_the_start_stands_beside(tmp_path: Path) -> None:
    images, start, labels = pictures(6), pictures(6, seed=1), torch.tensor([1, 0, 1, 0, 1, 0])
    path = draw_set(tmp_path / "a.svg", images, labels, NAMES[:2], start=start)
    order = [1, 3, 5, 0, 2, 4]
    assert embedded(path) == rgb(start[order]) + rgb(images[order])
    assert {"start", "distilled", "3 images of each class"} <= set(words(path))


def test_one_image_of_each_class_is_wrapped(tmp_path: Path) -> None:
    names = [f"number {i}" for i in range(12)]
    images = pictures(12)
    path = draw_set(tmp_path / "a.svg", images, torch.arange(12), names)
    assert embedded(path) == rgb(images) and set(names) <= set(words(path)) and "1 image of each class" in words(path)
    with Image.open(draw_set(tmp_path / "a.png", images, torch.arange(12), names)) as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize("side", [(8, 8), (64, 64), (96, 128)])
def test_names_below_images_do_not_run_into_each_other(side: tuple[int, int]) -> None:
    names = ["Läsion groß", "gesund (ohne Befund)", "Übersicht", "an uncommon finding of the left side", "e"]
    figure = set_figure(pictures(5, side=side), torch.arange(5), names, start=pictures(5, side=side))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
        assert len(boxes) == 5 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_set_of_many_classes_says_what_it_leaves_out(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(130)]
    labels = torch.arange(130).repeat_interleave(2)[:-1]
    path = draw_set(tmp_path / "a.svg", pictures(259, side=(2, 2)), labels, names)
    assert len(embedded(path)) == 200 and "2 images of each class, 100 of 130 classes" in words(path)
    few = draw_set(tmp_path / "b.svg", pictures(3), torch.tensor([0, 0, 2]), NAMES[:3])  # a class without images
    assert len(embedded(few)) == 3 and "1 to 2 images of each class, 2 of 3 classes" in words(few)


def test_the_same_images_give_the_same_bytes_and_are_known_again(tmp_path: Path) -> None:
    images, labels = pictures(4), torch.arange(4) % 2
    for name in ("a.png", "a.svg"):
        first = draw_set(tmp_path / name, images, labels, NAMES[:2]).read_bytes()
        assert draw_set(tmp_path / f"again-{name}", images, labels, NAMES[:2]).read_bytes() == first
    assert is_drawing_of(tmp_path / "a.png", images) and not is_drawing_of(tmp_path / "a.png", 255 - images)
    assert not is_drawing_of(tmp_path / "missing.png", images) and not is_drawing_of(Path(__file__), images)


def test_what_is_no_such_drawing_is_none(tmp_path: Path) -> None:
    """A PNG that says it is of 3.6 billion pixels, a damaged one, and a named pipe, which has no end."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk[:-2])
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("bomb", "damaged", "pipe"):
        assert not is_drawing_of(tmp_path / f"{name}.png", pictures(4))
