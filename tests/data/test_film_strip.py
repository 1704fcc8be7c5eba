"""The film strip: every image where it belongs, small files, and a clear word where it is none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from tgdd_plugin.data.film_strip import (
    FILE_SIZE,
    MOST_FRAMES,
    RAW_SIZE,
    FilmStrip,
    read_strip,
    strip_columns,
    write_strip,
)
from tgdd_plugin.data.picture_note import note_of


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_is_a_step_and_a_column_an_image(tmp_path: Path, channels: int) -> None:
    random = torch.Generator().manual_seed(0)
    frames = {
        step: torch.randint(256, (4, channels, 5, 7), dtype=torch.uint8, generator=random) for step in (9, 0, 100)
    }
    path = write_strip(tmp_path / "a-evolution.png", frames, [0, 0, 2, 2], frames[100], ["cat", "dog", "ship"])
    strip = read_strip(path)
    with Image.open(io.BytesIO(strip.png)) as picture:
        pixels = np.asarray(picture).reshape(15, 28, channels)
    for row, step in enumerate((0, 9, 100)):
        for column in range(4):
            cell = pixels[5 * row : 5 * row + 5, 7 * column : 7 * column + 7]
            np.testing.assert_array_equal(cell.transpose(2, 0, 1), frames[step][column].numpy())
    assert (strip.steps, strip.labels, strip.size) == ([0, 9, 100], [0, 0, 2, 2], (7, 5))
    assert strip.of == note_of(frames[100]) != note_of(frames[0])
    # In the file itself, the same images nine times as large, with words on white left of them and above.
    with Image.open(path) as picture:
        whole = np.asarray(picture).reshape(picture.height, picture.width, channels)
    top, left = whole.shape[0] - 9 * 15, whole.shape[1] - 9 * 28
    wanted = pixels.repeat(9, 0).repeat(9, 1)
    wanted[[45, 90]] = 255
    wanted[:, [63, 126, 189]] = 255
    np.testing.assert_array_equal(whole[top:, left:], wanted, "white lines between the images, else their pixels")
    assert (whole[:, 0] == 255).all() and (whole[0] == 255).all()
    for row in range(3):
        assert whole[top + 45 * row : top + 45 * row + 45, :left].min() < 100, "its step"
    columns = [whole[:top, left + 63 * column : left + 63 * column + 63].min() for column in range(4)]
    assert max(columns) < 100, "each class' name, in the middle of its two images"


def test_a_strip_of_an_earlier_version_is_read_as_it_is(tmp_path: Path) -> None:
    """The images alone, with the notes that there were."""
    notes = PngImagePlugin.PngInfo()
    for key, value in {"Title": "images with SHA-256 0", "steps": "0 7 30", "labels": "1 0"}.items():
        notes.add_text(key, value)
    Image.new("RGB", (2 * 7, 3 * 5)).save(tmp_path / "a.png", "PNG", pnginfo=notes)
    png = (tmp_path / "a.png").read_bytes()
    assert read_strip(tmp_path / "a.png") == FilmStrip([0, 7, 30], [1, 0], png, (7, 5), "images with SHA-256 0")


def test_a_name_longer_than_its_column_is_cut(tmp_path: Path) -> None:
    frames = {0: torch.zeros(2, 1, 32, 32, dtype=torch.uint8)}
    names = ["ship", "a very long name of a class" * 3, "\x1b[2J"]
    for labels in ([0, 1], [2, 1]):
        with Image.open(write_strip(tmp_path / "x.png", frames, labels, frames[0], names)) as picture:
            words = np.asarray(picture)[:-64]
        assert (words[:, -1] == 255).all() and (words[:, -65:-63] == 255).all(), "the first and last column are free"


@pytest.mark.parametrize(
    ("classes", "per_class", "shape", "wanted"),
    [
        (10, 1, (1, 8, 8), (10, 1)),
        (10, 400, (3, 32, 32), (10, 1)),
        (2, 400, (3, 32, 32), (2, 5)),
        (3, 2, (3, 32, 32), (3, 2)),
        (100, 400, (1, 28, 28), (20, 1)),
        (100, 40, (3, 224, 224), (6, 1)),
    ],
)
def test_few_images_are_shown(
    tmp_path: Path, classes: int, per_class: int, shape: tuple[int, int, int], wanted: tuple[int, int]
) -> None:
    assert strip_columns(classes, per_class, shape) == wanted
    count = wanted[0] * wanted[1]
    frames = {step: torch.randint(256, (count, *shape), dtype=torch.uint8) for step in range(MOST_FRAMES)}
    path = write_strip(tmp_path / "x.png", frames, [0] * count, frames[0], ["a name"])
    assert path.stat().st_size < 1.05 * RAW_SIZE, "of pure noise, which does not shrink"


def test_what_is_no_film_strip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"P6 9999999 9999999 255\n", bytes(FILE_SIZE + 1)):
        path.write_bytes(content)
        with pytest.raises((ValueError, OSError)):
            read_strip(path)
    Image.new("L", (4, 4)).save(path)
    with pytest.raises(ValueError, match="of no steps"):
        read_strip(path)
    write_strip(path, {0: torch.zeros(3, 1, 4, 4, dtype=torch.uint8)}, [0] * 5, torch.zeros(1), ["a"])
    with pytest.raises(ValueError, match="rows and columns"):
        read_strip(path)
    write_strip(path, {0: torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, [0, 1], torch.zeros(1), ["a", "b"])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0 1", b"0 x"))
    with pytest.raises((ValueError, OSError)):
        read_strip(path)
    for place in ("-1 0 1", "8 0 1", "0 8 1", "0 0 0", "0 0 3", "0 0", "0 0 9999999999999"):
        notes = PngImagePlugin.PngInfo()
        for key, value in {"steps": "0", "labels": "0 1", "pixels": place}.items():
            notes.add_text(key, value)
        Image.new("L", (8, 4)).save(path, pnginfo=notes)
        with pytest.raises(ValueError):
            read_strip(path)
