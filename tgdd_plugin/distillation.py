"""distill(): a trajectory and real images in, a ``.beton`` out, by way of a Composer run."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, DataSpec, Logger, State, Trainer
from composer.algorithms import EMA
from composer.core import Time
from composer.loggers import LoggerDestination
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn

from tgdd_plugin.beton import write_beton
from tgdd_plugin.card import Card, read_card
from tgdd_plugin.draws import Draws, Steps
from tgdd_plugin.errors import InputError
from tgdd_plugin.files import check_writable
from tgdd_plugin.manifest import Run, versions
from tgdd_plugin.model import DistillationModel
from tgdd_plugin.network import FeatureNetwork, find_head
from tgdd_plugin.networks import build_recorded, recorded_factory
from tgdd_plugin.pool import ImagePool
from tgdd_plugin.progress import ProgressBar
from tgdd_plugin.randomness import keyed_generator
from tgdd_plugin.report import image_grid
from tgdd_plugin.settings import DistillSettings
from tgdd_plugin.stages import StageBank
from tgdd_plugin.synthetic import SyntheticImages, start_pixels
from tgdd_plugin.training import torch_device
from tgdd_plugin.trajectory import Trajectory


def distill(
    trajectory: Trajectory | str | Path,
    real: Any,
    output: str | Path,
    settings: DistillSettings | None = None,
    *,
    network: nn.Module | Callable[[], nn.Module] | None = None,
    head: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | None = None,
    checkpoint_interval: str = "500ba",
    image_interval: int = 1000,
    loggers: Sequence[LoggerDestination] = (),
    callbacks: Sequence[Callback] = (),
    progress_bar: bool = True,
    trainer_options: Mapping[str, Any] | None = None,
) -> Path:
    """Distills a trajectory into a ``.beton`` by TGDD (arXiv 2512.02469), as a Composer run.

    One step is: draw an early and a late stage of one run, and for each class a batch of real images and one
    augmentation; match the classes' mean features under the early stage, keep the classes apart under the late one;
    take one SGD step on the pixels of all classes, then clamp them to [0, 1].

    Checkpoints lie in a hidden folder beside ``output`` until it is written. The same call, made again after a crash,
    goes on from the last one and ends with the same bits (on a CPU; a GPU may add in another order).

    Args:
        trajectory: The folder that :class:`TGDDCallback` recorded, or an open :class:`Trajectory`.
        real: The real training images: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        output: The ``.beton`` to write; its card is ``<output>.yaml``.
        settings: Default: ``DistillSettings()``, the paper's.
        network: The network that was trained, or a function that builds it; its weights do not matter. A
            ``ComposerClassifier`` may be given whole. Default: for this package's networks, built as recorded.
        head: Name of its linear head. Default: as recorded.
        mean, std: Per-channel normalisation for pixels in [0, 1]. Default: as recorded.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        checkpoint_interval: How often to save, as a Composer time string. Default: ``'500ba'``.
        image_interval: Steps between pictures of the images sent to ``loggers``; 0 for none. Default: ``1000``.
        loggers, callbacks: The user's own, for the Trainer.
        progress_bar: Default: ``True``.
        trainer_options: More arguments for Composer's ``Trainer``; they override ours.

    Returns:
        The path of the written file.

    Raises:
        InputError: If anything given does not fit: before any step is made wherever that can be known, and else with
            the last checkpoint kept.
    """
    output = check_writable(Path(output))
    trajectory = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(trajectory)
    run = trajectory.run
    if network is None:
        recorded_factory(run.network)  # what cannot be built is found out before any image is read
    if (mean is None) != (std is None):
        raise InputError("mean and std belong together; give both or neither")
    try:
        Time.from_timestring(checkpoint_interval)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"checkpoint_interval is {checkpoint_interval!r}; wanted a time such as '500ba'") from error
    on = torch_device(device)
    pool = real if isinstance(real, ImagePool) else ImagePool.from_dataset(real, progress=progress_bar)
    pool.agree(run.classes, run.num_classes, "the trajectory")
    if run.input and list(pool.shape) != (seen := [int(n) for n in run.input["shape"]]):
        raise InputError(
            f"the real images are {list(pool.shape)} (channels, height, width), but training saw {seen}; give the data "
            f"the network was trained on (on the command line data.name=..., data.image_size=...)"
        )
    pool_statistics = pool.statistics()
    mean, std = _normalisation(mean, std, run, *pool_statistics)
    settings = (settings or DistillSettings()).resolved(pool.shape[1])

    bare = _bare_network(network, run, pool)
    frozen = FeatureNetwork(bare, find_head(bare, run.num_classes, head or _recorded_head(bare, run.head)))
    bank = StageBank(trajectory, bare, on)
    frozen.network.to(on)
    frozen.check(bank[0], pool.shape, run.num_classes)
    shape = (pool.num_classes, settings.images_per_class, *pool.shape)
    # The start has a stream of its own, apart from every (step, rank).
    start = start_pixels(settings.start, shape, settings.factor, pool, keyed_generator(settings.seed, 0, 2**31))
    synthetic = SyntheticImages(start, settings.factor)
    draws = Draws(settings, bank, pool, synthetic, dist.get_global_rank())
    draws(0)  # a class with too few images is found out here, not after the Trainer is set up
    model = DistillationModel(
        synthetic, frozen, bank, pool.to(on), mean=mean, std=std, alpha=settings.alpha or 0.0,
        bf16=settings.precision == "bf16",
    )  # fmt: skip

    optimizer = torch.optim.SGD(synthetic.parameters(), lr=settings.learning_rate or 0.0)
    # Right after the step, so that whatever looks at the pixels next (EMA, a checkpoint) finds them in [0, 1].
    optimizer.register_step_post_hook(lambda *_: synthetic.clamp_())
    # The name holds all the result depends on: another job never resumes from these checkpoints.
    fingerprint = pool.fingerprint()
    key = json.dumps(
        [asdict(settings), trajectory.checksums, mean, std, list(shape), fingerprint, type(bare).__qualname__]
    )
    run_name = f"distill-{output.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    checkpoints = output.parent / f".{run_name}"
    watchers: list[Callback] = [_Watch(image_interval, bank.names, synthetic)]
    if progress_bar:
        watchers.append(ProgressBar("distilling"))
    options: dict[str, Any] = {
        "model": model,
        "train_dataloader": DataSpec(
            Steps(settings.steps),
            batch_transforms=draws,
            get_num_samples_in_batch=lambda batch: len(batch["classes"]),
        ),
        "max_duration": f"{settings.steps}ba",
        "optimizers": optimizer,
        "algorithms": [EMA(half_life=settings.ema, update_interval="1ba")] if settings.ema else [],
        "callbacks": [*watchers, *callbacks],
        "loggers": list(loggers),
        "device": device,
        "device_train_microbatch_size": settings.classes_per_chunk or pool.num_classes,
        "precision": "fp32",
        "progress_bar": False,
        "seed": settings.seed,
        "run_name": run_name,
        "autoresume": True,
        "save_folder": str(checkpoints),
        "save_interval": checkpoint_interval,
        "save_overwrite": True,
        "save_num_checkpoints_to_keep": 1,
    }
    trainer = Trainer(**{**options, **(trainer_options or {})})
    try:
        trainer.fit()
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        card = Card(
            classes=pool.classes,
            images=0,
            images_per_class=settings.images_per_class,
            shape=list(pool.shape),
            mean=mean,
            std=std,
            factor=settings.factor,
            method=_method(settings),
            network=run.network,
            real={"images": len(pool), "fingerprint": fingerprint},
            trajectory={"runs": [r.name for r in trajectory.runs.values()], "stages": trajectory.checksums},
            versions=versions("mosaicml", "ffcv", "numpy"),
        )
        write_beton(output, *synthetic.to_uint8(), card)
        shutil.rmtree(checkpoints, ignore_errors=True)
    dist.barrier()
    return output


def is_distilled(output: str | Path, trajectory: Trajectory, pool: ImagePool, settings: DistillSettings) -> bool:
    """Whether ``output`` is there already, whole, from the same stages and images under the same settings."""
    try:
        card = read_card(output)
    except InputError:
        return False
    same = card.method == _method(settings.resolved(card.shape[1]))
    same = same and card.trajectory.get("stages") == trajectory.checksums
    return same and card.real.get("fingerprint") == pool.fingerprint()


def _method(settings: DistillSettings) -> dict[str, Any]:
    return {"name": "TGDD", "source": "sampled", **asdict(settings)}


class _Watch(Callback):
    """Shows the images to the user's loggers and stops a run whose loss is no longer finite."""

    def __init__(self, interval: int, names: list[str], synthetic: SyntheticImages) -> None:
        self.interval = interval
        self.names = names
        self.synthetic = synthetic

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        # The Trainer's own number, which costs no wait for the device; this step's checkpoint would come later.
        if not math.isfinite(state.total_loss_dict["loss/train/total"]):
            early, late = (self.names[state.batch[key]] for key in ("early", "late"))
            raise InputError(
                f"the loss is no longer finite at step {step - 1} (early stage: {early}; late stage: {late}); lower "
                f"learning_rate or alpha. The last checkpoint keeps the last good images"
            )
        if self.interval and step % self.interval == 0:
            logger.log_images(image_grid(*self.synthetic.to_uint8()), name="tgdd/synthetic")


