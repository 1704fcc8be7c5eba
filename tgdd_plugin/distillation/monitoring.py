"""What is seen of a distillation: its cost before it starts, and a loss that is not finite."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from composer import Callback, Logger, State

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.usage import in_words, now
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.sampling import Draws


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
    """Stops a run that comes to nothing.

    A loss that is no longer finite ends it with the last good images. So does, without any, a gradient that is not
    finite in any step, or a step that moves nearly all pixels across their whole range: clamped to [0, 1], they would
    only jump between the ends. Both are looked at in steps 8, 16, 32, ... and the last, as that waits for the device.

    Args:
        model: The model that is trained.
        steps: The number of steps in all.
    """

    def __init__(self, model: DistillationModel, steps: int) -> None:
        self.model = model
        self.synthetic = model.synthetic
        self.steps = steps
        self._made = 0
        self._skipped: torch.Tensor | int = 0
        self._jumping: torch.Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"made": self._made, "skipped": int(self._skipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._made, self._skipped = state.get("made", 0), state.get("skipped", 0)  # earlier versions kept neither

    def after_train_batch(self, state: State, logger: Logger) -> None:
        # All gradients are there and the optimizer's step is yet to come: no hook of the optimizer's is called here.
        if (finite := self.synthetic.keep_finite_()) is not None:
            self._made, self._skipped = self._made + 1, self._skipped + ~finite
        step = state.timestamp.batch.value + 1
        if step == self.steps or (step >= 8 and step & (step - 1) == 0):
            self._jumping = self.synthetic.jumping(state.optimizers[0].param_groups[0]["lr"])

    def batch_end(self, state: State, logger: Logger) -> None:
        step = state.timestamp.batch.value
        # The Trainer's own number, which costs no wait for the device; this step's checkpoint would come later.
        if not math.isfinite(state.total_loss_dict["loss/train/total"]):
            raise NonFiniteLoss(self._of_loss(step - 1, state.batch), step - 1)
        if self._jumping is not None:
            self._check_steps(step, float(self._jumping), int(self._skipped))
            self._jumping = None

    def _of_loss(self, step: int, batch: dict[str, Any]) -> str:
        names = {which: self.model.bank.names[batch[which]] for which in ("early", "late")}
        text = (
            f"The loss is no longer finite at step {step} (early stage: {names['early']}; late stage: {names['late']})."
        )
        for which, name in names.items():
            if not self.model.is_finite_at(batch[which]):
                return (
                    f"{text} The training had diverged by then: the outputs of its stage at {name} are not finite for "
                    f"a gray image. Train again at a lower learning rate."
                )
        return f"{text} Lower learning_rate or alpha."

    def _check_steps(self, step: int, jumping: float, skipped: int) -> None:
        """Raises an InputError if the steps so far come to nothing, and warns at the end if some did."""
        if skipped == self._made:
            raise InputError(
                f"The gradient is not finite in any of {self._made} steps up to step {step}, so that no pixel moves, "
                f"though the loss is finite. Lower alpha."
            )
        moves = f"it moves {100 * jumping:.0f} % of them by more than all of it"
        if jumping > 0.9:
            raise InputError(
                f"`learning_rate` must move the pixels within their range [0, 1], but at step {step} {moves}. No file "
                f"is written. Lower learning_rate or alpha."
            )
        if step < self.steps:
            return
        if jumping > 0.5:
            warnings.warn(
                f"learning_rate should move the pixels within their range [0, 1], but at the last step {moves}; lower "
                f"learning_rate or alpha",
                stacklevel=2,
            )
        if skipped:
            warnings.warn(
                f"{skipped} of {self._made} steps had a gradient that is not finite, and moved no pixel; lower alpha",
                stacklevel=2,
            )


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
        part = some_classes(each, 0, chunk, device)
        seconds = 0.0
        for _ in range(2):  # the first warms up, and compiles
            began = now(device)
            model.loss(model(part), part)["total"].backward()
            model.zero_grad(set_to_none=True)
            seconds = now(device) - began
        often = bank.runs.count(architecture) / sum(bank.runs.count(timed) for timed in batches)
        step += seconds * count / chunk * often
    real = count * draws.settings.real_per_class if draws.pool is not None else 0
    synthetic = count * min(draws.synthetic.decoded_per_class, draws.settings.max_decoded)
    stages = sum(tensor.nbytes for stacked in bank.stacked for tensor in stacked.values()) / 2**20
    networks = f" of {len(model.networks)} networks" if len(model.networks) > 1 else ""
    return (
        f"{steps} steps of {real} real and {synthetic} synthetic images, {chunk} of {count} classes at a time: about "
        f"{step:.3g} s each, {in_words(steps * step)} in all; {len(bank)} stages{networks} take {stages:.0f} MiB"
    )


def some_classes(value: Any, first: int, count: int, device: torch.device) -> Any:
    """Returns ``count`` classes of a batch, or of a part of one, from position ``first`` on, on the device."""
    if isinstance(value, dict):
        return {name: some_classes(inner, first, count, device) for name, inner in value.items()}
    return value[first : first + count].to(device) if isinstance(value, torch.Tensor) else value
