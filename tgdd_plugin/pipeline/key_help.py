"""The keys of recipes in words, from the settings' own declarations: for ``tgdd <step> --help`` and the JSON schema."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

import pydantic

from tgdd_plugin.core.setting_errors import expected
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.settings import TOP_LEVEL, Recipe


def describe_keys(sections: Iterable[str]) -> str:
    """Every key of some sections with its default and its meaning, section by section.

    Args:
        sections: Names of sections of :class:`Recipe`, such as ``'distill'``.
    """
    lines = ["keys of the recipe, which can also be set on the command line as key=value:"]
    lines += _section("", "The job as a whole.", _keys_of(""))
    documented = dict(_fields(Recipe))
    for section in sections:
        lines += _section(section, documented[section]["description"], _keys_of(section))
    return "\n".join(lines)


def keys_and_values(sections: Iterable[str]) -> dict[str, list[str]]:
    """The keys of some sections, and those that stand in none, with the values of each that has a few only."""
    found = {}
    for section in ("", *sections):
        for key, schema in _keys_of(section):
            choices = []
            for part in (schema, *schema.get("anyOf", [])):
                choices += part.get("enum", [part["const"]] if "const" in part else [])
                choices += ["true", "false"] if part.get("type") == "boolean" else []
            found[f"{section}.{key}" if section else key] = [str(choice) for choice in choices]
    return found


def _keys_of(section: str) -> list[tuple[str, Any]]:
    """The keys of a section, or of none, with what the schema says of each; a list of sections has none of its own."""
    if not section:
        return [field for field in _fields(Recipe) if field[0] in TOP_LEVEL]
    value = getattr(Recipe(), section)
    return [] if value == [] else _fields(NetworkSettings if section == "network" else type(value))


def _fields(cls: Any) -> list[tuple[str, Any]]:
    """The keys of a settings class in order, with what its JSON schema says of each."""
    properties = pydantic.TypeAdapter(cls).json_schema()["properties"]
    return [(field.name, properties[field.name]) for field in dataclasses.fields(cls) if field.name in properties]


def _section(name: str, description: str, fields: list[tuple[str, Any]]) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 100)
    lines = ["", *textwrap.wrap(f"{name}: {description}" if name else description, width)]
    for key, schema in fields:
        value = schema.get("default")
        shown = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"  {f'{name}.' if name else ''}{key}={shown}   ({expected(schema)})")
        meaning = " ".join(schema.get("description", "").split())
        lines += textwrap.wrap(meaning, width, initial_indent=6 * " ", subsequent_indent=6 * " ")
    return lines


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe, for editors that complete and check keys."""
    schema = pydantic.TypeAdapter(Recipe).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """:func:`json_schema` as a file holds it."""
    return json.dumps(json_schema(), indent=1) + "\n"
