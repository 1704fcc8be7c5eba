"""rank_networks(): candidates trained on a compact set and put in order."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError, brief
from tgdd_plugin.evaluation.scorer import Images, Row, Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import check_network

LATENCY_CALLS = 20
"""Timed calls of a network, of which the median counts."""


@dataclass
class Candidate:
    """One network of a search and what came of it.

    Args:
        name: In words.
        arguments: Of the factory, if it is of a search space.
        parameters: Trainable weights.
        latency: Milliseconds of a forward pass of one image in evaluation mode, median of :data:`LATENCY_CALLS`; what
            else the machine does is in it.
        accuracies: On the images it is judged by, from 0 to 1, one for each seed.
        seconds: Of each training.
        problem: Why it has no accuracy; empty if it has.
        pruned: Whether it was given up before all its seeds were trained.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    latency: float = 0.0
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""
    pruned: bool = False

    @property
    def row(self) -> Row:
        """Its accuracies as a row, for mean and spread."""
        return Row(self.name, accuracies=self.accuracies, seconds=self.seconds)

    def summary(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def rank_networks(
    networks: Mapping[str, Callable[[], nn.Module]],
    file: str | Path,
    judge: Any,
    settings: RetrainSettings | None = None,
    *,
    device: str | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> list[Candidate]:
    """Trains each network on a ``.beton`` and ranks them by their accuracy on other images.

    Args:
        networks: Functions that build fresh networks, by name.
        file: The ``.beton``, its card beside it.
        judge: The images they are judged by: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset`
            takes. Take training images that are held out, not test images: choosing a network by them is training.
        settings: How, and how many networks of each. Default: ``RetrainSettings()``.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``settings.seeds`` seeds. Default: ``0``.
        progress_bar: Default: ``True``.

    Returns:
        The candidates, best first; those that failed last, with the reason.

    Raises:
        InputError: If the file and the images do not fit each other, or there are no networks.
    """
    if not networks:
        raise InputError("no networks came; wanted at least one function that builds one")
    settings = settings or RetrainSettings()
    card, images = read_card(file), read_beton(file)
    pool = fitting_pool(judge, "judging", file, card)
    seeds = range(seed, seed + settings.seeds)
    scorer = Scorer(pool, card.normalization, seeds, len(card.classes), device, settings.at_once, progress_bar)
    training = settings.training(settings.epochs)
    return ranked([measure(Candidate(name), build, scorer, images, training) for name, build in networks.items()])


def measure(
    candidate: Candidate,
    build: Callable[[], nn.Module],
    scorer: Scorer,
    images: Images,
    training: TrainSettings,
    keep_on: Callable[[Candidate], bool] | None = None,
) -> Candidate:
    """Trains and judges a candidate; whatever goes wrong with it is noted on it.

    Args:
        candidate: Is filled in.
        build: Builds a fresh network of it.
        scorer: Whose test images it is judged by.
        images: To train on.
        training: How.
        keep_on: Looks at it after each seed, which are then trained one after another, and says whether to train the
            next. Default: all seeds at once.
    """
    on = torch_device(scorer.device)
    for seeds in [[seed] for seed in scorer.seeds] if keep_on else [list(scorer.seeds)]:
        try:
            if not candidate.parameters:
                check_network(build, scorer.test.shape, scorer.num_classes)
                with torch.random.fork_rng():
                    network = build()
                candidate.parameters = sum(tensor.numel() for tensor in network.parameters() if tensor.requires_grad)
                candidate.latency = latency(network, scorer.test.shape, on)
            row = Row(candidate.name)
            replace(scorer, seeds=seeds).score(row, build, lambda seed: images, training)
        except Exception as error:  # a candidate of the user's can fail in any way, and the others are to be tried
            candidate.problem = str(error) if isinstance(error, InputError) else brief(error)
            break
        candidate.accuracies += row.accuracies
        candidate.seconds += row.seconds
        if keep_on and not keep_on(candidate):
            candidate.pruned = len(candidate.accuracies) < len(scorer.seeds)
            break
    return candidate


@torch.no_grad()
def latency(network: nn.Module, shape: Sequence[int], device: torch.device) -> float:
    """Milliseconds of a forward pass of one image ``(C, H, W)`` in evaluation mode: the median of some."""
    network = copy.deepcopy(network).to(device).eval()
    image, spent = torch.zeros(1, *shape, device=device), []
    for _ in range(3 + LATENCY_CALLS):  # the first few find their algorithms and fill caches
        began = time.perf_counter()
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - began)
    return 1000 * sorted(spent[3:])[LATENCY_CALLS // 2]


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best mean accuracy first, fewer parameters first among equals; then those given up, then those that failed."""

    def place(candidate: Candidate) -> tuple[bool, bool, float, int]:
        mean = 0.0 if candidate.problem else candidate.row.mean
        return bool(candidate.problem), candidate.pruned, -mean, candidate.parameters

    return sorted(candidates, key=place)


def pareto_front(candidates: Sequence[Candidate], cost: str = "parameters") -> list[Candidate]:
    """Those that no other beats: none is at least as accurate at no more cost, and better in one of the two.

    Args:
        candidates: Those that failed or were given up are passed over.
        cost: ``'parameters'`` or ``'latency'``.

    Returns:
        By rising cost, and so by rising accuracy.
    """
    front: list[Candidate] = []
    sound = [each for each in candidates if not (each.problem or each.pruned)]
    for each in sorted(sound, key=lambda c: (getattr(c, cost), -c.row.mean)):
        if not front or each.row.mean > front[-1].row.mean:
            front.append(each)
    return front


def table(candidates: Sequence[Candidate], cost: str = "parameters") -> str:
    """The candidates, in the order given, as a Markdown table; ``*`` marks the Pareto front."""
    front = [id(each) for each in pareto_front(candidates, cost)]
    lines = [
        "| rank | network | accuracy % | parameters | latency, ms | s | Pareto |",
        "|---|---|---|---|---|---|---|",
    ]
    for rank, each in enumerate(candidates, 1):
        about = [f"{each.parameters:,}", f"{each.latency:.2f}"] if each.parameters else ["", ""]
        seconds = f"{sum(each.seconds):.1f}" if each.seconds else ""
        if each.problem:
            cells = ["", each.name, f"failed: {each.problem}".replace("|", "/"), *about, seconds, ""]
        elif each.pruned:
            cells = ["", each.name, f"{each.row.spread} (given up)", *about, seconds, ""]
        else:
            cells = [str(rank), each.name, each.row.spread, *about, seconds, "*" if id(each) in front else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