def _bare_network(network: nn.Module | Callable[[], nn.Module] | None, run: Run, pool: ImagePool) -> nn.Module:
    """A copy of the network alone, out of whatever the user gave, or built as the manifest says."""
    if network is None:
        return build_recorded(run.network, pool.shape, run.num_classes)
    built = network if isinstance(network, nn.Module) else network()
    return copy.deepcopy(built.module if isinstance(built, ComposerClassifier) else built)


def _recorded_head(network: nn.Module, recorded: str) -> str | None:
    """The recorded head's name in the bare network, which may lack the prefix of the user's ComposerModel."""
    fitting = [n for n, _ in network.named_modules() if n and (recorded == n or recorded.endswith(f".{n}"))]
    return max(fitting, key=len, default=None)


def _normalisation(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    run: Run,
    pool_mean: list[float],
    pool_std: list[float],
) -> tuple[list[float], list[float]]:
    """The given normalisation, else the recorded one, checked against the inputs that the run is known to have seen."""
    if mean is not None and std is not None and run.mean is not None and run.std is not None:
        given, recorded = np.array([mean, std]), np.array([run.mean, run.std])
        if given.shape == recorded.shape and np.abs(given - recorded).max() > 0.01:
            raise InputError(
                f"the trajectory was recorded with mean {_rounded(run.mean)} and std {_rounded(run.std)}, and mean "
                f"{_rounded(mean)} and std {_rounded(std)} were given; leave mean and std out"
            )
    mean, std = (mean, std) if mean is not None and std is not None else (run.mean, run.std)
    if mean is None or std is None:
        raise InputError(
            f"the trajectory does not say how its inputs were normalised; pass mean= and std= as in training, on the "
            f"command line data.mean=[...] data.std=[...] (0 and 1 for none; these images have mean "
            f"{_rounded(pool_mean)} and std {_rounded(pool_std)})"
        )
    if not len(mean) == len(std) == len(pool_mean):
        raise InputError(f"{len(mean)} means and {len(std)} stds came for images of {len(pool_mean)} channel(s)")
    if run.input and len(run.input["mean"]) == len(mean):
        seen_mean, seen_std = np.array(run.input["mean"]), np.array(run.input["std"])
        ours_mean = (np.array(pool_mean) - mean) / std
        ours_std = np.array(pool_std) / std
        # Augmentation moves these a little; a wrong normalisation moves them by whole deviations.
        off = np.abs(ours_mean - seen_mean) / ours_std
        if off.max() > 1 or (ours_std / seen_std).max() > 2.5 or (seen_std / ours_std).max() > 2.5:
            raise InputError(
                f"training saw inputs of mean {_rounded(seen_mean)} and std {_rounded(seen_std)}, but mean "
                f"{_rounded(mean)} and std {_rounded(std)} turn these images into mean {_rounded(ours_mean)} and std "
                f"{_rounded(ours_std)}; pass the training's mean= and std=, on the command line "
                f"data.mean=[...] data.std=[...]"
            )
    return [float(m) for m in mean], [float(s) for s in std]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
