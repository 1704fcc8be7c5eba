"""The benchmarks of accuracy, on a few epochs and steps of the embedded digits: rows, stopping, resuming."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import accuracy, harness, one_run, results, time_to_accuracy
from benchmarks.published_loop import PublishedLoop
from benchmarks.separation import class_separation
from tests.common import refused, timeless
from tgdd_plugin import DistillSettings, read_card, retrain
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.distillation.settings import SizedSettings
from tgdd_plugin.evaluation.scorer import EQUAL_PASSES
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.networks import convnet
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory

ROOT = Path(__file__).parents[2]


RECIPE = str(ROOT / "recipes" / "digits.yaml")
SMALL = "device=cpu data.per_class=12 network.depth=1 network.width=4 record.epochs=3 record.batch_size=32".split()
SMALL += "distill.steps=4 distill.real_per_class=4 retrain.epochs=6 retrain.seeds=2 retrain.full_epochs=2".split()
SMALL.append("retrain.protocol=paper")


def run(script: Any, output: Path, *options: str, small: list[str] = SMALL) -> int:
    return script.main([RECIPE, "--output", str(output), *options, "--", *small])


def content(folder: Path) -> dict[str, Any]:
    """The rows by name, without what differs from call to call."""
    return {row["name"]: timeless(row) for row in results.read_rows(folder)}


LOOPS = ("engine-sampled", "engine-exemplars", "engine-recorded")
EVERYTHING = ("--source", "sampled", "--float", "--paper-protocol")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted command."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert run(accuracy, folder, *EVERYTHING) == 0
    assert run(accuracy, folder, "--source", "recorded") == 0
    return folder


def test_stopped_anywhere_the_same_command_ends_with_the_same_rows(whole, tmp_path, monkeypatch):
    asked = 0

    def over(self):
        nonlocal asked
        asked += 1
        return asked % 17 == 0

    monkeypatch.setattr(harness.Deadline, "over", over)
    stops = 0
    for options in (EVERYTHING, ("--source", "recorded")):
        while (status := run(accuracy, tmp_path, *options)) == results.TIME_UP:
            stops += 1
        assert status == 0
    assert stops > 4
    assert content(tmp_path) == content(whole)
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (tmp_path, whole)]
    assert files[0] == files[1], "no checkpoint is left behind"


def test_a_recorded_run_broken_off_is_recorded_to_the_same_bytes(whole, tmp_path, monkeypatch):
    asked = iter([False, True] + 100 * [False])
    monkeypatch.setattr(harness.Deadline, "over", lambda self: next(asked))
    assert run(accuracy, tmp_path, "--source", "sampled") == results.TIME_UP
    (run_folder,) = (tmp_path / "work").glob("trajectory-*/seed0")
    assert len(Run.read(run_folder).stages) == 3, "stopped in its second epoch"
    assert run(accuracy, tmp_path, "--source", "sampled") == 0
    (other,) = (whole / "work").glob("trajectory-*/seed0")
    assert Trajectory.open(run_folder).checksums == Trajectory.open(other).checksums


def test_honest_numbers_are_those_of_retrain(whole):
    (beton,) = (whole / "work").glob("digits-ipc1-factor1-sampled-*/distilled.beton")
    train, test = load_data(DataSettings(per_class=12))
    settings = RetrainSettings(protocol="paper", epochs=6, seeds=2, full_epochs=2, augmentation="color_crop")
    rows = retrain(beton, test, settings, real=train, device="cpu", progress_bar=False)
    wanted = [row for row in rows if row.name != EQUAL_PASSES]
    named = content(whole)
    names = ["digits-ipc1-factor1-sampled", "digits-random1", "digits-full"]
    for row, name in zip(wanted, names, strict=True):
        assert [entry["accuracy"] for entry in named[name]["networks"]] == row.accuracies
        assert named[name]["images"] == row.images
    assert named[names[0]]["sha256"] == read_card(beton).sha256


def test_the_paper_protocol_is_a_maximum_that_holds_the_honest_number(whole):
    row = content(whole)["digits-ipc1-factor1-sampled"]
    scored = row["paper_protocol"]
    assert [entry["step"] for entry in scored] == [1, 2, 3, 4]
    assert all(entry["epochs"] == [1, 2, 3, 4, 5, 6] and len(entry["accuracies"]) == 6 for entry in scored)
    honest = row["networks"][0]["accuracy"]
    assert scored[-1]["accuracies"][-1] == honest
    assert float(accuracy.best_on_test(row)) >= round(100 * honest, 1)


def test_marks_are_the_published_ones_and_end_at_the_end():
    assert accuracy.marks(10_000, 20) == list(range(500, 10_001, 500))
    assert accuracy.marks(1500, 6) == [250, 500, 750, 1000, 1250, 1500]
    assert accuracy.marks(3, 20) == [1, 2, 3] and accuracy.marks(7, 2) == [3, 7]


def test_pixels_that_are_bytes_already_have_no_gap(tmp_path):
    """Real images that were not moved; the loader's multiplication and division may cost a rounding."""
    still = [*SMALL, "distill.learning_rate=0", "retrain.full_epochs=0"]
    assert run(accuracy, tmp_path, "--source", "sampled", "--float", small=still) == 0
    row = content(tmp_path)["digits-ipc1-factor1-sampled"]
    for column in ("networks", "float"):
        assert [entry["seed"] for entry in row[column]] == [0, 1]
    gaps = [one["accuracy"] - other["accuracy"] for one, other in zip(row["float"], row["networks"], strict=True)]
    assert max(map(abs, gaps)) < 0.005


