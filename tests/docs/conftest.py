"""What the examples of the documentation assume that their reader has, in small: images, a network, a recording.

None of it is a stand-in: the images are scikit-learn's digits, as PNG files in class folders; the network has been
trained under a TGDDCallback, and the ``.beton`` distilled from that.
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from tests.docs import objects
from tgdd_plugin import Card, DistillSettings, ImagePool, TGDDCallback, distill, write_beton

PER_CLASS = {"train": 128, "val": 8}


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos``, ``my_data.py``, ``my_network.py``, ``my_run``, ``my_set.beton`` and more."""
    folder = tmp_path_factory.mktemp("examples")
    digits = load_digits()
    for label, name in enumerate(objects.CLASSES):
        images = iter(digits.images[digits.target == label])
        for part, count in PER_CLASS.items():
            (folder / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.kron(next(images) / 16 * 255, np.ones((2, 2))).astype(np.uint8)
                Image.fromarray(pixels).convert("RGB").save(folder / "photos" / part / name / f"{number}.png")
    shutil.copy(Path(objects.__file__).with_name("my_data.py"), folder)
    shutil.copy(Path(objects.__file__).with_name("my_network.py"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        _record("my_run/trajectory", objects.build_network())
        own = import_module("tests.docs.my_network").build
        _record("own_run/trajectory", own(len(objects.CLASSES)))
        _record("several/trajectory", objects.build_network(), "run0")
        _record("several/trajectory", own(len(objects.CLASSES)), "run1")
        for part, name in (("train", "train.beton"), ("val", "test.beton")):
            pool = ImagePool.from_dataset(ImageFolder(f"photos/{part}"))
            card = Card(pool.classes, 0, 0, [], objects.MEAN, objects.STD)
            write_beton(name, pool.images, pool.labels, card)
        distill("my_run/trajectory", None, "my_set.beton", _SETTINGS, progress_bar=False, device="cpu")
    return folder


_SETTINGS = DistillSettings(images_per_class=4, factor=1, steps=2)


def _record(folder: str, network: torch.nn.Module, name: str = "run0") -> None:
    trainer = Trainer(
        model=ComposerClassifier(network, num_classes=len(objects.CLASSES)),
        train_dataloader=DataLoader(objects.training_images(), batch_size=64, shuffle=True),
        max_duration="2ep",
        run_name=name,
        callbacks=[TGDDCallback(folder)],
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()


@pytest.fixture
def here(example_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, which is the current one while a page's examples run."""
    shutil.copytree(example_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as of a script that lies there
    for name in ("my_data", "my_network"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path
