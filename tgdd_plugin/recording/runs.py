"""record(): trains networks under TGDDCallback, for those who have no Composer script of their own."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer import Callback
from composer.loggers import LoggerDestination
from composer.utils import dist, ensure_tuple
from torch import nn

from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.bounded_reading import JSON_SIZE, parse_json, read_bounded
from tgdd_plugin.core.class_names import named_classes
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.differences import as_plain, first_difference, under_section
from tgdd_plugin.core.errors import InputError, check_seed
from tgdd_plugin.core.ranks import locked_on_rank_0
from tgdd_plugin.core.renamed_keys import with_current_keys
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.logs.destinations import TrainingLogs, as_log_settings
from tgdd_plugin.logs.log_file import log_path
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.networks.classifiers import as_list, classifiers
from tgdd_plugin.networks.heads import find_head
from tgdd_plugin.recording.callback import TGDDCallback
from tgdd_plugin.recording.settings import RecordSettings, as_recorded
from tgdd_plugin.training.fitting import ACCURACY, LOGGED
from tgdd_plugin.training.resuming import checkpoint_folder, remove_checkpoints
from tgdd_plugin.training.train import check_network, train_network
from tgdd_plugin.trajectory.folders import job_name
from tgdd_plugin.trajectory.journal import remove_journals
from tgdd_plugin.trajectory.manifest import JOB, MANIFEST, Run
from tgdd_plugin.trajectory.store import Trajectory


def record(
    folder: str | os.PathLike[str],
    real: ImagePool,
    network: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]],
    settings: RecordSettings | Mapping[str, Any] | None = None,
    *,
    head: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    job: dict[str, Any] | None = None,
    seed: int = 0,
    device: Device | None = None,
    progress_bar: bool = True,
    loggers: Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any] = (),
    trainer_options: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Trains ``settings.runs`` networks, or as many of each of several architectures, and records them into one folder.

    The call can be made again after a crash: runs that are complete in the folder are kept, and one that was cut short
    goes on from a checkpoint in a hidden folder there: it is a minute old at most, or in the first epoch its beginning.

    Args:
        folder: The trajectory folder.
        real: The training images.
        network: A function that builds a fresh network; or several such functions, one for each architecture. The runs
            of the first are named ``seed0``, ..., those of the second ``seed0-network2``, ...
        settings: How the networks are trained and recorded. Default: ``RecordSettings()``; a mapping of its keys
            will do.
        head: The name of the networks' linear head, see :class:`TGDDCallback`.
        mean, std: Per-channel normalization of the inputs, for pixels in [0, 1]. Default: the images' own.
        job: Whatever else the runs depend on, as plain values; noted in the folder and compared when it exists.
        seed: The seed of the first run. Default: ``0``.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        progress_bar: Whether to show one. Default: ``True``.
        loggers: Composer loggers beside the log in ``<run>-log.csv`` in the folder, or :class:`LoggerSettings`, also as
            a mapping, which say what logs are kept. None changes a run, and one that fails is left out with a warning.
        trainer_options: More arguments for the Composer ``Trainer`` of each run, such as ``loggers``, ``callbacks`` or
            ``precision``; see :func:`tgdd_plugin.training.train.train_network`. Default: none.

    Raises:
        InputError: If the folder holds runs of another job, another process records into it by this function, or all
            images are of one class.
    """
    check_seed(seed)
    settings = as_settings(RecordSettings, settings)
    logs, own = as_log_settings(loggers)
    if real.num_classes < 2:
        raise InputError(
            f"The images must be of at least 2 classes, got class '{real.classes[0]}' alone. Add images of another one."
        )
    if empty := real.names_of((real.counts == 0).nonzero().flatten()):
        warnings.warn(
            f"{named_classes(empty)}: no training image, so that no class means are recorded; distill the "
            f"other classes alone (distill.classes)",
            stacklevel=2,
        )
    folder = check_writable(Path(folder) / JOB).parent
    builders = [classifiers(build) for build in as_list(network)]
    for build in builders:
        check_network(build, real.shape, real.num_classes)
    if len(builders) > 1:
        _check_kinds(builders, real.num_classes, head)
    depends = {"settings": {**asdict(settings), "runs": None}, "seed": seed, **(job or {})}
    on = torch_device(device)
    dist.initialize_dist(device)
    with locked_on_rank_0(folder / JOB):
        _check_job(folder / JOB, as_plain(depends))
        normalization = Normalization.of(mean, std) or Normalization(*real.statistics())
        pool = real.to(on)
        seeds, columns = range(seed, seed + settings.runs), {**LOGGED, **ACCURACY}
        runs = [(run_name(number, kind), build, number) for kind, build in enumerate(builders, 1) for number in seeds]
        for number, (name, build, run_seed) in enumerate(runs, 1):
            begun = (folder / name / MANIFEST).is_file()
            if begun and Run.read(folder / name).complete:
                remove_journals(folder / name)  # one may be left if it was killed at its very end
            else:
                if not begun:  # its stages may have been deleted, to record it anew
                    remove_checkpoints(folder, f"training-{name}")
                how: dict[str, Any] = {"batch_size": settings.batch_size, "seed": run_seed, "device": on}
                training_logs = TrainingLogs(logs, job_name(folder), log_path(folder / name), columns, own)
                _record_run(
                    folder,
                    name,
                    build,
                    DeviceLoader(pool.images, pool.labels, normalization, **how),
                    settings,
                    num_classes=real.num_classes,
                    depends=[depends, head],
                    recorder=recorder_of(folder, settings, real.classes, normalization, head),
                    title=f"recording run {number}/{len(runs)}" if progress_bar else None,
                    logs=training_logs.of(name),
                    device=device,
                    **(trainer_options or {}),
                )
            remove_checkpoints(folder, f"training-{name}")
    return Trajectory.open(folder)


