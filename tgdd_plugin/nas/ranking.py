"""rank_networks(): candidates trained on a compact set and put in order."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Strict
from torch import nn

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.checked_json import AnyFloat, Finite, Flag, Text, Whole
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import InputError, check_seed, reason_of
from tgdd_plugin.core.interrupts import is_interrupt
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.settings import as_settings
from tgdd_plugin.core.tables import DrawTable, markdown_table
from tgdd_plugin.evaluation.scorer import Images, Row, Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas.costs import costs_of
from tgdd_plugin.networks.classifiers import classifiers
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import check_network

ACCURACY = "accuracy"
"""What candidates are ranked by if nothing else is said; the other things are fields of theirs."""


@dataclass
class Candidate:
    """One network of a search, and its result.

    Args:
        name: Its name for people.
        arguments: The arguments of the factory, if it is of a search space.
        parameters, latency, flops, synflow: Of a network as it is initialised by the first seed, see
            :class:`tgdd_plugin.nas.costs.Costs`.
        accuracies: The accuracy on the validation images of each seed's network, from 0 to 1.
        seconds: The seconds of each training.
        problem: The reason why it has no accuracy; empty if it has one.
        pruned: Whether it was given up before all its seeds were trained.
    """

    name: Text
    arguments: dict[Text, Any] = field(default_factory=dict)
    parameters: Whole = 0
    latency: AnyFloat = 0.0
    flops: Whole | None = None
    synflow: Finite | None = None
    accuracies: list[Finite] = field(default_factory=list)
    seconds: list[Finite] = field(default_factory=list)
    problem: Annotated[str, Strict()] = ""
    pruned: Flag = False

    @property
    def row(self) -> Row:
        """The accuracies as a row, for mean and spread."""
        return Row(self.name, accuracies=self.accuracies, seconds=self.seconds)

    def summary(self) -> dict[str, Any]:
        """Returns the candidate as plain values, for JSON."""
        return asdict(self)


def rank_networks(
    networks: Mapping[str, Callable[[], nn.Module]],
    file: str | os.PathLike[str],
    validation_images: Any,
    settings: RetrainSettings | Mapping[str, Any] | None = None,
    *,
    device: Device | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> list[Candidate]:
    """Trains each network on a ``.beton`` and ranks them by their accuracy on validation images.

    Args:
        networks: Functions that build fresh networks, by name.
        file: The ``.beton``, its card beside it.
        validation_images: The images that networks are ranked by: an :class:`ImagePool`, or any data set
            :meth:`ImagePool.from_dataset` takes. Give training images that are held out, not test images: choosing a
            network by them is training.
        settings: How networks are trained, and how many of each. Default: ``RetrainSettings()``; a
            mapping of its keys will do.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``settings.seeds`` seeds. Default: ``0``.
        progress_bar: Whether to show progress bars. Default: ``True``.
        trainer_options: As in :func:`tgdd_plugin.retrain`. Default: none.

    Returns:
        The candidates, best first; those that failed last, with the reason.

    Raises:
        InputError: If the file and the images do not fit each other, or there are no networks.
    """
    check_seed(seed)
    if not isinstance(networks, Mapping) or not networks:
        came = "none" if isinstance(networks, Mapping) else f"a {type(networks).__name__}"
        raise InputError(
            f"`networks` must be functions that build networks, by name, got {came}. Give a mapping of at least one, "
            f"such as {{'wide': build}}."
        )
    settings = as_settings(RetrainSettings, settings)
    card, images = read_card(file), read_beton(file)
    pool = fitting_pool(validation_images, "validation", file, card)
    seeds = range(seed, seed + settings.seeds)
    classes = len(card.classes)
    scorer = Scorer(pool, card.normalization, seeds, classes, device, settings.at_once, progress_bar, trainer_options)
    training = settings.made_for(card.method.get("budget"), card.images).training(len(images[0]))
    factories = {name: classifiers(build) for name, build in networks.items()}  # all, before the first is trained
    every = [
        measure(Candidate(name), build, scorer, lambda seed: images, training) for name, build in factories.items()
    ]
    return ranked(every)


def measure(
    candidate: Candidate,
    build: Callable[[], nn.Module],
    scorer: Scorer,
    images: Callable[[int], Images],
    training: TrainSettings,
    keep_on: Callable[[Candidate], bool] | None = None,
) -> Candidate:
    """Trains and scores a candidate; an error of its own becomes its ``problem``.

    Args:
        candidate: The candidate, which is filled in and returned.
        build: Builds a fresh network of the candidate.
        scorer: The scorer; its test images are the validation images.
        images: Returns the training images of a seed.
        training: How networks are trained.
        keep_on: Gets the candidate after each seed, which are then trained one after another, and says whether to train
            the next. Default: ``None``, all seeds are trained at once.
    """
    on = torch_device(scorer.device)
    for seeds in [[seed] for seed in scorer.seeds] if keep_on else [list(scorer.seeds)]:
        try:
            if not candidate.parameters:
                check_network(build, scorer.test.shape, scorer.num_classes)
                note_costs(candidate, build, scorer.test.shape, on, scorer.seeds[0])
            row = Row(candidate.name)
            replace(scorer, seeds=seeds).score(row, build, images, training)
        except (Exception, SystemExit) as error:  # a user's candidate can fail in any way; the others are to be tried
            if is_interrupt(error):
                raise
            candidate.problem = reason_of(error)
            break
        candidate.accuracies += row.accuracies
        candidate.seconds += row.seconds
        if keep_on and not keep_on(candidate):
            candidate.pruned = len(candidate.accuracies) < len(scorer.seeds)
            break
    return candidate


def note_costs(
    candidate: Candidate, build: Callable[[], nn.Module], shape: Sequence[int], device: torch.device, seed: int
) -> None:
    """Fills in those of a candidate's costs that it lacks, of a network that is initialised by ``seed``."""
    with forked_streams(seed):
        costs = costs_of(build(), shape, device)
    for name, value in asdict(costs).items():
        setattr(candidate, name, getattr(candidate, name) or value)


