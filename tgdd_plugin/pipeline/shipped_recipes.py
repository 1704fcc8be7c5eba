"""The recipes that come with the package: found by their names, and copied as a start for a recipe of one's own."""

from __future__ import annotations

from pathlib import Path

import tgdd_plugin
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.errors import InputError

TEMPLATE = "own_data"
"""The recipe with every key and a comment on each."""

_PACKAGE = Path(tgdd_plugin.__file__).parent
_SCHEMA = "../tgdd_plugin/pipeline/recipe.schema.json"


def shipped_recipes() -> dict[str, Path]:
    """The recipes by name: in an installed package beside its modules, in a clone in the folder ``recipes``."""
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if found := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return found
    return {}


def start_recipe(path: str | Path) -> Path:
    """Writes the commented recipe of all keys, for a job of one's own.

    Args:
        path: The file to write, such as ``my.yaml``.

    Raises:
        InputError: If there is a file already.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"`path` must be new, got '{path}', which is there already. Give another name, or delete it.")
    text = shipped_recipes()[TEMPLATE].read_text()
    write_whole(check_writable(path), text.replace(_SCHEMA, str(_PACKAGE / "pipeline" / "recipe.schema.json")))
    return path
