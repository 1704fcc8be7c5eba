"""What the command line prints beside its output: one line each for an error and a warning."""

from __future__ import annotations

import contextlib
import errno
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from tgdd_plugin.core.errors import printable


def tell(line: str) -> None:
    """Prints a line on standard error; where that is closed, print() would write it into the output."""
    if sys.stderr is not None:
        print(line, file=sys.stderr)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints warnings to the user as one line each, without the file and line of the code that gives them."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        if category is not UserWarning:  # one for developers
            return usual(message, category, *place, **line)
        return f"tgdd: warning: {printable(' '.join(str(message).split()))}\n"

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def error_text(error: Exception) -> str:
    """The text of an error; of a full disk, or one about a file that it does not name, with how to go on."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return str(error)
    if error.errno is None or (error.filename is not None and error.errno != errno.ENOSPC):
        return str(error)
    text = f"[Errno {error.errno}] {error.strerror}"  # without the name of a temporary file
    return f"{text}: a file could not be read or written. Once it can, the same command goes on where it was."
