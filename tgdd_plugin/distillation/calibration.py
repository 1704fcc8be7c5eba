"""The learning rate and alpha that suit a network, from the size of the gradients in the first steps.

The published values were found for ConvNets, whose features are a few thousand numbers behind instance norms. The
features of another network may be of quite another size, and the gradient of the matching grows with their square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from composer.utils import dist

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.monitoring import some_classes
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.settings import FASTER, SizedSettings

MOVE = 0.006
"""Root mean square of what a step shall move the pixels by. Under the published rates ConvNets' are moved by 0.003 to
0.012 (digits, Fashion-MNIST and CIFAR-10, 1 to 50 images per class)."""

BALANCE = 0.5
"""How large the constraint's gradient shall be beside the matching's. With the published alpha, 0.2 to 2.6 there."""

STEPS = 4
"""The number of steps whose gradients are looked at."""

NEGLIGIBLE = 1e-5
"""How small the matching's gradient is beside the constraint's where it is of rounding alone: 4e-7 was seen."""

DIFFERENCE = 1e-4
"""How far features must differ between images, beside their length, for their network to tell images apart. Those of
trained networks differ by a tenth or more; at 3e-5 the rate that is found was 4e11, and a set of noise came out."""


@dataclass(frozen=True)
class Rates:
    """What a step multiplies its gradients with.

    Args:
        learning_rate: That of SGD on the pixels.
        alpha: Weight of the distribution constraint.
    """

    learning_rate: float
    alpha: float


def calibrate(
    settings: SizedSettings, model: DistillationModel, draws: Draws, chunk: int, device: torch.device, num_classes: int
) -> Rates:
    """Fills in the rates that the settings leave to the network (``'auto'``); the pixels stay as they are.

    Args:
        settings: The resolved settings.
        model: The model; its own alpha is not used.
        draws: The batches of its steps; the first rank's are taken, so that all ranks find the same.
        chunk: The number of classes in one pass.
        device: The device that the networks run on.
        num_classes: The number of the networks' outputs. Of a single one, the constraint is the same for all images,
            and alpha is found to be 0.

    Raises:
        InputError: If no gradient reaches the pixels, or it is not finite, or the last stage's features are the same
            for all images.
    """
    rate, alpha = settings.learning_rate, settings.alpha
    if alpha == "auto" and num_classes == 1:
        alpha = 0.0
    if rate != "auto" and alpha != "auto":
        return Rates(rate or 0.0, alpha or 0.0)
    model.to(device)
    if (difference := model.feature_difference()) < DIFFERENCE:
        raise InputError(
            f"The features of the last stage must differ between images in evaluation mode, got ones that differ by "
            f"{difference:.1g} of their length. Record longer, or look at how the training went: the running "
            f"statistics of batch norms with a small momentum are far from those of the images at first."
        )
    match, constraint = _gradient_sizes(model, draws, chunk, device, constrained=alpha != 0)
    if 0 < constraint < math.inf and match <= NEGLIGIBLE * constraint:
        raise InputError(
            "`images_per_class` must leave something to match, got images whose mean features are those of the real "
            "ones, as where they start as all of them. Lower it, or choose start 'noise'."
        )
    needed = [match, constraint] if alpha == "auto" else [match]
    if not (all(0 < size < math.inf for size in needed) and math.isfinite(constraint)):
        auto = " and ".join(f"`{key}`" for key, value in (("learning_rate", rate), ("alpha", alpha)) if value == "auto")
        raise InputError(
            f"{auto} must be given in numbers where the gradients of the first {STEPS} steps are not finite and above "
            f"0, got 'auto' and sizes of {match:g} (matching) and {constraint:g} (constraint). Give numbers, and look "
            f"at how the recorded training went."
        )
    if alpha == "auto":
        alpha = BALANCE * match / constraint
    # The two gradients are about at right angles.
    moved = math.hypot(match, (alpha or 0.0) * constraint)
    move = MOVE * (FASTER if settings.schedule == "linear" else 1)
    return Rates(move / moved if rate == "auto" else rate or 0.0, alpha or 0.0)


def _gradient_sizes(
    model: DistillationModel, draws: Draws, chunk: int, device: torch.device, *, constrained: bool
) -> tuple[float, float]:
    """Returns the root mean squares of the gradients of matching and constraint, averaged over the first steps.

    That of the constraint is 0 unless it is looked at (``constrained``).
    """
    pixels, given = model.synthetic.pixels, model.alpha
    model.alpha = float(constrained)  # if 1, the model computes logits, and the constraint
    terms = ("match", "constraint")[: 1 + constrained]
    sizes = torch.zeros(2, dtype=torch.float64)
    for step in range(STEPS):
        batch = draws(step, rank=0)
        squares = torch.zeros(2, dtype=torch.float64)
        for first in range(0, len(pixels), chunk):
            part = some_classes(batch, first, chunk, device)
            share = len(part["classes"]) / len(pixels)  # a chunk's loss is scaled to all classes
            for n, name in enumerate(terms):
                # A pass for each: what torch.compile has built may allow one backward pass alone (donated buffers).
                (gradient,) = torch.autograd.grad(model.loss(model(part), part)[name], pixels)
                squares[n] += (gradient.double() * share).square().sum().cpu()
        sizes += (squares / pixels.numel()).sqrt() / STEPS
    model.alpha = given
    found = [sizes.tolist()]
    dist.broadcast_object_list(found, src=0)  # rounding may differ between ranks' devices
    match, constraint = found[0]
    return match, constraint
