"""distill(): a trajectory and real images in, a ``.beton`` out, by way of a Composer run."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer import Callback, DataSpec
from composer.algorithms import EMA
from composer.core import Time
from composer.loggers import LoggerDestination
from composer.utils import dist
from tqdm.auto import tqdm

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.atomic_files import check_writable
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.progress_bar import ProgressBar
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.core.versions import versions
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.compatibility import (
    Given,
    agreed_normalization,
    bare_networks,
    check_pool,
    input_shape,
    recorded_head,
)
from tgdd_plugin.distillation.execution import fit_halving
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.monitoring import NotFinite, Watch, estimate
from tgdd_plugin.distillation.sampling import Draws, Steps
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.networks.chunk_size import chunk_sizes
from tgdd_plugin.networks.compilation import should_compile
from tgdd_plugin.networks.factory import recorded_factory
from tgdd_plugin.networks.feature_network import FeatureNetwork, find_head
from tgdd_plugin.networks.features import herding_subset
from tgdd_plugin.trajectory.store import Trajectory


def distill(
    trajectory: Trajectory | str | Path,
    real: Any | None,
    output: str | Path,
    settings: DistillSettings | None = None,
    *,
    network: Given | Sequence[Given] | None = None,
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
            ``None`` to distill from the trajectory alone: its recorded class means, and the few images kept in it to
            start from (or ``start='noise'``).
        output: The ``.beton`` to write; its card is ``<output>.yaml``.
        settings: Default: ``DistillSettings()``, the paper's.
        network: The network that was trained, or a function that builds it; its weights do not matter. A
            ``ComposerClassifier`` may be given whole. If the runs are of several networks, a list of those. Default:
            for this package's networks, built as recorded.
        head: Name of their linear head. Default: as recorded.
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
        for kind in trajectory.representative_runs.values():
            recorded_factory(kind.network)  # what cannot be built is found out before any image is read
    given = Normalization.of(mean, std)
    try:
        Time.from_timestring(checkpoint_interval)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"checkpoint_interval is {checkpoint_interval!r}; wanted a time such as '500ba'") from error
    on = torch_device(device)
    pool = None
    if real is not None:
        pool = real if isinstance(real, ImagePool) else ImagePool.from_dataset(real, progress=progress_bar)
    settings = _resolved(settings or DistillSettings(), trajectory, pool)
    if pool is not None:
        for recorded in trajectory.runs.values():
            check_pool(pool, recorded)
    # Images that the pixels start from; the recorded source has no other use for any.
    origin = trajectory.exemplars() if pool is None else pool
    shape = input_shape(run) if pool is None else pool.shape
    normalization = agreed_normalization(given, run, shape[0], None if origin is None else origin.statistics())
    if settings.source == "recorded":
        pool = None
    names = run.classes or [str(number) for number in range(run.num_classes)]
    ids = _class_ids(settings.classes, names)

    bare = bare_networks(network, trajectory, shape)
    kinds = list(trajectory.representative_runs.values())
    heads = [
        find_head(b, run.num_classes, head or recorded_head(b, kind.head)) for b, kind in zip(bare, kinds, strict=True)
    ]
    bank = StageBank(trajectory, bare, on, matched=settings.stages, recorded=pool is None, classes=ids)
    real_count = settings.real_per_class if pool else 0
    synthetic_count = min(settings.images_per_class * settings.factor**2, settings.max_decoded)
    passes = settings.steps * len(ids) * (real_count + 2 * synthetic_count)
    compiled = should_compile(settings.compile, passes // len(bare), shape[1], on, len(bare))
    frozen = [FeatureNetwork(each.to(on), name, compiled=compiled) for each, name in zip(bare, heads, strict=True)]
    stages = [bank[bank.architecture.index(number)] for number in range(len(bare))]  # one of each network
    for one, weights in zip(frozen, stages, strict=True):
        one.check(weights, shape, run.num_classes)
    pixels = (len(ids), settings.images_per_class, *shape)
    # The start has a stream of its own, apart from every (step, rank).
    generator, chosen = keyed_generator(settings.seed, 0, 2**31), origin
    if settings.start == "herding" and origin is not None:
        trained = copy.deepcopy(bare[0])
        trained.load_state_dict(bank.last, strict=False)
        count = settings.images_per_class * settings.factor**2
        chosen = herding_subset(trained, origin, ids, count, generator, normalization=normalization, head=heads[0])
    start = start_pixels(settings.start, pixels, settings.factor, chosen, generator, ids)
    synthetic = SyntheticImages(start, settings.factor)
    draws = Draws(settings, bank, pool, synthetic, dist.get_global_rank(), ids)
    draws(0)  # a class with too few images is found out here, not after the Trainer is set up
    model = DistillationModel(
        synthetic, frozen, bank, pool and pool.to(on), normalization=normalization, alpha=settings.alpha or 0.0,
        bf16=settings.precision == "bf16",
    )  # fmt: skip

    optimizer = torch.optim.SGD(synthetic.parameters(), lr=settings.learning_rate or 0.0)
    # Right after the step, so that whatever looks at the pixels next (EMA, a checkpoint) finds them in [0, 1].
    optimizer.register_step_post_hook(lambda *_: synthetic.clamp_())
    fingerprint = origin.fingerprint() if origin is not None else None
    # The name holds all the pixels depend on: another job never resumes from these checkpoints.
    depends = {name: value for name, value in asdict(settings).items() if name != "packed"}
    built: Any = [type(each).__qualname__ for each in bare]
    built = built if len(built) > 1 else built[0]  # as when there was one only: its checkpoints still serve
    key = json.dumps(
        [depends, trajectory.checksums, normalization.mean, normalization.std, list(shape), fingerprint, built]
    )
    run_name = f"distill-{output.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    checkpoints = output.parent / f".{run_name}"

    def options(chunk: int) -> dict[str, Any]:
        watchers: list[Callback] = [Watch(image_interval, bank.names, synthetic)]
        if progress_bar:
            watchers.append(ProgressBar("distilling"))
        return {
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
            "device_train_microbatch_size": chunk,
            "precision": "fp32",
            "progress_bar": False,
            "seed": settings.seed,
            "run_name": run_name,
            "autoresume": True,
            "save_folder": str(checkpoints),
            "save_interval": checkpoint_interval,
            "save_overwrite": True,
            "save_num_checkpoints_to_keep": 1,
            **(trainer_options or {}),
        }

    chunk = len(ids)
    for one, weights in zip(frozen, stages, strict=True):
        footprint = one.footprint(weights, shape)
        fitting, one.slice_size = chunk_sizes(footprint, len(ids), synthetic_count, real_count, on)
        chunk = min(chunk, fitting)
    chunk = min(settings.classes_per_chunk or chunk, len(ids))
    if progress_bar and dist.get_global_rank() == 0:
        tqdm.write(f"distilling {estimate(model, draws, chunk, settings.steps, on)}", file=sys.stderr)
    card = Card(
        classes=[names[number] for number in ids],
        images=0,
        images_per_class=settings.images_per_class,
        shape=list(shape),
        mean=list(normalization.mean),
        std=list(normalization.std),
        factor=settings.factor,
        packed=settings.packed,
        method=_method(settings),
        network=run.network,
        real={"images": len(pool) if pool else 0, "fingerprint": fingerprint},
        trajectory={
            "runs": [each.name for each in trajectory.runs.values()],
            "stages": trajectory.checksums,
            "networks": [kind.network for kind in kinds],
        },
        versions=versions("mosaicml", "ffcv", "numpy"),
    )
    try:
        fit_halving(options, chunk, synthetic)
    except NotFinite as error:
        kept = output.with_name(f"{output.stem}-step{error.step}{output.suffix}")
        if dist.get_global_rank() == 0:
            card.method["stopped_after"] = error.step
            write_beton(kept, *synthetic.to_uint8(packed=settings.packed), card)
        raise InputError(f"{error}; the images before that step are in '{kept}'") from None
    if dist.get_global_rank() == 0:
        write_beton(output, *synthetic.to_uint8(packed=settings.packed), card)
        shutil.rmtree(checkpoints, ignore_errors=True)
    dist.barrier()
    return output


def _class_ids(wanted: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    if wanted is None:
        return list(range(len(names)))
    for name in wanted:
        if name not in names:
            raise InputError(
                f"classes has '{name}', which the trajectory does not know; its classes are {', '.join(names[:20])}"
            )
    return [list(names).index(name) for name in wanted]


def _resolved(settings: DistillSettings, trajectory: Trajectory, pool: ImagePool | None) -> DistillSettings:
    """The settings with their defaults filled in for the runs and the real images, if there are any."""
    run = trajectory.run
    if settings.source == "sampled" and pool is None:
        raise InputError(
            "source is 'sampled', which reads real images at every step, and none were given; give them, or take "
            "source 'recorded'"
        )
    side = pool.shape[1] if pool is not None else input_shape(run)[1]
    resolved = settings.resolved(side, sampled=pool is not None, trained_with=run.augmentation)
    seen = {str(recorded.augmentation) for recorded in trajectory.runs.values()}
    if resolved.source == "recorded" and settings.augmentation is None and len(seen) > 1:
        raise InputError(
            f"the runs were trained under different augmentations ({', '.join(sorted(seen))}), which their means "
            f"contain; say by distill.augmentation which the synthetic images get, or keep unlike runs in folders of "
            f"their own"
        )
    return resolved


def is_distilled(output: str | Path, trajectory: Trajectory, pool: ImagePool | None, settings: DistillSettings) -> bool:
    """Whether ``output`` is there already, whole, from the same stages and images under the same settings."""
    try:
        card = read_card(output)
        method = _method(_resolved(settings, trajectory, pool))
    except InputError:
        return False
    origin = trajectory.exemplars() if pool is None else pool
    # A setting that the version which wrote it did not have yet was as its default is.
    earlier = {**_method(DistillSettings()), **card.method}
    same = earlier == method and card.packed == settings.packed
    same = same and card.trajectory.get("stages") == trajectory.checksums
    return same and card.real.get("fingerprint") == (origin.fingerprint() if origin is not None else None)


def _method(settings: DistillSettings) -> dict[str, Any]:
    return {"name": "TGDD", **asdict(settings)}
