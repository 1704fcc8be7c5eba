"""The field's benchmark networks, and how to build any network from its name.

The networks of this package carry a note of how they were built, so a trajectory recorded from one can be distilled
without naming it again. Any other network must be named: a folder from elsewhere must not choose what is imported and
called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError, brief, shown
from tgdd_plugin.core.import_string import import_function
from tgdd_plugin.core.network_record import network_in_words
from tgdd_plugin.core.setting_errors import within
from tgdd_plugin.networks import convnets, densenets, resnet_ap, resnets, vision_transformers
from tgdd_plugin.networks.classifiers import as_classifier
from tgdd_plugin.networks.settings import NetworkSettings, check_network_name

MOST_PARAMETERS = 2 * 10**8
"""The most parameters of a network that is built because a file says so; this package's have 25 million at most."""

MOST_ARGUMENT, MOST_DEPTH = 65_536, 1000
"""The largest number, and the largest depth, in such a network's arguments."""

PACKAGE = "tgdd_plugin.networks"
"""The prefix of this package's networks in manifests and cards."""


FILLED_IN = ("num_classes", "in_channels", "image_size")
"""The arguments of a factory that :func:`build_network` gives by itself."""


def described(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator of a module-level network factory: notes on the network how it was built.

    The network gets ``tgdd_network = {'factory': 'module:function', 'arguments': {...}}``, which
    :class:`tgdd_plugin.TGDDCallback` writes into the manifest. Arguments must be plain values. For your own
    factories it is only a note: distillation tells you the name to give, but builds only this package's networks by
    itself.
    """

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> nn.Module:
        bound = inspect.signature(factory).bind(*args, **kwargs)
        bound.apply_defaults()
        network = factory(*args, **kwargs)
        name = f"{factory.__module__}:{factory.__qualname__}"
        if factory.__module__.startswith(f"{PACKAGE}."):
            name = f"{PACKAGE}:{factory.__qualname__}"
        network.tgdd_network = {"factory": name, "arguments": dict(bound.arguments)}  # type: ignore[assignment]
        return network

    return build


convnet = described(convnets.convnet)
resnet10 = described(resnets.resnet10)
resnet18 = described(resnets.resnet18)
resnet_ap10 = described(resnet_ap.resnet_ap10)
densenet121 = described(densenets.densenet121)
vit = described(vision_transformers.vit)


OWN = {each.__name__: each for each in (convnet, resnet10, resnet18, resnet_ap10, densenet121, vit)}
"""The factories of this package's networks by name; :data:`tgdd_plugin.networks.settings.OWN` has the names alone."""


def find_factory(name: str, key: str = "network") -> Callable[..., nn.Module]:
    """Returns the factory of a network of this package (``'convnet'``), or of any other as ``'module:function'``.

    Args:
        name: The name.
        key: The setting that names it, for messages. Default: ``"network"``.

    Raises:
        InputError: If the factory is unknown.
    """
    if name in OWN:
        return OWN[name]
    check_network_name(name, key)
    return import_function(key, name)


def accepted_arguments(name: str, key: str = "network") -> Sequence[str] | None:
    """Returns the names of the arguments that a factory takes (:func:`find_factory`); ``None`` for one that takes any.

    Raises:
        InputError: If there is no factory of that name.
    """
    parameters = inspect.signature(find_factory(name, key)).parameters
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else list(parameters)


def build_network(name: str, arguments: dict[str, Any], shape: Sequence[int], num_classes: int) -> nn.Module:
    """Builds a network by name, as a module that turns images into logits (:func:`as_classifier`).

    Args:
        name: The network's name, as in :func:`find_factory`.
        arguments: Keyword arguments of the factory. ``num_classes`` is added if the factory takes it, and
            ``in_channels`` and ``image_size`` if it names them.
        shape: The shape (C, H, W) of the images.
        num_classes: The number of classes K.

    Raises:
        InputError: If the factory is unknown or does not take the arguments.
    """
    factory = find_factory(name)
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = {"in_channels": shape[0], "image_size": shape[1]}
    arguments = {key: value for key, value in known.items() if key in parameters} | arguments
    if "num_classes" in parameters or takes_any:
        arguments.setdefault("num_classes", num_classes)
    try:
        return as_classifier(factory(**arguments))
    except TypeError as error:
        raise InputError(
            f"`network` must have arguments that '{name}' takes, got {arguments} ({brief(error)}). Correct them."
        ) from error


def network_factory(
    settings: NetworkSettings, shape: Sequence[int], num_classes: int, section: str = "network"
) -> Callable[[], nn.Module]:
    """Returns a function that builds a fresh network for images of ``shape`` (C, H, W) and K classes.

    An argument that cannot be used is named as a key of ``section``.
    """
    return functools.partial(_build_section, settings, shape, num_classes, section)


def _build_section(settings: NetworkSettings, shape: Sequence[int], num_classes: int, section: str) -> nn.Module:
    keys = set(accepted_arguments(settings.name, section) or settings.arguments).difference(FILLED_IN)
    try:
        return build_network(settings.name, settings.arguments, shape, num_classes)
    except InputError as error:
        of_section = any(str(error).startswith(f"`{key}` ") for key in keys)
        raise InputError(within(section if of_section else "", str(error))) from error


def build_recorded(record: dict[str, Any], shape: Sequence[int], num_classes: int) -> nn.Module:
    """Builds the network that a manifest or a card describes, if it is one of this package's.

    Args:
        record: ``class``, ``factory`` and ``arguments``, as :class:`tgdd_plugin.trajectory.manifest.Run` keeps them.
        shape: The shape (C, H, W) of the images.
        num_classes: The number of classes K.

    Raises:
        InputError: If it is any other network, which the user must give, or if it cannot be built, or is larger than
            :data:`MOST_PARAMETERS`.
    """
    name, arguments = recorded_factory(record), record.get("arguments") or {}
    sizes = [value for value in arguments.values() if isinstance(value, int | float)]
    depth = arguments.get("depth")
    parameters = -1
    if max(sizes, default=0) <= MOST_ARGUMENT and not (isinstance(depth, int) and depth > MOST_DEPTH):
        with torch.device("meta"):  # without memory; nor are random numbers drawn
            network = build_network(name, arguments, shape, num_classes)
        parameters = sum(parameter.numel() for parameter in network.parameters())
    if not 0 <= parameters <= MOST_PARAMETERS:
        raise InputError(
            f"`network` must be given where the recorded one would have more than {MOST_PARAMETERS:,} parameters, got "
            f"'{network_in_words(record)}'. Pass network=, if that is what was trained."
        )
    return build_network(name, arguments, shape, num_classes)


def is_own(record: dict[str, Any]) -> bool:
    """Whether a manifest or a card describes one of this package's networks."""
    return (record.get("factory") or "").removeprefix(f"{PACKAGE}:") in OWN


def is_convnet(record: dict[str, Any]) -> bool:
    """Whether a manifest or a card describes one of this package's ConvNets."""
    return record.get("factory") == f"{PACKAGE}:convnet"


def recorded_factory(record: dict[str, Any]) -> str:
    """Returns the name of the network of this package that a manifest or a card describes.

    Raises:
        InputError: If it is any other network.
    """
    name = (record.get("factory") or "").removeprefix(f"{PACKAGE}:")
    if not record.get("class") and not record.get("factory"):
        raise InputError(
            "`network` must be given where none is recorded, as in the file of a memory, got none. Pass network=, a "
            "function that builds one; on the command line network.name=convnet, another of this package's, or "
            "module:function, a factory of yours."
        )
    if not is_own(record):
        # What a file says must not become a command that somebody pastes: it may name any function there is.
        raise InputError(
            f"`network` must be given, as the recorded one is not one of this package's (class "
            f"'{shown(record.get('class', 'not recorded'))}', built by '{network_in_words(record)}'; so says the file, "
            f"unchecked). Pass network=, the network or a function that builds it; on the command line network.name="
            f"module:function, a factory of yours."
        )
    return name
