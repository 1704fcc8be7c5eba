"""A job as one YAML file: reading it, with keys set on the command line, and writing it in full."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from tgdd_plugin.core.bounded_reading import RECIPE_SIZE, read_bounded
from tgdd_plugin.core.bounded_yaml import parse_yaml
from tgdd_plugin.core.errors import InputError, shown, without_password
from tgdd_plugin.core.setting_errors import nearest, unknown_key
from tgdd_plugin.core.settings import validate
from tgdd_plugin.networks.settings import NetworkSettings, check_network_name
from tgdd_plugin.pipeline.file_names import beton_name
from tgdd_plugin.pipeline.origin import recorded_name
from tgdd_plugin.pipeline.settings import SECTIONS, Recipe


def read_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides. Where it names no data, files are named after what was recorded.

    Args:
        path: The YAML file; ``None`` for all defaults.
        overrides: ``key=value`` or ``section.key=value``, the value in YAML.

    Raises:
        InputError: For a file that cannot be read, an unknown key (with the nearest known one), or a value of the wrong
            type or out of range.
    """
    content: Any = {} if path is None else _load(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"'{shown(override)}' is not an override. Write it as key=value or section.key=value.")
        _place(content, key.split("."), value, override)
    # A section with nothing in it has its defaults.
    given = {key: value for key, value in content.items() if not (key in SECTIONS and value is None)}
    recipe: Recipe = _at_home(validate(Recipe, given))
    if recipe.network is not None:
        _check_arguments(recipe.network, "network")
    for number, network in enumerate(recipe.extra_networks):
        _check_arguments(network, f"extra_networks[{number}]")
    # The default of data.name says nothing of what was recorded.
    if "name" not in (given.get("data") or {}) and not recipe.file:
        if name := recorded_name(recipe.trajectory_folder):
            file = Path(recipe.output) / beton_name(name, recipe.distill)
            recipe = replace(recipe, file=str(file))
    return recipe


def _at_home(recipe: Recipe) -> Recipe:
    """The recipe with the user's home folder for a ``~`` that a path begins with, as a shell has it."""

    def paths(section: Any, *keys: str) -> dict[str, Any]:
        return {key: os.path.expanduser(path) for key in keys if (path := getattr(section, key))}

    data = replace(recipe.data, **paths(recipe.data, "root", "train", "test"))
    return replace(recipe, data=data, **paths(recipe, "output", "trajectory", "file"))


def recipe_text(recipe: Recipe) -> str:
    """The recipe in full as YAML text, as a note beside results, without passwords; given again it replaces nothing."""
    content = asdict(recipe) | {"overwrite": False}
    if recipe.network is not None:
        content["network"] = recipe.network.section()
    content["extra_networks"] = [network.section() for network in recipe.extra_networks]
    return without_password(yaml.safe_dump(content, sort_keys=False))


def _load(path: str | Path) -> dict[Any, Any]:
    try:
        text = read_bounded(path, RECIPE_SIZE, "recipe")
    except OSError as error:
        raise InputError(f"Recipe '{path}' cannot be read: {error.strerror or error}. Name a YAML file.") from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"Recipe '{path}' is not YAML that can be used: {error}. Correct it there.") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(
            f"Recipe '{path}' must hold keys and values, got a {type(content).__name__}. See recipes/own_data.yaml."
        )
    return content


def _place(content: dict[str, Any], keys: list[str], value: str, override: str) -> None:
    """Puts the value of an override into its place in the parsed recipe."""
    for key in keys[:-1]:
        if content.get(key) is None:  # absent, or a section with nothing in it
            content[key] = {}
        content = content[key]
        if not isinstance(content, dict):
            raise InputError(
                f"'{shown(override)}' names a key below `{shown(key)}`, which is a value. Give `{shown(key)}` alone."
            )
    try:
        content[keys[-1]] = parse_yaml(value)
    except ValueError as error:
        raise InputError(f"The value of '{shown(override)}' is not YAML: {error}. Put text in quotes.") from error


def _check_arguments(network: NetworkSettings, where: str) -> None:
    """Raises an InputError if there is no such factory, or it does not take the arguments."""
    check_network_name(network.name, where)
    from tgdd_plugin.networks.factory import FILLED_IN, accepted_arguments  # loads torch, which takes a second

    if (accepted := accepted_arguments(network.name, where)) is None:
        return
    known = [name for name in accepted if name not in FILLED_IN]
    for key, value in network.arguments.items():
        if key not in accepted and ":" in network.name and not difflib.get_close_matches(key, known, cutoff=0.8):
            # As a rule the recipe's section is that of another network, of which only the name was replaced.
            whole = f", or give the whole section: '{where}={{name: {network.name}}}'" if where == "network" else ""
            raise InputError(
                f"`{where}.{shown(key)}` must be an argument of '{network.name}', which takes "
                f"{', '.join(known) or 'none'}, got {shown(repr(value))}. Leave it out of the recipe{whole}."
            )
        if key not in accepted:
            known = [*known, "name"]
            raise InputError(unknown_key(f"{where}.{key}", [f"{where}.{nearest(key, known)}"], known))
