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

from tgdd_plugin.errors import InputError
from tgdd_plugin.manifest import Run
from tgdd_plugin.network import fit_names
from tgdd_plugin.networks import build_recorded
from tgdd_plugin.pool import ImagePool
from tgdd_plugin.trajectory import Trajectory


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
    pool.agree(run.classes, run.num_classes, "the trajectory")
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
        given: One network or several, in any order. An architecture that none of them fits, by the names and shapes of
            its weights and by what the manifest says of it, is built as the manifest says.
        trajectory: The runs.
        shape: (C, H, W) of the images.

    Returns:
        Copies of what was given, and new networks.

    Raises:
        InputError: If an architecture has none and is not one of this package's, or one of several fits no run.
    """
    several = list(given) if isinstance(given, Sequence) else [given] if given is not None else []
    networks = [_alone(each) for each in several]
    folders = [folders[0] for folders in trajectory.architectures]
    if len(networks) == len(folders) == 1:  # the user has named it: should it not fit, the stage will tell how
        return networks
    found: list[nn.Module] = []
    for folder in folders:
        run = trajectory.runs[folder]
        weights = trajectory.load(folder, run.stages[0])
        fitting = next((network for network in networks if _fits(network, run, weights)), None)
        found.append(build_recorded(run.network, shape, run.num_classes) if fitting is None else fitting)
    for network in networks:
        if not any(network is each for each in found):
            names = ", ".join(f"'{trajectory.runs[folder].name}'" for folder in folders)
            raise InputError(
                f"{type(network).__name__} fits none of the runs ({names}), or another network that was given does; "
                f"give one network for each architecture of the trajectory"
            )
    return found


def _alone(given: Given) -> nn.Module:
    built = given if isinstance(given, nn.Module) else given()
    return copy.deepcopy(built.module if isinstance(built, ComposerClassifier) else built)


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
    return True


def recorded_head(network: nn.Module, recorded: str) -> str | None:
    """The recorded head's name in the bare network, which may lack the prefix of the user's ComposerModel."""
    fitting = [n for n, _ in network.named_modules() if n and (recorded == n or recorded.endswith(f".{n}"))]
    return max(fitting, key=len, default=None)


def normalisation(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    run: Run,
    channels: int,
    statistics: tuple[list[float], list[float]] | None,
) -> tuple[list[float], list[float]]:
    """The given normalisation, else the recorded one, checked against the inputs that the run is known to have seen.

    Args:
        mean, std: As the user gave them, or ``None``.
        run: The recorded run.
        channels: C.
        statistics: Per-channel mean and std of real images' pixels in [0, 1], if there are any at hand.

    Raises:
        InputError: If they contradict each other, or there is none.
    """
    if mean is not None and std is not None and run.mean is not None and run.std is not None:
        given, recorded = np.array([mean, std]), np.array([run.mean, run.std])
        if given.shape == recorded.shape and np.abs(given - recorded).max() > 0.01:
            raise InputError(
                f"the trajectory was recorded with mean {_rounded(run.mean)} and std {_rounded(run.std)}, and mean "
                f"{_rounded(mean)} and std {_rounded(std)} were given; leave mean and std out"
            )
    mean, std = (mean, std) if mean is not None and std is not None else (run.mean, run.std)
    if mean is None or std is None:
        these = ""
        if statistics:
            these = f"; these images have mean {_rounded(statistics[0])} and std {_rounded(statistics[1])}"
        raise InputError(
            f"the trajectory does not say how its inputs were normalised; pass mean= and std= as in training, on the "
            f"command line data.mean=[...] data.std=[...] (0 and 1 for none{these})"
        )
    if not len(mean) == len(std) == channels:
        raise InputError(f"{len(mean)} means and {len(std)} stds came for images of {channels} channel(s)")
    if statistics and run.input and len(run.input["mean"]) == len(mean):
        pool_mean, pool_std = statistics
        seen_mean, seen_std = np.array(run.input["mean"]), np.array(run.input["std"])
        ours_mean = (np.array(pool_mean) - mean) / std
        ours_std = np.array(pool_std) / std
        # Augmentation moves these a little; a wrong normalisation moves them by whole deviations.
        off = np.abs(ours_mean - seen_mean) / ours_std
        if off.max() > 1 or (ours_std / seen_std).max() > 2.5 or (seen_std / ours_std).max() > 2.5:
            raise InputError(
                f"training saw inputs of mean {_rounded(seen_mean)} and std {_rounded(seen_std)}, but mean "
                f"{_rounded(mean)} and std {_rounded(std)} turn these images into mean {_rounded(ours_mean)} and std "
                f"{_rounded(ours_std)}; pass the training's mean= and std=, on the command line "
                f"data.mean=[...] data.std=[...]"
            )
    return [float(m) for m in mean], [float(s) for s in std]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
