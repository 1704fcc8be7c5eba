"""Which network: its name and the arguments of its factory."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import pydantic

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import as_read, settings_class

OWN = ("convnet", "resnet10", "resnet18", "resnet_ap10", "densenet121", "vit")
"""The names of this package's networks."""


def check_network_name(name: str, key: str = "network") -> None:
    """Checks that a name is that of a network of this package or of a factory, without loading either.

    Args:
        name: The name.
        key: The setting that names it, for the message. Default: ``"network"``.

    Raises:
        InputError: If it is neither.
    """
    if name not in OWN and ":" not in name:
        raise InputError(
            f"`{key}` must be one of {', '.join(OWN)}, or a factory of yours as module:function, got '{name}'. "
            f"Choose one of them."
        )


def _free_keys(schema: dict[str, Any]) -> None:
    """In a recipe the factory's arguments stand beside the name."""
    schema["properties"].pop("arguments", None)
    schema["additionalProperties"] = True


@settings_class
class NetworkSettings:
    """Which network. In a recipe the arguments stand beside the name: ``{name: convnet, width: 64}``.

    Raises:
        InputError: For a value of the wrong type.
    """

    change_schema = staticmethod(_free_keys)

    name: str = "convnet"
    """The network: convnet, resnet10, resnet18, resnet_ap10, densenet121, vit, or a factory of yours as
    module:function. All other keys of the section are the factory's arguments (for convnet depth, width, norm,
    activation and pooling); the numbers of classes and channels and the image size are passed by themselves."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _gather_arguments(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        given = {str(key): value for key, value in content.items()}
        name = {"name": given.pop("name")} if "name" in given else {}
        return {**name, "arguments": {key: as_read(value) for key, value in given.items()}}

    def section(self) -> dict[str, Any]:
        """The settings as they stand in a recipe."""
        return {"name": self.name, **self.arguments}
