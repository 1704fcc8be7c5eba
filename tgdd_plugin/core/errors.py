"""The one error class of this package, and the errors of others in one line."""

from __future__ import annotations


class InputError(ValueError):
    """What the user handed over cannot be used; the message says what came, what was wanted and what to do.

    The command line prints the message alone and ends with status 2.
    """


def brief(error: Exception) -> str:
    """An exception of another library as one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
