"""The class of a network as manifests note it: by the name that it has always had."""

from __future__ import annotations

from torch import nn

NOTED_CLASSES = {
    "tgdd_plugin.networks.convnets:ConvNet": "tgdd_plugin.networks.convnet:ConvNet",
    "tgdd_plugin.networks.resnets:ResNet": "tgdd_plugin.networks.resnet:ResNet",
}
"""This package's classes under the names that manifests have had for them since the first release."""


def class_name(network: nn.Module) -> str:
    """Returns the class of a network as a manifest notes it, ``'module:class'``."""
    name = f"{type(network).__module__}:{type(network).__qualname__}"
    return NOTED_CLASSES.get(name, name)
