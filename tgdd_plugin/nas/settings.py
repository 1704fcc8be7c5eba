"""What is searched, and how: every setting and its default."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import Count, Flag, Plain, ProperShare, check_once, settings_class

CONVNETS: dict[str, list[Any]] = {
    "depth": [1, 2, 3, 4],
    "width": [32, 64, 128, 256],
    "activation": ["sigmoid", "relu", "leakyrelu"],
    "norm": ["none", "batch", "layer", "instance", "group"],
    "pooling": ["none", "max", "avg"],
}
"""The 720 ConvNets that dataset distillation is tried on for architecture search (B. Zhao, K. R. Mopuri and H. Bilen,
"Dataset Condensation with Gradient Matching", ICLR 2021)."""

_BLOCKED = 500
"""Draws of known candidates in a row after which those that are left are simply shuffled."""

Arguments = dict[str, Any]
RankedBy = Literal["accuracy", "parameters", "flops", "synflow"]


@settings_class
class SearchSpace:
    """A space of networks: a factory, and the values its arguments may have.

    Raises:
        InputError: If there is nothing to choose, a list is empty or has a value twice, or a value is not plain.
    """

    factory: str = "convnet"
    """The factory of the candidates: the name of a network of this package, or module:function."""
    choices: Annotated[dict[str, Annotated[list[Plain], Field(min_length=1)]], Field(min_length=1)] = field(
        default_factory=lambda: dict(CONVNETS)
    )
    """For each argument of the factory that is searched, the list of values it may have: numbers, text, true, false or
    null. The default is the field's grid of 720 ConvNets."""

    def __post_init__(self) -> None:
        for name, values in self.choices.items():
            # 1, 1.0, true and '1' are the same in a study, or look so in a table.
            if min(len(set(values)), len({str(value) for value in values})) < len(values):
                raise InputError(
                    f"`choices.{name}` must be a list of different values, also to look at, got {values}. "
                    f"Leave the repeated one out."
                )

    @property
    def size(self) -> int:
        """The number of candidates in the space."""
        return math.prod(len(values) for values in self.choices.values())

    def grid(self) -> list[Arguments]:
        """All candidates, those that differ in the last argument side by side."""
        return [dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())]

    def sample(self, count: int, seed: int = 0) -> list[Arguments]:
        """Different candidates in which every value of an argument comes equally often, as far as that can be.

        Args:
            count: How many, from 1 to :attr:`size`.
            seed: Seed of the draw. Default: ``0``.

        Raises:
            InputError: If there are not that many.
        """
        if not 1 <= count <= self.size:
            raise InputError(
                f"`candidates` must be from 1 to {self.size}, the size of the space, got {count}. Lower "
                f"it, or leave it out to try all."
            )
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

    def sequence(self, count: int, seed: int = 0, sampled: int = 0) -> list[Arguments]:
        """Different candidates, of which each has the values that come least often before it, as far as that can be.

        A longer sequence begins with the shorter one, so that a search can be extended.

        Args:
            count: How many, from 1 to :attr:`size`.
            seed: Seed of the draw. Default: ``0``.
            sampled: How many of the first are those of :meth:`sample`, as in a study of an earlier version.
                Default: ``0``.
        """
        first = self.sample(sampled, seed) if sampled else []
        rows = dict.fromkeys(tuple(arguments.values()) for arguments in first)
        often = {name: Counter(arguments[name] for arguments in first) for name in self.choices}
        draw, blocked = random.Random(seed), 0

        def rare(name: str) -> Any:  # of equally rare values any; of others, too, once what they make is used up
            return min(self.choices[name], key=lambda value: often[name][value] + (1 + blocked // 100) * draw.random())

        while len(rows) < count:
            row = tuple(map(rare, self.choices))
            blocked = blocked + 1 if row in rows else 0
            if blocked > _BLOCKED:  # few are left, in an order that no longer matters
                rest = [other for other in itertools.product(*self.choices.values()) if other not in rows]
                rows.update(dict.fromkeys(draw.sample(rest, len(rest))))
            elif not blocked:
                rows[row] = None
                for name, value in zip(self.choices, row, strict=True):
                    often[name][value] += 1
        return [dict(zip(self.choices, row, strict=True)) for row in itertools.islice(rows, count)]


@settings_class
class NasSettings(SearchSpace):
    """What is searched, and how.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    candidates: Count | None = None
    """How many candidates are tried, or for tpe drawn. null: as many as the space has. A larger number than before
    extends the search."""
    sampler: Literal["grid", "tpe"] = "grid"
    """Which candidates. grid: all of them, or a sample in which every value comes nearly equally often; tpe: Optuna's
    tree-structured Parzen estimator, which looks where it has been good so far."""
    prune: Flag = False
    """Give a candidate no more seeds once it is below the median of the candidates that had all of theirs (Optuna's
    median pruner, which leaves the first five alone)."""
    images: Literal["file", "random"] = "file"
    """What candidates are trained on. file: the images of the .beton; random: as many random real images of each class,
    once they are decoded, other ones for each seed and none of the validation images."""
    validation: ProperShare = 0.1
    """Share of the real training images that candidates are ranked by; the test images have no part in the search."""
    workers: Count = 1
    """Processes on this machine, spread over its GPUs. The same command given elsewhere takes part, too."""
    storage: str | None = None
    """Where the study is: a file for SQLite, which the processes of one machine can share, or the URL of a database,
    which workers on many machines can share. null: beside the .beton."""
    study: str = "nas"
    """The name of the study in its storage."""
    rank_by: Annotated[list[RankedBy], Field(min_length=1)] = field(default_factory=lambda: ["accuracy"])
    """What candidates are ranked by: accuracy, parameters, flops (of one image) or synflow (Tanaka et al., NeurIPS
    2020); of several the mean of the ranks counts. Of each more is the better."""
    cost: Literal["parameters", "latency"] = "parameters"
    """What the Pareto front weighs accuracy against."""
    train_best: Flag = False
    """Train the best candidate on the full data in the end."""

    @property
    def count(self) -> int:
        """The number of candidates that are tried."""
        return self.candidates or self.size

    def __post_init__(self) -> None:
        super().__post_init__()
        check_once("rank_by", self.rank_by)
        if self.candidates is not None and self.candidates > self.size:
            raise InputError(
                f"`candidates` must be from 1 to {self.size}, the size of the space, got {self.candidates}. Lower "
                f"it, or leave it out to try all."
            )
