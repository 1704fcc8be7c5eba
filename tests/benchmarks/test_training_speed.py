"""The benchmarks of retraining in miniature: sides that serve the same images, the budget, and curves."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from torch import nn

from benchmarks import harness, loaders, results
from benchmarks import retrain_curve as curves
from benchmarks import training_speed as speed
from benchmarks.turns import Seconds, take_turns
from tgdd_plugin import Card, RetrainSettings, read_beton, read_card, retrain, write_beton
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.evaluation.scorer import EQUAL_PASSES
from tgdd_plugin.networks import convnet
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import train_network

ROOT = Path(__file__).parents[2]


CPU = torch.device("cpu")
SIDES = ["device loader", "stock FFCV", "backend='ffcv'", "torch, 0 workers", "torch, 1 workers"]
TINY = "--device cpu --side 16 --sizes 10 --pairs 2 --images 20 --width 4 --epochs 3 --torch-workers 0 1".split()
TINY += "--networks convnet-4 --set-sizes 10 --at-once 3".split()


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """FFCV's pipelines as plain Python: compiling takes seconds, and a few images hardly any."""
    from ffcv.pipeline.compiler import Compiler

    Compiler.set_enabled(False)
    yield
    Compiler.set_enabled(True)


@pytest.fixture
def data(tmp_path: Path) -> loaders.Data:
    return loaders.write_images(tmp_path, 11, 16)


@pytest.mark.parametrize("by_torch", [False, True], ids=["on the CPU", "as on a GPU"])
def test_stock_pipelines_serve_the_written_images(data, by_torch):
    """As they are compiled, with a last batch that is not full; torch's is the one for a GPU."""
    loaders.check_same("stock", loaders.stock_ffcv(data.path, 4, 1, CPU, by_torch), data)


def test_a_loader_of_other_images_is_refused(data):
    def loader(images: torch.Tensor, labels: torch.Tensor, mean: float = 0.5) -> DeviceLoader:
        return DeviceLoader(images, labels, Normalization([mean] * 3, [0.25] * 3), batch_size=4)

    _, images, labels = data
    loaders.check_same("right", loader(images, labels), data)
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    twice = torch.tensor([0, 0, *range(2, 11)])
    wrong = [(changed, labels), (images, labels.flip(0)), (images[:8], labels[:8]), (images[twice], labels[twice])]
    for pair in wrong:
        with pytest.raises(RuntimeError, match="wrong does not serve the 11 images that were written, each once"):
            loaders.check_same("wrong", loader(*pair), data)
    with pytest.raises(RuntimeError, match="normalized"):
        loaders.check_same("wrong", loader(images, labels, mean=0.501), data)


def test_every_part_in_miniature(uncompiled, tmp_path, monkeypatch, capsys):
    checked: Counter[str] = Counter()
    check = loaders.check_same

    def noted(name: str, loader: Any, data: loaders.Data) -> None:
        check(name, loader, data)
        checked[name] += 1

    monkeypatch.setattr(speed, "check_same", noted)
    monkeypatch.setattr(speed, "COMPACT", 10)
    assert speed.main([*TINY, "--json", str(tmp_path / "found.json")]) == 0
    assert checked == dict.fromkeys(SIDES, 1)
    content = json.loads((tmp_path / "found.json").read_text())
    assert "CPU" in content["machine"] and content["versions"]["ffcv"] and content["settings"]["pairs"] == 2
    found = {(row["part"], row["what"]): row for row in content["rows"]}
    without = [side for side in SIDES if side != loaders.OWN]
    serving = (speed.SET_UP, speed.EPOCH, speed.FIT_SET_UP, speed.FIT_EPOCH)
    assert {key: list(row["seconds"]) for key, row in found.items()} == {
        **{("serving", what): SIDES for what in serving},
        **{("training", what): without for what in (speed.WHOLE, speed.LATER)},
        **{("seeds", what): ["at once", "in turn"] for what in (speed.NETWORK, speed.NETWORK_EPOCH)},
    }
    for row in found.values():
        first, *others = row["seconds"].values()
        assert all(len(values) == 2 and min(values) > 0 for values in (first, *others))
        for ratio, values in zip(row["ratio"].values(), others, strict=True):
            assert ratio["median"] == pytest.approx(sum(v / b for v, b in zip(values, first, strict=True)) / 2)
    assert found["serving", speed.EPOCH]["batch"] == 10, "a batch size of 64 or 256 is that of 10 images"
    assert found["training", speed.WHOLE]["epochs"] == 3
    assert len(found["seeds", speed.NETWORK]["pays"]) == 2 and found["seeds", speed.NETWORK]["epochs"] == 3
    out = capsys.readouterr().out
    assert "| 10 | 10 | an epoch |" in out and "10 images, batch size 10: an epoch takes the stock FFCV loader" in out


