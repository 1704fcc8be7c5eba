"""What a trajectory says of its training, and what is given for distilling it: taken together, or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from composer.models import ComposerClassifier
from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.factory import build_recorded, is_own
from tgdd_plugin.networks.feature_network import fit_names
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory


def input_shape(run: Run) -> tuple[int, int, int]:
    """(C, H, W) of the images that the run was trained on.

    Raises:
        InputError: If the run does not say.
    """
    if run.input is None:
        raise InputError(
            f"run '{run.name}' does not say what images it was trained on (they came in batches of another form than "
            f"(images, labels)); give the real images"
        )
    channels, height, width = (int(n) for n in run.input["shape"])
    return channels, height, width


def check_pool(pool: ImagePool, run: Run) -> None:
    """Takes over the run's class names.

    Raises:
        InputError: If the images cannot be those that the run was trained on.
    """
    pool.adopt_class_names(run.classes, run.num_classes, "the trajectory")
    if run.input and list(pool.shape) != (seen := list(input_shape(run))):
        raise InputError(
            f"the real images are {list(pool.shape)} (channels, height, width), but training saw {seen}; give the data "
            f"the network was trained on (on the command line data.name=..., data.image_size=...)"
        )


Given = nn.Module | Callable[[], nn.Module]
"""A network, or a function that builds it; the network may be in a ``ComposerClassifier``."""


def bare_networks(
    given: Given | Sequence[Given] | None, trajectory: Trajectory, shape: tuple[int, int, int]
) -> list[nn.Module]:
    """The networks of a trajectory alone, one for each of its architectures, out of whatever the user gave.

    Args:
        given: One network or several, in any order: each belongs to the runs whose weights have its names and shapes,
            and whose manifest says nothing else of it. An architecture that none belongs to is built as recorded.
        trajectory: The runs.
        shape: (C, H, W) of the images.

    Returns:
        Copies of what was given, and new networks.

    Raises:
        InputError: If an architecture has none and is not one of this package's, or one of several fits no run.
    """
    several = given if isinstance(given, Sequence) else [given] if given is not None else []
    networks = [_alone(each) for each in several]
    kinds = trajectory.representative_runs
    if len(networks) == len(kinds) == 1:  # the user has named it: should it not fit, the stage will tell how
        return networks
    # By class; a class may have been named otherwise where it was trained, so what no run names is tried on the rest.
    named = [
        {n for n, each in enumerate(networks) if run.network["class"].endswith(f":{_name(each)}")}
        for run in kinds.values()
    ]
    free = set(range(len(networks))).difference(*named)
    found: list[nn.Module] = []
    used: set[int] = set()
    for (folder, run), own in zip(kinds.items(), named, strict=True):
        weights = trajectory.load(folder, run.stages[0])
        fitting = [n for n, each in enumerate(networks) if n in own | free and _fits(each, run, weights)]
        if fitting:
            best = max(fitting, key=lambda n: (n in own, n not in used))
            found.append(copy.deepcopy(networks[best]))
            used.add(best)
            free.discard(best)
        elif networks and not is_own(run.network):
            arguments = run.network.get("arguments")
            raise InputError(
                f"none of the networks that were given ({', '.join(map(_name, networks))}) is that of run "
                f"'{run.name}': {run.network['class']} of {run.network['parameters']:,} parameters"
                f"{f', built with {arguments}' if arguments else ''}. Give it, too (in a recipe under extra_networks)"
            )
        else:
            found.append(build_recorded(run.network, shape, run.num_classes))
    for n, network in enumerate(networks):
        if n not in used:
            names = ", ".join(f"'{run.name}'" for run in kinds.values())
            raise InputError(
                f"network {n + 1} of those given, {_name(network)}, is that of no run ({names}), or another one given "
                f"is; give one network for each architecture of the trajectory"
            )
    return found


def _alone(given: Given) -> nn.Module:
    built = given if isinstance(given, nn.Module) else given()
    return copy.deepcopy(built.module if isinstance(built, ComposerClassifier) else built)


def _name(network: nn.Module) -> str:
    return type(network).__qualname__


def _fits(network: nn.Module, run: Run, weights: dict[str, torch.Tensor]) -> bool:
    """Whether weights and, where both say how they were built, the manifest are of this network."""
    own: Any = getattr(network, "tgdd_network", {})
    for key in ("factory", "arguments"):
        if run.network.get(key) and own.get(key):
            # As they are in the manifest's JSON.
            if json.loads(json.dumps(own[key], default=str)) != run.network[key]:
                return False
    try:
        fit_names(weights, network, run.name)
    except InputError:
        return False
    # A smaller network's names and shapes may all be among a larger one's, as ResNet-18's among ResNet-34's.
    return sum(parameter.numel() for parameter in network.parameters()) == run.network["parameters"]


def recorded_head(network: nn.Module, recorded: str) -> str | None:
    """The recorded head's name in the bare network, which may lack the prefix of the user's ComposerModel."""
    fitting = [n for n, _ in network.named_modules() if n and (recorded == n or recorded.endswith(f".{n}"))]
    return max(fitting, key=len, default=None)


def agreed_normalization(
    given: Normalization | None, run: Run, channels: int, statistics: tuple[list[float], list[float]] | None
) -> Normalization:
    """The given normalization, else the recorded one, checked against the inputs that the run is known to have seen.

    Args:
        given: As the user gave it, or ``None``.
        run: The recorded run.
        channels: C.
        statistics: Per-channel mean and std of real images' pixels in [0, 1], if there are any at hand.

    Raises:
        InputError: If they contradict each other, or there is none.
    """
    recorded = run.normalization
    if given and recorded and given.channels == recorded.channels and not given.is_close(recorded):
        raise InputError(
            f"the trajectory was recorded with mean {_rounded(recorded.mean)} and std {_rounded(recorded.std)}, and "
            f"mean {_rounded(given.mean)} and std {_rounded(given.std)} were given; leave mean and std out"
        )
    normalization = given or recorded
    if normalization is None:
        these = ""
        if statistics:
            these = f"; these images have mean {_rounded(statistics[0])} and std {_rounded(statistics[1])}"
        raise InputError(
            f"the trajectory does not say how its inputs were normalized; pass mean= and std= as in training, on the "
            f"command line data.mean=[...] data.std=[...] (0 and 1 for none{these})"
        )
    normalization.check_channels(channels)
    if statistics and run.input and len(run.input["mean"]) == channels:
        mean, std = np.array(normalization.mean), np.array(normalization.std)
        seen_mean, seen_std = np.array(run.input["mean"]), np.array(run.input["std"])
        ours_mean, ours_std = (np.array(statistics[0]) - mean) / std, np.array(statistics[1]) / std
        # Augmentation moves these a little; a wrong normalization moves them by whole deviations.
        off = np.abs(ours_mean - seen_mean) / ours_std
        if off.max() > 1 or (ours_std / seen_std).max() > 2.5 or (seen_std / ours_std).max() > 2.5:
            raise InputError(
                f"training saw inputs of mean {_rounded(seen_mean)} and std {_rounded(seen_std)}, but mean "
                f"{_rounded(mean)} and std {_rounded(std)} turn these images into mean {_rounded(ours_mean)} and std "
                f"{_rounded(ours_std)}; pass the training's mean= and std=, on the command line "
                f"data.mean=[...] data.std=[...]"
            )
    return normalization


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