def test_rows_say_what_they_are_and_the_table_prints_them(whole, capsys):
    row = content(whole)["digits-ipc1-factor1-recorded"]
    assert row["settings"]["distill"]["steps"] == 4 and row["settings"]["record"]["epochs"] == 3
    assert row["settings"]["distill"]["alpha"] == 2.5, "defaults are filled in"
    assert "CPU" in row["machines"][0] and row["versions"][0]["torch"] == torch.__version__.split("+")[0]
    assert row["scored_on"] == "test images"
    assert accuracy.main(["--table", "--output", str(whole)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = [name.strip() for name in lines[0].split("|")]
    assert "paper protocol (best on test)" in head and "float − uint8" in head and "full data" in head
    assert lines[2].startswith("| digits | 1 | 1 | sampled |") and lines[3].startswith("| digits | 1 | 1 | recorded |")
    found = dict(zip(head, (cell.strip() for cell in lines[3].split("|")), strict=True))
    scores = [100 * entry["accuracy"] for entry in row["networks"]]
    assert found["distilled"] == f"{sum(scores) / 2:.1f} ± {abs(scores[0] - scores[1]) / 2**0.5:.1f} (2)"


def test_finished_rows_need_no_work_and_more_networks_only_their_own(whole, tmp_path, monkeypatch):
    for path in whole.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    earlier = content(tmp_path)
    assert run(accuracy, tmp_path, *EVERYTHING) == 0
    assert content(tmp_path) == earlier and not (tmp_path / "work").exists()
    assert run(accuracy, tmp_path, "--source", "sampled", "--networks", "3") == 0, "distilled again, to the same bytes"
    row = content(tmp_path)["digits-ipc1-factor1-sampled"]
    assert row["networks"][:2] == earlier[row["name"]]["networks"] and len(row["networks"]) == 3
    assert row["paper_protocol"] == earlier[row["name"]]["paper_protocol"]


def test_time_is_kept(tmp_path, capsys):
    began = time.monotonic()
    long = [*SMALL, "record.epochs=100000", "record.compile=false"]
    status = run(accuracy, tmp_path, "--minutes", "0.01", small=long)
    assert status == results.TIME_UP and time.monotonic() - began < 120  # all epochs would take hours
    printed = capsys.readouterr()
    assert "the same command goes on" in printed.err and "no distilled row" in printed.out
    assert list(tmp_path.glob("work/trajectory-*/checkpoints/seed0/*.pt")), "what was trained is saved"


def test_bad_input_ends_in_one_line(whole, tmp_path, capsys):
    assert "name a recipe" in refused(capsys, accuracy.main)
    assert "--networks is 0" in refused(capsys, accuracy.main, RECIPE, "--networks", "0")
    assert "--minutes is -1.0" in refused(capsys, one_run.main, RECIPE, "--minutes", "-1")
    assert "names no stages" in refused(capsys, one_run.main, RECIPE, "--stages", "every0")
    assert "Did you mean" in refused(capsys, accuracy.main, RECIPE, "--", "distil.steps=3")
    output = ["--output", str(tmp_path)]
    many = ["--", "distill.images_per_class=50", "data.per_class=60", "record.exemplars=40"]
    assert "give record.exemplars=50" in refused(capsys, one_run.main, RECIPE, "--runs", "1", *output, *many)
    assert "want a side that the factor divides" in refused(capsys, accuracy.main, RECIPE, "--factor", "3", *output)
    assert "have 8 px and 12" in refused(
        capsys, accuracy.main, RECIPE, "--ipc", "13", *output, "--", "data.per_class=12"
    )
    there = [RECIPE, "--source", "sampled", "--output", str(whole), "--", *SMALL, "distill.steps=5"]
    assert "distill.steps was 4 and is now 5" in refused(capsys, accuracy.main, *there)
    held = [RECIPE, "--source", "sampled", "--output", str(whole), "--holdout", "0.25", "--", *SMALL]
    assert "data.holdout" in refused(capsys, accuracy.main, *held), "held-out images are of other rows"


def sized_for_cifar(settings: DistillSettings) -> SizedSettings:
    return settings.sized(10, 32)


def test_ablation_takes_the_parts_away_one_by_one():
    options = argparse.Namespace(ipc=[10], factor=[2, 1], source=["sampled", "recorded"])
    found = list(accuracy.ablation(DistillSettings(steps=7), options, sized_for_cifar))
    parts = [(part, s.augmentation, s.factor, s.alpha, s.stages, s.source, s.steps) for _, part, s in found]
    assert parts == [
        ("plain distribution matching", None, 1, 0.0, "all", "sampled", 7),
        ("none", "none", 1, 0.0, "last", "sampled", 7),
        ("+ augmentation and factor", None, 2, 0.0, "last", "sampled", 7),
        ("+ stages", None, 2, 0.0, "all", "sampled", 7),
        ("", None, 2, None, "all", "sampled", 7),
    ]
    cells = {name for name, _, _ in accuracy.cells(DistillSettings(), options, sized_for_cifar)}
    assert found[-1][0] in cells and len(cells) == 4, "the whole is the row of the main table"


@pytest.mark.parametrize(
    ("given", "name"),
    [({}, "ipc10-factor2-sampled"), ({"images_per_class": 1}, "ipc1-factor4-sampled"),
     ({"budget": 10_000}, "ipc100-factor1-sampled")],
)  # fmt: skip
def test_a_row_is_named_by_the_numbers_that_a_recipe_leaves_to_the_defaults(given, name):
    options = argparse.Namespace(ipc=None, factor=None, source=["sampled"])
    assert [row for row, _, _ in accuracy.cells(DistillSettings(**given), options, sized_for_cifar)] == [name]


def test_ablation_has_a_row_of_plain_matching_and_what_a_judge_says(tmp_path, monkeypatch):
    small = [*SMALL, "retrain.epochs=2", "retrain.seeds=1", "distill.images_per_class=2", "distill.factor=2"]
    assert run(accuracy, tmp_path, "--ablation", small=small) == 0
    rows = {row["parts"]: row for row in results.read_rows(tmp_path) if row["kind"] == "distilled"}
    assert set(rows) == set(accuracy.PARTS)

    (judge,) = tmp_path.glob("work/judge-*.safetensors")
    network = convnet(10, 1, 8, depth=1, width=4)
    network.load_state_dict(load_file(judge))
    train, _ = load_data(DataSettings("digits", per_class=12))
    for parts, row in rows.items():
        (file,) = tmp_path.glob(f"work/{row['name']}-????????/distilled.beton")
        images, labels = read_beton(file)
        features = network.features(Normalization(*train.statistics())(images)).flatten(1).detach()
        assert row["separation"] == pytest.approx(class_separation(features, labels), rel=1e-4)
        assert row["seconds"]["step"] > 0, parts
    assert rows[accuracy.MATCHING]["seconds"]["record"] == [None], "of networks that were never trained"

    monkeypatch.setattr(accuracy.Bench, "fit", lambda *_: pytest.fail("trained again"))
    assert run(accuracy, tmp_path, "--ablation", small=small) == 0


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("every2", [0, 2, 4, 5]),
        ("every4", [0, 4, 5]),
        ("half", [0, 1, 2]),
        ("first2", [0, 1]),
        ("last3", [3, 4, 5]),
    ],
)
def test_stages_are_picked(which, wanted):
    assert one_run.pick(list(range(6)), which) == wanted


