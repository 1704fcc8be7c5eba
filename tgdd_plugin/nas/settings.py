"""What is searched, and how: every setting and its default."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tgdd_plugin.core.errors import InputError

CONVNETS: dict[str, list[Any]] = {
    "depth": [1, 2, 3, 4],
    "width": [32, 64, 128, 256],
    "activation": ["sigmoid", "relu", "leakyrelu"],
    "norm": ["none", "batch", "layer", "instance", "group"],
    "pooling": ["none", "max", "avg"],
}
"""The 720 ConvNets that dataset distillation is tried on for architecture search (B. Zhao, K. R. Mopuri and H. Bilen,
"Dataset Condensation with Gradient Matching", ICLR 2021)."""


COSTS = ("parameters", "latency")


SAMPLERS = ("grid", "tpe")


Arguments = dict[str, Any]


PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class SearchSpace:
    """What there is to choose from.

    Args:
        factory: As in :func:`tgdd_plugin.networks.factory.find_factory`: a network of this package, or ``module:function``.
            Default: ``'convnet'``.
        choices: For each argument that is searched, the values it may have, plain ones (numbers, text, yes/no,
            nothing). Default: :data:`CONVNETS`.

    Raises:
        InputError: If there is nothing to choose, a list is empty or has a value twice, or a value is not plain.
    """

    factory: str = "convnet"
    choices: dict = field(default_factory=lambda: dict(CONVNETS))

    def __post_init__(self) -> None:
        if not self.choices:
            raise InputError("choices is empty; name at least one argument of the factory and its values")
        for name, values in self.choices.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"choices.{name} is {values!r}; wanted a list of at least one value")
            for value in values:
                if not isinstance(value, PLAIN):
                    raise InputError(f"choices.{name} has {value!r}; wanted numbers, text, true, false or nothing")
                if isinstance(value, float) and not math.isfinite(value):
                    raise InputError(f"choices.{name} has {value}; wanted finite numbers")
            # 1, 1.0, true and '1' are the same in a study, or look so in a table.
            if min(len(set(values)), len({str(value) for value in values})) < len(values):
                raise InputError(f"choices.{name} is {values}; wanted each value once, and no two that look the same")

    @property
    def size(self) -> int:
        """How many candidates there are in all."""
        return math.prod(len(values) for values in self.choices.values())

    def grid(self) -> list[Arguments]:
        """All candidates, those that differ in the last argument side by side."""
        return [self._at(number) for number in range(self.size)]

    def sample(self, count: int, seed: int = 0) -> list[Arguments]:
        """Different candidates in which every value of an argument comes equally often, as far as that can be.

        Args:
            count: How many, from 1 to :attr:`size`.
            seed: Of the draw. Default: ``0``.

        Raises:
            InputError: If there are not that many.
        """
        if not 1 <= count <= self.size:
            raise InputError(f"{count} candidates were asked for; the space has {self.size}, wanted 1 to {self.size}")
        if count > self.size // 2:  # what is left out is the sample
            left = self.sample(self.size - count, seed) if count < self.size else []
            return [arguments for arguments in self.grid() if arguments not in left]
        draw = random.Random(seed)
        columns = []
        for values in self.choices.values():
            places = [place for _ in range(count) for place in draw.sample(range(len(values)), len(values))][:count]
            columns.append(draw.sample(places, count))
        rows = [list(row) for row in zip(*columns, strict=True)]
        often = Counter(map(tuple, rows))
        while len(often) < count:  # one of two equals trades a value with another row
            one = draw.choice([row for row in rows if often[tuple(row)] > 1])
            other, column = draw.choice(rows), draw.randrange(len(columns))
            before = often.copy()
            often -= Counter([tuple(one), tuple(other)])
            one[column], other[column] = other[column], one[column]
            often += Counter([tuple(one), tuple(other)])
            if len(often) < len(before):
                one[column], other[column] = other[column], one[column]
                often = before
        return [
            {name: self.choices[name][place] for name, place in zip(self.choices, row, strict=True)} for row in rows
        ]

    def _at(self, number: int) -> Arguments:
        found = []
        for name, values in reversed(self.choices.items()):
            number, place = divmod(number, len(values))
            found.append((name, values[place]))
        return dict(reversed(found))


@dataclass(frozen=True)
class NasSettings(SearchSpace):
    """What is searched, and how.

    Args:
        factory, choices: See :class:`SearchSpace`.
        candidates: How many are tried, or for ``'tpe'`` drawn. Default: ``None``, as many as there are.
        sampler: Which: ``'grid'``, all of them or a sample that has every value equally often; ``'tpe'``, Optuna's
            tree-structured Parzen estimator, which looks where it has been good so far. Default: ``'grid'``.
        prune: Whether a candidate gets no more seeds that after one of them is below the median of those that had all
            of theirs (Optuna's median pruner, which leaves the first five be). Default: ``False``.
        validation: Share of the real training images that candidates are judged by. Default: ``0.1``.
        workers: Processes on this machine, over whose GPUs they are spread. Default: ``1``.
        storage: See :func:`tgdd_plugin.nas.trial_queue.open_storage`. Default: ``None``, ``nas.db`` in the output folder.
        study: Name of the study in it. Default: ``'nas'``.
        cost: What accuracy is weighed against in the Pareto front: ``'parameters'`` or ``'latency'``. Default:
            ``'parameters'``.
        train_best: Whether the best candidate is trained on the full data in the end. Default: ``False``.

    Raises:
        InputError: For a value out of range.
    """

    candidates: int | None = None
    sampler: str = "grid"
    prune: bool = False
    validation: float = 0.1
    workers: int = 1
    storage: str | None = None
    study: str = "nas"
    cost: str = "parameters"
    train_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, wanted in (("sampler", SAMPLERS), ("cost", COSTS)):
            if getattr(self, name) not in wanted:
                raise InputError(f"{name} is '{getattr(self, name)}'; wanted one of {', '.join(wanted)}")
        if not 0 < self.validation < 1 or self.workers < 1:
            raise InputError(
                f"validation is {self.validation} and workers {self.workers}; wanted a share between 0 and 1, and at "
                f"least 1"
            )
        if self.candidates is not None and not 1 <= self.candidates <= self.size:
            raise InputError(f"candidates is {self.candidates}; the space has {self.size}, wanted 1 to as many")
