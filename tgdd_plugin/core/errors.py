"""The error class of this package, and one-line forms of the errors of other libraries."""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one line: "`key` must be X, got Y. Remedy."

    The command line prints the message alone and exits with status 2.
    """


def brief(error: Exception) -> str:
    """Returns an exception of another library in one line: its class and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
