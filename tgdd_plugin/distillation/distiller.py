"""distill(): a trajectory and real images in, a ``.beton`` out, by way of a Composer run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Callback
from composer.loggers import LoggerDestination
from composer.utils import dist
from tqdm.auto import tqdm

from tgdd_plugin.beton.card import Card
from tgdd_plugin.core.atomic_files import check_writable
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.ranks import locked_on_rank_0, on_all_ranks
from tgdd_plugin.core.seeding import forked_streams, keyed_generator
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.calibration import calibrate
from tgdd_plugin.distillation.checkpoints import checkpoint_folder, checkpoint_folders
from tgdd_plugin.distillation.compatibility import NetworkOrFactory, bare_networks
from tgdd_plugin.distillation.distilled import Distilled
from tgdd_plugin.distillation.evolution import Evolution
from tgdd_plugin.distillation.execution import RunOptions, fit, halving, trainer_arguments
from tgdd_plugin.distillation.finished import check_settings, free_name, is_finished
from tgdd_plugin.distillation.frozen_networks import FrozenNetworks, freeze_networks
from tgdd_plugin.distillation.inputs import Inputs, resolve_inputs
from tgdd_plugin.distillation.logs import DistillationLog
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.monitoring import NonFiniteLoss, estimate
from tgdd_plugin.distillation.probe import Probe
from tgdd_plugin.distillation.result import check_room_for, draw_result, result_card, write_result
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.logs.destinations import as_log_settings
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.networks.factory import recorded_factory
from tgdd_plugin.networks.features import herding_subset
from tgdd_plugin.trajectory.store import Trajectory


def distill(
    trajectory: Trajectory | str | os.PathLike[str],
    real: Any | None,
    output: str | os.PathLike[str],
    settings: DistillSettings | Mapping[str, Any] | None = None,
    *,
    network: NetworkOrFactory | Sequence[NetworkOrFactory] | None = None,
    head: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: Device | None = None,
    overwrite: bool = False,
    checkpoint_interval: str = "60sec",
    image_interval: int | None = None,
    probe_interval: int | None = None,
    loggers: Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any] = (),
    callbacks: Sequence[Callback] = (),
    progress_bar: bool = True,
    trainer_options: Mapping[str, Any] | None = None,
    picture: str | Path | None = None,
) -> Distilled:
    """Distills a trajectory into a ``.beton`` by TGDD (arXiv 2512.02469), as a Composer run.

    One step is: draw an early and a late stage of one run, and for each class a batch of real images and one
    augmentation; match the classes' mean features under the early stage, keep the classes apart under the late one;
    take one SGD step on the pixels of all classes, then clamp them to [0, 1].

    Checkpoints lie in a hidden folder beside ``output`` until it is written. The same call, made again after a crash,
    goes on from the last one and ends with the same bits (on a CPU; a GPU may add in another order). Where ``output``
    is there already and of the same job, the call returns at once and leaves it as it is.

    On N ranks (``composer -n N``) each draws stages, real images and augmentation of its own, and the gradients are
    averaged. A step's expected gradient is that of one process, its variance the N-th part; so the images depend on N.

    Args:
        trajectory: The folder that :class:`TGDDCallback` recorded, or an open :class:`Trajectory`.
        real: The real training images: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
            ``None`` to distill from the trajectory alone: its recorded class means, and the few images kept in it to
            start from (or ``start='noise'``).
        output: The ``.beton`` to write; its card is ``<output>.yaml``.
        settings: What the distillation does, as :class:`DistillSettings` or a mapping of its keys, such as
            ``{"images_per_class": 10}``. Default: ``DistillSettings()``.
        network: The network that was trained, or a function that builds it; its weights do not matter. A
            ``ComposerClassifier`` may be given whole. If the runs are of several networks, a list of those. Default:
            for this package's networks, built as recorded.
        head: Name of the networks' linear head. Default: as recorded.
        mean, std: Per-channel normalization for pixels in [0, 1]. Default: as recorded.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        overwrite: Whether an ``output`` that is there already and of another job is replaced. Default: ``False``.
        checkpoint_interval: How often to save, as a Composer time string, such as ``'500ba'``. Default:
            ``'60sec'``, so that a crash costs a minute at most, or one step where that takes longer.
        image_interval: Steps between pictures of the images sent to ``loggers``; 0 for none. Default: as ``loggers``
            says, else 1000.
        probe_interval: Steps between two probes, which train a network on the images as they are; 0 for none
            (:class:`tgdd_plugin.distillation.probe.Probe`). Default: as ``loggers`` says, else 0.
        loggers: Composer loggers beside the log in ``<name>-log.csv``, or :class:`LoggerSettings`, also as a mapping,
            which say what logs are kept. None changes the images, and one that fails is left out with a warning.
        callbacks: The user's own callbacks, for the Trainer.
        progress_bar: Whether to show a progress bar. Default: ``True``.
        trainer_options: More arguments for Composer's ``Trainer``; they override ours.
        picture: Where to draw the images beside those that they started from, by class
            (:func:`tgdd_plugin.data.set_figure.draw_set`), as SVG or PNG. A few of them as they were after some steps
            are drawn beside it, in ``<its name>-evolution.png``. Default: ``None``, nowhere.

    Returns:
        The written file, which stands wherever its path does: see :class:`Distilled`.

    Raises:
        InputError: If anything given does not fit, ``output`` is there already and of another job, or another process
            works on it: before any step is made wherever that can be known, and otherwise with the last checkpoint
            kept.
    """
    if not isinstance(trajectory, Trajectory | str | os.PathLike):
        raise InputError(
            f"`trajectory` must be a trajectory folder, or an opened one, got a {type(trajectory).__name__}. Give "
            f"distill(trajectory, real, output), in this order."
        )
    output, settings = check_writable(Path(output)), as_settings(DistillSettings, settings)
    given = Normalization.of(mean, std)
    logs, own = as_log_settings(loggers, image_interval=image_interval, probe_interval=probe_interval)
    options = RunOptions(
        device, checkpoint_interval, logs, own, callbacks, progress_bar, trainer_options or {}, picture
    )
    torch_device(device)  # a GPU that is not there is told first
    dist.initialize_dist(device)
    with forked_streams(settings.seed), locked_on_rank_0(output):  # some networks draw in evaluation, too
        check_settings(output, settings, overwrite=overwrite)
        trajectory = trajectory if isinstance(trajectory, Trajectory) else Trajectory.open(Path(trajectory))
        if network is None:
            for run in trajectory.representative_runs.values():
                recorded_factory(run.network)  # what cannot be built is found out before any image is read
        inputs = resolve_inputs(trajectory, real, settings, given, progress_bar=progress_bar)
        card = result_card(inputs, head)
        if not is_finished(output, card, overwrite=overwrite):
            options.logs.check_probe(inputs.settings.source)
            on_all_ranks(lambda: check_room_for(output, card) if dist.get_global_rank() == 0 else None)
            _distill(output, inputs, card, network, head, options)
        elif dist.get_global_rank() == 0:
            if checkpoint_folders(output):  # this job's are left if it was killed while it removed them
                modules = bare_networks(network, trajectory, inputs.shape)
                shutil.rmtree(checkpoint_folder(output, inputs, modules, card), ignore_errors=True)
            if progress_bar:
                tqdm.write(f"'{output}' is already done: it is of this job, and kept as it is", file=sys.stderr)
    return Distilled(output)


def _distill(
    output: Path,
    inputs: Inputs,
    card: Card,
    network: NetworkOrFactory | Sequence[NetworkOrFactory] | None,
    head: str | None,
    options: RunOptions,
) -> None:
    """Distills ``inputs`` into ``output``; the arguments are those of :func:`distill`, read and checked."""
    on = torch_device(options.device)
    frozen = freeze_networks(inputs, network, head, on)
    pool = inputs.pool and inputs.pool.to(on)  # before the memory that it leaves is looked at
    chunk = frozen.fit_memory(inputs, on)
    synthetic = SyntheticImages(_start(inputs, frozen, chunk), inputs.settings.factor)
    start, _ = synthetic.to_uint8()
    evolution = Evolution(synthetic, inputs.settings.steps)
    if options.picture:
        options = replace(options, callbacks=[evolution, *options.callbacks])
    draws = Draws(inputs.settings, frozen.bank, inputs.pool, synthetic, dist.get_global_rank(), inputs.class_ids)
    draws(0)  # a class with too few images is found out here, not after the Trainer is set up
    model = DistillationModel(
        synthetic,
        frozen.functional,
        frozen.bank,
        pool,
        normalization=inputs.normalization,
        alpha=0.0,
        bf16=inputs.settings.precision == "bf16",
    )
    checkpoints = checkpoint_folder(output, inputs, frozen.modules, card)
    outputs = inputs.trajectory.run.num_classes
    rates, chunk = halving(lambda chunk: calibrate(inputs.settings, model, draws, chunk, on, outputs), chunk)
    model.alpha = rates.alpha
    probe = Probe(inputs, frozen, options.device) if options.logs.probe_interval else None
    noted = {**asdict(inputs.settings), **asdict(rates)}
    log = DistillationLog(synthetic, start, noted, inputs.class_names, options.logs, probe)
    arguments = trainer_arguments(model, draws, rates.learning_rate, options, checkpoints, output, log)
    if "auto" in (inputs.settings.learning_rate, inputs.settings.alpha):
        card.method["calibrated"] = asdict(rates)
    if options.progress_bar and dist.get_global_rank() == 0:
        cost, chunk = halving(lambda chunk: estimate(model, draws, chunk, inputs.settings.steps, on), chunk)
        tqdm.write(f"distilling {cost}", file=sys.stderr)
    try:
        fit(arguments, chunk, synthetic)
    except NonFiniteLoss as error:
        kept = _keep_last_finite(output, synthetic, card, error.step)
        raise InputError(f"{error} The images before that step are in '{kept}'.") from None
    if dist.get_global_rank() == 0:
        if options.picture:  # first: once the file is there, the job is finished
            draw_result(options.picture, synthetic, card, start, evolution)
        write_result(output, synthetic, card)
        shutil.rmtree(checkpoints, ignore_errors=True)
    dist.barrier()


def _start(inputs: Inputs, frozen: FrozenNetworks, chunk: int) -> torch.Tensor:
    """Returns the pixels that the distillation of ``chunk`` classes at a time starts from, ``(K, n, C, H, W)``."""
    settings, pool = inputs.settings, inputs.start_pool
    # The start has a random stream of its own, apart from every (step, rank).
    generator = keyed_generator(settings.seed, 0, 2**31)
    if settings.start == "herding" and pool is not None:
        number = settings.images_per_class * settings.factor**2
        features = partial(frozen.features_of, inputs=inputs, chunk=chunk)
        pool = herding_subset(pool, inputs.class_ids, number, generator, features)
    shape = (len(inputs.class_ids), settings.images_per_class, *inputs.shape)
    budget = settings.sized_by(len(inputs.class_ids))
    return start_pixels(settings.start, shape, settings.factor, pool, generator, inputs.class_ids, budget)


def _keep_last_finite(output: Path, synthetic: SyntheticImages, card: Card, step: int) -> Path:
    """Writes the images as they are after ``step`` steps, beside ``output``, and returns the file's path."""
    card.method.update(stopped_after=step, ema=None)  # the images themselves, not their average
    kept = free_name(output.with_name(f"{output.stem}-step{step}{output.suffix}"), card)
    if dist.get_global_rank() == 0:
        write_result(kept, synthetic, card)
    return kept
