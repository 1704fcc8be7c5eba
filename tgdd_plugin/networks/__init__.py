"""The field's benchmark networks, and how any network is built from its name and called for its features.

A manifest names this package's networks by this prefix (``tgdd_plugin.networks:convnet``), so the names stay here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgdd_plugin.networks.factory import convnet, densenet121, described, resnet10, resnet18, resnet_ap10, vit

__all__ = ["convnet", "densenet121", "described", "resnet10", "resnet18", "resnet_ap10", "vit"]


if not TYPE_CHECKING:  # which would let a misspelt name pass

    def __getattr__(name: str) -> Any:
        # Loaded on first use: the settings in this package need no torch.
        if name not in __all__:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        return getattr(import_module(f"{__name__}.factory"), name)
