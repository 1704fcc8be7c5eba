"""Tables of text cells, as plain text for a terminal and as Markdown; both are drawn by ``tabulate``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import DataRow, TableFormat, tabulate

from tgdd_plugin.core.errors import printable

DrawTable = Callable[[Sequence[str], Sequence[Sequence[Any]]], str]
"""One of the functions below: headers and rows in, the lines of a table out."""

_RULES = {"l": ":---", "r": "---:", "-": "---"}
_NAMES = {"l": "left", "r": "right"}


def text_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], align: str | None = None) -> str:
    """Draws a table for a terminal: columns two spaces apart, and a dashed rule under the headers.

    Args:
        headers: One for each column.
        rows: Cells, printed as they are (a number keeps its digits); ``None`` leaves a cell empty.
        align: A letter for each column, ``'l'`` for left and ``'r'`` for right. Default: ``None``, the first column to
            the left and the others to the right.

    Returns:
        The lines of the table, joined, without a line break at the end.

    Example:
        >>> print(text_table(["trained on", "images"], [["distilled", 10]]))
        trained on  images
        ------------------
        distilled       10
    """
    names = [_NAMES[letter] for letter in align or "l" + "r" * (len(headers) - 1)]
    # As a row like the others: tabulate makes every column two wider than a header proper.
    cells = [[_plain(cell) for cell in row] for row in (headers, *rows)]
    lines = tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=names).splitlines()
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], align: str | None = None) -> str:
    """Draws a Markdown table, without padding.

    Args:
        headers: One for each column.
        rows: Cells, printed as they are (a number keeps its digits), a ``|`` of theirs escaped; ``None`` leaves a cell
            empty.
        align: A letter for each column, ``'l'`` for left, ``'r'`` for right, ``'-'`` for the reader's choice. Default:
            ``None``, the reader's choice for all.

    Returns:
        The lines of the table, joined, without a line break at the end.

    Example:
        >>> print(markdown_table(["trained on", "images"], [["distilled", 10]], "lr"))
        | trained on | images |
        |:---|---:|
        | distilled | 10 |
    """
    rule = "|" + "|".join(_RULES[letter] for letter in align or "-" * len(headers)) + "|"
    line = DataRow("|", "|", "|")
    style = TableFormat(None, lambda *_: rule, None, None, line, line, padding=1, with_header_hide=None)
    names, *cells = ([_escaped(cell) for cell in row] for row in (headers, *rows))
    return tabulate(cells, names, style, disable_numparse=True, stralign=None, numalign=None)


def _escaped(cell: Any) -> Any:
    """A cell that Markdown does not take for several; a ``|`` that is escaped already stays so."""
    return re.sub(r"(?<!\\)\|", r"\\|", printable(cell)) if isinstance(cell, str) else cell


def _plain(cell: Any) -> Any:
    """A cell without control characters, which a name from a file may hold."""
    return printable(cell) if isinstance(cell, str) else cell
