"""A ``.beton`` that is there already: what it is, so that nobody's file is replaced unasked."""

from __future__ import annotations

from pathlib import Path

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.core.errors import InputError

REPLACE = "set `overwrite` to true"
"""The remedy for a file that must not be replaced unasked, as an argument and as the key of a recipe."""


def existing_card(output: Path, *, overwrite: bool) -> Card | None:
    """Returns the card of a file that is there already; ``None`` if there is none, or none that can be read.

    Args:
        output: The file that is to be written.
        overwrite: Whether a file without a card of its own may be replaced.

    Raises:
        InputError: If there is such a file, and it may not be replaced.
    """
    if not output.exists() or output.is_dir():  # a folder is refused where the file is written
        return None
    try:
        return read_card(output)
    except InputError as error:
        if overwrite:
            return None
        raise InputError(
            f"'{output}' is there already, and nothing says what it is. {error} Or choose another output file, or "
            f"{REPLACE} to replace it."
        ) from error


def check_replaceable(output: Path, difference: str | None, *, overwrite: bool) -> None:
    """Raises an InputError if a file that is there is of something else, and must not be replaced unasked.

    Args:
        output: The file.
        difference: What parts it from the one to be written, in words; ``None`` for nothing.
        overwrite: Whether it may be replaced.

    Raises:
        InputError: If there is a difference, and it may not be replaced.
    """
    if difference and not overwrite:
        raise InputError(
            f"'{output}' is of another job ({difference}). Choose another output file, or {REPLACE} to replace it."
        )
