"""search(): an architecture search whose candidates are trained on a compact set, by any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError
from tqdm.auto import tqdm

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import InputError, brief, check_seed, without_password
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.scorer import random_images
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas.ranking import Candidate, note_costs, ranked
from tgdd_plugin.nas.search_job import SearchJob, candidate_of
from tgdd_plugin.nas.search_space import candidate_builder, check_factory
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.nas.trial_queue import Queue
from tgdd_plugin.nas.workers import run_workers, show_progress


def search(
    file: str | Path,
    real: Any,
    settings: NasSettings | Mapping[str, Any] | None = None,
    training: RetrainSettings | Mapping[str, Any] | None = None,
    *,
    storage: str | Path = "nas.db",
    device: Device | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> list[Candidate]:
    """Trains the networks of a search space on a ``.beton``; the same call goes on where one stopped.

    The same call made in several processes, on this machine or others that reach the storage, shares the work: each
    candidate is trained once. Another process takes over the candidate of a killed one after a minute. A sampler that
    draws the same candidate again gets its result, if that is known by then. Where an earlier call ended as all
    candidates failed, they are tried again.

    A call with more candidates extends the search: what was tried stays, and the whole is what it would have been at
    once. Processes that were asked for fewer try the new ones, too, and leave the results to the one that extended it.

    A script that asks for several ``workers`` must call this under ``if __name__ == "__main__":``, as each of these
    processes imports the script.

    Args:
        file: The ``.beton``, its card beside it.
        real: The real training images, a share of which are the validation images: an :class:`ImagePool`, or any data
            set :meth:`ImagePool.from_dataset` takes. No candidate is trained on the validation images; the set may have
            been distilled from them, as it is the same for all.
        settings: What is searched, and how. Default: ``NasSettings()``.
        training: How candidates are trained, and how many networks of each. Default: ``RetrainSettings()``.
        storage: The file or URL of the study, if the settings name none. Default: ``'nas.db'``.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``training.seeds`` seeds, and of the choice of candidates. Default: ``0``.
        progress_bar: Whether to show a progress bar. Default: ``True``.

    Returns:
        The candidates, best first; then those given up, then those that failed.

    Raises:
        InputError: If file, images, factory or storage do not fit each other, the study has more candidates than are
            asked for, or no candidate could be trained.
    """
    check_seed(seed)
    settings, training = as_settings(NasSettings, settings), as_settings(RetrainSettings, training)
    if dist.get_world_size() > 1:
        raise InputError(
            f"search() does not support distributed launch (world size {dist.get_world_size()}). Start it as plain "
            f"processes (`nas.workers`), which share a study and not a training."
        )
    if settings.prune and training.seeds < 2:
        raise InputError(
            f"`retrain.seeds` must be at least 2 for nas.prune, which gives a candidate up after its first seed, got "
            f"{training.seeds}. Raise it, or leave nas.prune out."
        )
    check_factory(settings)
    torch_device(device)
    card = read_card(file)
    training = training.made_for(card.method.get("budget"), card.images)
    pool = fitting_pool(real, "real", file, card)
    rest, validation_images = pool.split(settings.validation, torch.Generator().manual_seed(seed))
    where = settings.storage or str(storage)
    arrays = validation_images.images.cpu().numpy(), validation_images.labels.numpy(), validation_images.classes
    drawn = None
    if settings.images == "random":
        per_class = read_beton(file)[1].bincount(minlength=pool.num_classes).tolist()
        seeds = range(seed, seed + training.seeds)
        drawn = {each: [tensor.cpu().numpy() for tensor in random_images(rest, per_class, each)] for each in seeds}
    job = SearchJob(where, Path(file), arrays, drawn, settings, training, device, seed)
    try:
        queue = job.queue()
        _check_count(queue, settings)
        tried = [candidate_of(trial) for trial in queue.tried()]
        if len(tried) == settings.count and all(candidate.problem for candidate in tried):
            queue.try_again()  # as the factory may have been corrected since
        with tqdm(total=settings.count, desc="candidates", disable=None if progress_bar else True, leave=False) as bar:
            if settings.workers == 1 or len(queue.tried()) == settings.count:
                job.work(queue, lambda: show_progress(bar, queue))
            else:
                run_workers(job, queue, bar)
        _check_count(queue, settings)
        candidates = [candidate_of(trial) for trial in queue.tried()]
    except (OptunaError, SQLAlchemyError) as error:
        raise InputError(
            f"The study in '{without_password(where)}' cannot be used any more ({brief(error)}). What is in it is "
            f"kept: give the same command again once it can be used."
        ) from error
    if all(candidate.problem for candidate in candidates):
        raise InputError(
            f"None of the {settings.count} candidates could be trained; '{candidates[0].name}' failed: "
            f"{candidates[0].problem.rstrip('.')}. Correct the factory or its choices (`nas.factory`, `nas.choices`)."
        )
    candidates = _without_repeats(ranked(candidates))
    _fill_in_costs(candidates, settings, pool, torch_device(device), seed)
    return ranked(candidates, settings.rank_by)


def _check_count(queue: Queue, settings: NasSettings) -> None:
    """Checks that a study has no more candidates than are asked for, before a search and after it."""
    if (has := len(queue.slots())) > settings.count:
        raise InputError(
            f"`nas.candidates` must be at least {has}, as many as the study '{settings.study}' has, got "
            f"{settings.count}. Give that number, or choose another name (`nas.study`)."
        )


def _fill_in_costs(
    candidates: Sequence[Candidate], settings: NasSettings, pool: ImagePool, device: torch.device, seed: int
) -> None:
    """Computes the costs that ranking asks for where a study lacks them, as one of an earlier version does."""
    for each in candidates:
        if not each.problem and any(getattr(each, name, True) is None for name in settings.rank_by):
            build = candidate_builder(settings, each.arguments, pool.shape, pool.num_classes)
            note_costs(each, build, pool.shape, device, seed)


def _without_repeats(candidates: list[Candidate]) -> list[Candidate]:
    """Leaves out what a sampler drew again; the first of each stays."""
    seen = {candidate.name: candidate for candidate in reversed(candidates)}
    return [candidate for candidate in candidates if seen[candidate.name] is candidate]