def test_turns_alternate_within_the_budget_and_get_their_threads_back():
    order = []

    def side(name: str) -> Seconds:
        order.append((name, torch.get_num_threads()))
        torch.set_num_threads(2)  # as FFCV does
        time.sleep(0.01)
        return {"it": 1.0}

    sides = {name: lambda n=name: side(n) for name in "ab"}
    for budget, turns in ((0.0, 2), (60.0, 4)):
        order.clear()
        found = take_turns(sides, 4, Namespace(budget=budget, threads=1))
        assert found == {"it": {"a": [1.0] * turns, "b": [1.0] * turns}}
        assert "".join(name for name, _ in order) == "abba" * (turns // 2)
        assert {threads for _, threads in order} == {1} and torch.get_num_threads() == 1


def test_trainings_beyond_the_budget_are_left_out(tmp_path, monkeypatch, capsys):
    def found(data: loaders.Data, options: Namespace) -> dict[str, Any]:
        seconds = len(data.labels) / 10  # an epoch
        return {
            speed.WHOLE: {"a": [1 + 3 * seconds] * 2, "b": [1 + 3 * seconds] * 2},
            speed.LATER: {"a": [seconds] * 2, "b": [seconds] * 2},
        }

    monkeypatch.setattr(speed, "training", found)
    path = tmp_path / "found.json"
    options = "--parts training --sizes 400 10 20 --budget 40 --epochs 3 --side 8 --pairs 2 --device cpu".split()
    assert speed.main([*options, "--json", str(path)]) == 0
    assert [row["images"] for row in json.loads(path.read_text())["rows"]] == [10, 10, 20, 20]
    # Two turns of two sides, of 1 s and three epochs of 40 s.
    assert "from 400 images on left out; 2 turns would take about 484 s" in capsys.readouterr().err


def test_bad_options_end_in_one_line(capsys):
    for options, wanted in (
        (["--pairs", "1"], "--pairs is 1; wanted at least 2"),
        (["--sizes", "100", "0"], "wanted at least 1"),
        (["--at-once", "1"], "--at-once is [1]; wanted at least 2"),
        (["--epochs", "2"], "wanted at least 3"),
    ):
        with pytest.raises(SystemExit) as stopped:
            speed.main([*options, "--device", "cpu"])
        printed = capsys.readouterr()
        assert stopped.value.code == 2 and printed.err.count("\n") == 1 and wanted in printed.err


SETTINGS = RetrainSettings(protocol="paper", epochs=6, seeds=2, full_epochs=2, augmentation="color_crop")
KEYS = "device=cpu data.name=digits data.per_class=12 retrain.epochs=6 retrain.seeds=2 retrain.full_epochs=2".split()
KEYS += ["retrain.augmentation=color_crop", "retrain.protocol=paper"]


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real image of each digit, and a card that names a network."""
    torch.set_num_threads(1)
    pool, _ = load_data(DataSettings(per_class=12))
    described = convnet(10, 1, 8, depth=1, width=4).tgdd_network
    card = Card(pool.classes, 0, 1, [], *pool.statistics(), network={"class": "ConvNet", **described})
    first = torch.tensor([int((pool.labels == label).nonzero()[0]) for label in range(10)])
    return write_beton(tmp_path_factory.mktemp("set") / "digits.beton", pool.take(first), pool.labels[first], card)


def draw(beton: Path, output: Path, *options: str, keys: list[str] = KEYS) -> int:
    return curves.main([str(beton), "--output", str(output), "--every", "2ep", *options, "--", *keys])


@pytest.fixture(scope="module")
def drawn(beton: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted command."""
    folder = tmp_path_factory.mktemp("curves")
    assert draw(beton, folder) == 0
    return folder


def accuracies(folder: Path) -> dict[str, list[list[tuple[int, float]]]]:
    """Curves by row, without seconds."""
    return {
        row["side"]: [[(point["batch"], point["accuracy"]) for point in entry["curve"]] for entry in row["networks"]]
        for row in results.read_rows(folder)
    }


def test_curves_end_at_the_numbers_of_retrain(beton, drawn, tmp_path):
    train_set, test_set = load_data(DataSettings(per_class=12))
    copy = write_beton(tmp_path / "copy.beton", *read_beton(beton), replace(read_card(beton)))
    one_by_one = replace(SETTINGS, at_once=False)
    wanted = retrain(copy, test_set, one_by_one, real=train_set, device="cpu", progress_bar=False)
    found = accuracies(drawn)
    assert {row.name: row.accuracies for row in wanted if row.name != EQUAL_PASSES} == {
        side: [curve[-1][1] for curve in networks] for side, networks in found.items()
    }
    batches = {side: [point[0] for point in networks[0]] for side, networks in found.items()}
    assert batches == {"distilled": [2, 4, 6], "random": [2, 4, 6], "full data": [4]}
    for row in results.read_rows(drawn):
        for entry in row["networks"]:
            seconds = [point["seconds"] for point in entry["curve"]]
            assert 0 < seconds[0] and seconds == sorted(seconds) and entry["seconds"] == seconds[-1]


@pytest.mark.parametrize("unit", ["s", "ep"])
def test_scoring_is_outside_of_the_clock(unit):
    scored = 0

    def score() -> float:
        nonlocal scored
        scored += 1
        time.sleep(0.2)
        return 0.5

    class Slow(Callback):
        def batch_start(self, state: Any, logger: Any) -> None:
            time.sleep(0.02)

    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    loader = DeviceLoader(images, torch.zeros(8, dtype=torch.int64), Normalization([0.5], [0.5]), batch_size=4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    settings = TrainSettings(epochs=6, augmentation="none", cutmix=0.0)
    began = time.perf_counter()
    curve = curves.Curve(score, 0.03 if unit == "s" else 2, unit, CPU)
    train_network(network, loader, 2, settings, device="cpu", callbacks=[Slow(), curve])
    spent = time.perf_counter() - began
    seconds = [point["seconds"] for point in curve.points]
    assert len(seconds) == scored >= 3 and curve.points[-1]["batch"] == 12
    assert 12 * 0.02 <= seconds[-1] <= spent - 0.2 * scored
    if unit == "s":
        assert all(later - earlier >= 0.03 for earlier, later in zip(seconds[:-2], seconds[1:-1], strict=True))


def test_stopped_between_trainings_the_same_command_goes_on(beton, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.Deadline, "over", lambda self: True)
    stops = 0
    while (status := draw(beton, tmp_path)) == results.TIME_UP:
        stops += 1
    assert status == 0 and stops == 6 and accuracies(tmp_path) == accuracies(drawn)


def test_a_recipe_with_its_file_draws_the_same(beton, drawn, tmp_path, capsys):
    recipe = str(ROOT / "recipes" / "digits.yaml")
    keys = [f"file={beton}", "network.depth=1", "network.width=4", *KEYS]
    options = ["--output", str(tmp_path), "--every", "2ep", "--full-epochs", "1", "2"]
    assert curves.main([recipe, *options, "--", *keys]) == 0
    found = {row["epochs"]: row["networks"][1] for row in results.read_rows(tmp_path) if row["side"] == "full data"}
    assert found[2]["accuracy"] == accuracies(drawn)["full data"][1][-1][1] and found[1]["accuracy"]
    assert curves.main([recipe, *options, "--", *KEYS, f"file={tmp_path}/none.beton"]) == 2
    assert "distill it first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        curves.main([str(tmp_path / "none.beton"), "--", *KEYS])
    assert "There is no file" in capsys.readouterr().err


def test_the_table_tells_when_levels_were_reached(tmp_path, capsys):
    def row(side: str, epochs: int, *networks: list[tuple[float, float]]) -> None:
        entries = [
            {
                "seed": seed,
                "accuracy": curve[-1][1],
                "seconds": curve[-1][0],
                "curve": [{"seconds": s, "batch": 1, "accuracy": a} for s, a in curve],
            }
            for seed, curve in enumerate(networks)
        ]
        content = {"kind": "curve", "data": "d", "side": side, "epochs": epochs, "images": 10, "networks": entries}
        content |= {"scored_on": "test images", "machines": ["m"], "versions": [{}]}
        (tmp_path / f"{side}-{epochs}.json").write_text(json.dumps(content))

    row("distilled", 30, [(1.0, 0.5), (2.0, 0.62), (3.0, 0.61)], [(1.0, 0.61), (2.0, 0.6), (3.0, 0.6)])
    row("random", 30, [(1.0, 0.4), (3.0, 0.6)], [(1.0, 0.4), (3.0, 0.5)])
    row("full data", 2, [(8.0, 0.7)], [(9.0, 0.6)])
    row("full data", 60, [(20.0, 0.6), (90.0, 0.9)], [(30.0, 0.6), (90.0, 0.9)])
    assert curves.main(["--table", "--output", str(tmp_path), "--levels", "60", "80"]) == 0
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert lines[0][-4:] == ["best %", "seconds in all", "seconds to 60 %", "seconds to 80 %"]
    assert [[line[1], line[3], *line[-2:]] for line in lines[2:]] == [
        ["distilled", "30", "1.50 ± 0.71 (2)", "—"],
        ["random", "30", "not by all", "—"],
        ["full data", "2", "8.50 ± 0.71 (2)", "—"],
        ["full data", "60", "25.00 ± 7.07 (2)", "90.00 ± 0.00 (2)"],
    ]
    assert lines[2][4:6] == ["60.5 ± 0.7 (2)", "61.5 ± 0.7 (2)"], "the last, and the best of each curve"
    (gain,) = (line for line in out.splitlines() if " as long as " in line)
    assert gain.startswith("d, to 60 %: full data (2 epochs) takes 6.5 × (middle half 5.2 .. 7.8, 2 seeds) as long as")
    assert gain.endswith("distilled (30 epochs)."), "each side at its quickest length"
    assert curves.usual_levels(results.read_rows(tmp_path)) == [65, 70, 75, 80, 85, 90]


@pytest.mark.parametrize(("text", "wanted"), [("0.5s", (0.5, "s")), ("10ep", (10.0, "ep")), ("0s", None), ("5", None)])
def test_intervals_are_read(text, wanted, capsys):
    if wanted:
        assert curves.interval(text) == wanted
        return
    with pytest.raises(SystemExit):
        curves.main(["x.yaml", "--every", text])
    assert "is no interval" in capsys.readouterr().err
