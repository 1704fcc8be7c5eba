"""recipes/replay_avalanche.py on a few small images, by avalanche-lib itself where that is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgdd_plugin import ReplayMemory

ROOT = Path(__file__).parents[2]
SMALL = """
import runpy
import sys

import numpy as np
import torchvision.datasets
from PIL import Image


class Ten:
    classes = [f"kind {label}" for label in range(10)]

    def __init__(self, root, train, download):
        self.targets = [label for label in range(10) for _ in range(6 if train else 2)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        low = 20 * self.targets[index]
        pixels = np.random.default_rng(index).integers(low, low + 60, (28, 28), dtype=np.uint8)
        return Image.fromarray(pixels), self.targets[index]


torchvision.datasets.FashionMNIST = Ten
sys.argv = ["recipe", "--epochs", "1", "--steps", "1", "--per-class", "2", "--width", "4"]
runpy.run_path(SCRIPT)
"""


@pytest.mark.skipif(importlib.util.find_spec("avalanche") is None, reason="avalanche-lib is not installed")
def test_the_recipe_keeps_distilled_images_of_every_class(tmp_path: Path) -> None:
    script = (ROOT / "recipes" / "replay_avalanche.py").read_text()
    small = tmp_path / "recipe.py"
    small.write_text(script.replace('start="herding"', 'start="herding", real_per_class=4'))
    assert small.read_text() != script
    code = SMALL.replace("SCRIPT", repr(str(small)))
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("StreamForgetting") == 5
    memory = ReplayMemory.load(tmp_path / "avalanche" / "memory.beton")
    assert memory.classes == [f"kind {label}" for label in range(10)] and memory.counts.tolist() == [2] * 10