def test_midpoints_are_means_between_neighbours(tmp_path):
    pool, _ = load_data(DataSettings(per_class=12))
    settings = RecordSettings(epochs=2, batch_size=32, augmentation="none")

    def build():
        return convnet(10, 1, 8, depth=1, width=4, norm="batch")

    trajectory = record(tmp_path / "recorded", pool, build, settings, device="cpu", progress_bar=False)
    one_run.with_midpoints(trajectory, tmp_path / "made")
    made = Trajectory.open(tmp_path / "made")  # its checksums hold
    weights = [
        [t.load(path, stage) for path, run in t.runs.items() for stage in run.stages] for t in (trajectory, made)
    ]
    assert len(weights[0]) == 3 and len(weights[1]) == 5
    for position, stage in enumerate(weights[1]):
        before, after = weights[0][position // 2], weights[0][(position + 1) // 2]
        for name, tensor in stage.items():
            wanted = (before[name] + after[name]) / 2 if tensor.is_floating_point() else before[name]
            assert torch.equal(tensor, wanted), f"{name} at {position}"


def test_one_run_beside_several_and_its_remedies(tmp_path, capsys):
    asked = "--runs 1 --stages every2 --midpoints --networks 1 --source sampled".split()
    assert run(one_run, tmp_path, *asked) == 0
    used = {row["name"].removeprefix("digits-"): row.get("stages_used") for row in results.read_rows(tmp_path)}
    assert used == {
        "runs1-sampled": 4,
        "runs1-every2-sampled": 3,
        "runs1-midpoints-sampled": 7,
        "random1": None,
        "full": None,
    }
    earlier = content(tmp_path)
    assert run(one_run, tmp_path, *asked) == 0
    assert content(tmp_path) == earlier
    table = capsys.readouterr().out
    assert "+ midpoints" in table and "| digits | full |" in table
    betons = [read_card(path) for path in (tmp_path / "work").glob("*/distilled.beton")]
    assert len({card.sha256 for card in betons}) == len(betons) == 3, "no two are of the same stages"


def test_trajectories_of_several_short_and_often_recorded_runs(tmp_path):
    options = argparse.Namespace(
        runs=[1, 2], first=[0, 1], stages=["last2"], interval=["2ba"], short=[1], midpoints=False,
        output=tmp_path, networks=1, minutes=None,
    )  # fmt: skip
    bench = harness.Bench(read_recipe(RECIPE, [*SMALL, "record.epochs=2"]), options)
    found = {}
    for case in one_run.cases(bench, options):
        trajectory = case.open(tmp_path)
        found[case.name] = {path.name: [stage.batch for stage in run.stages] for path, run in trajectory.runs.items()}
        assert len(trajectory.runs) == case.runs
    assert found == {
        "runs1": {"seed0": [0, 4, 8]},
        "runs2": {"seed0": [0, 4, 8], "seed1": [0, 4, 8]},
        "runs1-last2": {"seed0": [4, 8]},
        "runs1-2ba": {"seed0": [0, 2, 4, 6, 8]},
        "runs1-short1": {"seed0": [0, 4, 8], "seed1": [0, 4]},
        "runs1-from1": {"seed1": [0, 4, 8]},
        "runs2-from1": {"seed1": [0, 4, 8], "seed2": [0, 4, 8]},
        "runs1-last2-from1": {"seed1": [4, 8]},
        "runs1-2ba-from1": {"seed1": [0, 2, 4, 6, 8]},
        "runs1-short1-from1": {"seed1": [0, 4, 8], "seed2": [0, 4]},
    }


def test_the_published_loop_is_as_published_whatever_the_recipe_says():
    """Any images to start from and one rate: not herding's choice and the falling rate, which are the defaults."""
    recipe = read_recipe(RECIPE, ["distill.real_per_class=64", "distill.learning_rate=1", "distill.factor=1"])
    (name, loop, published, steps), *engines = time_to_accuracy.jobs(recipe, time_to_accuracy.SOURCES, [2, 4], 125)
    assert (name, loop, steps, published.real_per_class) == ("published loop", time_to_accuracy.published, [2, 4], 125)
    pool = load_data(DataSettings(name="digits"))[0]
    made = PublishedLoop(Trajectory(Path(), {}), pool, published, list, [0.0], [1.0])
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * published.images_per_class)
    assert made.settings.start == "mix"
    assert [(one.steps, one.real_per_class, one.learning_rate) for *_, one, _ in engines] == 3 * [
        (2, 64, 1.0),
        (4, 64, 1.0),
    ]


def test_loops_leave_the_images_that_they_would_ship(tmp_path, capsys):
    """The engine's images are those that distill() wrote for that many steps; the same command runs no loop again."""
    assert run(time_to_accuracy, tmp_path, "--steps", "2", "4") == 0
    first = content(tmp_path)
    assert set(first) == {f"digits-{loop}-{step}" for loop in ("published loop", *LOOPS) for step in (2, 4)}
    for loop in LOOPS:
        kept = [load_file(tmp_path / "work" / f"{loop}-{step}" / f"{step}.safetensors")["images"] for step in (2, 4)]
        for step, images in zip((2, 4), kept, strict=True):
            file = tmp_path / "work" / f"{loop}-{step}" / "last.beton"
            assert torch.equal(images, read_beton(file)[0][:, :1])
            assert read_card(file).method["steps"] == step
        assert not torch.equal(*kept)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_to_accuracy, "distill", None)
        assert run(time_to_accuracy, tmp_path, "--steps", "2", "4") == 0
    assert content(tmp_path) == first
    assert "| engine, recorded | 4 |" in capsys.readouterr().out
