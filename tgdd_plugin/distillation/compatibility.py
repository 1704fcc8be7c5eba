"""Whether the images, networks and normalization given for distilling a trajectory are those of its training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tgdd_plugin.core.differences import as_plain
from tgdd_plugin.core.errors import InputError, brief, shown
from tgdd_plugin.core.network_record import network_in_words
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.classifiers import as_classifier, as_list, check_buildable
from tgdd_plugin.networks.factory import build_recorded, is_own
from tgdd_plugin.networks.feature_network import fit_names
from tgdd_plugin.networks.surgery import apply_surgery, unknown_changes
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory


def input_shape(run: Run) -> tuple[int, int, int]:
    """Returns (C, H, W) of the images that the run was trained on.

    Raises:
        InputError: If the run does not say.
    """
    if run.input is None:
        raise InputError(
            f"The run '{run.name}' does not say what images it was trained on (they came in batches of another form "
            f"than (images, labels)). Give the real images."
        )
    channels, height, width = (int(n) for n in run.input["shape"])
    return channels, height, width


def check_pool(pool: ImagePool, run: Run) -> None:
    """Checks real images against a run, and gives them the run's class names.

    Raises:
        InputError: If the images cannot be those that the run was trained on.
    """
    pool.adopt_class_names(run.classes, run.num_classes, "the trajectory")
    if run.input and list(pool.shape) != (seen := list(input_shape(run))):
        grayscale = "data.grayscale=true" if seen[0] == 1 and pool.shape[0] == 3 else "data.image_size=..."
        raise InputError(
            f"The real images must be of shape {seen} (channels, height, width), which training saw, got "
            f"{list(pool.shape)}. Give the data that the network was trained on (on the command line data.name=..., "
            f"{grayscale})."
        )


NetworkOrFactory = nn.Module | Callable[[], nn.Module]
"""A network, or a function that builds it; a ``ComposerClassifier`` or another ``ComposerModel`` will do."""


def bare_networks(
    given: NetworkOrFactory | Sequence[NetworkOrFactory] | None, trajectory: Trajectory, shape: tuple[int, int, int]
) -> list[nn.Module]:
    """Returns the bare networks of a trajectory, one for each of its architectures, from whatever the user gave.

    Args:
        given: One network or several, in any order: each belongs to the runs whose weights have its names and shapes,
            and whose manifest does not contradict it. An architecture that none belongs to is built as recorded.
        trajectory: The runs.
        shape: (C, H, W) of the images.

    Returns:
        Copies of what was given, and new networks, changed as Composer's algorithms changed those that were trained.

    Raises:
        InputError: If an architecture has none and is not one of this package's, or one of several fits no run, or the
            only one is of this package and as large as the run's, but built in another way.
    """
    networks = [] if given is None else [_bare(each) for each in as_list(given)]
    runs = trajectory.representative_runs
    if len(networks) == len(runs) == 1:  # if its weights do not fit, the check of its stages says how
        folder, run = next(iter(runs.items()))
        if is_own(run.network) and _is_as_large(networks[0], run) and _contradicts(networks[0], run):
            raise InputError(
                f"`network` must be the one that run '{run.name}' was trained with, {network_in_words(run.network)}, "
                f"got {network_in_words(vars(networks[0])['tgdd_network'])}. Leave it out, or give that one."
            )
        return [_changed(networks[0], trajectory, folder, run)]
    # Each run is tried with the networks of the class that it names. A class may have had another name when it was
    # trained, so a network of a class that no run names is tried with every run.
    named = [
        {n for n, each in enumerate(networks) if run.network["class"].endswith(f":{_name(each)}")}
        for run in runs.values()
    ]
    free = set(range(len(networks))).difference(*named)
    found: list[nn.Module] = []
    used: set[int] = set()
    for (folder, run), own in zip(runs.items(), named, strict=True):
        weights, surgery = trajectory.load(folder, run.stages[0]), run.network.get("surgery")
        changed = {
            n: apply_surgery(copy.deepcopy(each), surgery) if surgery else each
            for n, each in enumerate(networks)
            if n in own | free
        }
        fitting = [n for n, each in changed.items() if _fits(each, run, weights)]
        if fitting:
            best = max(fitting, key=lambda n: (n in own, n not in used))
            found.append(changed[best])
            used.add(best)
            free.discard(best)
        elif networks and not is_own(run.network):
            raise InputError(
                f"`network` must include the network of run '{run.name}', {shown(run.network['class'])} of "
                f"{run.network['parameters']:,} parameters (noted as {network_in_words(run.network)}), got "
                f"{', '.join(map(_name, networks))}. Give it, too (in a recipe under extra_networks)."
            )
        else:
            found.append(_changed(build_recorded(run.network, shape, run.num_classes), trajectory, folder, run))
    for n, network in enumerate(networks):
        if n not in used:
            names = ", ".join(f"'{run.name}'" for run in runs.values())
            raise InputError(
                f"`network` must be the networks of the trajectory's runs ({names}), got as network {n + 1} "
                f"{_name(network)}, which is not that of any run, or another one given is. Give one network for each "
                f"architecture of the trajectory."
            )
    return found


def _bare(given: NetworkOrFactory) -> nn.Module:
    """A network of ours alone, of the type of the images, whatever its weights were trained in."""
    kind = torch.get_default_dtype()
    check_buildable(given)
    network = given if isinstance(given, nn.Module) else given()
    if any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()]):
        raise InputError(
            f"`network` must have its weights in memory, got a {type(network).__name__} on the meta device. Build it "
            f"on the CPU."
        )
    try:
        return as_classifier(copy.deepcopy(network)).to(kind)
    except Exception as error:  # as where it keeps what it computed, a lock or a module
        if network is not given:
            return as_classifier(network).to(kind)
        raise InputError(
            f"`network` must be a function that builds it where it cannot be copied ({brief(error)}), got a "
            f"{type(network).__name__}. Give, for example, lambda: {type(network).__name__}(...)."
        ) from None


def _changed(network: nn.Module, trajectory: Trajectory, folder: Path, run: Run) -> nn.Module:
    """Returns a network changed as the run's was, and says by which algorithms it may be another one if it is."""
    network = apply_surgery(network, run.network.get("surgery") or ())
    if unknown := unknown_changes(run.network):
        try:
            fit_names(trajectory.load(folder, run.stages[0]), network, f"run '{run.name}'")
        except InputError as error:
            raise InputError(
                f"{error} The run was trained with {', '.join(map(shown, unknown))}, which may have changed it and "
                f"whose arguments were not recorded: change the network that you give in the same way."
            ) from None
    return network


