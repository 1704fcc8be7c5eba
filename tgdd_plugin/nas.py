"""search(): an architecture search whose candidates are trained on a compact set, by any number of processes."""

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
import safetensors
import torch
from composer.utils import dist
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.exc import SQLAlchemyError
from tqdm.auto import tqdm

from tgdd_plugin.beton import read_beton
from tgdd_plugin.card import read_card
from tgdd_plugin.errors import InputError, brief
from tgdd_plugin.files import build_checked, check_writable, weights_content, write_whole
from tgdd_plugin.pool import ImagePool
from tgdd_plugin.ranking import Candidate, measure, ranked
from tgdd_plugin.retraining import RetrainSettings, fitting_pool
from tgdd_plugin.scoring import Row, Scorer
from tgdd_plugin.search_space import NasSettings, SearchSpace, name_of
from tgdd_plugin.study import POLL, TRIES, Failed, Queue, noted, without_password
from tgdd_plugin.training import torch_device

NO_EPOCHS = "train_best trains on the full data, and full_epochs is 0; give retrain.full_epochs"
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
            card.mean,
            card.std,
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

                build = space.build(arguments, card.shape, len(card.classes))
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


def search(
    file: str | Path,
    real: Any,
    settings: NasSettings | None = None,
    training: RetrainSettings | None = None,
    *,
    storage: str | Path = "nas.db",
    device: str | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> list[Candidate]:
    """Tries the networks of a search space on a ``.beton``; the same call goes on where one stopped.

    The same call made in several processes, on this machine or others that reach the storage, shares the work: each
    candidate is tried once. What a killed process was trying is taken up by another after a minute. A sampler that
    draws the same candidate again gets what came of it, if that is known by then.

    Args:
        file: The ``.beton``, its card beside it.
        real: The real training images, of which a share judges: an :class:`ImagePool`, or any data set
            :meth:`ImagePool.from_dataset` takes. No candidate is trained on any; the set may have been distilled from
            them, as it is the same for all.
        settings: Default: ``NasSettings()``.
        training: How candidates are trained, and how many networks of each. Default: ``RetrainSettings()``.
        storage: Where the study is if the settings name no place. Default: ``'nas.db'``.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``training.seeds`` seeds, and of the choice of candidates. Default: ``0``.
        progress_bar: Default: ``True``.

    Returns:
        The candidates, best first; then those given up, then those that failed.

    Raises:
        InputError: If file, images, factory or storage do not fit each other, or no candidate could be tried.
    """
    settings, training = settings or NasSettings(), training or RetrainSettings()
    if dist.get_world_size() > 1:
        raise InputError(
            f"the search came up in {dist.get_world_size()} ranks; start it as plain processes (nas.workers), which "
            f"share a study and not a training"
        )
    settings.check()
    torch_device(device)
    pool = fitting_pool(real, "real", file, read_card(file))
    judge = pool.split(settings.validation, torch.Generator().manual_seed(seed))[1]
    where = settings.storage or str(storage)
    arrays = judge.images.cpu().numpy(), judge.labels.numpy(), judge.classes
    job = _Job(where, Path(file), arrays, settings, training, device, seed)
    try:
        queue = job.queue()
        total = len(queue.slots)
        with tqdm(total=total, desc="candidates", disable=None if progress_bar else True, leave=False) as bar:
            if settings.workers == 1 or len(queue.tried()) == total:
                job.work(queue, lambda: _show(bar, queue))
            else:
                _spawn(job, queue, bar)
        candidates = ranked([_read(trial) for trial in queue.tried()])
    except (OptunaError, SQLAlchemyError) as error:
        raise InputError(
            f"the study in '{without_password(where)}' cannot be used any more ({brief(error)}); what is in it is "
            f"kept, and the same command goes on once it can"
        ) from error
    if all(candidate.problem for candidate in candidates):
        raise InputError(f"none of {total} candidates could be tried; {candidates[0].name}: {candidates[0].problem}")
    return _different(candidates)


def train_best(
    best: Candidate,
    space: SearchSpace,
    file: str | Path,
    real: Any,
    test: Any,
    training: RetrainSettings,
    *,
    output: str | Path,
    device: str | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> Row:
    """Trains a candidate on the full data, for ``training.full_epochs``, and scores it on test images.

    Args:
        best: The candidate.
        space: It is of.
        file: The ``.beton`` of the search, for its normalisation.
        real, test: Images as in :func:`search`.
        training: How, and how many networks.
        output: A file for the weights of the first one (safetensors). If it is there already and of this candidate,
            nothing is trained.
        device, seed, progress_bar: As in :func:`search`.

    Returns:
        The row of the table.

    Raises:
        InputError: If something does not fit, or ``training.full_epochs`` is 0.
    """
    if not training.full_epochs:
        raise InputError(NO_EPOCHS)
    output, card = check_writable(Path(output)), read_card(file)
    pool, judge = fitting_pool(real, "real", file, card), fitting_pool(test, "test", file, card)
    settings = training.training(training.full_epochs)
    depends = [best.arguments, space.factory, pool.fingerprint(), judge.fingerprint(), asdict(settings), training.seeds]
    key = json.dumps([*depends, seed])
    if (done := _row_of(output, key)) is not None:
        return done
    pool = pool.to(torch_device(device))
    seeds = range(seed, seed + training.seeds)
    scorer = Scorer(judge, card.mean, card.std, seeds, len(card.classes), device, training.at_once, progress_bar)
    row = Row("full data", network=best.name)
    build = space.build(best.arguments, card.shape, len(card.classes))
    network = scorer.score(row, build, lambda seed: (pool.images, pool.labels), settings)[0]
    write_whole(output, weights_content(network.state_dict(), {"job": key, "row": json.dumps(asdict(row))}))
    return row


def _row_of(path: Path, key: str) -> Row | None:
    """The row noted in a file of weights, if it is of the same job."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as content:
            about = content.metadata() or {}
        return build_checked(Row, json.loads(about["row"])) if about.get("job") == key else None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None  # another file of that name is not ours to judge; it is written anew


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


def _different(candidates: list[Candidate]) -> list[Candidate]:
    seen = {candidate.name: candidate for candidate in reversed(candidates)}
    return [candidate for candidate in candidates if seen[candidate.name] is candidate]
