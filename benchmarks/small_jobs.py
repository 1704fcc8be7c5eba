"""The jobs that the harnesses disturb: everything that this package does, each in a second or two.

A job works in the current folder, in which :func:`prepare` has put what it needs, and goes on where an earlier call
was broken off. Its images are 8x8 noise with a class in it. The harnesses run ``python -m benchmarks.small_jobs JOB``
in such a folder.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from composer import Trainer
from composer.models import ComposerClassifier
from safetensors.torch import save_file
from torch import nn

from tgdd_plugin import TGDDCallback, TrajectoryRecorder, cli, describe_run, distill
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.nas import study_storage
from tgdd_plugin.networks import convnet

MEAN, STD = [0.5], [0.25]
CLASSES = 3
RECIPE: dict[str, Any] = {
    "output": "out",
    "data": {"name": "benchmarks.small_jobs:sets"},
    "network": {"name": "convnet", "depth": 1, "width": 4},
    "device": "cpu",
    "record": {"epochs": 2, "augmentation": "crop", "batch_size": 16},
    "distill": {"images_per_class": 2, "factor": 1, "steps": 4, "real_per_class": 4, "augmentation": "crop"},
    "retrain": {
        "protocol": "paper",
        "epochs": 2,
        "seeds": 2,
        "full_epochs": 1,
        "augmentation": "crop",
        "at_once": False,
    },
    "evaluate": {"baselines": ["random", "herding"], "networks": []},
    "replay": {"tasks": 2, "finetune_epochs": 1},
    "nas": {"choices": {"depth": [1], "width": [2, 3, 4]}},
}


def sets() -> list[list[tuple[np.ndarray, int]]]:
    """Training and test images; the recipe names this function."""
    noise = np.random.default_rng(0).integers(0, 60, (54, 8, 8))
    images = [((noise[i] + 80 * (i % CLASSES)).astype(np.uint8), i % CLASSES) for i in range(len(noise))]
    return [images[:36], images[36:]]


def small_network() -> nn.Module:
    """The network of all jobs, always with the same weights."""
    with forked_streams(0):
        return convnet(CLASSES, 1, 8, depth=1, width=4)


def loader(seed: int = 0) -> DeviceLoader:
    """Three batches an epoch, in an order that depends on the seed and the epoch alone."""
    pool = ImagePool.from_dataset(sets()[0])
    return DeviceLoader(pool.images, pool.labels, Normalization(MEAN, STD), batch_size=12, seed=seed)


def composer_trainer(network: nn.Module, *callbacks: Any, **options: Any) -> Trainer:
    """A Trainer of three epochs of three batches."""
    defaults: dict[str, Any] = {
        "train_dataloader": loader(),
        "max_duration": "3ep",
        "optimizers": torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        "seed": 7,
        "device": "cpu",
        "progress_bar": False,
        "auto_log_hparams": False,
        "run_name": "run",
        "callbacks": list(callbacks),
    }
    return Trainer(model=ComposerClassifier(network, num_classes=CLASSES), **{**defaults, **options})


def _newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, as a user looks for it; one that a kill tore is deleted."""
    for path in sorted(folder.glob("ba*.pt"), reverse=True):
        try:
            return path, torch.load(path, map_location="cpu", weights_only=False)
        except Exception:  # of any kind, from a file that is not whole
            path.unlink()
    return None


def record_with_callback() -> None:
    """A user's Composer Trainer with TGDDCallback, a stage and a checkpoint every other batch, and thinning."""
    network = small_network()
    found = _newest_checkpoint(Path("checkpoints"))
    trainer = composer_trainer(
        network,
        TGDDCallback("trajectory", "2ba", mean=MEAN, std=STD, exemplars=4, max_stages=4, on_error="raise"),
        save_folder="checkpoints",
        save_filename="ba{batch:03d}.pt",
        save_latest_filename=None,
        save_interval="2ba",
        save_overwrite=True,
        load_path=str(found[0]) if found else None,
    )
    try:
        # Composer refuses to fit a network whose last checkpoint is of the end of training.
        if trainer.state.max_duration is None or trainer.state.timestamp < trainer.state.max_duration:
            trainer.fit()
    finally:
        trainer.close()
    save_file(network.state_dict(), "final.safetensors")


