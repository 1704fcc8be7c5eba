"""A search space of networks: how its candidates are named, checked and built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.nas.settings import Arguments, SearchSpace
from tgdd_plugin.networks.factory import FILLED_IN, accepted_arguments, build_network


def name_of(arguments: Arguments) -> str:
    """Returns the name of a candidate.

    Example:
        >>> name_of({"depth": 3, "width": 64})
        'depth=3 width=64'
    """
    return " ".join(f"{name}={value}" for name, value in arguments.items())


def check_factory(space: SearchSpace) -> None:
    """Checks that the factory of a search space exists and takes the arguments that are searched.

    Those that follow from the set, such as ``num_classes``, cannot be searched.

    Raises:
        InputError: If it does not.
    """
    if (accepted := accepted_arguments(space.factory, "nas.factory")) is None:
        return
    known = [name for name in accepted if name not in FILLED_IN]
    for name in space.choices:
        if name not in known:
            raise InputError(
                f"`nas.choices` must be arguments of '{space.factory}', got '{name}'. Choose from {', '.join(known)}."
            )


def candidate_builder(
    space: SearchSpace, arguments: Arguments, shape: Sequence[int], num_classes: int
) -> Callable[[], nn.Module]:
    """Returns a function that builds a candidate anew, for images of ``shape`` (C, H, W) and K classes."""
    return functools.partial(build_network, space.factory, arguments, shape, num_classes)
