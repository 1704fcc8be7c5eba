"""What a network costs, and a score of it before training: parameters, FLOPs, latency and synflow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from tgdd_plugin.core.usage import now
from tgdd_plugin.core.weights import only_tensors

LATENCY_CALLS = 20
"""The number of timed calls of a network, of which the median counts."""

NORMALIZATIONS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
"""What synflow leaves out: batch and instance normalization (``_NormBase``) and torch's others."""


@dataclass(frozen=True)
class Costs:
    """What a network costs.

    Args:
        parameters: The number of trainable weights.
        latency: Milliseconds of a forward pass of one image in evaluation mode, see :func:`latency`.
        flops: The floating-point operations of that pass, see :func:`flops`; ``None`` if they cannot be counted.
        synflow: See :func:`synflow`; ``None`` if it cannot be computed.
    """

    parameters: int
    latency: float
    flops: int | None
    synflow: float | None


def costs_of(network: nn.Module, shape: Sequence[int], device: torch.device) -> Costs:
    """Returns the costs of a freshly initialised network for images of ``shape`` (C, H, W); the network stays as it is.

    Latency is that of ``device``; the others are computed on the CPU.
    """
    parameters = sum(tensor.numel() for tensor in network.parameters() if tensor.requires_grad)
    return Costs(parameters, latency(network, shape, device), *(_tried(c, network, shape) for c in (flops, synflow)))


def _tried(cost: Callable[[nn.Module, Sequence[int]], Any], network: nn.Module, shape: Sequence[int]) -> Any:
    try:
        return cost(network, shape)
    except Exception:  # a network of the user's can fail in any way, as in double precision, and can be trained still
        return None


@torch.no_grad()
def latency(network: nn.Module, shape: Sequence[int], device: torch.device) -> float:
    """Returns the milliseconds of a forward pass of one image ``(C, H, W)`` in evaluation mode.

    It is the median of :data:`LATENCY_CALLS`; other work of the machine counts in.
    """
    network = copy.deepcopy(network).to(device).eval()
    image, spent = torch.zeros(1, *shape, device=device), []
    for _ in range(3 + LATENCY_CALLS):  # the first few find their algorithms and fill caches
        began = now(device)
        network(image)
        spent.append(now(device) - began)
    return 1000 * sorted(spent[3:])[LATENCY_CALLS // 2]


@torch.no_grad()
def flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Returns the floating-point operations of a forward pass of one image ``(C, H, W)`` in evaluation mode.

    They are two for each multiply-accumulate of the convolutions and matrix products, those of attention among them, as
    torch's ``FlopCounterMode`` counts them; normalization, activations, pooling and additions count as nothing.
    """
    network = copy.deepcopy(network).cpu().eval()
    # Plain matrix products: a CPU's fused attention would count as nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shape))
    return counter.get_total_flops()


def synflow(network: nn.Module, shape: Sequence[int]) -> float | None:
    """Returns the synflow score of a freshly initialised network for images of ``shape`` (C, H, W).

    With every weight and bias θ replaced by its magnitude, R is the sum of the outputs for an image of ones, and the
    score the sum of |θ · ∂R/∂θ| over the weights of all convolutions and linear layers, in double precision. The
    normalizations that are modules of torch are left out. (H. Tanaka, D. Kunin, D. L. K. Yamins and S. Ganguli,
    "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS 2020; as a score of
    architectures M. S. Abdelfattah, A. Mehrotra, Ł. Dudziak and N. D. Lane, "Zero-Cost Proxies for Lightweight NAS",
    ICLR 2021.)

    Returns:
        The score, from 0 up; ``None`` if it is beyond the range of a double.
    """
    network = copy.deepcopy(network).cpu().double().eval()
    weights = []
    for module in network.modules():
        if isinstance(module, NORMALIZATIONS):
            module.forward = _unchanged  # type: ignore[method-assign]
        elif isinstance(module, _ConvNd | nn.Linear):
            weights.append(module.weight)
    with torch.no_grad():
        for tensor in only_tensors(network.state_dict()).values():
            if tensor.is_floating_point():
                tensor.abs_()
    with torch.enable_grad():
        for weight in weights:
            weight.requires_grad_()
        flow = network(torch.ones(1, *shape, dtype=torch.double)).sum()
    gradients = torch.autograd.grad(flow, weights, allow_unused=True)
    score = sum(
        float((weight * gradient).abs().sum())
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    )
    return score if math.isfinite(score) else None


def _unchanged(values: Tensor) -> Tensor:
    return values
