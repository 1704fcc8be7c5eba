"""An Optuna study as a list of candidates that any number of processes work on, each candidate by one of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from tgdd_plugin.core.differences import first_difference
from tgdd_plugin.core.errors import InputError, without_password
from tgdd_plugin.core.interrupts import HeldInterrupts
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas import study_storage
from tgdd_plugin.nas.study_storage import open_storage, quiet

POLL = 0.5
"""Seconds between looks at what others are doing."""

TRIES = 4
"""How often a candidate is tried whose process is killed each time."""

_ABOUT, _COUNT, _SLOT, _BEGUN, _NOTED, _STOPPED = "about", "candidates", "slot", "begun", "noted", "stopped"
_AGAIN, _SECOND, _FIRST = "given back", "second try", "first trial"


class Failed(Exception):
    """A candidate could not be trained; the reason is in its result."""


class GivenBack(Failed):
    """A candidate could not be trained now, and is to be tried again: with the same arguments, last, and alone."""


class Queue:
    """A study in which each of a list of slots is tried once. A free process gives an open slot a trial.

    The state of a slot follows from its trials alone, so that a process killed between two writes leaves no doubt: a
    slot is finished if one of its trials has a result, taken if one is waiting or running, and open otherwise. Where
    two processes fill the same slot at once, the one whose trial has the higher number leaves it to the other.

    A study has as many slots as the process that asked for most of them; the others take part in all of these.

    Args:
        where: The file or URL of the study, see :func:`tgdd_plugin.nas.study_storage.open_storage`.
        name: The name of the study.
        count: How many slots this process asks for.
        slots: Returns the arguments to try in each of so many slots; an empty mapping leaves the choice to the sampler.
            More slots begin with the same ones. Its second argument is :attr:`noted`.
        about: All that results depend on, as plain values; the study of another search is refused.
        pruner: Optuna's pruner. Default: none.

    Attributes:
        noted: What the process that began the study gave as ``about``, its keys in their order; in a study of an
            earlier version also how many candidates it was begun with, ``candidates``.

    Raises:
        InputError: If the study is of another search.
    """

    def __init__(
        self,
        where: str,
        name: str,
        count: int,
        slots: Callable[[int, dict[str, Any]], Sequence[dict[str, Any]]],
        about: dict[str, Any],
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        with quiet():
            self.storage = open_storage(where)
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
            )
            if _ABOUT not in self.study.user_attrs:
                self.study.set_user_attr(_ABOUT, about)
        self.noted: dict[str, Any] = self.study.user_attrs[_ABOUT]
        earlier = {name: value for name, value in self.noted.items() if name != _COUNT}
        if "training" in earlier and "training" in about:
            earlier["training"] = RetrainSettings.completed(earlier["training"], about["training"])
        if other := first_difference(earlier, about):
            raise InputError(
                f"The study '{name}' in '{without_password(where)}' is of another search ({other}). Choose another "
                f"name (`nas.study`) or place (`nas.storage`)."
            )
        self._make_slots = lambda count: slots(count, self.noted)
        self._slots = self._make_slots(max(count, self.noted.get(_COUNT, 0)))
        # When this process first saw each running trial without a sign of life, by its number.
        self._silent: dict[int, float] = {}

    def slots(self) -> Sequence[dict[str, Any]]:
        """Returns the arguments to try in each slot: more than before, once another process has extended the search."""
        noted = self.study.user_attrs.get(_COUNT, 0)
        if noted > len(self._slots):
            self._slots = self._make_slots(noted)
        elif noted < len(self._slots):  # also where a process that asked for fewer wrote at the same moment
            self.study.set_user_attr(_COUNT, len(self._slots))
        return self._slots

    def tried(self) -> list[FrozenTrial]:
        """Returns the trials that have a result, one for each finished slot."""
        first = {trial.user_attrs[_SLOT]: trial for trial in reversed(self._trials()) if has_result(trial)}
        return [first[slot] for slot in sorted(first)]

    def try_again(self) -> None:
        """Has every slot tried again; the trials so far stay in the study, and count no more."""
        self.study.set_user_attr(_FIRST, 1 + max(trial.number for trial in self._trials()))

    def work(self, attempt: Callable[[Trial], float], done: Callable[[], None] = lambda: None) -> None:
        """Tries slots until none is left, here or in another process.

        While others are still trying some it waits for them, and takes over the slots of processes that gave no sign
        of life for :data:`tgdd_plugin.nas.study_storage.GRACE` seconds. A slot whose processes were killed
        :data:`TRIES` times is given up.

        Args:
            attempt: Takes a trial and returns the value to maximise. It calls :meth:`note`, and may then raise
                :class:`Failed` or ``optuna.TrialPruned``. Without a note it may raise :class:`GivenBack`.
            done: Called after each trial. Default: nothing.
        """
        with quiet():
            while True:
                slots, trials = self.slots(), self._trials()
                settled = {trial.user_attrs[_SLOT] for trial in trials if is_claimed(trial)}
                again = {trial.user_attrs[_SLOT]: trial.params for trial in trials if _is_given_back(trial)}
                left = [number for number in range(len(slots)) if number not in settled]
                still_open = [number for number in left if number not in again]
                running = any(trial.state == TrialState.RUNNING for trial in trials)
                if not (still_open or running):
                    still_open = left[:1]  # the same for all processes, of which one gets it and the others wait
                if any(trial.state == TrialState.WAITING for trial in trials):
                    self._try_one(attempt)
                elif still_open:
                    # Not all begin at the same end, so that seldom two fill the same one.
                    number = still_open[os.getpid() % len(still_open)]
                    arguments = again.get(number, slots[number])
                    self.study.enqueue_trial(arguments, {_SLOT: number, _SECOND: number in again})
                elif running:
                    fail_stale_trials(self.study)
                    self._fail_silent(trials)
                    time.sleep(POLL)
                else:
                    done()
                    return
                done()

    def note(self, trial: Trial, content: dict[str, Any]) -> None:
        """Saves the result of a trial, as plain values; its numbers also as attributes that Optuna's tools show."""
        for name, value in content.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                trial.set_user_attr(name, value)
        trial.set_user_attr(_NOTED, content)

    def begun(self) -> int:
        """Returns how many trials were begun so far, by whichever process."""
        return sum(bool(trial.user_attrs.get(_BEGUN)) for trial in self._trials())

    def killed(self, trial: Trial) -> int:
        """Returns how many processes were killed while they tried the slot of a trial."""
        dead = [other for other in self._of_slot(trial) if other.state == TrialState.FAIL and not has_result(other)]
        return sum(not other.user_attrs.get(_STOPPED) for other in dead)

    def given_back(self, trial: Trial) -> bool:
        """Whether the candidate of a trial's slot was given back before."""
        return any(map(_is_given_back, self._of_slot(trial)))

    def _is_due(self, trial: Trial) -> bool:
        """Whether the candidate of a trial is this trial's to try now: of two that fill one slot the earlier has it."""
        if trial.user_attrs.get(_SLOT) is None:  # another process took what was waiting just before
            return False
        others = [other for other in self._of_slot(trial) if other.number < trial.number]
        given_back = any(map(_is_given_back, others)) and not trial.user_attrs.get(_SECOND)  # its turn is last
        return not given_back and not any(map(is_claimed, others))

    def _of_slot(self, trial: Trial) -> list[FrozenTrial]:
        return [other for other in self._trials() if other.user_attrs[_SLOT] == trial.user_attrs[_SLOT]]

    def _trials(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)[self.study.user_attrs.get(_FIRST, 0) :]
        return [trial for trial in trials if _SLOT in trial.user_attrs]

    def _try_one(self, attempt: Callable[[Trial], float]) -> None:
        taken: list[int] = []
        raised: list[Exception] = []  # errors of the attempt itself
        held = HeldInterrupts()  # so that no trial stays behind as running

        def objective(trial: Trial) -> float:
            taken.append(trial.number)
            self.storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr(_BEGUN, True)
            if not self._is_due(trial):
                raise optuna.TrialPruned
            try:
                with held.let_through():
                    return attempt(trial)
            except (KeyboardInterrupt, SystemExit) as error:  # Composer turns Ctrl-C into the latter
                trial.set_user_attr(_STOPPED, True)
                raise KeyboardInterrupt from error
            except GivenBack:
                trial.set_user_attr(_STOPPED, _AGAIN)
                raise
            except Exception as error:
                raised.append(error)
                raise

        try:
            with held:
                self.study.optimize(objective, n_trials=1, catch=(Failed,))
        except (UpdateFinishedTrialError, ValueError, AssertionError) as error:
            # A process that was asleep for longer than GRACE was given up by the others, and its trial with it: Optuna
            # stumbles over that in each of these ways.
            failed = bool(taken) and self.study.get_trials(deepcopy=False)[taken[0]].state == TrialState.FAIL
            if not failed or error in raised:
                raise

    def _fail_silent(self, trials: Sequence[FrozenTrial]) -> None:
        """Fails the trials of processes that were killed before their first sign of life, which Optuna overlooks."""
        for trial in trials:
            if trial.state != TrialState.RUNNING or trial.user_attrs.get(_BEGUN):
                continue
            if time.monotonic() > self._silent.setdefault(trial.number, time.monotonic()) + study_storage.GRACE:
                with contextlib.suppress(UpdateFinishedTrialError):  # another process did it
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def has_result(trial: FrozenTrial) -> bool:
    """Whether a trial is over and has a result."""
    return trial.state.is_finished() and _NOTED in trial.user_attrs


def _is_given_back(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(_STOPPED) == _AGAIN


def is_claimed(trial: FrozenTrial) -> bool:
    """Whether a trial claims its slot, so that nobody else needs to try it."""
    return has_result(trial) or not trial.state.is_finished()


def result_of(trial: FrozenTrial) -> dict[str, Any]:
    """Returns the result that :meth:`Queue.note` saved."""
    content: dict[str, Any] = trial.user_attrs[_NOTED]
    return content
