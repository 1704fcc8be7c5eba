"""The command line as a user meets it: a job from start to end, pictures, and one line for what cannot work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tests.common import snapshot
from tgdd_plugin import cli
from tgdd_plugin.beton.card import card_path, read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.trajectory.store import Trajectory

# Three classes of 8x8 grayscale images, in a module of the user's own in the current folder.
MODULE = """
import numpy as np

def sets():
    random = np.random.default_rng(0)
    return [[(random.integers(80 * (i % 3), 80 * (i % 3) + 90, (8, 8), dtype=np.uint8), i % 3) for i in range(n)]
            for n in (60, 30)]
"""
RECIPE = {
    "output": "out",
    "data": {"name": "cli_test_data:sets"},
    "network": {"name": "convnet", "depth": 1, "width": 4},
    "record": {"epochs": 2, "augmentation": "crop"},
    "distill": {"images_per_class": 2, "factor": 2, "steps": 3, "real_per_class": 5, "augmentation": "crop"},
    "retrain": {"protocol": "paper", "epochs": 2, "seeds": 2, "full_epochs": 1, "augmentation": "crop"},
}


def tgdd(folder, *arguments):
    """The command in a process of its own, with ``folder`` as the current one."""
    path = os.pathsep.join([str(Path(cli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "tgdd_plugin.cli", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder in which `tgdd run` has been called, and what it printed."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "cli_test_data.py").write_text(MODULE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    done = tgdd(folder, "run", "recipe.yaml", "retrain.epochs=3")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def here(job, tmp_path, monkeypatch):
    """A copy of that folder, as the current one."""
    shutil.copytree(job[0], tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    monkeypatch.syspath_prepend(str(tmp_path / "job"))
    return tmp_path / "job"


def test_a_job_from_start_to_end(job):
    folder, done = job
    out = folder / "out"
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    stages = {f"trajectory/seed0/stage-ep{i}-ba{i}.safetensors" for i in range(3)}  # 60 images are one batch
    wanted = {"sets-ipc2.beton", "sets-ipc2.beton.yaml", "trajectory/job.json"}
    wanted |= {"sets-ipc2-retrain.json", "sets-ipc2-recipe.yaml", "sets-ipc2.png", "sets-ipc2-report.html"}
    wanted |= {"sets-ipc2-evolution.png", "sets-ipc2-log.csv", "sets-ipc2-costs.json", "trajectory/costs.json"}
    wanted |= {"sets-ipc2-retrain-log.csv", "trajectory/seed0-log.csv"}
    recorded = {f"trajectory/seed0/{name}" for name in ("manifest.json", "exemplars.safetensors")}
    assert written == wanted | stages | recorded  # and no checkpoint, no temporary file
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        "recorded  out/trajectory: 1 run(s), 3 stages",
        "distilled out/sets-ipc2.beton, drawn in sets-ipc2.png",
    ]
    assert lines[-2:] == ["results   out/sets-ipc2-retrain.json", "report    out/sets-ipc2-report.html"]
    rows = {line[:23].strip(): line[23:].split() for line in lines[5:10]}
    content = json.loads((out / "sets-ipc2-retrain.json").read_text())
    assert {r["name"]: [str(r["images"]), str(r["passes"])] for r in content["rows"]} == {
        name: cells[:2] for name, cells in rows.items()
    }
    assert rows["distilled"][:2] == ["24", "72"] and rows["full data"][:2] == ["60", "60"]  # the override counts
    assert rows["full data, equal passes"][:2] == ["60", "72"]
    for row in content["rows"]:
        assert rows[row["name"]][2] == f"{row['mean_percent']:.1f}"
    # Nothing on the terminal that a user could do nothing about.
    for word in ("Warning", "warn", "Traceback", "deprecated"):
        assert word not in done.stderr
    card = read_card(out / "sets-ipc2.beton")
    assert card.accuracy[0]["rows"] == content["rows"]
    assert (card.images, card.images_per_class, card.factor, card.shape) == (24, 2, 2, [1, 8, 8])


def test_what_a_job_took_is_noted(job):
    out = job[0] / "out"
    record = json.loads((out / "trajectory/costs.json").read_text())
    costs = json.loads((out / "sets-ipc2-costs.json").read_text())
    assert [*record] == ["record"] and [*costs] == ["distill", "retrain"]
    for cost in (*record.values(), *costs.values()):
        assert 0 < cost["seconds"] < 600 and 100 < cost["memory_mib"] < 30_000
    rows = json.loads((out / "sets-ipc2-retrain.json").read_text())["rows"]
    assert costs["retrain"]["seconds"] > sum(sum(row["seconds"]) for row in rows)
    assert "Time and memory" in (out / "sets-ipc2-report.html").read_text()


def strict(text):
    """One JSON object, without the NaN and Infinity that Python would take."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_programs_get_one_object_and_people_the_rest(here, capfd):
    assert cli.main(["run", "recipe.yaml", "--json", "retrain.epochs=3"]) == 0
    out, err = capfd.readouterr()
    made = strict(out)
    assert "distilled out/sets-ipc2.beton: already done" in err and "trained on" in err
    assert [*made] == ["step", "record", "distill", "retrain", "report"] and made["step"] == "run"
    assert made["record"] == {"trajectory": "out/trajectory", "already_done": True, "runs": 1, "stages": 3}
    assert made["distill"] == {"file": "out/sets-ipc2.beton", "already_done": True}
    content = json.loads(Path("out/sets-ipc2-retrain.json").read_text())
    assert made["retrain"]["rows"] == content["rows"] and made["retrain"]["results"] == "out/sets-ipc2-retrain.json"
    assert Path(made["report"]).is_file()
    assert cli.main(["show", "--json", "out/sets-ipc2.beton"]) == 0
    out, err = capfd.readouterr()
    shown, card = strict(out), read_card("out/sets-ipc2.beton")
    assert err == "" and shown["picture"] is None and shown["bytes"] == Path("out/sets-ipc2.beton").stat().st_size
    assert shown["sha256"] == card.sha256 and shown["accuracy"] == card.accuracy and shown["file"].endswith(".beton")
    manifest = Path("out/trajectory/seed0/manifest.json")
    manifest.write_text(
        re.sub(r'"loss/train/total": [0-9.]+', '"loss/train/total": NaN', manifest.read_text(), count=1)
    )
    assert cli.main(["show", "out/trajectory", "--json"]) == 0
    (run,) = strict(capfd.readouterr().out)["runs"]
    losses = [stage["metrics"].get("loss/train/total", "none") for stage in run["stages"]]
    assert losses[:2] == ["none", None] and isinstance(losses[2], float)
    for command in (["run", "none.yaml"], ["show", "nowhere"]):
        assert cli.main([*command, "--json"]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("tgdd: ")


@pytest.mark.parametrize("options", [["--jsn"], ["--json", "--x=1"]])
def test_an_unknown_option_is_not_taken_for_a_key(here, capfd, options):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "recipe.yaml", *options])
    assert stopped.value.code == 2 and "unrecognized arguments: --" in capfd.readouterr().err


