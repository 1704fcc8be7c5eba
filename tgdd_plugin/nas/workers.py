"""The processes of an architecture search."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, Trial
from tqdm.auto import tqdm

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.scorer import Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas.ranking import Candidate, measure
from tgdd_plugin.nas.search_space import candidate_builder, name_of
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.nas.trial_queue import POLL, TRIES, Failed, Queue, noted

_ELSEWHERE = ("full_epochs", "at_once")  # of the training settings: what no candidate depends on


@dataclass
class _Job:
    """All that a process needs to take part."""

    storage: str
    file: Path
    judge: tuple[np.ndarray, np.ndarray, list[str]]  # as tensors they would go to processes through /dev/shm
    settings: NasSettings
    training: RetrainSettings
    device: str | None
    seed: int

    def pool(self) -> ImagePool:
        images, labels, classes = self.judge
        return ImagePool(torch.from_numpy(images), torch.from_numpy(labels), classes)

    def queue(self) -> Queue:
        settings, count = self.settings, self.settings.candidates
        if settings.sampler == "tpe":
            slots: list[dict[str, Any]] = [{}] * (count or settings.size)
        else:
            slots = settings.grid() if count is None else settings.sample(count, self.seed)
        about = {
            **{name: getattr(settings, name) for name in ("factory", "choices", "sampler", "prune", "validation")},
            "candidates": len(slots),
            "training": {name: value for name, value in asdict(self.training).items() if name not in _ELSEWHERE},
            "seed": self.seed,
            "file": read_card(self.file).sha256,
            "judge": self.pool().fingerprint(),
        }
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=0) if settings.prune else optuna.pruners.NopPruner()
        return Queue(self.storage, settings.study, slots, json.loads(json.dumps(about)), pruner)

    def work(self, queue: Queue, done: Callable[[], None]) -> None:
        """Tries candidates until none is left; ``done`` is called after each."""
        card, images, space = read_card(self.file), read_beton(self.file), self.settings
        scorer = Scorer(
            self.pool().to(torch_device(self.device)),
            card.normalization,
            range(self.seed, self.seed + self.training.seeds),
            len(card.classes),
            self.device,
            self.training.at_once,
            progress_bar=False,
        )
        training = self.training.training(self.training.epochs)

        def attempt(trial: Trial) -> float:
            if space.sampler == "tpe":  # a stream for each trial, whichever process it is tried by
                stream = 1000 * self.seed + trial.number
                queue.study.sampler = optuna.samplers.TPESampler(seed=stream, constant_liar=True)
            arguments = {name: trial.suggest_categorical(name, values) for name, values in space.choices.items()}
            candidate = Candidate(name_of(arguments), arguments)
            if earlier := [other for other in queue.tried() if other.params == trial.params]:
                candidate = _read(earlier[0])  # a sampler may come back to what it found good
            elif (often := queue.killed(trial)) >= TRIES:
                candidate.problem = f"the process was killed {often} times"
            else:

                def keep_on(candidate: Candidate) -> bool:
                    trial.report(candidate.row.mean, len(candidate.accuracies))
                    return not trial.should_prune()

                build = candidate_builder(space, arguments, card.shape, len(card.classes))
                measure(candidate, build, scorer, images, training, keep_on if space.prune else None)
            queue.note(trial, candidate.summary())
            if candidate.problem:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                raise Failed
            if candidate.pruned:
                raise optuna.TrialPruned
            return candidate.row.mean

        queue.work(attempt, done)


def _spawn(job: _Job, queue: Queue, bar: tqdm) -> None:
    """Lets processes work, and waits for them."""
    context = multiprocessing.get_context("spawn")
    processes = []
    try:
        for number in range(job.settings.workers):
            with _environment(job, number):
                process = context.Process(target=_take_part, args=(job,), daemon=True)
                process.start()
            processes.append(process)
        while any(process.is_alive() for process in processes):
            _show(bar, queue)
            time.sleep(POLL)
    finally:
        for process in processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGINT)
        for process in processes:
            process.join(10)
            process.kill()  # one that had not begun yet, and takes no notice
    if left := len(queue.slots) - len(queue.tried()):
        raise InputError(
            f"all {len(processes)} workers ended, and {left} candidates are left; the same command goes on. With too "
            f"little memory take fewer (nas.workers)"
        )


@contextlib.contextmanager
def _environment(job: _Job, number: int) -> Iterator[None]:
    """What a process inherits: a GPU of its own if there are several, a share of the CPU's threads, no Ctrl-C."""
    added = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // job.settings.workers))}
    if torch_device(job.device).type == "cuda":
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
        added["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _take_part(job: _Job) -> None:
    """The whole of a worker process."""
    os.setpgid(0, 0)  # Ctrl-C is for the process that waits, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parent = os.getppid()

    def alone() -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        job.work(job.queue(), alone)


def _show(bar: tqdm, queue: Queue) -> None:
    tried = queue.tried()
    best = max((trial.value for trial in tried if trial.value is not None), default=None)
    if best is not None:
        bar.set_postfix(best=f"{best:.1f} %", refresh=False)
    bar.update(len(tried) - bar.n)


def _read(trial: FrozenTrial) -> Candidate:
    try:
        return build_checked(Candidate, noted(trial))
    except TypeError as error:
        raise InputError(
            f"trial {trial.number} of the study has no result that can be read ({error}); begin another study "
            f"(nas.study)"
        ) from error
