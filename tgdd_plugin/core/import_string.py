"""A function of the user's, by its name in a recipe."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tgdd_plugin.core.errors import InputError, brief


def import_function(what: str, name: str) -> Callable[..., Any]:
    """The function that ``name`` (``'module:function'``) stands for.

    Args:
        what: What it makes (``'network'``, ``'data'``), to be named in the error.
        name: Its module must be installed or lie in the current folder.

    Raises:
        InputError: If it cannot be imported or called.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module of the user's can fail in any way
        raise InputError(
            f"{what} '{name}' cannot be imported ({brief(error)}); the module must be installed or lie in the current "
            f"folder"
        ) from error
    if not callable(found):
        raise InputError(f"{what} '{name}' is a {type(found).__name__}; wanted a function")
    return found  # type: ignore[no-any-return]