def test_a_job_on_a_recording_of_ones_own_leaves_it_alone(here, capfd):
    own = here / "own"
    shutil.copytree(here / "out/trajectory", own, ignore=shutil.ignore_patterns("job.json"))
    before = snapshot(own)
    settings = ["retrain.epochs=1", "retrain.seeds=1", "retrain.full_epochs=0"]
    assert cli.main(["run", "recipe.yaml", "trajectory=own", "file=own.beton", *settings]) == 0
    assert "recorded by a Trainer of yours" in capfd.readouterr().out
    assert cli.main(["record", "recipe.yaml", "trajectory=own"]) == 2
    assert "was recorded by a Trainer of yours" in capfd.readouterr().err
    assert snapshot(own) == before


def test_a_path_that_is_not_there_says_what_was_wanted(here, capfd):
    assert cli.main(["distill", "nowhere"]) == 2
    assert "There is no 'nowhere'. Give a trajectory folder, a recipe (YAML), or the name" in capfd.readouterr().err


def test_a_trajectory_that_lacks_its_normalisation_can_be_distilled(here, capfd):
    manifest = here / "out/trajectory/seed0/manifest.json"
    content = json.loads(manifest.read_text())
    mean, std = content["mean"], content["std"]
    manifest.write_text(json.dumps({**content, "mean": None, "std": None}))
    options = [f"distill.{key}={value}" for key, value in RECIPE["distill"].items()]
    command = ["distill", "out/trajectory", "data.name=cli_test_data:sets", "file=given.beton", *options]
    assert cli.main(command) == 2
    assert "data.mean=[...] data.std=[...]" in capfd.readouterr().err
    assert cli.main([*command, f"data.mean={mean}", f"data.std={std}", "head=classifier"]) == 0
    assert Path("given.beton").read_bytes() == (here / "out/sets-ipc2.beton").read_bytes()


