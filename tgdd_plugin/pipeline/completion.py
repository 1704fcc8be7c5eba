"""Completion in a shell: subcommands and options, the recipes that come with the package, and the keys of recipes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def script(shell: str) -> str:
    """Returns the lines that a shell must read at its start to complete ``tgdd``."""
    import argcomplete

    text: str = argcomplete.shellcode(["tgdd"], shell=shell)
    return text


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell, which asked by way of :func:`script`'s lines, and ends the process."""
    import argcomplete

    argcomplete.autocomplete(parser)


def recipe_names(prefix: str, **_: Any) -> list[str]:
    """The recipes that come with the package and the files that begin with ``prefix``."""
    from argcomplete.completers import FilesCompleter

    from tgdd_plugin.pipeline.shipped_recipes import shipped_recipes

    return [*shipped_recipes(), *FilesCompleter()(prefix)]


def recipe_keys(sections: Sequence[str], prefix: str, **_: Any) -> list[str]:
    """The keys of some sections, or, behind ``key=``, the values that the key may have if they are few."""
    from tgdd_plugin.pipeline.key_help import keys_and_values

    keys = keys_and_values(sections)
    key, equals = prefix.partition("=")[:2]
    return [f"{key}={value}" for value in keys.get(key, ())] if equals else [f"{name}=" for name in keys]