def record_with_recorder() -> None:
    """A user's own loop with TrajectoryRecorder, a stage every other batch and a checkpoint every third."""
    network, batches = small_network(), loader()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    recorder = TrajectoryRecorder("trajectory", exemplars=4, max_stages=4, on_error="raise")
    done, found = 0, _newest_checkpoint(Path("checkpoints"))
    if found:
        state = found[1]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        recorder.load_state_dict(state["recorder"])
        done = state["done"]
    recorder.start(describe_run("run", network, CLASSES, mean=MEAN, std=STD, augmentation="none"), network)
    Path("checkpoints").mkdir(exist_ok=True)
    step = 0
    for epoch in range(3):
        for images, labels in batches:
            step += 1
            if step <= done:
                continue
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.batch(images, labels, {"loss": loss})
            if step % 2 == 0:
                recorder.stage(epoch)
            if step % 3 == 0:
                parts = {"network": network, "optimizer": optimizer, "recorder": recorder}
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**state, "done": step}, f"checkpoints/ba{step:03d}.pt")
    recorder.finish(epoch=3)
    save_file(network.state_dict(), "final.safetensors")


def record_without_end(folder: Path) -> None:
    """A recording of four stages that has not come to its end, so that it has a journal."""
    network = small_network()
    recorder = TrajectoryRecorder(folder, exemplars=1)
    recorder.start(describe_run("run", network, CLASSES, mean=MEAN, std=STD, augmentation="none"), network)
    for images, labels in loader():
        network(images)
        recorder.batch(images, labels, {"loss": 1.0})
        recorder.stage(0)
    recorder.detach()


def distill_with_checkpoints() -> None:
    """Twelve steps from recorded statistics, a checkpoint every third."""
    settings = DistillSettings(images_per_class=2, factor=1, steps=12, source="recorded", augmentation="none")
    distill("trajectory", None, "set.beton", settings, device="cpu", checkpoint_interval="3ba", progress_bar=False)


def _tgdd(*arguments: str) -> Callable[[], None]:
    def work() -> None:
        Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE)) if not Path("recipe.yaml").is_file() else None
        if status := cli.main(arguments):
            raise RuntimeError(f"tgdd {' '.join(arguments)} ended with status {status}")

    return work


def _search() -> None:
    # What a killed process was trying is taken up by another one a minute after its last sign of life.
    study_storage.HEARTBEAT, study_storage.GRACE = 1, 2
    _tgdd("nas", "recipe.yaml", "file=set.beton")()


JOBS: dict[str, Callable[[], None]] = {
    "recorder": record_with_recorder,
    "callback": record_with_callback,
    "distill": distill_with_checkpoints,
    "run": _tgdd("run", "recipe.yaml"),
    "retrain": _tgdd("retrain", "recipe.yaml", "file=set.beton"),
    "evaluate": _tgdd("evaluate", "recipe.yaml", "file=set.beton", "trajectory=trajectory"),
    "replay": _tgdd("replay", "recipe.yaml"),
    "search": _search,
}
"""The jobs by name: recording in two ways, distilling, all of ``tgdd run``, and what is done with a ``.beton``."""

NEEDS = {"distill": ["trajectory"], "retrain": ["set"], "evaluate": ["trajectory", "set"], "search": ["set"]}
"""What a job needs beside its recipe."""


def prepare(job: str, folder: Path, made: Path) -> Path:
    """Makes the folder that a job works in.

    Args:
        job: Its name.
        folder: The folder, which is replaced if it is there.
        made: A folder in which ``recorder``, and then ``distill``, came to their end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for need in NEEDS.get(job, []):
        if need == "trajectory":
            shutil.copytree(made / "trajectory", folder / "trajectory")
        else:
            for name in ("set.beton", "set.beton.yaml"):
                shutil.copy(made / name, folder / name)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def load_everything() -> None:
    """Imports what the jobs would import when they come to it, for a process whose forked children do them."""
    from tgdd_plugin.beton.ffcv_threads import restored_threads

    with restored_threads():
        for name in ("fields", "loader", "reader", "writer"):
            importlib.import_module(f"ffcv.{name}")
    for name in ("pipeline.steps", "nas.final_training", "nas.optuna_search", "replay.learner"):
        importlib.import_module(f"tgdd_plugin.{name}")
    for name in ("alembic.command", "sqlalchemy.dialects.sqlite", "multiprocessing.shared_memory", "tqdm.contrib"):
        importlib.import_module(name)


def quiet() -> None:
    """Leaves out the warnings of other packages, and of what is known to come after a kill."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)


def undisturbed(job: str) -> Callable[[], None]:
    """A job as it is, for a forked child."""

    def work() -> None:
        quiet()
        JOBS[job]()

    return work


def main() -> None:
    undisturbed(sys.argv[1])()


if __name__ == "__main__":
    main()
