"""The rows of a comparison before they are trained: what is trained, on which images, and for how long."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.mixing import mixed_images, number_of_different
from tgdd_plugin.evaluation.baselines import CONFIDENCE, SELECTIONS, Baselines
from tgdd_plugin.evaluation.compact_set import CompactSet
from tgdd_plugin.evaluation.scorer import EQUAL_PASSES, FULL_DATA, OWN_SOFT_LABELS, RANDOM, Images, Row
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.networks.factory import build_network
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import check_network


@dataclass(frozen=True)
class RowJob:
    """One row that is still to be trained.

    Args:
        row: The row, without accuracies.
        build: Builds a fresh network.
        images: Returns the training images of a seed.
        settings: How the networks are trained.
        wanted: Whether the row is wanted, once those before it are there. Default: it is.
    """

    row: Row
    build: Callable[[], nn.Module]
    images: Callable[[int], Images]
    settings: TrainSettings
    wanted: Callable[[Sequence[Row]], bool] = lambda rows: True


def plan_rows(
    compact: CompactSet,
    baselines: Baselines | None,
    settings: EvaluateSettings,
    training: RetrainSettings,
    softened: Callable[[Images], Images] | None = None,
    seed: int = 0,
) -> list[RowJob]:
    """Returns the jobs of all rows, in the order they are trained.

    Args:
        compact: The compact set.
        baselines: What it is compared with; ``None`` for nothing.
        settings: Which rows there are.
        training: How networks are trained.
        softened: Returns images with soft labels. Default: no such rows.
        seed: The first seed. Default: ``0``.

    Raises:
        InputError: If one of the rows cannot be trained.
    """
    if baselines is not None:
        baselines.check_counts(settings.baselines, seed)
    jobs = [_own_network(compact, "distilled", compact.distilled, training)]
    if baselines is not None:
        jobs += _baselines(compact, baselines, settings, training, seed)
    if compact.soft_labels is not None:
        jobs.append(_own_network(compact, OWN_SOFT_LABELS, compact.own_softened, training, "soft"))
    if softened is not None:
        jobs += _soft_labels(compact, baselines, settings, training, softened)
    jobs += _other_networks(compact, baselines, settings, training)
    if baselines is not None and settings.worth and "random" in settings.baselines:
        jobs += _more_random(compact, baselines, training)
    return jobs


def _own_network(
    compact: CompactSet, name: str, images: Callable[[int], Images], training: RetrainSettings, labels: str = "hard"
) -> RowJob:
    row = Row(name, network=compact.network, labels=labels)
    return RowJob(row, compact.build, images, training.training(compact.card.images))


def _baselines(
    compact: CompactSet, baselines: Baselines, settings: EvaluateSettings, training: RetrainSettings, seed: int
) -> list[RowJob]:
    """The jobs of the set's own network on all that the set is compared with."""
    jobs = []
    if "random" in settings.baselines:
        stored, decoded = compact.stored, compact.decoded
        numbers = [stored, decoded] if decoded != stored else [stored]
        if max(decoded) > (most := int(baselines.real.counts.max())):
            numbers = [stored]
            warnings.warn(
                f"no class has {max(decoded)} real images ({most} at most): no row '{RANDOM[1]}'", stacklevel=3
            )
        for name, count in zip(RANDOM, numbers, strict=False):
            baselines.random(count, seed)  # far too few real images are found out here
            jobs.append(_own_network(compact, name, functools.partial(baselines.random, count), training))
    equal = training.at_equal_passes(compact.card.images)
    jobs.append(RowJob(Row(EQUAL_PASSES, network=compact.network), compact.build, baselines.full, equal))
    if training.mix:
        passes = equal.passes or 0
        different = number_of_different(compact.card.images, len(baselines.real), passes, training.mix)
        row = Row(f"{100 * training.mix:g}% distilled, rest real", different, network=compact.network)
        mixed = functools.partial(mixed_images, *compact.images, baselines.real, passes, training.mix)
        jobs.append(RowJob(row, compact.build, mixed, equal))
    if training.full_epochs:
        whole = training.full_training(len(baselines.real))
        jobs.append(RowJob(Row(FULL_DATA, network=compact.network), compact.build, baselines.full, whole))
    if set(settings.baselines) - {"random"}:
        baselines.check_features()
    for selection in SELECTIONS:
        if selection in settings.baselines:
            if not training.full_epochs:
                raise InputError(
                    f"`full_epochs` must be at least 1 for baseline '{selection}', which chooses by the features of "
                    f"networks trained on the full data, got 0. Give full_epochs, or leave that baseline out."
                )
            jobs.append(_own_network(compact, selection, functools.partial(baselines.selected, selection), training))
    if CONFIDENCE in settings.baselines and baselines.confidences is not None:
        jobs.append(_own_network(compact, CONFIDENCE, baselines.varied, training))
    if "distribution matching" in settings.baselines:
        baselines.matching()
        jobs.append(_own_network(compact, "distribution matching", baselines.matched, training))
    return jobs


def _soft_labels(
    compact: CompactSet,
    baselines: Baselines | None,
    settings: EvaluateSettings,
    training: RetrainSettings,
    softened: Callable[[Images], Images],
) -> list[RowJob]:
    """The jobs of the set's own network with soft labels."""
    jobs = [_own_network(compact, "distilled", lambda seed: softened(compact.images), training, "soft")]
    if baselines is not None and "random" in settings.baselines:
        drawn = functools.partial(baselines.random, compact.stored)
        jobs.append(_own_network(compact, RANDOM[0], lambda seed: softened(drawn(seed)), training, "soft"))
    return jobs


def _more_random(compact: CompactSet, baselines: Baselines, training: RetrainSettings) -> list[RowJob]:
    """The jobs of twice as many random images as stored, four times as many, ...; only as long as the set is better."""
    jobs, count = [], 2 * max(compact.stored)

    def is_better(rows: Sequence[Row]) -> bool:
        own = [row for row in rows if (row.network, row.labels) == (compact.network, "hard")]
        reached = next(row.mean for row in own if row.name == "distilled")
        return all(row.mean < reached for row in own if row.is_random)

    equal = training.at_equal_passes(compact.card.images)
    while count <= int(baselines.real.counts.min()):
        if set(compact.decoded) != {count}:  # that is a row already
            row = Row(f"random, {count} of each class", network=compact.network)
            drawn = functools.partial(baselines.random, count)
            jobs.append(RowJob(row, compact.build, drawn, equal, is_better))
        count *= 2
    return jobs


def _other_networks(
    compact: CompactSet, baselines: Baselines | None, settings: EvaluateSettings, training: RetrainSettings
) -> list[RowJob]:
    """The jobs of other architectures, on the set and on random images."""
    card, how = compact.card, training.training(compact.card.images)
    jobs = []
    for network in settings.networks:
        build = functools.partial(build_network, network, {}, card.shape, len(card.classes))
        check_network(build, card.shape, len(card.classes))
        jobs.append(RowJob(Row("distilled", network=network), build, compact.distilled, how))
        if baselines is not None and "random" in settings.baselines:
            drawn = functools.partial(baselines.random, compact.stored)
            jobs.append(RowJob(Row(RANDOM[0], network=network), build, drawn, how))
    return jobs
