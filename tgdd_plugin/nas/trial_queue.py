"""An Optuna study as a list of candidates that any number of processes work on, each candidate by one of them."""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, OptunaError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from tgdd_plugin.core.differences import first_difference
from tgdd_plugin.core.errors import InputError, brief

HEARTBEAT, GRACE = 10, 60
"""Seconds between a worker's signs of life, and after the last of them until another takes up what it was doing."""


POLL = 0.5
"""Seconds between looks at what others are doing."""


TRIES = 4
"""How often a database is tried to be opened, and a candidate whose process is killed each time."""


_ABOUT, _SLOT, _BEGUN, _NOTED, _STOPPED = "about", "slot", "begun", "noted", "stopped"


class Failed(Exception):
    """A candidate could not be tried, and the reason is noted."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines on every trial, and its warning that heartbeats are experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(where: str) -> RDBStorage:
    """A database for studies.

    Args:
        where: A file for SQLite, which processes of one machine can share, or the URL of a database as SQLAlchemy has
            them (``'postgresql://...'``), which workers on many machines can share.

    Raises:
        InputError: If it cannot be opened.
    """
    url = where if "://" in where else f"sqlite:///{where}"
    local = url.startswith("sqlite")
    for left in reversed(range(TRIES)):
        try:
            with _quiet():
                storage = RDBStorage(
                    url,
                    {"connect_args": {"timeout": GRACE}} if local else None,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                )
            break
        except (SQLAlchemyError, OptunaError, ImportError, RuntimeError, OSError, ValueError) as error:
            if not left:
                raise InputError(
                    f"'{without_password(where)}' cannot be used for a study ({brief(error)}); name a new file, or a "
                    f"database's URL"
                ) from error
            time.sleep(POLL)  # of processes that make the same tables at once, one succeeds
    if local:
        # SQLite has no row locks, so that two processes could take the same candidate: each transaction has the whole
        # file for itself. (SQLAlchemy, SQLite dialect: "Serializable isolation / Savepoints / Transactional DDL".)
        sqlalchemy.event.listen(storage.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def without_password(where: str) -> str:
    """A file, or a database's URL as it may be printed."""
    return re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", where)


