"""An Optuna study as a queue of candidates that any number of processes work on, each candidate by one of them."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    OptunaError,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from tgdd_plugin.errors import InputError, brief
from tgdd_plugin.files import difference

HEARTBEAT, GRACE = 10, 60
"""Seconds between a worker's signs of life, and after the last of them until another takes up what it was doing."""

POLL = 0.5
"""Seconds between looks at what others are doing."""

TRIES = 4
"""How often a database is tried to be opened."""

_READY, _ABOUT, _SLOT, _BEGUN, _SURPLUS = "ready", "about", "slot", "begun", "surplus"


class Failed(Exception):
    """A candidate could not be tried, and the reason is noted on its trial."""


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
    local = url.startswith("sqlite:")
    for left in reversed(range(TRIES)):
        try:
            with _quiet():
                storage = RDBStorage(
                    url,
                    {"connect_args": {"timeout": GRACE}} if local else None,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )
            break
        except (SQLAlchemyError, OptunaError, ImportError, RuntimeError, OSError) as error:
            if not left:
                raise InputError(
                    f"'{where}' cannot be used for a study ({brief(error)}); name a new file, or a database's URL"
                ) from error
            time.sleep(POLL)  # of processes that make the same tables at once, one succeeds
    if local:
        # SQLite has no row locks, so that two processes could take the same candidate: each transaction has the whole
        # file for itself. (SQLAlchemy, SQLite dialect: "Serializable isolation / Savepoints / Transactional DDL".)
        sqlalchemy.event.listen(storage.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


class Queue:
    """A study whose trials were all put into it at the beginning.

    Args:
        where: See :func:`open_storage`.
        name: Of the study.
        slots: What to try; an empty mapping leaves the choice to ``sampler``.
        about: All that results depend on, as plain values; the study of another job is refused.
        sampler, pruner: Optuna's.

    Raises:
        InputError: If the study is of another job, or was left half made.
    """

    def __init__(
        self,
        where: str,
        name: str,
        slots: Sequence[dict[str, Any]],
        about: dict[str, Any],
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        Path(where).parent.mkdir(parents=True, exist_ok=True) if "://" not in where else None
        options: dict[str, Any] = {"study_name": name, "sampler": sampler, "pruner": pruner}
        with _quiet():
            self.storage = storage = open_storage(where)
            try:
                self.study = optuna.create_study(storage=storage, direction="maximize", **options)
            except DuplicatedStudyError:
                self.study = optuna.load_study(storage=storage, **options)
                self._join(where, name, about)
                return
            except (StorageInternalError, SQLAlchemyError) as error:
                raise InputError(f"'{where}' cannot be written ({brief(error)}); name another place") from error
            self.study.set_user_attr(_ABOUT, about)
            for slot in slots:
                self._put(slot)
            self.study.set_user_attr(_READY, True)

    def _put(self, slot: dict[str, Any]) -> None:
        self.study.enqueue_trial(slot, {_SLOT: slot})

    def _join(self, where: str, name: str, about: dict[str, Any]) -> None:
        """Takes part in a study that there is already."""
        patience = time.monotonic() + GRACE
        while not (known := self.study.user_attrs).get(_READY):
            if time.monotonic() > patience:
                raise InputError(
                    f"study '{name}' in '{where}' was left half made; delete it, or take another name (nas.study)"
                )
            time.sleep(POLL)
        if other := difference("", known.get(_ABOUT), about):
            raise InputError(
                f"study '{name}' in '{where}' is of another search ({other}); take another name (nas.study) or place "
                f"(nas.storage)"
            )

    def trials(self) -> list[FrozenTrial]:
        """All that were or are to be tried; without those that were given back."""
        every = self.study.get_trials(deepcopy=False)
        retried = {number for trial in every for number in trial.system_attrs.get("retry_history", [])}
        return [trial for trial in every if not (trial.user_attrs.get(_SURPLUS) or trial.number in retried)]

    def finished(self) -> list[FrozenTrial]:
        """Those that were tried."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def work(self, attempt: Callable[[Trial], float], done: Callable[[], None] = lambda: None) -> None:
        """Tries candidates until none is left, here or in another process.

        Where others are still trying some it waits for them, and takes up those of processes that gave no sign of life
        for :data:`GRACE` seconds.

        Args:
            attempt: From a trial to what is maximised; may raise :class:`Failed` or ``optuna.TrialPruned``.
            done: Called after each.
        """

        def objective(trial: Trial) -> float:
            if _SLOT not in trial.user_attrs:  # the last one was taken by another process just before
                trial.set_user_attr(_SURPLUS, True)
                raise optuna.TrialPruned
            self.storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr(_BEGUN, True)
            try:
                return attempt(trial)
            except (KeyboardInterrupt, SystemExit) as error:  # Composer turns Ctrl-C into the latter
                self._put(trial.user_attrs[_SLOT])
                trial.set_user_attr(_SURPLUS, True)
                raise KeyboardInterrupt from error

        with _quiet():
            while True:
                states = Counter(trial.state for trial in self.trials())
                if states[TrialState.WAITING]:
                    self.study.optimize(objective, n_trials=1, catch=(Failed,))
                elif states[TrialState.RUNNING]:
                    fail_stale_trials(self.study)
                    self._fail_stillborn()
                    time.sleep(POLL)
                else:
                    done()
                    return
                done()

    def _fail_stillborn(self) -> None:
        """Puts back what processes took that were killed before their first sign of life: Optuna overlooks it."""
        late = datetime.now() - timedelta(seconds=GRACE)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(_BEGUN) or trial.datetime_start is None or trial.datetime_start > late:
                continue
            with contextlib.suppress(UpdateFinishedTrialError):  # another process did it
                self.storage.set_trial_user_attr(trial._trial_id, _SURPLUS, True)
                self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                if _SLOT in trial.user_attrs:
                    self._put(trial.user_attrs[_SLOT])
