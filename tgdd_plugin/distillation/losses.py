"""The two terms of TGDD's loss, as pure functions (arXiv 2512.02469)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def stage_matching(real: Float[Tensor, "k m D"], synthetic: Float[Tensor, "k n D"]) -> Float[Tensor, ""]:
    """Stage-wise distribution matching: Σ_c ‖ mean φ(ω_c X_c) − mean φ(ω_c S_c) ‖².

    Args:
        real: Features of real images under the early network, ``(k, m, D)`` for k classes of m images.
        synthetic: Features of the synthetic images of the same classes, ``(k, n, D)``.

    Returns:
        The sum over the k classes, a scalar in float32.

    Example:
        >>> import torch
        >>> real, synthetic = torch.tensor([[[1.0, 2.0], [3.0, 2.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> stage_matching(real, synthetic)  # (2 - 0)² + (2 - 1)²
        tensor(5.)
    """
    return (real.float().mean(1) - synthetic.float().mean(1)).square().sum()


def distribution_constraint(logits: Float[Tensor, "k n K"], classes: Int64[Tensor, "k"]) -> Float[Tensor, ""]:
    """The distribution constraint: Σ_c mean CE( h(ω_c S_c), c ).

    Args:
        logits: Logits of the synthetic images under the late network, ``(k, n, K)``.
        classes: The class ids, ``(k,)``.

    Returns:
        The sum over the k classes, a scalar in float32.

    Example:
        >>> import torch
        >>> logits, classes = torch.zeros(2, 5, 4), torch.tensor([1, 3])
        >>> distribution_constraint(logits, classes)  # twice the logarithm of 4
        tensor(2.7726)
    """
    count = logits.shape[1]
    losses = F.cross_entropy(logits.float().flatten(0, 1), classes.repeat_interleave(count), reduction="sum")
    return losses / count
