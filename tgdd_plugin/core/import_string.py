"""Imports a function of the user's by its name in a recipe, ``module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from tgdd_plugin.core.errors import InputError, brief


def import_function(what: str, name: str) -> Callable[..., Any]:
    """Imports the function that ``name`` stands for.

    The current folder is put last in ``sys.path``, where it stays, so that nothing in it takes the place of an
    installed module. The name must come from the user: nothing is imported that a file from elsewhere names.

    Args:
        what: What the function makes (``'network'``, ``'data'``), for the error message.
        name: The function as ``'module:function'``. Its module must be installed, or lie in the current folder under
            a name that no installed module has.

    Raises:
        InputError: If it cannot be imported or called.
    """
    module, _, function = name.partition(":")
    try:
        if not {"", here := os.getcwd()} & set(sys.path):
            sys.path.append(here)
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the user's module can fail in any way
        raise InputError(
            f"`{what}` must be a function that can be imported, got '{name}' ({brief(error)}). Install its module, or "
            f"put it in the current folder, under a name that no installed module has."
        ) from error
    if not callable(found):
        kind = "which the module does not have" if found is None else f"a {type(found).__name__}"
        raise InputError(f"`{what}` must be a function, got '{name}', {kind}. Name a function of the module.")
    return found  # type: ignore[no-any-return]
