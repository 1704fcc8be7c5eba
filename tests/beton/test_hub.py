"""A data set folder for the Hub: the same pixels and labels as the file, by its own reader and by plain ones."""

from __future__ import annotations

import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tgdd_plugin import InputError, cli
from tgdd_plugin.beton.card import Card, card_path
from tgdd_plugin.beton.exporting import export_folder, folder_names
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.beton.hub import export_hub
from tgdd_plugin.data.set_figure import draw_set

NAMES = ["zebra", "cat/dog", "10"]  # by the alphabet in another order
ROW = {"name": "distilled", "images": 6, "epochs": 5, "mean_percent": 81.25, "std_points": 1.25}


def made(folder: Path, channels: int = 3, **about: Any) -> Path:
    """A file whose images are in no order."""
    images = torch.randint(256, (6, channels, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    entry = {"network": "Conv|Net", "seeds": [0, 1], "test_images": 540, "rows": [ROW, {**ROW, "name": "random"}]}
    about = {"classes": NAMES, "accuracy": [entry], "method": {"name": "TGDD", "alpha": 2.5, "start": "mix"}, **about}
    card = Card(images=0, images_per_class=2, shape=[], mean=[0.5] * channels, std=[0.25] * channels, **about)
    return write_beton(folder / "my set.beton", images, torch.tensor([2, 0, 1, 1, 2, 0]), card)


def head(folder: Path) -> dict[str, Any]:
    """The YAML at the head of the data set card."""
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_and_labels_are_the_files(tmp_path: Path, channels: int) -> None:
    path = made(tmp_path, channels)
    folder = export_hub(path, tmp_path / "hub")
    images, labels = read_beton(path)
    order = labels.argsort(stable=True)
    rows = [json.loads(line) for line in (folder / "data/train/metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == labels[order].tolist()
    for row, image in zip(rows, images[order], strict=True):
        with Image.open(folder / "data/train" / row["file_name"]) as picture:
            pixels = np.asarray(picture).reshape(4, 6, channels)
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1), image.numpy())
    assert sorted(path.name for path in (folder / "data/train").iterdir()) == [
        "10",
        "cat-dog",
        "metadata.jsonl",
        "zebra",
    ]
    for file in (path, card_path(path)):
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_the_card_says_what_it_is_and_leaves_the_licence_open(tmp_path: Path) -> None:
    path = made(tmp_path)
    folder = export_hub(path, tmp_path / "hub")
    front, text = head(folder), (folder / "README.md").read_text()
    assert front["task_categories"] == ["image-classification"] and front["size_categories"] == ["n<1K"]
    assert "dataset-distillation" in front["tags"] and "license" not in front and "\n# license: ..." in text
    labels = front["configs"][0]["features"][1]["dtype"]["class_label"]["names"]
    assert labels == {"0": "zebra", "1": "cat/dog", "2": "10"}
    for wanted in (
        "6 synthetic training images of 3 classes, 3 × 4 × 6",
        "| distilled | 6 | 30 | 81.2 ± 1.2 |",
        "| alpha | 2.5 |",
        "Conv\\|Net",
        "arxiv.org/abs/2512.02469",
        "resemble",
        'beton_loader("my set.beton"',
        "![The images by class](my%20set.png)",
    ):
        assert wanted in text, wanted


def test_the_card_is_utf_8_whatever_the_locale_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Hub reads it; a folder could not be written under LANG=C, or had other letters than its names."""
    path, write = made(tmp_path, classes=["čáp", "cat", "猫"]), Path.write_text

    def of_locale(self: Path, data: str, encoding: str | None = None, *rest: Any, **options: Any) -> int:
        return write(self, data, encoding or "ascii", *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", of_locale)
        folder = export_hub(path, tmp_path / "hub")
    text = (folder / "README.md").read_bytes().decode("utf-8")
    assert "čáp" in text and "猫" in text and "3 × 4 × 6" in text


def test_the_figure_shows_the_set_and_none_of_the_images_that_it_started_from(tmp_path: Path) -> None:
    path = made(tmp_path)
    images, labels = read_beton(path)
    real = torch.tensor([255, 0, 255], dtype=torch.uint8)[:, None, None].expand_as(images)
    draw_set(path.with_suffix(".png"), images, labels, NAMES, start=real)  # as a distillation does
    folder = export_hub(path, tmp_path / "hub")
    assert _colours(path.with_suffix(".png")) >= {(255, 0, 255)}
    assert (255, 0, 255) not in _colours(folder / "my set.png")
    for image in images[labels == 0]:  # drawn without smoothing, each pixel as a square
        assert _colours(folder / "my set.png") >= {tuple(image[:, 1, 2].tolist())}


def _colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        return set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))


def test_the_figure_is_found_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = made(tmp_path)
    named = tmp_path / "100% a#1 (x)?é.beton"
    for ending in ("", ".yaml"):
        Path(f"{path}{ending}").rename(f"{named}{ending}")
    folder = export_hub(named, tmp_path / "hub")
    (address,) = re.findall(r"!\[[^]]*\]\((.*)\)\n", (folder / "README.md").read_text())
    found = urllib.parse.urlsplit(address)
    assert not found.query and not found.fragment and "(" not in address and " " not in address
    assert (folder / urllib.parse.unquote(found.path)).is_file() and found.path.endswith(".png")


def test_a_bare_card_and_names_that_are_markup(tmp_path: Path) -> None:
    path = made(tmp_path, classes=["<b>", "---\nx: y", "a|b"], method={}, accuracy=[])
    folder = export_hub(path, tmp_path / "hub")
    text = (folder / "README.md").read_text()
    assert "not recorded" in text and "Not measured yet" in text and "<b>" not in text.split("---\n", 2)[2]
    assert head(folder)["configs"][0]["features"][1]["dtype"]["class_label"]["names"]["1"] == r"---\x0ax: y"


def test_datasets_loads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = made(tmp_path)
    folder = export_hub(path, tmp_path / "hub")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    train = loaded["train"]
    images, labels = read_beton(path)
    order = labels.argsort(stable=True)
    assert train.features["label"].names == NAMES and train["label"] == labels[order].tolist()
    for row, image in zip(train, images[order], strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]).transpose(2, 0, 1), image.numpy())


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["a/b", "c d (e)"], ["a-b", "c d (e)"]),
        (["..", "x"], ["00000", "00001-x"]),
        (["A", "a"], ["00000-A", "00001-a"]),
        (["Card.yaml", "x"], ["00000-Card.yaml", "00001-x"]),
        (["x", "metadata.jsonl"], ["00000-x", "00001-metadata.jsonl"]),
        (["é", "犬"], ["é", "犬"]),
        (["x" * 300, "y"], ["x" * 100, "y"]),
        (["a\x00b", "C:\\x", "-", " c "], ["00000-a-b", "00001-C-x", "00002", "00003-c"]),
    ],
)
def test_folders_are_named_after_classes(classes: list[str], wanted: list[str]) -> None:
    assert folder_names(classes) == wanted


def test_an_image_folder_with_the_names_of_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path)
    export_folder(path, tmp_path / "ids")
    assert cli.main(["export", str(path), str(tmp_path / "names"), "--png", "--class-names"]) == 0
    for number, name in enumerate(["zebra", "cat-dog", "10"]):
        ids, names = (sorted((tmp_path / where).iterdir()) for where in (f"ids/{number:05d}", f"names/{name}"))
        assert len(ids) == 2 and [each.read_bytes() for each in ids] == [each.read_bytes() for each in names]
    assert cli.main(["export", str(path), str(tmp_path / "hub"), "--hub"]) == 0
    assert "licence   not chosen" in capsys.readouterr().out
    for options, wanted in (
        (["--class-names"], "must come with --png"),
        (["--hub", "--mean", "0.5"], "must be left out with --png and --hub"),
    ):
        assert cli.main(["export", str(path), str(tmp_path / "new"), *options]) == 2
        assert wanted in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_names_that_are_not_printed_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = Card([f"class {n}" for n in range(7)], 0, 1, [], [0.5], [0.5])
    write_beton(tmp_path / "seven.beton", torch.zeros(7, 1, 8, 8, dtype=torch.uint8), torch.arange(7), card)
    assert cli.main(["export", str(tmp_path / "seven.beton"), str(tmp_path / "out"), "--png"]) == 0
    assert capsys.readouterr().out.endswith(": 00000, 00001, 00002, 00003, 00004 and 3 more\n")


def test_only_a_new_or_empty_folder_is_written(tmp_path: Path) -> None:
    path = made(tmp_path)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="has content"):
        export_hub(path, tmp_path / "hub")
    assert [each.name for each in (tmp_path / "hub").iterdir()] == ["mine.txt"]
