"""What a manifest and a card say of a network, as their readers may rely on it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, with_config
from typing_extensions import TypedDict

from tgdd_plugin.core.checked_json import OPEN, Text, Whole
from tgdd_plugin.core.errors import shown


@with_config(OPEN)
class _Built(TypedDict, total=False):
    factory: Text | None
    arguments: dict[Text, Any] | None
    algorithms: list[Text]
    surgery: Annotated[list[dict[Text, Any]], Field(max_length=100)]


_NAMED: Any = {"class": Text, "parameters": Whole}


class NetworkRecord(_Built, TypedDict("_Named", _NAMED)):  # type: ignore[misc]
    """``class`` (``module:name``) and number of ``parameters``; what may be missing are ``factory``
    (``module:function``), its ``arguments``, names of ``algorithms`` that may have changed the network, and as
    ``surgery`` those that did, with their arguments. Nothing of it is imported or called unchecked."""


class PartialNetworkRecord(_Built, TypedDict("_MaybeNamed", _NAMED, total=False)):  # type: ignore[misc]
    """The same of a card, where all may be missing."""


def network_in_words(record: dict[str, Any]) -> str:
    """A recorded network as text for people, ``factory(argument=value)``, escaped and cut; or ``not recorded``."""
    arguments = ", ".join(f"{shown(key)}={shown(value)}" for key, value in (record.get("arguments") or {}).items())
    name = record.get("factory") or record.get("class")
    return f"{shown(name, 120)}({shown(arguments, 400)})" if name else "not recorded"
