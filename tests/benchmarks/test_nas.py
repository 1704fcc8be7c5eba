"""The benchmark of rankings, on a few epochs of the embedded digits; its figures against their definitions."""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import harness, nas, nas_table, results
from tgdd_plugin import read_beton
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.nas.costs import flops, synflow
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.networks.convnets import convnet
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe

ROOT = Path(__file__).parents[2]


RECIPE = str(ROOT / "recipes" / "digits.yaml")
CHOICES = "nas.choices={depth: [1, 2], width: [4, 8], norm: [none, instance]}"
SMALL = "device=cpu data.per_class=40 network.depth=1 network.width=4 record.epochs=2 record.batch_size=16".split()
SMALL += "distill.images_per_class=2 distill.steps=3 distill.real_per_class=4".split()
SMALL += ["retrain.epochs=4", "retrain.seeds=2", "retrain.full_epochs=3", "distill.factor=1", CHOICES]
PROXIES = {"distilled, sampled", "distilled, recorded", "random", "herding", "one epoch"}


def run(output: Path, *options: str, small: list[str] = SMALL) -> int:
    return nas.main([RECIPE, "--output", str(output), "--count", "4", *options, "--", *small])


def networks(folder: Path, kind: str = "network") -> list[dict[str, Any]]:
    return [row for row in results.read_rows(folder) if row["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def test_a_recipe_that_leaves_the_size_of_the_set_out_has_the_packages(tmp_path: Path) -> None:
    """Of digits, whose 8 pixels are too few to be shared, ten images of each class at factor 1."""
    recipe = read_recipe(RECIPE, [*SMALL, "distill.images_per_class=null", "distill.factor=null", "retrain.epochs=2"])
    options = argparse.Namespace(
        part="0/1", count=1, sample=0, proxies=nas.PROXIES[:5], output=tmp_path, networks=1, minutes=None
    )
    ranking = nas.Ranking(harness.Bench(recipe, options), options)
    assert (ranking.count, ranking.factor, ranking.different) == (10, 1, 20)  # two epochs


def test_a_row_for_each_network_with_all_proxies(whole: Path) -> None:
    found = networks(whole)
    space = NasSettings(choices={"depth": [1, 2], "width": [4, 8], "norm": ["none", "instance"]})
    assert sorted(map(str, (row["arguments"] for row in found))) == sorted(map(str, space.sample(4)))
    for row in found:
        assert {name for name in row if name in nas.PROXIES} == PROXIES
        assert [len(row[name]) for name in sorted(PROXIES)] == [2] * 5
    truths = networks(whole, "truth")
    assert sorted(map(str, (row["arguments"] for row in truths))) == sorted(map(str, space.sample(4)))
    assert all(len(row["full"]) == 1 for row in truths)


def test_the_costs_are_those_of_the_first_seeds_network(whole: Path) -> None:
    for row in networks(whole):
        torch.manual_seed(0)
        network = convnet(10, 1, 8, **row["arguments"])
        assert row["costs"]["parameters"] == sum(weights.numel() for weights in network.parameters())
        assert row["costs"]["flops"] == flops(network, (1, 8, 8))
        assert row["costs"]["synflow"] == synflow(network, (1, 8, 8))


def test_the_judging_images_are_in_no_set(whole: Path) -> None:
    train, _ = load_data(DataSettings(per_class=40))
    judge = train.split(0.1, torch.Generator().manual_seed(0))[1]
    assert {row["settings"]["judge"] for row in networks(whole)} == {judge.fingerprint()}
    (path,) = (whole / "work").glob("digits-distilled-sampled-*/distilled.beton")
    assert len(read_beton(path)[1]) == 20


def test_the_same_command_trains_nothing_and_parts_make_the_same_rows(whole: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        for training in ("benchmarks.harness.train_network", "benchmarks.nas.train_each"):
            patch.setattr(training, lambda *_, **__: pytest.fail("trained again"))
        assert run(whole) == 0
    assert run(tmp_path, "--part", "1/2") == 2  # no set yet
    assert run(tmp_path, "--part", "0/2") == 0
    assert len(networks(tmp_path)) == 2
    assert run(tmp_path, "--part", "1/2") == 0

    def numbers(folder: Path) -> Any:
        return {
            row["name"]: {name: [each["accuracy"] for each in row[name]] for name in [*PROXIES, "full"] if name in row}
            for row in [*networks(folder), *networks(folder, "truth")]
        }

    assert numbers(tmp_path) == numbers(whole)


def test_soft_labels_and_sets_of_several_networks(tmp_path: Path, monkeypatch, capsys) -> None:
    seen = []

    def watched(images, labels, *arguments, **options):
        seen.append((len(images), labels.dtype, labels.ndim))
        return DeviceLoader(images, labels, *arguments, **options)

    monkeypatch.setattr("benchmarks.nas.DeviceLoader", watched)
    small = [*SMALL, "retrain.seeds=1", "extra_networks=[{name: convnet, depth: 2, width: 4}]"]
    assert run(tmp_path, "--count", "3", "--proxies", *nas.PROXIES, small=small) == 0
    soft = {f"{name}, soft labels" for name in ("distilled, sampled", "distilled, recorded", "random")}
    for row in networks(tmp_path):
        assert {name for name in row if name in nas.PROXIES} == PROXIES | soft
    assert seen.count((20, torch.float32, 2)) == 9 and (20, torch.int64, 1) in seen
    (card,) = (tmp_path / "work").glob("digits-distilled-recorded-*/*.yaml")
    assert [each["arguments"]["depth"] for each in yaml.safe_load(card.read_text())["trajectory"]["networks"]] == [1, 2]
    assert "| all: 3 | distilled, recorded, soft labels |" in capsys.readouterr().out


def test_the_table_has_a_line_for_each_proxy(whole: Path, capsys) -> None:
    assert nas.main(["--table", "--output", str(whole)]) == 0
    printed = capsys.readouterr().out
    for proxy in PROXIES:
        assert f"| all: 4 | {proxy} |" in printed and f"| all: 4 | {proxy} + flops |" in printed
    assert "| all: 4 | parameters + flops + synflow |" in printed


def test_truths_and_proxies_can_be_made_apart(whole: Path, tmp_path: Path, capsys) -> None:
    first = ["--truths", "0", "--proxies", "random", "herding"]
    assert run(tmp_path, *first, "--truth", str(whole)) == 0
    assert "| all: 4 | random |" in capsys.readouterr().out and not networks(tmp_path, "truth")
    assert run(tmp_path, *first, "--truth", str(tmp_path)) == 0
    assert "0 networks are trained in full and on the proxies" in capsys.readouterr().out
    other = [*SMALL, "nas.validation=0.2"]
    assert run(tmp_path / "other", *first, "--truth", str(whole), small=other) == 2
    assert "of other images" in capsys.readouterr().err


def test_input_that_cannot_be_used(tmp_path: Path, capsys) -> None:
    for change, message in [
        (["retrain.full_epochs=0"], "retrain.full_epochs is 0"),
        (["retrain.epochs=40"], "one epoch that sees as many images takes 80 images of each class, and there are 36"),
        (["nas.choices={deep: [1]}"], "`nas.choices` must be arguments of 'convnet', got 'deep'. Choose from"),
    ]:
        assert run(tmp_path, small=[*SMALL, *change]) == 2
        assert message in capsys.readouterr().err
    assert run(tmp_path, "--holdout", "0.1") == 2
    for part in ("2/2", "x", "0/0"):
        assert run(tmp_path, "--part", part) == 2
        assert "wanted I/N" in capsys.readouterr().err
    assert run(tmp_path, "--count", "9") == 2
    assert not json.dumps(networks(tmp_path)).strip("[]")


def kendall_by_hand(x: list[float], y: list[float]) -> float:
    """tau-b: pairs in order less those in reverse, over the geometric mean of pairs that each tells apart."""
    sign = lambda value: (value > 0) - (value < 0)  # noqa: E731
    pairs = list(combinations(range(len(x)), 2))
    both = sum(sign(x[i] - x[j]) * sign(y[i] - y[j]) for i, j in pairs)
    apart = [sum(values[i] != values[j] for i, j in pairs) for values in (x, y)]
    return both / (apart[0] * apart[1]) ** 0.5


def spearman_by_hand(x: list[float], y: list[float]) -> float:
    """Pearson's correlation of ranks, equals at the mean of theirs."""

    def centred(values: list[float]) -> list[float]:
        places = [sum(v < value for v in values) + (values.count(value) - 1) / 2 for value in values]
        return [place - sum(places) / len(places) for place in places]

    a, b = centred(x), centred(y)
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    return dot / (sum(p * p for p in a) * sum(q * q for q in b)) ** 0.5


def test_correlations_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 9, (20,), generator=generator).tolist()
    proxy = [value + int(torch.randint(0, 5, (), generator=generator)) for value in truth]
    for kind, by_hand in (("spearman", spearman_by_hand), ("kendall", kendall_by_hand)):
        value, low, high = nas_table.interval(getattr(nas_table, kind), truth, proxy)
        assert value == pytest.approx(by_hand(truth, proxy))
        assert low < value < high <= 1
    assert nas_table.interval(nas_table.spearman, truth, truth) == pytest.approx((1, 1, 1))
    assert nas_table.kendall(truth, [-value for value in truth]) == pytest.approx(-1)


def test_a_gain_is_of_the_same_networks_in_each_draw() -> None:
    draw = torch.Generator().manual_seed(1)
    truth = torch.randn(40, generator=draw)
    near, far = (truth + size * torch.randn(40, generator=draw) for size in (0.1, 3.0))
    value, low, high = nas_table.interval(nas_table.gain, truth.tolist(), near.tolist(), far.tolist())
    by_hand = [spearman_by_hand(truth.tolist(), proxy.tolist()) for proxy in (near, far)]
    assert value == pytest.approx(by_hand[0] - by_hand[1]) and 0 < low < value < high
    same = nas_table.interval(nas_table.gain, truth.tolist(), far.tolist(), (2 * far).tolist())
    assert same == pytest.approx((0, 0, 0))  # with draws of its own for each it would be wide


def test_a_mean_of_ranks_is_that_of_the_definition() -> None:
    one, other = [3.0, 1.0, 2.0, 2.0], [10.0, 40.0, 30.0, float("-inf")]
    assert nas_table.mean_rank(one, other) == [(4 + 2) / 2, (1 + 4) / 2, (2.5 + 3) / 2, (2.5 + 1) / 2]


def test_top_and_regret() -> None:
    truth, proxy = [90.0, 80.0, 70.0, 60.0], [1.0, 4.0, 3.0, 2.0]
    assert nas_table.regret(truth, proxy) == 10.0 and nas_table.regret(truth, truth) == 0.0
    assert nas_table.top_overlap(truth, proxy, 2) == 0.5 and nas_table.top_overlap(truth, truth, 3) == 1.0
