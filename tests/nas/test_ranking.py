"""Ranking networks on a compact set: who comes first, the Pareto front, and candidates that fail."""

import signal
import sys

import pytest
import torch
from composer.core.engine import sigterm_handler
from composer.loggers import InMemoryLogger
from torch import nn

from tests.common import TinyNetwork, tiny_network
from tests.nas.shades import K, pool
from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas.costs import flops, synflow
from tgdd_plugin.nas.ranking import Candidate, mean_ranks, pareto_front, rank_networks, ranked, table
from tgdd_plugin.training.train import accuracy, train_network


class Constant(nn.Module):
    """Says class 0 whatever it sees."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return torch.tensor([1.0, 0, 0]).expand(len(images), K) + 0 * self.bias


def broken():
    raise RuntimeError("no such layer\nand more")


def test_accuracies_are_those_of_a_plain_training(beton):
    settings = RetrainSettings(protocol="paper", epochs=20, batch_size=5, learning_rate=0.1, seeds=2, at_once=False)
    held_out = pool(30, 2)
    found = rank_networks({"tiny": TinyNetwork}, beton, held_out, settings, device="cpu", progress_bar=False)[0]
    expected = []
    few, card = pool(12, 1), read_card(beton)
    for seed in (0, 1):
        network = tiny_network(seed)
        loader = DeviceLoader(few.images, few.labels, card.normalization, batch_size=5, seed=seed)
        train_network(network, loader, K, settings.training(20), seed=seed, device="cpu")
        expected.append(accuracy(network, held_out, card.normalization))
    assert found.accuracies == expected
    assert found.parameters == 4 * 9 + 4 + 16 * K + K
    assert found.flops == flops(tiny_network(0), (1, 8, 8)) and found.synflow == synflow(tiny_network(0), (1, 8, 8))
    assert len(found.seconds) == 2 and min(found.seconds) > 0 and found.latency > 0


def test_the_better_comes_first_and_what_fails_last_with_its_reason(beton):
    settings = RetrainSettings(protocol="paper", epochs=40, batch_size=4, learning_rate=0.1, seeds=1)
    networks = {"broken": broken, "constant": Constant, "tiny": TinyNetwork, "two": lambda: TinyNetwork(num_classes=2)}
    found = rank_networks(networks, beton, pool(30, 2), settings, device="cpu", progress_bar=False)
    assert [each.name for each in found] == ["tiny", "constant", "broken", "two"]
    assert found[1].row.mean == pytest.approx(100 / 3)
    assert found[2].problem == "RuntimeError: no such layer"
    assert "must return logits of shape (2, 3)" in found[3].problem and "got (2, 2)" in found[3].problem
    lines = table(found).splitlines()
    assert lines[2].startswith("| 1 | tiny |") and "failed: RuntimeError: no such layer" in lines[4]


def test_a_network_whose_code_exits_has_failed_and_ctrl_c_ends_all(beton):
    """Which Composer's handler makes an exit of, too."""
    settings = RetrainSettings(protocol="paper", epochs=1, batch_size=4, seeds=1)

    def rank(leave):
        networks = {"leaves": leave, "tiny": TinyNetwork}
        return rank_networks(networks, beton, pool(30, 2), settings, device="cpu", progress_bar=False)

    assert [(each.name, each.problem) for each in rank(sys.exit)] == [("tiny", ""), ("leaves", "SystemExit")]
    assert rank(lambda: sys.exit(3))[1].problem == "SystemExit: 3"
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(SystemExit):
            rank(lambda number=number: sigterm_handler(number, None))


def test_a_logger_given_as_a_trainer_option_sees_the_training(beton):
    settings = RetrainSettings(protocol="paper", epochs=2, batch_size=4, seeds=2, at_once=False)
    logger = InMemoryLogger()
    options = {"loggers": [logger]}
    rank_networks(
        {"tiny": TinyNetwork}, beton, pool(30, 2), settings, device="cpu", progress_bar=False, trainer_options=options
    )
    assert len(logger.data["loss/train/total"]) == 2 * 2 * 3  # seeds, epochs, batches


def test_nothing_to_rank_is_refused(beton):
    with pytest.raises(InputError, match="`networks` must be functions that build networks, by name, got none[.] Give"):
        rank_networks({}, beton, pool(30, 2))
    with pytest.raises(InputError, match="`networks` must be functions .* got a list[.] Give a mapping"):
        rank_networks([lambda: None], beton, pool(30, 2))
    begun = []
    with pytest.raises(InputError, match="got 'resnet18'"):
        rank_networks({"first": lambda: begun.append(1), "second": "resnet18"}, beton, pool(30, 2))
    assert not begun, "refused before the first is built"
    with pytest.raises(InputError, match="validation images must be of .* got 3 classes of"):
        other = ImagePool(torch.zeros(3, 1, 9, 9, dtype=torch.uint8), torch.arange(3))
        rank_networks({"tiny": TinyNetwork}, beton, other)


