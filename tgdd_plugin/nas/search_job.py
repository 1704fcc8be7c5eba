"""What every process of an architecture search does: it trains the candidates of a study."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, Trial

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.differences import as_plain
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.scorer import Images, Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas.ranking import Candidate, measure
from tgdd_plugin.nas.search_space import candidate_builder, name_of
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.nas.trial_queue import TRIES, Failed, GivenBack, Queue, result_of

_NO_PART = ("full_epochs", "at_once", "mix")
"""The training settings that no candidate's result depends on."""

_SHORT_OF_MEMORY = re.compile(r"OutOfMemoryError|out of memory|ALLOC_FAILED|allocate memory|^MemoryError")
"""How the problem of a candidate tells that memory was short, which PyTorch has several classes and texts for."""


@dataclass
class SearchJob:
    """All that a process needs to take part in a search.

    Args:
        storage: The file or URL of the study.
        file: The ``.beton``.
        validation: Images, labels and class names of the validation images. Tensors would be handed to processes
            through ``/dev/shm``, arrays are not.
        random_images: The images and labels that each seed's networks are trained on in place of the file's, by the
            seed; ``None`` for the file's.
        settings: What is searched, and how.
        training: How candidates are trained.
        device: ``'cpu'`` or ``'gpu'``; ``None`` for a GPU if there is one.
        seed: The first seed.
    """

    storage: str
    file: Path
    validation: tuple[np.ndarray, np.ndarray, list[str]]
    random_images: dict[int, list[np.ndarray]] | None
    settings: NasSettings
    training: RetrainSettings
    device: Device | None
    seed: int

    def validation_images(self) -> ImagePool:
        """Returns the validation images as a pool."""
        images, labels, classes = self.validation
        return ImagePool(torch.from_numpy(images), torch.from_numpy(labels), classes)

    def training_images(self, seed: int) -> Images:
        """Returns the images that a seed's networks are trained on."""
        if self.random_images is None:
            return read_beton(self.file)
        images, labels = self.random_images[seed]
        return torch.from_numpy(images), torch.from_numpy(labels)

    def queue(self) -> Queue:
        """Opens the study of the search, or begins it."""
        settings = self.settings
        about = {
            **{name: getattr(settings, name) for name in ("factory", "choices", "sampler", "prune", "validation")},
            "training": {name: value for name, value in asdict(self.training.filled()).items() if name not in _NO_PART},
            "seed": self.seed,
            "file": read_card(self.file).sha256,
            "judge": self.validation_images().fingerprint(),  # the key in studies of earlier versions, too
            "images": self._random_fingerprint(),
        }
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=0) if settings.prune else optuna.pruners.NopPruner()
        return Queue(self.storage, settings.study, settings.count, self._slots, as_plain(about), pruner)

    def space(self, noted: dict[str, Any]) -> NasSettings:
        """Returns the settings with the choices in the order that a study notes, on which its candidates depend."""
        choices = self.settings.choices
        return replace(self.settings, choices={name: choices[name] for name in noted.get("choices", choices)})

    def _slots(self, count: int, noted: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns what a study has to try, see :class:`Queue`."""
        if self.settings.sampler == "tpe":
            return [{}] * count
        return self.space(noted).sequence(count, self.seed, noted.get("candidates", 0))

    def _random_fingerprint(self) -> str | None:
        """Says which random images these are; ``None`` for the file's, as in studies of earlier versions."""
        if self.random_images is None:
            return None
        pools = [ImagePool(*self.training_images(seed)) for seed in self.random_images]
        return "random, " + " ".join(pool.fingerprint()[:16] for pool in pools)

    def work(self, queue: Queue, done: Callable[[], None]) -> None:
        """Trains candidates until none is left.

        Args:
            queue: The study.
            done: Called after each candidate.
        """
        queue.work(_Attempt(self, queue), done)


class _Attempt:
    """Trains the candidate of one trial after another.

    Args:
        job: The search.
        queue: Its study.
    """

    def __init__(self, job: SearchJob, queue: Queue) -> None:
        self.job, self.queue = job, queue
        self.card, self.images = read_card(job.file), functools.cache(job.training_images)
        self.training = job.training.training(len(self.images(job.seed)[1]))
        self.scorer = Scorer(
            job.validation_images().to(torch_device(job.device)),
            self.card.normalization,
            range(job.seed, job.seed + job.training.seeds),
            len(self.card.classes),
            job.device,
            job.training.at_once,
            progress_bar=False,
        )

    def __call__(self, trial: Trial) -> float:
        """Returns the mean accuracy of the trial's candidate.

        Raises:
            Failed: If it could not be trained.
            GivenBack: If memory was short for the first time, which others on the same machine may have needed.
            optuna.TrialPruned: If it was given up.
        """
        candidate = self._candidate(trial)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # while this process waits, others on the same GPU may need it
        if _SHORT_OF_MEMORY.search(candidate.problem) and not self.queue.given_back(trial):
            raise GivenBack
        self.queue.note(trial, candidate.summary())
        if candidate.problem:
            raise Failed
        if candidate.pruned:
            raise optuna.TrialPruned
        return candidate.row.mean

    def _candidate(self, trial: Trial) -> Candidate:
        space = self.job.space(self.queue.noted)
        if space.sampler == "tpe":  # a stream for each trial, whichever process it is tried by
            stream = (1000 * self.job.seed + trial.number) % 2**32  # numpy takes no larger one
            self.queue.study.sampler = optuna.samplers.TPESampler(seed=stream, constant_liar=True)
        arguments = {name: trial.suggest_categorical(name, values) for name, values in space.choices.items()}
        candidate = Candidate(name_of(arguments), arguments)
        if earlier := [other for other in self.queue.tried() if other.params == trial.params]:
            return candidate_of(earlier[0])  # a sampler may come back to what it found good
        if (kills := self.queue.killed(trial)) >= TRIES:
            candidate.problem = f"the process was killed {kills} times"
            return candidate

        def keep_on(candidate: Candidate) -> bool:
            trial.report(candidate.row.mean, len(candidate.accuracies))
            return not trial.should_prune()

        build = candidate_builder(space, arguments, self.card.shape, len(self.card.classes))
        return measure(candidate, build, self.scorer, self.images, self.training, keep_on if space.prune else None)


def candidate_of(trial: FrozenTrial) -> Candidate:
    """Returns the candidate of a finished trial.

    Raises:
        InputError: If the study's result of it cannot be read.
    """
    try:
        return build_checked(Candidate, result_of(trial))
    except ValueError as error:
        raise InputError(
            f"Trial {trial.number} of the study has no result that can be read ({error}). Begin another study "
            f"(`nas.study`)."
        ) from error
