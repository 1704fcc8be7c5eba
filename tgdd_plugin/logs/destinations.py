"""Composer's loggers as the settings ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from composer.loggers import LoggerDestination

from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.logs.settings import LoggerSettings


def as_log_settings(
    loggers: LoggerDestination | Sequence[LoggerDestination] | LoggerSettings | Mapping[str, Any] | None,
    **given: Any,
) -> tuple[LoggerSettings, list[LoggerDestination]]:
    """Returns the settings of the logs, and the loggers that a user made, of an argument that may be either.

    Args:
        loggers: The argument.
        given: Settings that were given beside it; ``None`` leaves them as they are.

    Raises:
        InputError: If it is neither, or a setting cannot be used.
    """
    settings, own = LoggerSettings(), []
    if loggers is None or isinstance(loggers, LoggerSettings | Mapping):
        settings = as_settings(LoggerSettings, loggers)
    else:
        own = [loggers] if isinstance(loggers, LoggerDestination) else list(loggers)
    return replace(settings, **{name: value for name, value in given.items() if value is not None}), own
