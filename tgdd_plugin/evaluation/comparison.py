"""What a compact set is worth: networks trained on it and on what it must beat, row by row, scored on test images.

:func:`evaluate` makes the whole table; :func:`retrain` makes its first rows. Nothing is chosen on the test images.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from composer.loggers import LoggerDestination
from composer.utils import dist
from torch import nn

from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.core.atomic_files import check_writable, sweep, write_whole
from tgdd_plugin.core.class_names import number_names
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import check_seed
from tgdd_plugin.core.ranks import locked_on_rank_0
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.evaluation.baselines import CONFIDENCE, Baselines
from tgdd_plugin.evaluation.compact_set import CompactSet
from tgdd_plugin.evaluation.results import (
    HELD_OUT,
    add_to_card,
    describe_comparison,
    read_results,
    results_file,
    usual_results,
    warn_if_seen,
    write_results,
)
from tgdd_plugin.evaluation.row_jobs import plan_rows
from tgdd_plugin.evaluation.row_scoring import logs_of, score_rows, scorer_of
from tgdd_plugin.evaluation.scorer import FULL_DATA, Row
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.evaluation.soft_labels import find_teachers
from tgdd_plugin.evaluation.stage_outputs import predict_confidences
from tgdd_plugin.evaluation.tables import evaluate_table
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.trajectory.store import Trajectory

RETRAIN_ROWS = EvaluateSettings(baselines=["random"], networks=[], soft_labels=False, worth=False)
"""The rows of :func:`retrain`."""


def retrain(
    file: str | os.PathLike[str],
    test: Any,
    settings: RetrainSettings | Mapping[str, Any] | None = None,
    *,
    real: Any = None,
    held_out: bool = False,
    network: Callable[[], nn.Module] | None = None,
    results: str | os.PathLike[str] | None = None,
    device: Device | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress_bar: bool = True,
    loggers: Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any] = (),
    trainer_options: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Trains fresh networks on a ``.beton`` and scores them at the last epoch; nothing is chosen on the test set.

    Args:
        file: The ``.beton``, as it ships, its card beside it. The card gets the accuracies, if it can be written.
        test: Real test images: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        settings: How networks are trained, and how many. Default: ``RetrainSettings()``;
            a mapping of its keys will do.
        real: The real training images, for the rows of random and full data. Default: those rows are left out.
        held_out: Whether ``test`` are training images that were held out, to choose settings by: the card gets no
            accuracies then, and a warning tells if ``file`` may have been made from them. Default: ``False``.
        network: A function that builds a fresh network, or a ``ComposerModel`` with one in it. Default: for this
            package's networks, as the card says.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``settings.seeds`` seeds: of the initial weights, the order of images, the augmentation, and
            the choice of random images. Default: ``0``.
        results: A JSON file that keeps every row once it is done; the same call makes only the rows that are missing,
            and goes on with a training that was cut short from a checkpoint that is a minute old at most, in a hidden
            folder beside that file. Default: none, and all rows are made.
        overwrite: Whether ``results`` of another comparison are replaced. Default: ``False``.
        progress_bar: Whether to show progress bars. Default: ``True``.
        loggers: Composer loggers beside the log in ``<results>-log.csv``, or :class:`LoggerSettings`, also as a
            mapping, which say what logs are kept. None changes a row, and one that fails is left out with a warning.
        trainer_options: More arguments for the Composer ``Trainer`` of each training, such as ``loggers``,
            ``callbacks`` or ``precision``; see :func:`tgdd_plugin.training.train.train_network`. Default: none.

    Returns:
        Rows for ``distilled``, ``random`` (as many stored images), with a factor ``random, decoded number`` (as many
        as the file has once decoded), ``full data, equal passes`` (for as many image passes as the set), with
        ``settings.mix`` such as ``50% distilled, rest real``, and ``full data``; and for the soft labels of the file,
        if it has any.

    Raises:
        InputError: If the file, its card, the images or the network do not fit each other, or ``results`` are of
            another comparison, or another process works on them.
    """
    check_seed(seed)
    torch_device(device)  # one that is not there, or of another name, is told before anything is trained
    dist.initialize_dist(device)
    file = Path(file)
    compact = CompactSet.open(file, network)
    settings = as_settings(RetrainSettings, settings).made_for(compact.card.method.get("budget"), compact.card.images)
    test = fitting_pool(test, "test", file, compact.card)
    real = None if real is None else fitting_pool(real, "real", file, compact.card)
    if held_out:
        warn_if_seen(file, compact.card, real)
    results = check_writable(Path(results)) if results else None
    baselines = None
    if real is not None:
        baselines = Baselines(compact, real, usual_results(file).with_suffix(""), device, progress_bar)
    jobs = plan_rows(compact, baselines, RETRAIN_ROWS, settings, seed=seed)
    logs = logs_of(loggers, results, file)
    scorer = scorer_of(compact, test, settings, seed, device, progress_bar, trainer_options, logs, results)
    about = describe_comparison(file, compact, scorer, real, settings, held_out=held_out)
    with locked_on_rank_0(results) if results else nullcontext():
        done = read_results(results, about, overwrite=overwrite) if results else {}

        def keep(row: Row, networks: list[nn.Module]) -> None:
            if results and dist.get_global_rank() == 0:
                write_results(results, about, list(done.values()), scorer)

        rows = score_rows(jobs, scorer, done, keep)
        if dist.get_global_rank() == 0:
            add_to_card(file, compact.card, about, rows, scorer)
    return rows


