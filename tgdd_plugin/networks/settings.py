"""Which network: its name and the arguments of its factory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tgdd_plugin.networks.factory import build_network


@dataclass(frozen=True)
class NetworkSettings:
    """Which network.

    Args:
        name: ``convnet``, ``resnet10``, ``resnet18``, ``resnet_ap10``, ``densenet121``, ``vit``, or any factory as
            ``module:function``. Default: ``'convnet'``.
        arguments: The factory's own; in a recipe they stand beside ``name``: ``{name: convnet, width: 64}``. The
            numbers of classes and channels and the image size are passed by themselves.
    """

    name: str = "convnet"
    arguments: dict[str, Any] = field(default_factory=dict)

    def factory(self, shape: tuple[int, int, int], num_classes: int) -> Callable[[], nn.Module]:
        """A function that builds a fresh network for images of ``shape`` (C, H, W) and K classes."""
        return lambda: build_network(self.name, self.arguments, shape, num_classes)

    def section(self) -> dict[str, Any]:
        """As it stands in a recipe."""
        return {"name": self.name, **self.arguments}
