"""What files of the compatibility tests are made of. Runs under the code that wrote them and under the present one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, Trainer
from composer.models import ComposerClassifier
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from tgdd_plugin import TGDDCallback

CLASSES = ["chess", "columns", "rows"]


def arrays(count: int, offset: int = 0) -> tuple[np.ndarray, list[int]]:
    """Images ``(N, 8, 8)`` of three patterns under noise, and their class ids; integer arithmetic alone."""
    number, row, column = np.ogrid[offset : offset + count, :8, :8]
    label = number % 3
    pattern = np.where(label == 0, row // 2 + column // 2, np.where(label == 1, column // 2, row // 2)) % 2
    noise = (number * 7919 + row * 104729 + column * 1299709 + number * row * 31 + row * column * 17) % 127
    return (120 * pattern + noise).astype(np.uint8), [int(value) for value in label.ravel()]


def sets() -> list[list[tuple[torch.Tensor, int]]]:
    """36 training and 18 test images."""
    parts = (arrays(36), arrays(18, offset=36))
    return [[(torch.from_numpy(image)[None], label) for image, label in zip(*part, strict=True)] for part in parts]


def write_image_folder(root: Path) -> None:
    """The same in color, as PNG."""
    for name, (images, labels) in (("train", arrays(36)), ("test", arrays(18, offset=36))):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / name / CLASSES[label] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([image, image // 2, 255 - image], axis=2)).save(path)


class Crash(Callback):
    """Ends a training like a kill, after one of its batches."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def batch_end(self, state: Any, logger: Any) -> None:
        if state.timestamp.batch.value == self.batch:
            raise KeyboardInterrupt


def fit(folder: Path, crash: int | None = None) -> None:
    """A user's own training under :class:`TGDDCallback`: 3 epochs of 3 batches, with checkpoints to go on from."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 3)
    )
    images = [((image / 255 - 0.5) / 0.25, label) for image, label in sets()[0]]
    trainer = Trainer(
        model=ComposerClassifier(network, num_classes=3),
        train_dataloader=DataLoader(images, batch_size=12),  # type: ignore[arg-type]
        optimizers=torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9),
        max_duration="3ep",
        callbacks=[
            TGDDCallback(str(folder / "trajectory"), interval="2ba", exemplars=2),
            *([Crash(crash)] if crash else []),
        ],
        save_folder=str(folder / "checkpoints"),
        save_interval="1ep",
        save_num_checkpoints_to_keep=1,
        autoresume=True,
        run_name="run",
        seed=7,
        device="cpu",
        progress_bar=False,
        auto_log_hparams=False,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()


def rounding() -> str:
    """A hash of what a training without any of our code ends with here: equal where equal bytes can be expected."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images, labels = arrays(36)
    batch = torch.from_numpy(images)[:, None] / 255
    theta = torch.eye(2, 3).repeat(36, 1, 1) * 1.1
    for _ in range(30):
        grid = torch.nn.functional.affine_grid(theta, [36, 1, 8, 8], align_corners=False)
        warped = torch.nn.functional.grid_sample(batch, grid, align_corners=False)
        warped = torch.lerp(warped.mean((1, 2, 3), keepdim=True), warped, 1.3)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(warped), torch.tensor(labels)).backward()
        optimizer.step()
    content = b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
    return hashlib.sha256(content).hexdigest()


def digest(images: torch.Tensor) -> str:
    """SHA-256 of pixels."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights or images in a folder, by its path there."""
    paths = sorted(path for pattern in ("*.safetensors", "*.beton") for path in folder.rglob(pattern))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
