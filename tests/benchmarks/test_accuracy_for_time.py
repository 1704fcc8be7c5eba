"""Rows of accuracy against passes are kept for the settings and files that they were made with, and no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.accuracy_for_time import described, earlier_rows, mixed
from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
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


@pytest.mark.parametrize(("share", "passes", "own"), [(0.25, 40, 10), (1.0, 7, 7), (0.0, 40, 0), (0.5, 90, 45)])
def test_a_mixture_has_its_share_and_uses_every_image_alike(share: float, passes: int, own: int) -> None:
    """Images of the set are 0 to 3, real ones 100 to 131."""
    compact = torch.arange(4).view(4, 1, 1, 1).to(torch.uint8), torch.arange(4)
    real = ImagePool((100 + torch.arange(32)).view(32, 1, 1, 1).to(torch.uint8), torch.arange(32))
    images, labels = mixed(compact, real, share, passes, 0)
    assert len(images) == len(labels) == passes
    assert torch.equal(images.flatten() % 100, labels.to(torch.uint8)), "an image keeps its label"
    for mine, number, size in ((images < 100, own, 4), (images >= 100, passes - own, 32)):
        counts = images[mine.flatten()].flatten().bincount(minlength=132)
        counts = counts[:4] if size == 4 else counts[100:]
        assert int(counts.sum()) == number and int(counts.max() - counts.min()) <= 1
    assert not torch.equal(images, mixed(compact, real, share, passes, 1)[0])