def mean_ranks(candidates: Sequence[Candidate], by: Sequence[str]) -> list[float]:
    """Returns the mean of each candidate's ranks by several things; 1 is the best, equals share the mean of theirs.

    Args:
        candidates: The candidates, each with an accuracy.
        by: ``'accuracy'``, or the names of costs, of which more is the better; a candidate that lacks one has the
            lowest rank in it.
    """
    ranks = torch.zeros(len(candidates), dtype=torch.double)
    for name in by:
        found = [each.row.mean if name == ACCURACY else getattr(each, name) for each in candidates]
        values = torch.tensor([-math.inf if value is None else value for value in found], dtype=torch.double)
        better, equal = (values > values[:, None]).sum(1), (values == values[:, None]).sum(1)
        ranks += better + (equal + 1) / 2
    return (ranks / len(by)).tolist()


def ranked(candidates: Sequence[Candidate], by: Sequence[str] = (ACCURACY,)) -> list[Candidate]:
    """Returns candidates by their mean rank, of equals the more accurate first, then the one with fewer parameters.

    Those that were given up follow, by their accuracy, then those that failed.

    Args:
        candidates: The candidates.
        by: What they are ranked by, see :func:`mean_ranks`. Default: their mean accuracy alone.
    """
    ranks = _ranks_of_sound(candidates, by)

    def place(candidate: Candidate) -> tuple[bool, bool, float, float, int]:
        mean = 0.0 if candidate.problem else candidate.row.mean
        rank = ranks.get(id(candidate), 0.0)
        return bool(candidate.problem), candidate.pruned, rank, -mean, candidate.parameters

    return sorted(candidates, key=place)


def _ranks_of_sound(candidates: Sequence[Candidate], by: Sequence[str]) -> dict[int, float]:
    """Returns the mean ranks of the candidates that neither failed nor were given up, by their ids."""
    sound = _sound(candidates)
    return dict(zip(map(id, sound), mean_ranks(sound, by), strict=True))


def _sound(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [each for each in candidates if not (each.problem or each.pruned)]


def pareto_front(candidates: Sequence[Candidate], cost: str = "parameters") -> list[Candidate]:
    """Returns the Pareto front: no other candidate is at least as accurate at no more cost, and better in one of them.

    Args:
        candidates: The candidates; those that failed or were given up are left out.
        cost: The cost, ``'parameters'`` or ``'latency'``. Default: ``'parameters'``.

    Returns:
        The candidates of the front by rising cost, and so by rising accuracy; of equals in both, all.
    """
    front: list[Candidate] = []
    for each in sorted(_sound(candidates), key=lambda c: (getattr(c, cost), -c.row.mean)):
        last = front[-1] if front else each
        equal = each.row.mean == last.row.mean and getattr(each, cost) == getattr(last, cost)
        if equal or each.row.mean > last.row.mean:
            front.append(each)
    return front


def table(
    candidates: Sequence[Candidate],
    cost: str = "parameters",
    by: Sequence[str] = (ACCURACY,),
    draw: DrawTable = markdown_table,
    *,
    reasons: bool = True,
) -> str:
    """Returns the candidates, in the order given, as a table in which ``*`` marks the Pareto front.

    Args:
        candidates: The candidates.
        cost: The cost of the Pareto front, ``'parameters'`` or ``'latency'``. Default: ``'parameters'``.
        by: What they were ranked by; if that is not accuracy alone, the mean ranks are a column. Default: accuracy.
        draw: How the table is drawn. Default: in Markdown.
        reasons: Whether the cells of those that failed say why. Default: ``True``.
    """
    front = [id(each) for each in pareto_front(candidates, cost)]
    ranks = {} if list(by) == [ACCURACY] else _ranks_of_sound(candidates, by)
    head = ["rank", "network", "accuracy %", *(["mean rank"] if ranks else [])]
    head += ["parameters", "MFLOPs", "synflow", "latency, ms", "s", "Pareto"]
    rows = []
    for rank, each in enumerate(candidates, 1):
        place, mark = "", ""
        if each.problem:  # it may have no accuracy at all
            accuracy = f"failed: {each.problem}" if reasons else "failed"
        elif each.pruned:
            accuracy = f"{each.row.spread} (given up)"
        else:
            place, accuracy, mark = str(rank), each.row.spread, "*" if id(each) in front else ""
        mean_rank = [f"{ranks[id(each)]:.1f}" if id(each) in ranks else ""] if ranks else []
        size, delay = (f"{each.parameters:,}", f"{each.latency:.2f}") if each.parameters else ("", "")
        work = "" if each.flops is None else f"{each.flops / 1e6:,.2f}"
        flow = "" if each.synflow is None else f"{each.synflow:.2e}"
        seconds = f"{sum(each.seconds):.1f}" if each.seconds else ""
        rows.append([place, each.name, accuracy, *mean_rank, size, work, flow, delay, seconds, mark])
    return draw(head, rows)