def test_a_finished_job_given_again_repeats_and_replaces_nothing(here, capfd):
    """Every step says so; the files stay byte for byte, the seconds of the trainings included."""
    before = snapshot(here)
    table = (here / "out/sets-ipc2-retrain.json").read_text()
    assert cli.main(["run", "recipe.yaml", "retrain.epochs=3"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "recorded  out/trajectory: already done, 1 run(s), 3 stages"
    assert lines[1] == "distilled out/sets-ipc2.beton: already done, and kept as it is"
    assert [line.split()[0] for line in lines[5:10]] == ["distilled", "random", "random,", "full", "full"]
    assert lines[-2:] == ["results   out/sets-ipc2-retrain.json: already done", "report    out/sets-ipc2-report.html"]
    for step, last in (("record", lines[0]), ("distill", lines[1]), ("retrain", lines[-2])):
        assert cli.main([step, "recipe.yaml", "retrain.epochs=3"]) == 0
        assert capfd.readouterr().out.splitlines()[-1] == last
    assert snapshot(here) == before and len(read_card("out/sets-ipc2.beton").accuracy) == 1
    # A call that was killed before its last rows goes on with them; the card gets no second entry.
    content = json.loads(table)
    Path("out/sets-ipc2-retrain.json").write_text(json.dumps({**content, "rows": content["rows"][:2]}))
    assert cli.main(["retrain", "recipe.yaml", "retrain.epochs=3"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "results   out/sets-ipc2-retrain.json"
    rows = json.loads(Path("out/sets-ipc2-retrain.json").read_text())["rows"]
    assert rows[:2] == content["rows"][:2]
    assert [row["accuracies"] for row in rows] == [row["accuracies"] for row in content["rows"]]
    assert rows[2:] != content["rows"][2:], "the seconds of another training"
    assert len(read_card("out/sets-ipc2.beton").accuracy) == 1


def test_another_job_replaces_nothing_unasked(here, capfd):
    steps = ["recipe.yaml", "distill.steps=5"]
    for step in ("run", "distill"):
        refusal = refused(capfd, here, step, *steps)
        assert "'out/sets-ipc2.beton' is of another job (distill.steps was 3 and is now 5). Choose another" in refusal
    changed = refused(capfd, here, "retrain", "recipe.yaml", "retrain.epochs=4")
    assert "'out/sets-ipc2-retrain.json' is of another evaluation (retrain.epochs was 3 and is now 4)" in changed
    # Under another name it is a job beside the first one.
    before = snapshot(here / "out")
    quick = ["retrain.epochs=1", "retrain.seeds=1", "retrain.full_epochs=0"]
    assert cli.main(["run", *steps, *quick, "file=out/five.beton"]) == 0
    after = snapshot(here / "out")
    new = {f"five{end}" for end in (".beton", ".beton.yaml", "-retrain.json", "-recipe.yaml", ".png", "-report.html")}
    new |= {"five-evolution.png", "five-log.csv", "five-retrain-log.csv", "five-costs.json"}
    assert after.keys() - before.keys() == new and {**after, **before} == after
    # And asked for, it takes the first one's place, its results with it; the note of the job asks for nothing.
    assert cli.main(["run", *steps, *quick, "overwrite=true"]) == 0
    replaced = snapshot(here / "out")
    assert replaced["sets-ipc2.beton"] == after["five.beton"] and replaced.keys() == after.keys()
    assert json.loads(replaced["sets-ipc2-retrain.json"])["settings"]["epochs"] == 1
    assert len(read_card("out/sets-ipc2.beton").accuracy) == 1
    assert yaml.safe_load(replaced["sets-ipc2-recipe.yaml"])["overwrite"] is False
    capfd.readouterr()
    assert cli.main(["run", "out/sets-ipc2-recipe.yaml"]) == 0
    assert capfd.readouterr().out.count("already done") == 3 and snapshot(here / "out") == replaced


def test_what_nothing_is_known_of_is_not_replaced(here, capfd):
    Path("notes.txt").write_text("mine")
    shutil.copy("out/sets-ipc2.beton", "bare.beton")
    for file in ("notes.txt", "bare.beton"):
        for step in ("run", "distill"):
            message = refused(capfd, here, step, "recipe.yaml", f"file={file}")
            assert f"'{file}' is there already, and nothing says what it is" in message and "has no card" in message
    card = card_path("out/sets-ipc2.beton")
    card.write_text(re.sub("(?<=\nsha256: ).*", "f" * 64, card.read_text()))
    assert "checksums differ" in refused(capfd, here, "distill", "recipe.yaml")
    assert cli.main(["distill", "recipe.yaml", "overwrite=true"]) == 0
    assert read_card("out/sets-ipc2.beton").accuracy == []


@pytest.mark.parametrize(
    ("name", "data", "folder", "wanted"),
    [
        ("run/trajectory", None, "run/trajectory", "run"),
        ("run/trajectory", None, "run/trajectory/seed0", "run"),
        ("my run", None, "my run", "my-run"),
        ("run/trajectory", "cifar10", "run/trajectory", "cifar10"),
        ("run/trajectory", "my_module:my_sets", "run/trajectory/seed0", "my_sets"),
        ("run/trajectory", "../../\x1b[31m/etc", "run/trajectory", "31m-etc"),
        ("run/trajectory", "../..", "run/trajectory", "run"),
        ("run/trajectory", 7, "run/trajectory", "run"),
        ("run/trajectory", "x" * 1000, "run/trajectory", "x" * 100),
    ],
)
def test_a_file_is_named_after_what_was_recorded(here, capfd, name, data, folder, wanted):
    """And not after the default of ``data.name``, where that is left out."""
    shutil.copytree("out/trajectory", name, ignore=shutil.ignore_patterns("job.json"))
    if data is not None:
        (here / name / "job.json").write_text(json.dumps({"data": {"name": data}}))
    settings = ["distill.images_per_class=1", "distill.steps=1", "distill.augmentation=none"]
    assert cli.main(["distill", folder, *settings]) == 0, capfd.readouterr().err
    assert capfd.readouterr().out == f"distilled outputs/{wanted}-ipc1.beton, drawn in {wanted}-ipc1.png\n"
    assert sorted(path.name for path in Path("outputs").iterdir()) == [
        f"{wanted}-ipc1-costs.json",
        f"{wanted}-ipc1-evolution.png",
        f"{wanted}-ipc1-log.csv",
        f"{wanted}-ipc1.beton",
        f"{wanted}-ipc1.beton.yaml",
        f"{wanted}-ipc1.png",
    ]


def test_a_given_name_comes_first(here, capfd):
    settings = ["distill.images_per_class=1", "distill.steps=1", "distill.real_per_class=5", "output=new"]
    assert cli.main(["distill", "out/trajectory", "data.name=cli_test_data:sets", *settings]) == 0
    assert Path("new/sets-ipc1.beton").is_file()
    Path("damaged.yaml").write_text(json.dumps({"trajectory": "out/trajectory", "distill": {"source": "recorded"}}))
    Path("out/trajectory/job.json").write_text("{")
    assert cli.main(["distill", "damaged.yaml", *settings]) == 0
    assert Path("new/out-ipc1.beton").is_file()


def test_the_steps_one_by_one_and_the_shortcuts(here, capfd):
    """`distill FOLDER` and `retrain FILE` give what the recipe gives; the images are the same to the bit."""
    first = (here / "out/sets-ipc2.beton").read_bytes()
    assert cli.main(["record", "recipe.yaml"]) == 0  # complete, so it is kept
    assert "3 stages" in capfd.readouterr().out
    options = [f"distill.{key}={value}" for key, value in RECIPE["distill"].items()]
    data = "data.name=cli_test_data:sets"
    shutil.copytree("out/trajectory", "2024")  # a folder whose name YAML takes for a number
    assert cli.main(["distill", "2024", data, "file=again.beton", *options]) == 0
    assert "distilled again.beton" in capfd.readouterr().out
    assert Path("again.beton").read_bytes() == first
    settings = ["retrain.epochs=1", "retrain.seeds=1", "retrain.full_epochs=0"]
    assert cli.main(["retrain", "again.beton", data, *settings]) == 0
    table = capfd.readouterr().out
    rows = [line.split()[0] for line in table.splitlines()[3:] if line]
    assert rows == ["distilled", "random", "random,", "full", "results"] and "results   again-retrain.json" in table
    assert len(read_card("again.beton").accuracy) == 1


def test_held_out_images_serve_to_choose_and_stand_on_no_card(here, capfd):
    few = ["retrain.epochs=1", "retrain.seeds=1", "retrain.full_epochs=0", "data.holdout=0.2"]
    assert cli.main(["run", "recipe.yaml", "output=held", "distill.steps=1", *few]) == 0
    out, err = capfd.readouterr()
    line = "These are accuracies on held-out training images, to choose settings by; the card does not get them."
    assert line in out and "held out now" not in err
    results = json.loads(Path("held/sets-ipc2-retrain.json").read_text())
    assert (results["scored_on"], results["test_images"]) == ("held-out training images", 12)
    assert read_card("held/sets-ipc2.beton").accuracy == []
    assert "No comparison on test images has ended" in Path("held/sets-ipc2-report.html").read_text()


def test_images_are_read_once_for_a_whole_run(here, monkeypatch):
    calls = []
    monkeypatch.setattr("tgdd_plugin.pipeline.steps.load_data", lambda *a, **k: calls.append(a) or load_data(*a, **k))
    assert (
        cli.main(["run", "recipe.yaml", "output=other", "retrain.epochs=1", "retrain.seeds=1", "distill.steps=1"]) == 0
    )
    assert len(calls) == 1


# One line, status 2, and nothing touched.


def refused(capfd, folder, *arguments):
    before = snapshot(folder)
    status = cli.main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert status == 2 and out == ""
    assert err.startswith("tgdd: ") and err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in err
    assert snapshot(folder) == before
    return err


@pytest.mark.parametrize("step", ["run", "record", "distill", "retrain"])
@pytest.mark.parametrize(
    ("text", "overrides", "pattern"),
    [
        (None, [], "Recipe 'my.yaml' cannot be read: No such file"),
        ("a: [1", [], "Recipe 'my.yaml' is not YAML"),
        ("outptu: x", [], "Unknown key `outptu`. Did you mean `output`?"),
        ("distill: {steps: many}", [], "`distill.steps` must be a whole number of at least 1, or null, got 'many'"),
        ("", ["distill.step=3"], "Did you mean `distill.steps`?"),
        ("", ["steps"], "'steps' is not an override"),
        ("data: {name: imagenet}", [], "`data.name` must be one of digits, cifar10"),
        ("network: {name: convnet, widht: 3}", [], "Did you mean `network.width`?"),
    ],
)
def test_a_recipe_that_is_wrong(tmp_path, monkeypatch, capfd, step, text, overrides, pattern):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("my.yaml").write_text(text)
    assert pattern in refused(capfd, tmp_path, step, "my.yaml", *overrides)


def test_what_is_not_there(here, capfd):
    assert "no trajectory folder 'none/trajectory'" in refused(capfd, here, "distill", "recipe.yaml", "output=none")
    assert "Recipe 'none.yaml' cannot be read" in refused(capfd, here, "distill", "none.yaml")
    assert "has no recorded run" in refused(capfd, here, "distill", "out/trajectory/..")
    assert "There is no file 'none.beton'" in refused(capfd, here, "retrain", "none.beton")
    assert "There is no file 'none/sets-ipc2.beton'" in refused(capfd, here, "retrain", "recipe.yaml", "output=none")
    assert "There is no 'none.beton'. Name a" in refused(capfd, here, "show", "none.beton")
    assert not Path("none").exists()
    missing = refused(capfd, here, "record", "recipe.yaml", "data.name=no_such_module:sets")
    assert "can be imported, got 'no_such_module:sets'" in missing
    folder = ["record", "recipe.yaml", "data.name=image_folder", "data.root=pictures"]
    assert "There is no folder 'pictures/train'" in refused(capfd, here, *folder)
    for part in ("train/a", "train/b", "val/a", "val/b"):
        Path(f"pictures/{part}").mkdir(parents=True)
        Path(f"pictures/{part}/0.png").write_bytes(b"no picture")
    assert "cannot identify image file" in refused(capfd, here, *folder)  # PIL's own error, which is an OSError


@pytest.mark.parametrize("step", ["run", "record"])
def test_an_output_that_cannot_be_written(here, capfd, step):
    """Below a regular file, where not even root can write; found out before any work."""
    Path("plain").write_text("a file")
    assert "Cannot write 'plain/x/" in refused(capfd, here, step, "recipe.yaml", "output=plain/x")


def test_an_output_file_that_cannot_be_written(here, capfd):
    Path("plain").write_text("a file")
    for step in ("run", "distill"):
        assert "Cannot write 'plain/x.beton'" in refused(capfd, here, step, "recipe.yaml", "file=plain/x.beton")
        assert "'out' is a folder. Name a file in it" in refused(capfd, here, step, "recipe.yaml", "file=out")


def test_a_job_that_does_not_fit_what_is_there(here, capfd):
    changed = refused(capfd, here, "run", "recipe.yaml", "record.epochs=3")
    assert "recorded by another job (record.epochs was 2 and is now 3)" in changed
    changed = refused(capfd, here, "record", "recipe.yaml", "network.width=8")
    assert "network.arguments.width was 4 and is now 8" in changed
    Path("out/trajectory/job.json").write_text("{")
    assert "job.json', which says what was recorded there, is damaged" in refused(capfd, here, "record", "recipe.yaml")
    few = refused(capfd, here, "distill", "recipe.yaml", "distill.images_per_class=500", "file=few.beton")
    assert "which has 20 real images to start from, got 500: start 'herding'" in few
    other = refused(capfd, here, "retrain", "out/sets-ipc2.beton", "data.name=digits")
    assert (
        "The test images must be of at most 3 classes and shape [1, 8, 8], as in 'out/sets-ipc2.beton', got 10 classes"
        in other
    )
    wrong = refused(capfd, here, "record", "recipe.yaml", "output=new", "network.depth=9")
    assert "`network.depth` must be at most 3 with image_size 8, as each block halves the image, got 9" in wrong
    # A job that comes to nothing does not stand in the way of the next one.
    Path("new/trajectory").mkdir(parents=True, exist_ok=True)
    shutil.copy("out/trajectory/job.json", "new/trajectory")
    assert cli.main(["record", "recipe.yaml", "output=new", "network.width=8", "record.epochs=1"]) == 0
    assert json.loads(Path("new/trajectory/job.json").read_text())["settings"]["epochs"] == 1


def test_test_images_that_do_not_fit_are_told_before_anything_is_trained(here, capfd):
    Path("misfits.py").write_text(
        "import numpy as np\n\n\nclass Named(list):\n    classes = ['0', '1', 'two']\n\n\n"
        "def made(count, *shape):\n    return [(np.full(shape, i, np.uint8), i % count) for i in range(60)]\n\n\n"
        "def side():\n    return made(3, 8, 8), made(3, 6, 6)\n\n\n"
        "def channels():\n    return made(3, 8, 8), made(3, 8, 8, 3)\n\n\n"
        "def more():\n    return made(3, 8, 8), made(4, 8, 8)\n\n\n"
        "def names():\n    train, test = Named(made(3, 8, 8)), Named(made(3, 8, 8))\n"
        "    train.classes = ['zero', 'one', 'two']\n    return train, test\n"
    )
    for name, message in (
        ("side", "The test images must be of at most 3 classes and shape [1, 8, 8], {}, got 3 classes of [1, 6, 6]."),
        ("channels", "The test images must be of at most 3 classes and shape [1, 8, 8], {}, got 3 classes of [3, 8,"),
        ("more", "The test images must be of at most 3 classes and shape [1, 8, 8], {}, got 4 classes of [1, 8, 8]."),
        ("names", "The classes of the test images must be those of the training images, zero, one, two, got 0, 1, two"),
    ):
        data = f"data.name=misfits:{name}"
        line = refused(capfd, here, "run", "recipe.yaml", data, "output=new")
        assert message.format("as in the training images") in line
        line = refused(capfd, here, "replay", "recipe.yaml", data, "output=new", "replay.tasks=3")
        assert message.format("as in the training images") in line
        if name != "names":
            space = ["nas.choices={width: [2]}", "nas.train_best=true"]
            line = refused(capfd, here, "nas", "out/sets-ipc2.beton", data, *space)
            assert message.format("as in 'out/sets-ipc2.beton'") in line
    line = refused(capfd, here, "run", "recipe.yaml", "output=new", "distill.classes=['0', '1']")
    assert "The training images must be of at most 2 classes and shape [1, 8, 8], as in the set with distill" in line
    assert "Leave distill.classes out, or use tgdd record and tgdd distill" in line
    Path("out/trajectory/job.json").unlink()  # as a Trainer of the user's would leave it
    line = refused(capfd, here, "run", "recipe.yaml", "data.name=misfits:side", "file=out/other.beton")
    assert "as in the trajectory, got 3 classes of [1, 6, 6]." in line


def test_files_that_are_damaged(here, capfd):
    file = Path("out/sets-ipc2.beton")
    whole, card = file.read_bytes(), card_path(file).read_text()
    file.write_bytes(whole[:100000])
    for arguments in (("show", file), ("retrain", "recipe.yaml")):
        assert "checksums differ" in refused(capfd, here, *arguments)
    file.write_bytes(whole)
    card_path(file).write_text(card[: card.index("mean:")])
    assert "The card 'out/sets-ipc2.beton.yaml' is damaged" in refused(capfd, here, "show", file)
    card_path(file).unlink()
    assert "has no card" in refused(capfd, here, "retrain", "recipe.yaml")
    card_path(file).write_text(card)
    stage = next(Path("out/trajectory/seed0").glob("stage-ep1*"))
    stage.write_bytes(stage.read_bytes()[:-1])
    for arguments in (("show", "out/trajectory"), ("distill", "recipe.yaml")):
        assert "checksum differs" in refused(capfd, here, *arguments)


def test_an_interrupt_is_one_line(tmp_path, monkeypatch, capfd):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tgdd_plugin.pipeline.job.read_job", interrupted)
    assert cli.main(["run", "x.yaml"]) == 130
    assert capfd.readouterr().err.startswith("tgdd: interrupted")


def test_usage_errors_end_with_status_2(capfd):
    for arguments in ([], ["destill", "x"], ["run"], ["show", "a", "b"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
        assert capfd.readouterr().err.startswith("usage: tgdd")


def test_only_what_must_be_given_is_called_required(capfd):
    with pytest.raises(SystemExit):
        cli.main(["retrain"])
    assert capfd.readouterr().err.endswith("the following arguments are required: path\n")


# Show.


def test_show_a_beton(here, capfd):
    assert cli.main(["show", "out/sets-ipc2.beton"]) == 0
    out, err = capfd.readouterr()
    card = read_card("out/sets-ipc2.beton")
    assert err == "" and out.splitlines()[-1] == "picture     out/sets-ipc2.png"
    assert card.sha256 in out and "24 of 1x8x8: 2 stored per class, factor 2" in out and "alpha 2.5" in out
    assert f"{card.accuracy[0]['rows'][0]['mean_percent']:.1f}" in out
    drawn = Path("out/sets-ipc2.png").read_bytes()
    with Image.open("out/sets-ipc2.png") as picture:
        assert picture.format == "PNG"
        beside = picture.width
    assert cli.main(["show", "out/sets-ipc2.beton", "--picture", "new/other.png"]) == 0
    with Image.open("new/other.png") as picture:
        assert beside > 1.5 * picture.width, "the images at the start stand beside the distilled ones"
    assert cli.main(["show", "out/sets-ipc2.beton", "--picture", "other.svg"]) == 0
    assert all(f">{name}<" in Path("other.svg").read_text() for name in card.classes)
    assert Path("out/sets-ipc2.png").read_bytes() == drawn
    Path("out/sets-ipc2.png").write_bytes(Path("recipe.yaml").read_bytes())  # of another set, or no picture at all
    assert cli.main(["show", "out/sets-ipc2.beton"]) == 0
    assert Path("out/sets-ipc2.png").read_bytes() == Path("new/other.png").read_bytes()


def test_show_a_trajectory(here, capfd):
    assert cli.main(["show", "out/trajectory"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "seed0: 3 stages" in out and "convnet" in out and "classes     3" in out
    assert cli.main(["show", "out/trajectory/seed0"]) == 0
    assert "seed0: 3 stages" in capfd.readouterr().out


def test_show_and_help_do_not_wait_for_composer(job):
    script = """
import sys
from tgdd_plugin.cli import main
for arguments in (["show", "out/trajectory"], ["show", "out/sets-ipc2.beton", "--picture", "p.png"]):
    assert main(arguments) == 0
    assert "composer" not in sys.modules, arguments
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    options = {"cwd": job[0], "env": environment, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([sys.executable, "-c", script], **options)
    assert done.returncode == 0, done.stderr
    script = """
import sys
from tgdd_plugin.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
assert not {"composer", "torch", "ffcv"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], **options)
    assert done.returncode == 0, done.stderr
    assert all(step in done.stdout for step in ("run", "record", "distill", "retrain", "show"))
    assert all(f"\n  {status} " in done.stdout for status in (0, 1, 2, 130)), "the exit status"


@pytest.mark.parametrize(
    ("given", "before", "wanted"), [(None, "", "PASSIVE"), ("ACTIVE", "", "ACTIVE"), (None, "import torch", None)]
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(tmp_path, given, before, wanted):
    script = f"""
{before}
import os, sys
from tgdd_plugin.cli import main
assert main(["init", "mine.yaml"]) == 0
assert ("torch" in sys.modules) == bool({before!r}), "torch reads it as it is loaded"
print("policy", os.environ.get("OMP_WAIT_POLICY"))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    environment.pop("OMP_WAIT_POLICY", None)
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([sys.executable, "-c", script], **options)
    assert done.returncode == 0, done.stderr
    assert f"policy {wanted}\n" in done.stdout


def test_the_recipe_of_a_run_is_what_the_card_says(job):
    recipe = read_recipe(job[0] / "recipe.yaml")
    method = read_card(job[0] / "out/sets-ipc2.beton").method
    for key, value in RECIPE["distill"].items():
        assert method[key] == value == getattr(recipe.distill, key)
    run = Trajectory.open(job[0] / "out/trajectory").run
    assert run.network["arguments"]["width"] == 4 and run.classes == ["0", "1", "2"]
    assert torch.is_tensor(read_beton(job[0] / "out/sets-ipc2.beton")[0])


def test_export_and_import_give_the_same_images(job, tmp_path, capfd):
    folder, *_ = job
    file = next(Path(folder).rglob("*.beton"))
    assert cli.main(["export", str(file), str(tmp_path / "tensors")]) == 0
    assert "data.pt" in capfd.readouterr().out
    pixels, copy = str(tmp_path / "tensors/data.pt"), str(tmp_path / "copy.beton")
    assert cli.main(["import", pixels, copy, "--mean", "0.3", "--std", "0.4"]) == 0
    for ours, again in zip(read_beton(file), read_beton(copy), strict=True):
        assert torch.equal(ours, again)
    assert read_card(copy).mean == [0.3]
    capfd.readouterr()
    assert cli.main(["import", str(file), copy, "--mean", "0.3", "--std", "0.4"]) == 2
    error = capfd.readouterr().err
    assert "is not a .pt that torch.save wrote" in error and error.count("\n") == 1
    assert cli.main(["export", str(file), str(tmp_path / "pictures"), "--png"]) == 0
    assert cli.main(["export", str(file), str(tmp_path / "pictures"), "--png"]) == 2
    assert "has content" in capfd.readouterr().err


def test_a_write_error_without_a_name_says_how_to_go_on(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(27, "File too large")

    monkeypatch.setattr("tgdd_plugin.pipeline.job.read_job", full)
    assert cli.main(["run", "digits"]) == 2
    assert "File too large: a file could not be read or written. Once it can" in capfd.readouterr().err


def test_a_full_disk_is_told_without_temporary_names(monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device", "set.beton", None, ".out.x1.tmp/set.beton")  # as of a copy

    monkeypatch.setattr("tgdd_plugin.pipeline.job.read_job", full)
    assert cli.main(["run", "digits"]) == 2
    error = capfd.readouterr().err
    assert "No space left on device: a file could not be read or written. Once it can" in error and ".tmp" not in error


def test_a_recording_of_more_runs_than_the_recipe_says_is_not_refused(tmp_path, monkeypatch):
    """What it keeps is counted by the distillation itself."""
    monkeypatch.chdir(tmp_path)
    short = ["device=cpu", "data.per_class=20", "network.depth=1", "network.width=4", "record.epochs=2"]
    short += ["record.exemplars=4", "distill.source=recorded", "distill.images_per_class=2", "distill.factor=2"]
    short += ["record.compile=false", "record.precision=fp32", "retrain.compile=false", "retrain.precision=fp32"]
    short += ["retrain.epochs=1", "distill.steps=1", "retrain.full_epochs=0", "retrain.seeds=1", "output=out"]
    assert cli.main(["record", "digits", *short, "record.runs=2"]) == 0
    assert cli.main(["run", "digits", *short, "record.runs=1", "trajectory=out/trajectory"]) == 0


def test_a_warning_is_one_line_without_the_place_in_the_code(tmp_path):
    script = (
        "import warnings; from tgdd_plugin import cli; "
        "cli._init = lambda options: warnings.warn('The run \\x1b[1m was\\ncut short.'); cli.main(['init', 'a.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == "tgdd: warning: The run \\x1b[1m was cut short.\n"


def test_ctrl_c_while_packages_are_loaded(tmp_path):
    """One of them answers a broken import by an error of its own, as numpy does when it is imported again."""
    script = """
import builtins, os, signal
from tgdd_plugin import cli

def load(name, *rest, usual=builtins.__import__, **named):
    if name == "tgdd_plugin.pipeline.steps":
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(10_000): pass
        except KeyboardInterrupt:
            raise RuntimeError("loaded twice")
    return usual(name, *rest, **named)

builtins.__import__ = load
cli.main(["run", "digits"])
"""
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 100}
    done = subprocess.run([sys.executable, "-c", script], **options)
    assert (done.returncode, done.stderr) == (130, cli.INTERRUPTED + "\n")


def test_an_error_is_not_printed_into_the_output_where_standard_error_is_closed(tmp_path):
    command = f"{sys.executable} -m tgdd_plugin.cli show nope --json 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
