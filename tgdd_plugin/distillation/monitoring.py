"""What is seen of a distillation: its cost before it starts, its images meanwhile, and a loss that is not finite."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from composer import Callback, Logger, State

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_grid import make_image_grid
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.synthetic_images import SyntheticImages


class NonFiniteLoss(InputError):
    """The loss of a step is not finite.

    Args:
        message: The message for the user.
        step: The number of steps made before.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class DistillationMonitor(Callback):
    """Shows the images to the user's loggers, and stops a run whose loss is no longer finite, with the last good ones.

    Args:
        interval: Steps between pictures; 0 for none.
        names: The names of the stages, by their position in the bank.
        synthetic: The synthetic images.
    """

    def __init__(self, interval: int, names: list[str], synthetic: SyntheticImages) -> None:
        self.interval = interval
        self.names = names
        self.synthetic = synthetic

    def after_train_batch(self, state: State, logger: Logger) -> None:
        # All gradients are there and the optimizer's step is yet to come: no hook of the optimizer's is called here.
        self.synthetic.keep_finite_()

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        # The Trainer's own number, which costs no wait for the device; this step's checkpoint would come later.
        if not math.isfinite(state.total_loss_dict["loss/train/total"]):
            early, late = (self.names[state.batch[key]] for key in ("early", "late"))
            raise NonFiniteLoss(
                f"The loss is no longer finite at step {step - 1} (early stage: {early}; late stage: {late}). Lower "
                f"learning_rate or alpha.",
                step - 1,
            )
        if self.interval and step % self.interval == 0:
            logger.log_images(make_image_grid(*self.synthetic.to_uint8()), name="tgdd/synthetic")


def estimate(model: DistillationModel, draws: Draws, chunk: int, steps: int, device: torch.device) -> str:
    """Says what a distillation will cost, in a line, by timing a chunk of classes; the pixels stay as they are."""
    model.to(device)
    bank = model.bank
    batches: dict[int, dict[str, Any]] = {}  # for each network the first step that draws it
    for number in range(steps):
        batch = draws(number)
        batches.setdefault(bank.architecture[batch["early"]], batch)
        if len(batches) == len(model.networks):
            break
    count = len(draws.synthetic.pixels)
    step = 0.0
    for architecture, each in batches.items():
        part = _first(each, chunk, device)
        seconds = 0.0
        for _ in range(2):  # the first warms up, and compiles
            began = time.perf_counter()
            model.loss(model(part), part)["total"].backward()
            model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
        often = bank.runs.count(architecture) / sum(bank.runs.count(timed) for timed in batches)
        step += seconds * count / chunk * often
    real = count * draws.settings.real_per_class if draws.pool is not None else 0
    synthetic = count * min(draws.synthetic.decoded_per_class, draws.settings.max_decoded)
    stages = sum(tensor.nbytes for stacked in bank.stacked for tensor in stacked.values()) / 2**20
    networks = f" of {len(model.networks)} networks" if len(model.networks) > 1 else ""
    return (
        f"{steps} steps of {real} real and {synthetic} synthetic images, {chunk} of {count} classes at a time: about "
        f"{step:.3g} s each, {_duration(steps * step)} in all; {len(bank)} stages{networks} take {stages:.0f} MiB"
    )


def _first(value: Any, classes: int, device: torch.device) -> Any:
    """Returns the first classes of a batch, or of a part of one, on the device."""
    if isinstance(value, dict):
        return {name: _first(inner, classes, device) for name, inner in value.items()}
    return value[:classes].to(device) if isinstance(value, torch.Tensor) else value


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
