"""How often a stage is recorded: a Composer time, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable

from composer.algorithms import SWA
from composer.core import Event, State, Time, TimeUnit
from composer.utils import create_interval_scheduler

from tgdd_plugin.core.errors import InputError


def schedule(
    interval: str | int | Time | Callable[[State, Event], bool],
) -> tuple[Callable[..., bool], str, Time | None]:
    """Whether a stage is due, by ``(state, event)``; the interval in words; and as a time, unless it is a function."""
    if callable(interval):
        return interval, getattr(interval, "__name__", type(interval).__name__), None
    try:
        time = Time.from_input(interval, TimeUnit.EPOCH)
        if time.value <= 0 or time.unit == TimeUnit.ITERATION:
            raise ValueError(time)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"`interval` must be a Composer time above zero, got {interval!r}. Write it like '1ep', '50ba' or '0.1dur'."
        ) from error
    asked = create_interval_scheduler(time, checkpoint_events=False, final_events={Event.BATCH_END, Event.EPOCH_END})

    def due(state: State, event: Event) -> bool:
        # SWA puts the averaged weights in at the end of the epoch, which is the last moment then.
        return not (event == Event.BATCH_END and _swa_comes_last(state)) and asked(state, event)

    return due, time.to_timestring(), time


def _swa_comes_last(state: State) -> bool:
    """Whether, at the end of a batch, the end of an epoch follows that is the training's, and SWA acts there."""
    length, longest = state.dataloader_len, state.max_duration
    if longest is None or length is None or not any(isinstance(each, SWA) for each in state.algorithms):
        return False
    return state.timestamp.batch_in_epoch == length and state.timestamp.to_next_epoch() >= longest


def check_loader(time: Time | None, state: State) -> None:
    """Raises an InputError for a share of a training whose loader has no length: Composer would end it in its midst."""
    if time is not None and time.unit == TimeUnit.DURATION and state.dataloader_len is None:
        raise InputError(
            f"`interval` must not be in dur where the training data loader has no length, got "
            f"'{time.to_timestring()}'. Write it like '50ba'."
        )
