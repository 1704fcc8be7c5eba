"""The rows of a comparison: what trains and scores their networks, one row after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from composer.loggers import LoggerDestination
from torch import nn

from tgdd_plugin.core.device import Device
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.compact_set import CompactSet
from tgdd_plugin.evaluation.row_jobs import RowJob
from tgdd_plugin.evaluation.scorer import Key, Row, Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.logs.destinations import TrainingLogs, as_log_settings
from tgdd_plugin.logs.log_file import log_path
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.training.fitting import LOGGED


def scorer_of(
    compact: CompactSet,
    test: ImagePool,
    training: RetrainSettings,
    seed: int,
    device: Device | None,
    progress_bar: bool,
    trainer_options: Mapping[str, Any] | None,
    logs: TrainingLogs,
    results: Path | None,
) -> Scorer:
    """The scorer of a comparison; further arguments as of :func:`tgdd_plugin.evaluation.comparison.retrain`."""
    card, seeds = compact.card, range(seed, seed + training.seeds)
    checkpoints = results and results.with_name(f".{results.stem}-checkpoints")  # without results nothing goes on
    seen: dict[str, Any] = {"progress_bar": progress_bar, "trainer_options": trainer_options, "logs": logs}
    how: dict[str, Any] = {"device": device, "at_once": training.at_once, "checkpoints": checkpoints}
    return Scorer(test, card.normalization, seeds, len(card.classes), **how, **seen)


def logs_of(
    loggers: Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any], results: Path | None, file: Path
) -> TrainingLogs:
    """The logs of a comparison's trainings, beside its results."""
    settings, own = as_log_settings(loggers)
    return TrainingLogs(settings, (results or file).stem, results and log_path(results), LOGGED, own)


def score_rows(
    jobs: Sequence[RowJob],
    scorer: Scorer,
    done: dict[Key, Row],
    keep: Callable[[Row, list[nn.Module]], None],
    learning_rates: Sequence[float] = (),
    held_out: ImagePool | None = None,
) -> list[Row]:
    """Trains and scores the networks of all rows, one row after another.

    Args:
        jobs: The rows to be.
        scorer: Trains and scores their networks.
        done: Finished rows by key, which are not trained again; each new one is added.
        keep: Called with each new row and its trained networks.
        learning_rates: The learning rates to choose from, for each row.
        held_out: The images they are chosen on. Default: ``None``, and each job's own learning rate.

    Returns:
        The rows, in the order of the jobs.
    """
    rows: list[Row] = []
    for job in jobs:
        if job.row.key not in done:
            if not job.wanted(rows):
                continue
            settings = job.settings
            if held_out is not None:
                settings = scorer.tune_learning_rate(learning_rates, held_out, job.row, job.build, job.images, settings)
            networks = scorer.score(job.row, job.build, job.images, settings)
            done[job.row.key] = job.row
            keep(job.row, networks)
        rows.append(done[job.row.key])
    scorer.remove_checkpoints()
    return rows
