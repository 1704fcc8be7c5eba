"""Names of classes: as text that files can hold, as numbers where there are none, and listed in a message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tgdd_plugin.core.checked_json import MOST_TEXT
from tgdd_plugin.core.errors import printable

MOST = 10
"""The most classes that a message names."""


def as_names(names: Iterable[object]) -> list[str]:
    r"""Returns names of classes as text that files can hold.

    A folder may be named in another encoding than UTF-8; such bytes are written as escapes, such as ``\\udcdc``. A name
    has at most :data:`tgdd_plugin.core.checked_json.MOST_TEXT` characters.
    """
    return [str(name).encode(errors="backslashreplace").decode()[:MOST_TEXT] for name in names]


def number_names(count: int) -> list[str]:
    """Returns the names of classes that have none: their numbers from 0 on."""
    return [str(number) for number in range(count)]


def named_classes(names: Sequence[str]) -> str:
    """Returns ``class 'a'`` or ``classes 'a', 'b', ...``, to be named in a message; names may come from a file."""
    listed = ", ".join(f"'{printable(name)}'" for name in names[:MOST]) + (", ..." if len(names) > MOST else "")
    return f"class {listed}" if len(names) == 1 else f"classes {listed}"
