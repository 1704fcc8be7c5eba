"""The benchmark of accuracy against bytes, on a few epochs and steps of the embedded digits."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import harness, results, storage
from tests.common import timeless
from tgdd_plugin import read_beton, read_card

ROOT = Path(__file__).parents[2]


SMALL = "device=cpu data.per_class=12 network.depth=1 network.width=4 record.epochs=2 record.batch_size=32".split()
SMALL += "distill.steps=3 distill.real_per_class=4 distill.factor=2 retrain.epochs=2".split()
SMALL += "retrain.seeds=1 retrain.full_epochs=1".split()


def run(output: Path, *more: str) -> int:
    return storage.main([str(ROOT / "recipes" / "digits.yaml"), "--output", str(output), "--", *SMALL, *more])


def content(folder: Path) -> dict[str, Any]:
    """The rows by name, without seconds."""
    return {row["name"].removeprefix("digits-"): timeless(row) for row in results.read_rows(folder)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted command."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def test_every_form_is_of_the_same_pixels_and_takes_the_bytes_of_its_file(whole):
    plain, packed = (next((whole / "work").glob(pattern)) for pattern in ("*factor2-sampled-[!p]*", "*-packed-*"))
    files = plain / "distilled.beton", packed / "packed.beton"
    kept = load_file(plain / "pixels.safetensors")
    assert torch.equal((kept["decoded"] * 255).round().to(torch.uint8), read_beton(files[0])[0])
    stored = (kept["stored"].flatten(0, 1) * 255).round().to(torch.uint8)
    for image in stored:
        assert image[0].repeat_interleave(3).numpy().tobytes() in files[1].read_bytes()
    assert [read_card(file).packed for file in files] == [False, True]
    found = content(whole)
    for name, count in (("ipc1-factor2-sampled", 40), ("ipc1-factor2-sampled-packed", 10), ("random1", 10)):
        assert (found[name]["stored"], found[name]["pixels"]) == (count, count * 64)
    for name, file in zip(("ipc1-factor2-sampled", "ipc1-factor2-sampled-packed"), files, strict=True):
        assert (found[name]["beton"], found[name]["images"]) == (file.stat().st_size, 40)
        assert found[name]["zipped"] == len(zlib.compress(file.read_bytes(), 9))


def test_the_table_has_each_form_beside_real_images_of_its_bytes(whole, capsys):
    assert storage.main(["--table", "--output", str(whole)]) == 0
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    table = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert sorted((row["form"], row["factor"], row["pixels, KiB"], row["images trained on"]) for row in table) == [
        ("decoded float32", "2", "10.0", "40"),
        ("decoded uint8", "2", "2.5", "40"),
        ("full data, uint8", "", "7.5", "120"),
        ("packed float32", "2", "2.5", "40"),
        ("packed uint8", "2", "0.6", "40"),
        ("random real images, uint8", "", "0.6", "10"),
        ("random real images, uint8", "", "2.5", "40"),
        ("uint8", "1", "0.6", "10"),
    ]
    shown = {(row["form"], row["pixels, KiB"]): row["accuracy"] for row in table}
    found = content(whole)
    for key, name, column in (
        (("packed uint8", "0.6"), "ipc1-factor2-sampled-packed", "networks"),
        (("packed float32", "2.5"), "ipc1-factor2-sampled", "float"),
        (("random real images, uint8", "2.5"), "random4", "networks"),
    ):
        (entry,) = found[name][column]
        assert shown[key] == f"{100 * entry['accuracy']:.1f} (1)"
    assert "floor of 4 MiB" in out


def test_stopped_anywhere_the_same_command_ends_with_the_same_rows(whole, tmp_path, monkeypatch):
    asked = 0

    def over(self: Any) -> bool:
        nonlocal asked
        asked += 1
        return asked % 7 == 0

    monkeypatch.setattr(harness.Deadline, "over", over)
    stops = 0
    while (status := run(tmp_path)) == results.TIME_UP:
        stops += 1
    assert status == 0 and stops > 2 and content(tmp_path) == content(whole)


def test_images_distilled_anew_are_scored_anew(whole, tmp_path):
    for path in whole.glob("*.json"):
        row = json.loads(path.read_text())
        if row["kind"] in ("distilled", "packed"):  # as on another machine, whose sums differ
            row["sha256"] = "0" * 64
            row["networks"] = [{"seed": 9, "accuracy": 2.0, "seconds": 0.0}]
        (tmp_path / path.name).write_text(json.dumps(row))
    assert run(tmp_path) == 0 and content(tmp_path) == content(whole)


def test_a_recipe_without_a_factor_is_told_what_to_give(tmp_path, capsys):
    assert run(tmp_path, "distill.factor=1") == 2
    assert "give -- distill.factor=2" in capsys.readouterr().err and not list(tmp_path.iterdir())