def evaluate(
    file: str | os.PathLike[str],
    test: Any,
    real: Any,
    settings: EvaluateSettings | Mapping[str, Any] | None = None,
    training: RetrainSettings | Mapping[str, Any] | None = None,
    *,
    held_out: bool = False,
    trajectory: Trajectory | str | os.PathLike[str] | None = None,
    network: Callable[[], nn.Module] | None = None,
    others: Sequence[Callable[[], nn.Module]] = (),
    device: Device | None = None,
    seed: int = 0,
    results: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress_bar: bool = True,
    loggers: Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any] = (),
    trainer_options: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Scores a ``.beton`` beside its baselines, on several architectures; the same call goes on where one stopped.

    Args:
        file: The ``.beton``, its card beside it. The card gets the accuracies, if it can be written.
        test: Real test images: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        real: The real training images, in the same form.
        settings: Which rows the table has. Default: ``EvaluateSettings()``; a mapping of its keys will do.
        training: How networks are trained, and how many. Default: ``RetrainSettings()``; likewise.
        held_out: As in :func:`retrain`.
        trajectory: The trajectory whose last stages give soft labels, and whose networks' confidence chooses images.
            Default: none, and no such rows.
        network: A function that builds a fresh network of the set's own architecture. Default: for this package's
            networks, as the card says.
        others: The same for the further networks of a trajectory of several. Default: for this package's, as recorded.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``training.seeds`` seeds, as in :func:`retrain`. Default: ``0``.
        results: The JSON file that keeps every row once it is done. A Markdown table is written beside it, and a
            folder of its name keeps what later rows need. Default: ``<name>-evaluation.json`` beside ``<name>.beton``.
        overwrite: Whether ``results`` of another evaluation are replaced. Default: ``False``.
        progress_bar: Whether to show progress bars. Default: ``True``.
        loggers: As in :func:`retrain`.
        trainer_options: As in :func:`retrain`; the results do not note them. Default: none.

    Returns:
        The rows, the file's own architecture first (:func:`tgdd_plugin.evaluation.tables.evaluate_table` makes a table
        of them).

    Raises:
        InputError: If the file, its card, the images or the networks do not fit each other, or ``results`` are of
            another evaluation, or another process works on them.
    """
    check_seed(seed)
    torch_device(device)  # one that is not there, or of another name, is told before anything is trained
    dist.initialize_dist(device)
    file = Path(file)
    settings, results = as_settings(EvaluateSettings, settings), results_file(results, file)
    compact = CompactSet.open(file, network)
    training = as_settings(RetrainSettings, training).made_for(compact.card.method.get("budget"), compact.card.images)
    test, real = fitting_pool(test, "test", file, compact.card), fitting_pool(real, "real", file, compact.card)
    if held_out:
        warn_if_seen(file, compact.card, real)
    trajectory = Trajectory.open(Path(trajectory)) if isinstance(trajectory, str | os.PathLike) else trajectory
    teacher = trajectory if settings.soft_labels or CONFIDENCE in settings.baselines else None
    if teacher is not None and not _tells_apart(teacher.run.class_names, compact.card.classes):
        text = "the recorded networks have other classes than the set, or another order: no soft labels, and no row "
        warnings.warn(f"{text}'{CONFIDENCE}'", stacklevel=2)
        teacher = None
    softened = confidences = None
    if teacher is not None:
        networks, on = compact.recorded(teacher, others), torch_device(device)
        softened = functools.partial(compact.softened, teacher, networks, on)
        softened((compact.images[0][:1], compact.images[1][:1]))  # networks that do not fit are found out here
        if CONFIDENCE in settings.baselines and len(teacher.finite_stages) > 1:
            how: dict[str, Any] = {"normalization": compact.card.normalization, "device": on}
            confidences = functools.partial(predict_confidences, teacher, networks, **how, progress_bar=progress_bar)
    logs = logs_of(loggers, results, file)
    scorer = scorer_of(compact, test, training, seed, device, progress_bar, trainer_options, logs, results)
    about = describe_comparison(file, compact, scorer, real, training, held_out=held_out)
    about["learning_rates"] = settings.learning_rates and list(settings.learning_rates)
    about["teachers"] = teacher and [stage.sha256 for stage in find_teachers(teacher)]
    tuned_on = None
    if settings.learning_rates:
        real, tuned_on = real.split(0.1, torch.Generator().manual_seed(1))
    baselines = Baselines(compact, real, results.with_suffix(""), device, progress_bar, confidences)
    jobs = plan_rows(compact, baselines, settings, training, softened if settings.soft_labels else None, seed)
    with locked_on_rank_0(check_writable(results)):
        sweep(results.with_suffix(""))
        done = read_results(results, about, overwrite=overwrite)

        def keep(row: Row, networks: list[nn.Module]) -> None:
            if row.name == FULL_DATA:
                baselines.keep(networks, scorer.seeds)
            if dist.get_global_rank() == 0:
                write_results(results, about, list(done.values()), scorer)

        rows = score_rows(jobs, scorer, done, keep, settings.learning_rates or [], tuned_on)
        if dist.get_global_rank() == 0:
            write_whole(
                results.with_suffix(".md"), evaluate_table(rows) + "\n" + f"\nScored on {HELD_OUT}.\n" * held_out
            )
            add_to_card(file, compact.card, about, [row for row in rows if row.network == compact.network], scorer)
        dist.barrier()
    return rows


def _tells_apart(recorded: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether a recorded network's outputs are a set's classes, in order; either may have numbers for names."""
    numbers = number_names(len(classes))
    return list(recorded) == list(classes) or (len(recorded) == len(classes) and numbers in (recorded, classes))
