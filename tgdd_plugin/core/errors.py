"""The error class of this package, one-line forms of other libraries' errors and of text from files, and a check."""

from __future__ import annotations

import operator
import re
from typing import Any

# What moves the cursor, speaks to the terminal, turns the direction of writing or cannot be encoded: C0, DEL and C1,
# marks and overrides of direction, separators of lines and paragraphs, invisible tags, and lone surrogates.
_CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


_LONGEST = 2000
"""Characters of an error's message, of which one that lists all keys needs 1,000."""


MOST_SEED = 4_000_000_000
"""The highest seed that a user gives: Composer takes less than 2**32, and more seeds follow it."""


def printable(text: str) -> str:
    r"""Returns text with every control character written as its escape, such as ``\x1b``; letters of all scripts stay.

    Whatever comes from a file goes through it before it is printed: a class name can hold commands to the terminal.
    """
    return _CONTROLS.sub(_escape, text)


def shown(value: object, most: int = 80) -> str:
    """A value from a file in words: :func:`printable`, and of at most ``most`` characters."""
    text = printable(str(value))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def without_password(text: str) -> str:
    """Returns a text, which may have URLs with passwords in it, as it may be printed and kept."""
    return re.sub(r"(://[^/@:\s]*):[^@\s]*@", r"\1:***@", text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one line: "`key` must be X, got Y. Remedy."

    The command line prints it alone and exits with status 2. As it may quote files, its control characters are escaped,
    and the middle of a very long one is left out, which is a value.
    """

    def __init__(self, message: str = "") -> None:
        line = printable(re.sub(r"\s*\n\s*", " ", message))
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


def brief(error: BaseException) -> str:
    """Returns an exception of another library in one line: its class and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")


def reason_of(error: BaseException) -> str:
    """Returns why something failed: the message of an :class:`InputError`, of other exceptions :func:`brief`."""
    return str(error) if isinstance(error, InputError) else brief(error)


def check_whole_number(key: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises an InputError if ``value``, given as ``key``, is not a whole number from ``least`` to ``most``."""
    number = whole_number(value)
    if number is None or number < least or (most is not None and number > most):
        limit = "" if most is None else f" and of at most {most}"
        raise InputError(f"`{key}` must be a whole number of at least {least}{limit}, got {value!r}. Give another one.")


def whole_number(value: Any) -> int | None:
    """Returns a whole number of any library, such as NumPy's, as an ``int``; ``None`` for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_seed(seed: Any) -> None:
    """Raises an InputError if ``seed`` is not a whole number from 0 to :data:`MOST_SEED`."""
    check_whole_number("seed", seed, 0, MOST_SEED)