def _name(network: nn.Module) -> str:
    return type(network).__qualname__


def _contradicts(network: nn.Module, run: Run) -> bool:
    """Returns whether the network says of how it was built something else than the manifest does."""
    own: Any = getattr(network, "tgdd_network", {})
    return any(
        run.network.get(key) and own.get(key) and as_plain(own[key]) != run.network[key]
        for key in ("factory", "arguments")
    )


def _fits(network: nn.Module, run: Run, weights: dict[str, torch.Tensor]) -> bool:
    """Returns whether the weights, and the manifest where it says how the network was built, are of this network."""
    if _contradicts(network, run):
        return False
    try:
        fit_names(weights, network, run.name)
    except InputError:
        return False
    # A smaller network's names and shapes may all be among a larger one's, as ResNet-18's among ResNet-34's.
    return _is_as_large(network, run)


def _is_as_large(network: nn.Module, run: Run) -> bool:
    """Returns whether the network has as many parameters as the run's."""
    size: int = run.network["parameters"]
    return sum(parameter.numel() for parameter in network.parameters()) == size


def recorded_head(network: nn.Module, recorded: str) -> str | None:
    """Returns the recorded head's name in the bare network, which may lack the prefix of the user's ComposerModel."""
    fitting = [n for n, _ in network.named_modules() if n and (recorded == n or recorded.endswith(f".{n}"))]
    return max(fitting, key=len, default=None)


def check_recorded_head(network: nn.Module, run: Run) -> None:
    """Raises an InputError if the recorded head is not in the network: another layer must not be matched unasked."""
    if recorded_head(network, run.head) is None:
        linear = [n for n, module in network.named_modules() if isinstance(module, nn.Linear)]
        raise InputError(
            f"`head` must be given where the recorded one is not in the network: run '{run.name}' names "
            f"'{shown(run.head)}', and {_name(network)} has the linear layers {linear}. Name the one whose input is to "
            f"be matched by head=."
        )


def agreed_normalization(
    given: Normalization | None, run: Run, channels: int, statistics: tuple[list[float], list[float]] | None
) -> Normalization:
    """Returns the given normalization or else the recorded one, checked against the inputs that the run saw.

    Args:
        given: The normalization that the user gave, or ``None``.
        run: The recorded run.
        channels: C of the images.
        statistics: Per-channel mean and std of real images' pixels in [0, 1], if there are any at hand.

    Raises:
        InputError: If they contradict each other, or there is none.
    """
    given, recorded = (known and known.of_channels(channels) for known in (given, run.normalization))
    if given and recorded and not given.is_close(recorded):
        raise InputError(
            f"`mean` and `std` must be those that the trajectory was recorded with, mean {_rounded(recorded.mean)} and "
            f"std {_rounded(recorded.std)}, got mean {_rounded(given.mean)} and std {_rounded(given.std)}. Leave both "
            f"out."
        )
    normalization = given or recorded
    if normalization is None:
        these = ""
        if statistics:
            these = f"; the real images have mean {_rounded(statistics[0])} and std {_rounded(statistics[1])}"
        raise InputError(
            f"`mean` and `std` must be given where the trajectory does not say how its inputs were normalized, got "
            f"neither. Give those of the training, on the command line data.mean=[...] data.std=[...] (0 and 1 for "
            f"none{these})."
        )
    if statistics and run.input and len(run.input["mean"]) == channels:
        mean, std = np.array(normalization.mean), np.array(normalization.std)
        seen_mean, seen_std = np.array(run.input["mean"]), np.array(run.input["std"])
        ours_mean, ours_std = (np.array(statistics[0]) - mean) / std, np.array(statistics[1]) / std
        # Augmentation moves these a little; a wrong normalization moves them by whole deviations. A channel that is the
        # same everywhere has none, unless all are, in images that training did not see so.
        varying = np.array(statistics[1]) > 1 / 255
        if not varying.any():
            varying = seen_std * std > 1 / 255
        with np.errstate(divide="ignore", invalid="ignore"):
            moved, ratio = np.abs(ours_mean - seen_mean) / ours_std, ours_std / seen_std
        off = (moved > 1) | (ratio > 2.5) | (ratio < 0.4)
        if (off & varying).any():
            raise InputError(
                f"`mean` and `std` must turn the real images into what training saw, inputs of mean "
                f"{_rounded(seen_mean)} and std {_rounded(seen_std)}, got mean {_rounded(mean)} and std "
                f"{_rounded(std)}, which turn them into mean {_rounded(ours_mean)} and std {_rounded(ours_std)}. Give "
                f"those of the training, on the command line data.mean=[...] data.std=[...]."
            )
    return normalization


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
