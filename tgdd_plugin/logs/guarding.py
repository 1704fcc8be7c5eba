"""Errors of loggers, kept away from the work that they watch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from composer.core import Event
from composer.loggers import LoggerDestination
from composer.utils import dist

from tgdd_plugin.core.errors import reason_of

CALLED = (
    "run_event",
    "log_metrics",
    "log_hyperparameters",
    "log_images",
    "log_table",
    "log_traces",
    "upload_file",
    "close",
    "post_close",
)
"""What Composer calls of a logger while it trains."""


@contextmanager
def guarded(loggers: Sequence[LoggerDestination]) -> Iterator[None]:
    """For the block, an error of one of the loggers is one warning that names it; from then on it is left out.

    They stay the objects that they are, since Composer asks for the classes of some. With several ranks, an error in
    setting up is raised as it is: a logger may have been about to talk to its like on other ranks, which wait for it.
    """
    for logger in loggers:
        _guard(logger)
    try:
        yield
    finally:
        for logger in loggers:
            for name in CALLED:
                logger.__dict__.pop(name, None)


def _guard(logger: LoggerDestination) -> None:
    failed = False

    def covered(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def covering(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            if failed and name not in ("close", "post_close"):
                return None
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if name == "run_event" and args[:1] == (Event.INIT,) and dist.get_world_size() > 1:
                    raise
                if not failed:
                    failed = True
                    warnings.warn(
                        f"the logger {type(logger).__name__} failed, and is left out from here on, while the work goes "
                        f"on: {reason_of(error)}",
                        stacklevel=2,
                    )
            return None

        return covering

    for name in CALLED:
        setattr(logger, name, covered(getattr(logger, name), name))
