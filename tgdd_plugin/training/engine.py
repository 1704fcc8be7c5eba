"""How a training's forward passes are computed: in float32 or bfloat16, compiled or not; and which of them is fastest.

One plain function is compiled, with the network as an argument: networks of one architecture share what was compiled.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tgdd_plugin.core.compile_limit import allow_forms
from tgdd_plugin.core.errors import brief
from tgdd_plugin.training.settings import Compile, Precision

STEPS = 6
"""Steps of each way that are timed, of which the fastest counts."""
WORTH_COMPILING = 60.0
"""Seconds that a training has to take from here on before compiling is tried, which takes up to half a minute."""


COMPILED_FORMS = 64
"""Compiled forms that a process keeps: one for each architecture, batch size and precision."""


class Way(NamedTuple):
    """A way to compute forward passes."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision}, {'compiled' if self.compiled else 'eager'}"


EAGER = Way()


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 faster than float32: most GPUs since 2020, and CPUs with AVX512-BF16 or AMX.

    On a CPU autocast alone is slower all the same; compiled it is not.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def ways_to_try(precision: Precision, compile: Compile, device: torch.device) -> list[Way]:
    """The ways that the settings allow on a device, in the order in which they are timed; those compiled come last."""
    fast = has_bf16(device)
    automatic = [Way("fp32"), *([Way("bf16")] if fast and device.type == "cuda" else [])]
    eager = automatic if precision == "auto" else [Way(precision)]
    if compile == "auto":  # of the two precisions, what is compiled is that which gains more
        best: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" or (precision == "auto" and fast) else "fp32"
        return [*eager, Way(best, True)]
    if not compile:
        return eager
    both: list[Literal["fp32", "bf16"]] = ["fp32", "bf16"] if precision == "auto" and fast else []
    return [Way(each, True) for each in both or [way.precision for way in eager[:1]]]


def _forward(network: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    if not bf16:
        logits: torch.Tensor = network(images)
        return logits
    with torch.autocast(images.device.type, torch.bfloat16):
        return network(images).float()  # type: ignore[no-any-return]


_compiled_forward = torch.compile(_forward, dynamic=False)

_trunks: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

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
                self._next(size, network, images)
            self._last = size, _now(images.device)  # what a trial itself takes belongs to no step
        return self.used.get(size) or self._trials[size].ways[0]

    @property
    def uses_bf16(self) -> bool:
        """Whether batches of some size are computed in bfloat16."""
        now = [*self.used.values(), *(trial.ways[0] for trial in self._trials.values())]
        return any(way.precision == "bf16" for way in now)

    def keep_to_float32(self) -> None:
        """From here on computes in float32, not compiled, whatever was found."""
        self.precision, self.compile = "fp32", False
        self.used, self._trials, self._last = dict.fromkeys({*self.used, *self._trials}, EAGER), {}, None

    def __str__(self) -> str:
        """The way of the batch size that comes most often, for people."""
        most = max(self.used, key=lambda size: self.steps.get(size, 0), default=None)
        return str(EAGER if most is None else self.used[most])

    def _note(self, device: torch.device) -> None:
        assert self._last is not None
        size, began = self._last
        self._last = None
        if size in self._trials:
            self._trials[size].note(_now(device) - began)

    def _begin(self, size: int, network: nn.Module, images: torch.Tensor) -> None:
        ways = ways_to_try(self.precision, self.compile, images.device)
        if found := _chosen.get(self._key(network, images)):
            self.used[size] = found
        else:
            self._trials[size] = _Trial([EAGER, *ways], self.steps.get(size, max(self.steps.values(), default=0)))
            self._next(size, network, images)

    def _next(self, size: int, network: nn.Module, images: torch.Tensor) -> None:
        """Goes on to the next way, or settles for the fastest where none is left."""
        trial = self._trials[size]
        trial.ways, trial.steps = trial.ways[1:], 0
        problem = None
        while trial.ways and trial.ways[0].compiled and self._is_worth_compiling(trial):
            if (problem := compile_problem(trial.ways[0], network, images)) is None:
                break
            trial.ways = trial.ways[1:]
        if problem:
            warnings.warn(
                f"the network is not compiled for training, which goes on without ({problem}). Set compile to false to "
                f"leave the attempt out",
                stacklevel=2,
            )
        if not trial.seconds and len(trial.ways) == 1:
            self._settle(size, trial.ways[0])
        elif not trial.ways:
            self._settle(size, trial.fastest or Way("bf16" if self.precision == "bf16" else "fp32"))
            _chosen[self._key(network, images)] = self.used[size]
        elif trial.ways[0].compiled and not self._is_worth_compiling(trial):
            self._settle(size, trial.fastest or EAGER)

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
        weights = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in network.state_dict().items())
        watched = any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
        place = (images.shape, images.device, torch.get_num_threads())
        return type(network), weights, watched, place, self.precision, self.compile


def compute(way: Way, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns the logits of images in one way, as float32 or in the network's own type."""
    bf16 = way.precision == "bf16"
    if not way.compiled:
        return _forward(network, images, bf16)
    head = watched_head(network)
    if head is None:
        return _compiled_forward(network, images, bf16)
    features = _compiled_forward(trunk(network, head), images, bf16)
    return _forward(head, features, bf16)


def watched_head(network: nn.Module) -> nn.Module | None:
    """The layer at the end of a network on which there are hooks; compiled code would know nothing of them.

    Raises:
        RuntimeError: If there are hooks on other modules.
    """
    watched = [module for module in network.modules() if module._forward_pre_hooks or module._forward_hooks]
    if not watched:
        return None
    if len(watched) > 1 or not isinstance(watched[0], nn.Linear):
        raise RuntimeError("there are hooks on modules other than its head")
    return watched[0]


def trunk(network: nn.Module, head: nn.Module) -> nn.Module:
    """A network without its head, with the very weights of the network."""
    if network not in _trunks:
        shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
        _trunks[network] = copy.deepcopy(network, {**shared, id(head): nn.Identity()})
    return _trunks[network].train(network.training)


def compile_problem(way: Way, network: nn.Module, images: torch.Tensor) -> str | None:
    """Compiles a network's forward and backward pass without training it; says what is in the way of it, if anything.

    Weights, buffers and the random numbers to come stay as they are.
    """
    allow_forms(COMPILED_FORMS)
    buffers = copy.deepcopy(dict(network.named_buffers()))
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (head := watched_head(network)) is not None and not _ends_with(head, network, images[:2]):
                return "the layer whose input is recorded is not its last"
            logits = compute(way, network, images)
            torch.autograd.grad(logits.sum(), [p for p in network.parameters() if p.requires_grad], allow_unused=True)
    except Exception as error:  # a network or a machine that does not compile shows in many ways
        return brief(error)
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
    return None


@torch.no_grad()
def _ends_with(head: nn.Module, network: nn.Module, images: torch.Tensor) -> bool:
    """Whether a network's logits are what its head makes of what the rest returns, looked at in evaluation mode."""
    training = network.training
    network.eval()
    try:
        return torch.allclose(head(trunk(network, head)(images)), network(images), equal_nan=True)
    finally:
        network.train(training)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