class Queue:
    """A study that tries each of some slots once. Slots without a trial are given one when somebody is free.

    What is true of a slot is what its trials say, so nothing that is killed between two writes leaves it in doubt: it
    is tried if one of them has noted what came of it, taken if one is waiting or running, and else open. Of two
    processes that fill the same slot at once, the one whose trial has the higher number lets it be.

    Args:
        where: See :func:`open_storage`.
        name: Of the study.
        slots: What to try; an empty mapping leaves the choice to the sampler.
        about: All that results depend on, as plain values; the study of another job is refused.
        pruner: Optuna's.

    Raises:
        InputError: If the study is of another job.
    """

    def __init__(
        self,
        where: str,
        name: str,
        slots: Sequence[dict[str, Any]],
        about: dict[str, Any],
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        if "://" not in where:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
        self.slots = slots
        with _quiet():
            self.storage = open_storage(where)
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
            )
            if _ABOUT not in self.study.user_attrs:
                self.study.set_user_attr(_ABOUT, about)
        if other := first_difference(self.study.user_attrs[_ABOUT], about):
            raise InputError(
                f"study '{name}' in '{without_password(where)}' is of another search ({other}); take another name "
                f"(nas.study) or place (nas.storage)"
            )
        # Running trials without a sign of life, by number: since when this process knows of them.
        self._silent: dict[int, float] = {}

    def tried(self) -> list[FrozenTrial]:
        """The trials that tell what came of a slot, one for each that is done."""
        first = {trial.user_attrs[_SLOT]: trial for trial in reversed(self._trials()) if is_noted(trial)}
        return [first[slot] for slot in sorted(first)]

    def work(self, attempt: Callable[[Trial], float], done: Callable[[], None] = lambda: None) -> None:
        """Tries slots until none is left, here or in another process.

        Where others are still trying some it waits for them, and takes up those of processes that gave no sign of life
        for :data:`GRACE` seconds. One whose processes were killed :data:`TRIES` times is given up.

        Args:
            attempt: From a trial to what is maximised. It calls :meth:`note`, and may then raise :class:`Failed` or
                ``optuna.TrialPruned``.
            done: Called after each.
        """
        with _quiet():
            while True:
                trials = self._trials()
                settled = {trial.user_attrs[_SLOT] for trial in trials if holds(trial)}
                if any(trial.state == TrialState.WAITING for trial in trials):
                    self._try_one(attempt)
                elif still_open := [number for number in range(len(self.slots)) if number not in settled]:
                    # Not all begin at the same end, so that seldom two fill the same one.
                    number = still_open[os.getpid() % len(still_open)]
                    self.study.enqueue_trial(self.slots[number], {_SLOT: number})
                elif any(trial.state == TrialState.RUNNING for trial in trials):
                    fail_stale_trials(self.study)
                    self._fail_silent(trials)
                    time.sleep(POLL)
                else:
                    done()
                    return
                done()

    def note(self, trial: Trial, content: dict[str, Any]) -> None:
        """Says what came of a trial, as plain values."""
        trial.set_user_attr(_NOTED, content)

    def killed(self, trial: Trial) -> int:
        """How many processes were killed at the slot of a trial."""
        slot = trial.user_attrs[_SLOT]
        own = [other for other in self._trials() if other.user_attrs[_SLOT] == slot]
        dead = [other for other in own if other.state == TrialState.FAIL and not is_noted(other)]
        return sum(not other.user_attrs.get(_STOPPED) for other in dead)

    def _trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if _SLOT in trial.user_attrs]

    def _try_one(self, attempt: Callable[[Trial], float]) -> None:
        taken: list[int] = []
        raised: list[Exception] = []  # by the attempt

        def objective(trial: Trial) -> float:
            taken.append(trial.number)
            self.storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr(_BEGUN, True)
            slot = trial.user_attrs.get(_SLOT)
            if slot is None or any(  # what was waiting was taken by another process just before, or two filled the slot
                other.user_attrs[_SLOT] == slot and other.number < trial.number and holds(other)
                for other in self._trials()
            ):
                raise optuna.TrialPruned
            try:
                return attempt(trial)
            except (KeyboardInterrupt, SystemExit) as error:  # Composer turns Ctrl-C into the latter
                trial.set_user_attr(_STOPPED, True)
                raise KeyboardInterrupt from error
            except Exception as error:
                raised.append(error)
                raise

        try:
            self.study.optimize(objective, n_trials=1, catch=(Failed,))
        except (UpdateFinishedTrialError, ValueError, AssertionError) as error:
            # A process that was asleep for longer than GRACE was given up by the others, and its trial with it: Optuna
            # stumbles over that in each of these ways.
            failed = bool(taken) and self.study.get_trials(deepcopy=False)[taken[0]].state == TrialState.FAIL
            if not failed or error in raised:
                raise

    def _fail_silent(self, trials: Sequence[FrozenTrial]) -> None:
        """Fails the trials of processes that were killed before their first sign of life: Optuna overlooks them."""
        for trial in trials:
            if trial.state != TrialState.RUNNING or trial.user_attrs.get(_BEGUN):
                continue
            if time.monotonic() > self._silent.setdefault(trial.number, time.monotonic()) + GRACE:
                with contextlib.suppress(UpdateFinishedTrialError):  # another process did it
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def is_noted(trial: FrozenTrial) -> bool:
    """Whether a trial is over and tells what came of it."""
    return trial.state.is_finished() and _NOTED in trial.user_attrs


def holds(trial: FrozenTrial) -> bool:
    """Whether nobody else needs to try a trial's slot."""
    return is_noted(trial) or not trial.state.is_finished()


def noted(trial: FrozenTrial) -> dict[str, Any]:
    """What :meth:`Queue.note` said."""
    content: dict[str, Any] = trial.user_attrs[_NOTED]
    return content