def candidate(name, accuracy, parameters, **more):
    return Candidate(name, parameters=parameters, accuracies=[accuracy], **more)


def test_the_pareto_front_is_what_no_other_beats():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 100, (60, 2), generator=generator).tolist() * 2
    every = [candidate(str(i), accuracy / 100, cost) for i, (accuracy, cost) in enumerate(values)]

    def beaten(one):
        return any(
            other.accuracies >= one.accuracies and other.parameters <= one.parameters
            and (other.accuracies, -other.parameters) != (one.accuracies, -one.parameters)
            for other in every
        )  # fmt: skip

    expected = [one.name for one in every if not beaten(one)]
    front = pareto_front(every)
    assert sorted(one.name for one in front) == sorted(expected)
    assert len(front) == 2 * len({(one.accuracies[0], one.parameters) for one in front}) > 4  # of equals, all
    assert [one.parameters for one in front] == sorted(one.parameters for one in front)


def test_the_front_can_be_of_latency_and_has_nothing_that_failed():
    every = [
        candidate("slow", 0.9, 10, latency=5.0),
        candidate("fast", 0.8, 20, latency=1.0),
        candidate("failed", 1.0, 1, latency=0.1, problem="it burnt"),
        candidate("pruned", 1.0, 1, latency=0.1, pruned=True),
    ]
    assert [one.name for one in pareto_front(every, "latency")] == ["fast", "slow"]
    assert [one.name for one in pareto_front(every)] == ["slow"]
    assert [one.name for one in ranked(every)] == ["slow", "fast", "pruned", "failed"]


def test_of_equally_accurate_ones_the_smaller_comes_first():
    every = [candidate("large", 0.9, 30), candidate("small", 0.9, 10), candidate("middle", 0.9, 20)]
    assert [one.name for one in ranked(every)] == ["small", "middle", "large"]


def test_several_things_rank_by_the_mean_of_their_ranks():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (20, 3), generator=generator).tolist()
    every = [candidate(str(i), a / 6, size, flops=flops or None) for i, (a, size, flops) in enumerate(values)]

    def rank(column, value):  # 0 FLOPs stand for what could not be counted, which is below all
        of_all = [row[column] for row in values]
        return 1 + sum(other > value for other in of_all) + (of_all.count(value) - 1) / 2

    expected = [sum(rank(column, value) for column, value in enumerate(row)) / 3 for row in values]
    assert mean_ranks(every, ["accuracy", "parameters", "flops"]) == pytest.approx(expected)
    best = [expected[int(each.name)] for each in ranked(every, ["accuracy", "parameters", "flops"])]
    assert best == sorted(best)


def test_the_order_can_be_another_than_that_of_accuracy_and_the_table_says_by_what():
    every = [
        candidate("small", 0.9, 10, flops=1_000_000, synflow=2.0),
        candidate("large", 0.8, 30, flops=3_000_000, synflow=4.0),
        candidate("middle", 0.7, 20, flops=2_000_000),
        candidate("pruned", 1.0, 1, pruned=True),
        candidate("failed", 1.0, 1, problem="it burnt"),
    ]
    assert [each.name for each in ranked(every)] == ["small", "large", "middle", "pruned", "failed"]
    order = ranked(every, ["accuracy", "flops"])
    assert [each.name for each in order] == ["large", "small", "middle", "pruned", "failed"]
    lines = table(order, by=["accuracy", "flops"]).splitlines()
    assert lines[0] == (
        "| rank | network | accuracy % | mean rank | parameters | MFLOPs | synflow | latency, ms | s | Pareto |"
    )
    assert lines[2].startswith("| 1 | large | 80.0 | 1.5 | 30 | 3.00 | 4.00e+00 |")
    assert lines[4].startswith("| 3 | middle | 70.0 | 2.5 | 20 | 2.00 |  |")
    assert lines[5].startswith("|  | pruned | 100.0 (given up) |  | 1 |")
    assert "mean rank" not in table(order)


def test_a_set_for_a_budget_is_trained_on_for_as_long(tmp_path):
    few = pool(12, 1)
    card = Card(few.classes, 0, 4, [1, 8, 8], *few.statistics(), 1, method={"name": "none", "budget": 48})
    write_beton(tmp_path / "few.beton", few.images, few.labels, card)
    trained = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tgdd_plugin.nas.ranking.measure",
            lambda *given: trained.append(given[4]) or Candidate("x", accuracies=[0.5]),
        )
        for settings in (RetrainSettings(seeds=1), RetrainSettings(passes=24, seeds=1)):
            rank_networks({"tiny": TinyNetwork}, tmp_path / "few.beton", pool(30, 2), settings, device="cpu")
    assert [settings.passes for settings in trained] == [48, 24]