def _record_run(
    folder: Path,
    name: str,
    build: Callable[[], nn.Module],
    loader: DeviceLoader,
    settings: RecordSettings,
    *,
    num_classes: int,
    depends: Any,
    recorder: TGDDCallback,
    callbacks: Callback | Sequence[Callback] = (),
    **options: Any,
) -> None:
    """Trains one network under ``recorder``, on from its last checkpoint if it was cut short."""
    with forked_streams(loader.seed):
        network = build()
    train_network(
        network,
        loader,
        num_classes,
        settings,
        seed=loader.seed,
        metrics=True,
        checkpoints=checkpoint_folder(folder, f"training-{name}", [network], [loader], depends),
        callbacks=[recorder, *ensure_tuple(callbacks)],
        run_name=name,
        **options,
    )


def recorder_of(
    folder: Path,
    settings: RecordSettings,
    classes: Sequence[str],
    normalization: Normalization,
    head: str | None,
    *,
    overwrite: bool = False,
) -> TGDDCallback:
    """Returns the callback that records a training which is made to be recorded, so that an error ends it."""
    return TGDDCallback(
        str(folder),
        settings.interval,
        max_stages=settings.max_stages,
        dtype=settings.dtype,
        head=head,
        classes=classes,
        mean=normalization.mean,
        std=normalization.std,
        exemplars=settings.exemplars,
        on_error="raise",
        overwrite=overwrite,
        quiet=True,
    )


def _check_kinds(builders: Sequence[Callable[[], nn.Module]], num_classes: int, head: str | None) -> None:
    """Finds out before any training whether the networks all have a head, and can be told apart in the manifests."""
    with forked_streams():
        networks = [build() for build in builders]
    known: list[tuple[Any, ...]] = []
    for number, network in enumerate(networks, 1):
        find_head(network, num_classes, head)
        size = sum(parameter.numel() for parameter in network.parameters())
        known.append((type(network), size, getattr(network, "tgdd_network", None)))
        if (first := known.index(known[-1]) + 1) < number:
            raise InputError(
                f"`network` must be architectures that can be told apart, got networks {first} and {number}, which "
                f"are both {type(network).__qualname__} of {size:,} parameters. Leave one out or, if they differ, "
                f"decorate the function that builds them with tgdd_plugin.networks.described, which notes its "
                f"arguments."
            )


def run_name(seed: int, kind: int) -> str:
    """The name that :func:`record` gives to a run; ``kind`` is the number of its architecture, counted from 1."""
    return f"seed{seed}" + (f"-network{kind}" if kind > 1 else "")


def is_foreign(folder: Path) -> bool:
    """Whether ``folder`` holds runs that a Trainer of the user's recorded, not :func:`record`."""
    return _has_runs(folder) and not (folder / JOB).is_file()


def _has_runs(folder: Path) -> bool:
    return any(folder.glob(f"*/{MANIFEST}"))


def _check_job(path: Path, depends: dict[str, Any]) -> None:
    if is_foreign(path.parent):
        raise InputError(
            f"'{path.parent}' was recorded by a Trainer of yours. Distill it as it is, or choose another output or "
            f"trajectory folder to record into."
        )
    # A job that failed before it recorded anything binds nobody.
    if _has_runs(path.parent):
        text = read_bounded(path, JSON_SIZE, "file")
        try:
            earlier = dict(with_current_keys(parse_json(text)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"'{path}', which says what was recorded there, is damaged ({error}). Choose another output, or delete "
                f"that folder."
            ) from error
        if isinstance(earlier.get("settings"), dict):
            earlier["settings"] = as_recorded(earlier["settings"], depends["settings"])
        if other := first_difference(
            under_section(earlier, "record"), under_section(with_current_keys(depends), "record")
        ):
            raise InputError(
                f"'{path.parent}' was recorded by another job ({other}). Choose another output, or delete that folder."
            )
    else:
        write_whole(path, json.dumps(depends, indent=1) + "\n")
