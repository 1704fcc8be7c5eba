"""Composer's algorithms that change a network ("surgery"): noted when a run is recorded, done again for its stages.

A trajectory may come from anywhere. So what it notes only chooses from the table below, and its arguments are checked:
nothing that a file names is imported or called.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MethodType
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, Strict, with_config
from torch import nn
from typing_extensions import TypedDict

from tgdd_plugin.core.checked_json import Flag, build_checked
from tgdd_plugin.core.errors import InputError, shown

Amount = Annotated[int, Strict(), Field(ge=0, le=65_536)]
Size = Annotated[float, Strict(), Field(gt=0, le=65_536, allow_inf_nan=False)]
"""A number of channels, or below 1 a share of them."""
Rate = Annotated[float, Strict(), Field(ge=0, le=1)]

_CLOSED = ConfigDict(extra="forbid")


@with_config(_CLOSED)
class _BlurPool(TypedDict):
    replace_convs: Flag
    replace_maxpools: Flag
    blur_first: Flag
    min_channels: Amount


@with_config(_CLOSED)
class _Factorize(TypedDict):
    factorize_convs: Flag
    factorize_linears: Flag
    min_channels: Amount
    latent_channels: Size
    min_features: Amount
    latent_features: Size


@with_config(_CLOSED)
class _GhostBatchNorm(TypedDict):
    ghost_batch_size: Annotated[int, Strict(), Field(ge=1, le=65_536)]


@with_config(_CLOSED)
class _SqueezeExcite(TypedDict):
    latent_channels: Size
    min_channels: Amount


@with_config(_CLOSED)
class _StochasticDepth(TypedDict):
    target_layer_name: Literal["ResNetBottleneck"]
    stochastic_method: Literal["block", "sample"]
    drop_rate: Rate
    drop_distribution: Literal["uniform", "linear"]


@with_config(_CLOSED)
class _WeightStandardization(TypedDict):
    n_last_layers_ignore: Amount


class _Known(NamedTuple):
    """An algorithm: its function in ``composer.functional``, its arguments, and the modules it leaves in a network."""

    function: str
    arguments: Any
    leaves: frozenset[str] = frozenset()


_KNOWN = {
    "BlurPool": _Known("apply_blurpool", _BlurPool, frozenset({"BlurConv2d", "BlurMaxPool2d"})),
    "Factorize": _Known("apply_factorization", _Factorize, frozenset({"FactorizedConv2d", "FactorizedLinear"})),
    "GhostBatchNorm": _Known(
        "apply_ghost_batchnorm", _GhostBatchNorm, frozenset({f"GhostBatchNorm{n}d" for n in (1, 2, 3)})
    ),
    "SqueezeExcite": _Known("apply_squeeze_excite", _SqueezeExcite, frozenset({"SqueezeExciteConv2d"})),
    "StochasticDepth": _Known("apply_stochastic_depth", _StochasticDepth),
    "WeightStandardization": _Known(
        "apply_weight_standardization", _WeightStandardization, frozenset({"WeightStandardizer"})
    ),
}

UNCHANGING = {
    *("AugMix", "ChannelsLast", "ColOut", "CutMix", "CutOut", "EMA", "GradientClipping", "GyroDropout"),
    *("LabelSmoothing", "LayerFreezing", "LowPrecisionGroupNorm", "LowPrecisionLayerNorm", "MixUp"),
    *("ProgressiveResizing", "RandAugment", "RandomCutMix", "SAM", "SWA", "SelectiveBackprop"),
    *("SiameseAugmentation", "DistilledReplay"),
}
"""Algorithms that leave what a network computes in evaluation mode, and the names of its weights, as they are."""


def note_surgery(algorithms: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns the algorithms of a Trainer that change its network, with their arguments, as plain values."""
    noted = []
    for algorithm in algorithms:
        name = type(algorithm).__name__
        if name not in _KNOWN or not type(algorithm).__module__.startswith("composer."):
            continue
        names = _KNOWN[name].arguments.__annotations__
        arguments = {key: getattr(algorithm, key) for key in names if hasattr(algorithm, key)}
        try:
            json.dumps(arguments)
        except TypeError:  # it will be one whose arguments are not known
            continue
        noted.append({"name": name, "arguments": arguments})
    return noted


def unknown_changes(record: Mapping[str, Any]) -> list[str]:
    """Returns the names of algorithms that may have changed a recorded network in a way that is not known."""
    done = [each.get("name") for each in record.get("surgery") or ()]
    return [name for name in record.get("algorithms") or () if name not in UNCHANGING and name not in done]


def apply_surgery(network: nn.Module, surgery: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Changes a network as the algorithms of a recorded run changed theirs, in place, and returns it.

    What is done already, as where the network is that of the very training, is not done twice. Ghost batch
    normalization, which refuses small batches, gives way to the batch normalization inside it: in evaluation mode both
    are the same function.

    Args:
        network: The network as it was before the training.
        surgery: What :func:`note_surgery` returned, in the order it was done in.

    Raises:
        InputError: If a file's note of it is none that :func:`note_surgery` makes, or does not fit the network.
    """
    if not surgery:
        return network
    import composer.functional  # here, as recording a plain loop does without Composer
    from composer.models import ComposerClassifier
    from torchmetrics import MetricCollection

    none = MetricCollection([])
    model = ComposerClassifier(network, train_metrics=none, val_metrics=none)  # what the algorithms change in training
    for each in surgery:
        name, arguments = _checked(each)
        known = _KNOWN[name]
        if known.leaves & {type(module).__name__ for module in model.modules()}:
            continue
        try:
            with torch.random.fork_rng([]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that nothing was changed, as in the training then
                getattr(composer.functional, known.function)(model, **arguments)
        except Exception as error:
            raise InputError(
                f"{name}, which the run was trained with, cannot be applied to {type(network).__name__} "
                f"({' '.join(str(error).split())[:200]}). Give the network that it was trained with."
            ) from error
    for module in model.modules():
        if type(module).__name__ in _KNOWN["GhostBatchNorm"].leaves:
            module.forward = MethodType(_inner_batchnorm, module)
    changed: nn.Module = model.module
    return changed


def _checked(noted: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    name = noted.get("name")
    if name not in _KNOWN:
        raise InputError(
            f"The algorithms noted as surgery must be among {', '.join(_KNOWN)}, got '{shown(str(name), 80)}'. Copy "
            f"the trajectory again, or update tgdd_plugin."
        )
    try:
        arguments: dict[str, Any] = build_checked(_KNOWN[name].arguments, noted.get("arguments"))
    except ValueError as error:
        raise InputError(
            f"The arguments of {name} in the manifest must be those of Composer's algorithm, but {error}. "
            f"Copy the trajectory again, or update tgdd_plugin."
        ) from None
    return name, arguments


def _inner_batchnorm(self: Any, input: torch.Tensor) -> Any:
    return self.batchnorm(input)
