"""Rows of accuracy against passes are kept for the settings and files that they were made with, and no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.accuracy_for_time import described, earlier_rows, mixed_name
from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.evaluation.scorer import Row
from tgdd_plugin.pipeline.settings import Recipe

RECIPE = Recipe()


def made(path: Path, seed: int = 0) -> Path:
    pixels = torch.randint(256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    write_beton(path, pixels, torch.arange(2), Card(["a", "b"], 2, 1, [], [0.5] * 3, [0.5] * 3))
    return path


def test_rows_of_other_settings_or_files_are_refused(tmp_path: Path) -> None:
    file, kept = made(tmp_path / "one.beton"), tmp_path / "results.json"
    about = described(RECIPE, range(3), [file])
    assert earlier_rows(kept, about) == []
    kept.write_text(json.dumps({"about": about, "rows": [Row("one", accuracies=[0.5]).summary()]}))
    assert [row.name for row in earlier_rows(kept, described(RECIPE, range(3), [file]))] == ["one"]
    elsewhere = replace(RECIPE, data=replace(RECIPE.data, root="elsewhere"))
    assert earlier_rows(kept, described(elsewhere, range(3), [file]))
    further = described(RECIPE, range(3), [made(tmp_path / "two.beton", 1)])
    assert earlier_rows(kept, further) and set(further["sets"]) == {"one", "two"}
    with pytest.raises(InputError, match="is of another job .seeds was "):
        earlier_rows(kept, described(RECIPE, range(5), [file]))
    with pytest.raises(InputError, match="is of another job .sets.one was "):
        earlier_rows(kept, described(RECIPE, range(3), [made(tmp_path / "new" / "one.beton", 2)]))
    with pytest.raises(InputError, match="`--files` must have names of their own"):
        described(RECIPE, range(3), [file, tmp_path / "new" / "one.beton"])


def test_rows_of_other_shares_have_other_names() -> None:
    names = [mixed_name("one", share) for share in (0.046, 0.05, 0.054, 0.5)]
    assert names == [f"one in {share}% of the passes" for share in ("4.6", "5", "5.4", "50")]
