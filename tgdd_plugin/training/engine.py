"""Which way to compute a training's forward passes is fastest, found while it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from tgdd_plugin.core.usage import now
from tgdd_plugin.core.weights import only_tensors
from tgdd_plugin.training.forward_passes import EAGER, Way, compile_problem, compute, watched_modules
from tgdd_plugin.training.settings import Compile, Precision

STEPS = 6
"""Steps of each way that are timed, of which the fastest counts."""
WORTH_COMPILING = 60.0
"""Seconds that a training has to take from here on before compiling is tried, which takes up to half a minute."""


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: most GPUs since 2020, and CPUs with AVX512-BF16 or AMX.

    On a CPU autocast alone is slower all the same; compiled it is not.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def ways_to_try(precision: Precision, compile: Compile, device: torch.device) -> list[Way]:
    """The ways that the settings allow on a device, in the order in which they are timed; those compiled come last."""
    precisions: list[Literal["fp32", "bf16"]] = ["fp32"] if precision == "auto" else [precision]
    if precision == "auto" and has_bf16(device):
        precisions.append("bf16")
    eager = [Way(each) for each in precisions[: None if device.type == "cuda" else 1]]
    compiled = [Way(each, True) for each in precisions]
    if compile == "auto":  # of the two precisions, what is compiled is that which gains more
        return [*eager, compiled[-1]]
    return compiled if compile else eager


_chosen: dict[tuple[Any, ...], Way] = {}
"""What was fastest in this process, by architecture and all else that it depends on."""


@dataclass
class _Trial:
    """The timing of batches of one size.

    Args:
        ways: Those still to be timed, the present one first.
        remaining: Batches of this size that are left in the training.
        seconds: The fastest step of each way so far.
        steps: How many the present way had.
    """

    ways: list[Way]
    remaining: int
    seconds: dict[Way, float] = field(default_factory=dict)
    steps: int = 0

    @property
    def fastest(self) -> Way | None:
        return min(self.seconds, key=self.seconds.__getitem__, default=None)

    def end_way(self) -> None:
        """Leaves the present way for the next."""
        self.ways, self.steps = self.ways[1:], 0

    def note(self, seconds: float) -> None:
        """Counts a step of the present way; the first one warms up."""
        self.steps, self.remaining = self.steps + 1, self.remaining - 1
        if self.steps > 1:
            way = self.ways[0]
            self.seconds[way] = min(seconds, self.seconds.get(way, seconds))


class Engine:
    """Computes a training's forward passes in the fastest way that its settings allow.

    Where they allow several, the first steps of each batch size are timed, each way in turn, as they are trained on;
    compiling is tried if the training would take another minute without. What was found in this process for an
    architecture is kept.

    Args:
        precision, compile: As in :class:`tgdd_plugin.training.settings.TrainSettings`.
        steps: How many batches of each size come, by the size; of another size, which a memory that is replayed makes,
            as many as of the one that comes most often.
        tell: Gets one line where something other than float32, not compiled, is chosen. Default: nobody is told.
    """

    def __init__(
        self,
        precision: Precision = "fp32",
        compile: Compile = False,
        steps: dict[int, int] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.precision, self.compile = precision, compile
        self.steps = steps or {}
        self.tell = tell
        self.used: dict[int, Way] = {}
        """The way of each batch size, once it is settled."""
        self._earlier: dict[int, Way] = {}  # what was settled before the training was cut short
        self._trials: dict[int, _Trial] = {}
        self._last: tuple[int, float] | None = None  # the batch before: its size, and when it began

    def __call__(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of images ``(..., C, H, W)`` in training, as float32 or in the network's own type."""
        return compute(self.way(network, images), network, images)

    def way(self, network: nn.Module, images: torch.Tensor) -> Way:
        """The way in which a batch is computed, which is about to be."""
        size = images.shape[:-3].numel()
        if self._last is not None:
            self._note(images.device)
        if size not in self.used and size not in self._trials:
            self._begin(size, network, images)
        if self._trials:
            if size in self._trials and self._trials[size].steps > STEPS:
                self._trials[size].end_way()
                self._prepare(size, network, images)
            self._last = size, now(images.device)  # what a trial itself takes belongs to no step
        return self.used.get(size) or self._trials[size].ways[0]

    @property
    def uses_bf16(self) -> bool:
        """Whether batches of some size are computed in bfloat16."""
        ways = [*self.used.values(), *(trial.ways[0] for trial in self._trials.values())]
        return any(way.precision == "bf16" for way in ways)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on in the same ways, as plain values."""
        ways = {size: list(way) for size, way in self._known.items()}
        return {"precision": self.precision, "compile": self.compile, "ways": ways}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.precision, self.compile = state["precision"], state["compile"]
        self._earlier = {size: Way(*way) for size, way in state["ways"].items()}

    def keep_to_float32(self) -> None:
        """From here on computes in float32, not compiled, whatever was found."""
        self.precision, self.compile = "fp32", False
        self.used, self._trials, self._last = dict.fromkeys({*self.used, *self._trials}, EAGER), {}, None
        self._earlier = {}

    def __str__(self) -> str:
        """The way of the batch size that comes most often, for people."""
        most = max(self._known, key=lambda size: self.steps.get(size, 0), default=None)
        return str(EAGER if most is None else self._known[most])

    @property
    def _known(self) -> dict[int, Way]:
        return {**self._earlier, **self.used}

    def _note(self, device: torch.device) -> None:
        assert self._last is not None
        size, began = self._last
        self._last = None
        if size in self._trials:
            self._trials[size].note(now(device) - began)

    def _begin(self, size: int, network: nn.Module, images: torch.Tensor) -> None:
        earlier = self._earlier.get(size)
        if earlier and not (earlier.compiled and compile_problem(earlier, network, images)):
            self.used[size] = earlier
        elif found := _chosen.get(self._key(network, images)):
            self.used[size] = found
        else:
            ways = ways_to_try(self.precision, self.compile, images.device)
            self._trials[size] = _Trial(ways, self.steps.get(size, max(self.steps.values(), default=0)))
            self._prepare(size, network, images)

    def _prepare(self, size: int, network: nn.Module, images: torch.Tensor) -> None:
        """Makes the next way ready, or settles for the fastest where none is left to be timed."""
        trial, problem = self._trials[size], None
        while trial.ways and trial.ways[0].compiled:
            if not self._is_worth_compiling(trial):
                self._settle(size, trial.fastest or EAGER)
                return
            if (problem := compile_problem(trial.ways[0], network, images)) is None:
                break
            trial.end_way()
        if problem:
            warnings.warn(
                f"the network is not compiled for training, which goes on without ({problem}). Set compile to false to "
                f"leave the attempt out",
                stacklevel=2,
            )
        if not trial.seconds and len(trial.ways) == 1:  # nothing to compare it with
            self._settle(size, trial.ways[0])
        elif not trial.ways:
            self._settle(size, trial.fastest or Way("bf16" if self.precision == "bf16" else "fp32"))
            _chosen[self._key(network, images)] = self.used[size]

    def _is_worth_compiling(self, trial: _Trial) -> bool:
        if self.compile != "auto" or trial.fastest is None:
            return True
        return trial.remaining * trial.seconds[trial.fastest] > WORTH_COMPILING

    def _settle(self, size: int, way: Way) -> None:
        trial = self._trials.pop(size)
        self.used[size] = way
        if way != EAGER and self.tell:
            faster = ""
            if EAGER in trial.seconds:
                faster = f", {trial.seconds[EAGER] / trial.seconds[way]:.1f} times as fast as in float32, not compiled"
            self.tell(f"batches of {size} are computed in {way}{faster}")

    def _key(self, network: nn.Module, images: torch.Tensor) -> tuple[Any, ...]:
        state = only_tensors(network.state_dict())
        weights = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items())
        watched = tuple(watched_modules(network))
        place = (images.shape, images.device, torch.get_num_threads())
        return type(network), weights, watched, place, self.precision, self.compile
