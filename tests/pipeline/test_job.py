"""A mistake in a job is told at once: before any image is read, anything is trained, or a heavy package is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from tests.patterned import patterned, tiny
from tgdd_plugin import InputError, Trajectory, distill
from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.atomic_files import sha256
from tgdd_plugin.data.settings import TORCHVISION, DataSettings
from tgdd_plugin.evaluation import comparison
from tgdd_plugin.evaluation.scorer import Row
from tgdd_plugin.pipeline import steps
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.file_checks import PICTURES
from tgdd_plugin.pipeline.job import read_job
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.pipeline.steps import work
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings

DIGITS = "data: {name: digits}\n"
MISTAKES = [
    ("run", None, [], "Recipe 'my.yaml' cannot be read: No such file or directory"),
    ("run", "data: [", [], "is not YAML that can be used"),
    ("run", "- a list", [], "must hold keys and values"),
    ("run", "distil: {steps: 5}", [], "Did you mean `distill`?"),
    ("run", DIGITS, ["distill.stepz=5"], "Did you mean `distill.steps`?"),
    ("run", DIGITS, ["distill.steps=many"], "`distill.steps` must be a whole number"),
    ("run", DIGITS, ["distill.steps"], "is not an override"),
    ("run", DIGITS, ["distill.alpha=-1"], "`distill.alpha` must be"),
    ("run", DIGITS, ["distill.augmentation=blur"], "augmentation"),
    ("run", DIGITS, ["record.interval=soon"], "`record.interval` must be a Composer time string"),
    ("run", DIGITS, ["data.name=cifar11"], "`data.name` must be one of"),
    ("run", DIGITS, ["data.image_size=16"], "`data.image_size` must be left out for data 'digits'"),
    ("run", DIGITS, ["device=tpu"], "`device` must be"),
    ("run", DIGITS, ["retrain.passes=100", "retrain.epochs=5"], "`retrain.passes` must be null where epochs are given"),
    (
        "run",
        "retrain: {epochs: 5}",
        ["retrain.passes=100"],
        "Leave one out (a recipe's epochs by retrain.epochs=null).",
    ),
    ("run", DIGITS, ["distill.factor=3"], "both sides of the images, 8x8 pixels, got 3. Choose 1, 2, 4 or 8."),
    ("run", DIGITS, ["distill.images_per_class=33", "distill.factor=2"], "must be at most 32 for digits"),
    (
        "run",
        DIGITS,
        ["distill.budget=1000000"],
        "`distill.budget` must make images_per_class at most 128 for digits, where a class has up to 128 training "
        "images, got 1000000, which makes it 5000: start 'herding' takes 5000 of each. Choose a smaller one or "
        "distill.images_per_class=128, or",
    ),
    (
        "run",
        DIGITS,
        ["distill.source=recorded", "distill.images_per_class=26", "distill.factor=2"],
        "`record.exemplars` must be at least 104",
    ),
    (
        "run",
        DIGITS,
        ["distill.source=exemplars", "distill.start=noise", "record.exemplars=0"],
        "`record.exemplars` must be at least 1",
    ),
    (
        "run",
        DIGITS,
        ["distill.source=recorded", "loggers.probe_interval=2"],
        "`probe_interval` must be 0 where no real images are read",
    ),
    ("run", DIGITS, ["distill.source=recorded", "record.cutmix=1.0"], "`record.cutmix` must be below 1"),
    ("distill", DIGITS, [], "There is no trajectory folder 'outputs/trajectory'"),
    ("retrain", DIGITS, [], "'outputs/digits-ipc10.beton'"),
    ("nas", DIGITS, ["file=other.beton"], "'other.beton'"),
    ("run", DIGITS, ["network.name=convnett"], "`network` must be one of convnet"),
    ("run", DIGITS, ["data.name=image_folder", "data.root=here"], "There is no folder 'here/train'"),
    ("run", DIGITS, ["data.name=image_folder", "data.root=bare"], "'bare/train' must have a folder for each class"),
    (
        "run",
        DIGITS,
        ["data.name=image_folder", "data.root=hollow"],
        "'hollow/train/cat' must have images",
    ),
    ("run", DIGITS, ["data.name=beton", "data.train=a.beton", "data.test=b.beton"], "There is no file 'a.beton'"),
    ("run", DIGITS, ["output=my.yaml/x"], "Cannot write 'my.yaml/x/digits-ipc10.beton'"),
    ("run", DIGITS, ["file=hollow"], "'hollow' is a folder"),
    ("distill", DIGITS, ["trajectory=nowhere"], "There is no trajectory folder 'nowhere'"),
    (
        "run",
        DIGITS,
        ["trajectory=nowhere"],
        "`trajectory` must be a folder that is there, got 'nowhere'. Name a",
    ),
    ("distill", DIGITS, ["trajectory=bare"], "has no recorded run"),
    ("replay", DIGITS, ["replay.tasks=11"], "`replay.tasks` must be at most 10"),
    ("replay", DIGITS, ["distill.factor=3"], "both sides of the images, 8x8 pixels, got 3. Choose 1, 2, 4 or 8."),
    (
        "replay",
        DIGITS,
        ["distill.source=recorded", "record.exemplars=0"],
        "`record.exemplars` must be at least 10 for distill.source 'recorded'",
    ),
    (
        "run",
        DIGITS,
        ["distill.source=recorded", "distill.classes=['0', '1']", "distill.budget=20000", "record.exemplars=400"],
        "`record.exemplars` must be at least 500",
    ),
    ("run", DIGITS, ["file=eight.beton"], "'eight.beton' is of another job"),
    ("retrain", DIGITS, ["file=eight.beton", "data.name=cifar10"], "must be the data that 'eight.beton' was made from"),
    (
        "retrain",
        DIGITS,
        ["file=eight.beton", "data.mean=[0.9]", "data.std=[0.01]"],
        "`data.mean` and `data.std` must be those of 'eight.beton', mean [0.5] and std [0.5], with which",
    ),
    ("evaluate", DIGITS, ["file=eight.beton", "data.mean=[0.5]", "data.std=[0.6]"], "Leave them out."),
    ("evaluate", DIGITS, ["file=eight.beton", "trajectory=nowhere"], "There is no trajectory folder 'nowhere'"),
    ("evaluate", DIGITS, ["file=eight.beton", "evaluate.networks=[lenet]"], "`evaluate.networks` must be one of"),
    ("nas", DIGITS, ["file=eight.beton", "nas.factory=lenet"], "`nas.factory` must be one of convnet"),
]
"""Of a step: the text of ``my.yaml``, what is set on the command line, and what the answer has in it."""

OTHERS = [
    (["run", "eight.beton"], "tgdd run takes no .beton, got 'eight.beton'. Give a recipe (YAML)."),
    (
        ["distill", "eight.beton"],
        "tgdd distill takes no .beton, got 'eight.beton'. Give a trajectory folder or",
    ),
    (["retrain", "hollow"], "tgdd retrain takes no folder, got 'hollow'. Give a .beton or a recipe (YAML)."),
    (["run", "hollow"], "tgdd run takes no folder"),
    (["export", "none.beton", "out"], "There is no file 'none.beton'"),
    (["export", "eight.beton", "out", "--class-names"], "`--class-names` must come with --png"),
    (["import", "none.pt", "out.beton", "--mean", "0.5", "--std", "0.5"], "There is no file 'none.pt'"),
    (["show", "nowhere"], "There is no 'nowhere'"),
    (["show", "hollow"], "has no recorded run (no */manifest.json). Train with TGDDCallback(folder='hollow') first."),
    (["show", "."], "has no recorded run (no */manifest.json). Name one of its .beton files (eight.beton), which tgdd"),
    (
        ["show", "hollow/train/cat/a.gif"],
        "has no card 'a.gif.yaml' beside it, and its name does not end in .beton. Name a .beton file.",
    ),
    (["report", "nowhere"], "There is no .beton or folder 'nowhere'"),
    (["report", "replayed"], "tgdd report takes no folder of a replay, got 'replayed'. Its scores are in scores.json"),
    (["report", "hollow"], "There is no folder with a .beton"),
    (["init", "eight.beton"], "which is there already"),
]
"""Command lines, and what the answer has in it."""


def prepare(folder: Path) -> None:
    """A folder without class folders, one with a class without images, and a set of 8-pixel images."""
    (folder / "bare" / "train").mkdir(parents=True)
    (folder / "hollow" / "train" / "cat").mkdir(parents=True)
    (folder / "hollow" / "train" / "cat" / "a.gif").write_bytes(b"GIF89a")
    (folder / "replayed").mkdir()
    for name in ("scores.json", "replay-log.csv"):
        (folder / "replayed" / name).touch()
    (folder / "eight.beton").write_bytes(b"a set")
    card = Card(["a", "b"], 2, 1, [1, 8, 8], [0.5], [0.5], sha256=sha256(folder / "eight.beton"))
    card.write(folder / "eight.beton")


@pytest.mark.parametrize(("step", "text", "overrides", "wanted"), MISTAKES)
def test_a_mistake_is_one_line(
    step: str, text: str | None, overrides: list[str], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    if text is not None:
        Path("my.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_job(step, "my.yaml", overrides)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *[tmp_path / "my.yaml"] * (text is not None)])


OWN = "data: {name: 'mine:load'}\n"


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        # Their own recording may keep more images than a new one would.
        (DIGITS, ["trajectory=elsewhere", "distill.source=recorded", "distill.images_per_class=26"]),
        # Of how many classes is not known before the data are read.
        (OWN, ["distill.source=recorded", "distill.budget=20000", "record.exemplars=20"]),
    ],
)
def test_what_may_be_enough_is_not_refused(
    text: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    Path("my.yaml").write_text(text)
    assert read_job("run", "my.yaml", overrides).distill.source == "recorded"


def test_the_normalization_of_the_card_may_be_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    recipe = read_job("retrain", "eight.beton", ["data.name=digits", "data.mean=[0.504]", "data.std=[0.5]"])  # rounded
    assert recipe.data.mean == [0.504]


SCRIPT = """
import json, sys
from pathlib import Path
from tgdd_plugin import cli

statuses = []
mistakes, others = json.loads(sys.argv[1])
for step, text, overrides, _ in mistakes:
    Path("my.yaml").unlink(missing_ok=True)
    if text is not None:
        Path("my.yaml").write_text(text)
    statuses.append(cli.main([step, "my.yaml", *overrides]))
for arguments, _ in others:
    statuses.append(cli.main(arguments))
heavy = [name for name in ("torch", "torchvision", "composer", "ffcv", "sklearn", "optuna") if name in sys.modules]
print(json.dumps([statuses, heavy]))
"""


def test_no_heavy_package_is_loaded_for_it(tmp_path: Path) -> None:
    prepare(tmp_path)
    given = json.dumps([MISTAKES, OTHERS])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, given], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[2] * (len(MISTAKES) + len(OTHERS)), []]
    lines = done.stderr.splitlines()
    assert len(lines) == len(MISTAKES) + len(OTHERS)
    for line, (*_, wanted) in zip(lines, [*MISTAKES, *OTHERS], strict=True):
        assert wanted in line


@pytest.mark.parametrize(
    "overrides", [["distill.factor=2", "distill.start=noise"], ["distill.factor=2", "distill.start=real"], []]
)
def test_what_is_right_is_taken(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(DIGITS)
    assert read_job("run", "my.yaml", ["distill.images_per_class=33", *overrides]).distill.images_per_class == 33


def test_a_folder_does_not_hide_the_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert read_job("run", "digits", []).output == "outputs/digits"


def test_what_is_known_of_data_is_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the digits; of torchvision's sets, which are not at hand, what their classes and papers say."""
    train, _ = load_data(DataSettings())
    known = DataSettings().known
    assert known == (train.shape[-1], train.num_classes, int(train.counts.max()))
    for name in TORCHVISION:
        known = DataSettings(name=name, per_class=7, image_size=16).known
        assert known is not None and known.per_class == 7 and known.side == 16
        assert known.classes == (100 if name == "cifar100" else 10)
    assert DataSettings(name="cifar10", per_class=9000).known == (32, 10, 5000)
    assert DataSettings(name="image_folder").known is None


def test_a_normalization_alone_names_no_data(tmp_path: Path) -> None:
    settings = RecordSettings(epochs=1, batch_size=30, exemplars=2)
    folder = str(record(tmp_path / "t", patterned(), tiny, settings, device="cpu", progress_bar=False).folder)
    recipe = read_job("distill", folder, ["data.mean=[0.1]", "data.std=[0.2]"])
    assert (recipe.distill.source, recipe.data.mean, recipe.data.std) == ("recorded", [0.1], [0.2])
    named = read_job("distill", folder, ["data.name=digits", "data.mean=[0.1]", "data.std=[0.2]"])
    assert named.distill.source != "recorded"
    with pytest.raises(InputError, match="`data.name` must be given with `data.root`"):
        read_job("distill", folder, ["data.root=pictures"])


@pytest.mark.parametrize("data", [[], ["data.name=mine:load"]], ids=["the recording alone", "data of one's own"])
def test_the_recorded_size_tells_a_factor_that_does_not_fit(data: list[str], trajectory: Trajectory) -> None:
    with pytest.raises(InputError, match=r"both sides of the images, 8x8 pixels, got 3. Choose 1, 2, 4 or 8\.$"):
        read_job("distill", str(trajectory.folder), ["distill.factor=3", *data])
    assert read_job("distill", str(trajectory.folder), ["distill.factor=4", *data]).distill.factor == 4


# What the images themselves tell, before any training on them.

FEW = "output: out\nrecord: {epochs: 1, batch_size: 30}\ndistill: {real_per_class: 8, factor: 1, steps: 1}\n"


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    settings = RecordSettings(epochs=1, batch_size=30)
    return record(tmp_path_factory.mktemp("t"), patterned(), tiny, settings, device="cpu", progress_bar=False)


@pytest.mark.parametrize(
    "overrides",
    [
        ["distill.images_per_class=21"],
        ["distill.images_per_class=6", "distill.factor=2"],
        ["distill.factor=3"],
        ["distill.classes=[rows, tables]"],
        ["distill.source=recorded", "distill.images_per_class=21"],
        ["distill.source=exemplars", "distill.budget=300"],
        ["data.mean=[0.5, 0.5]", "data.std=[0.5, 0.5]"],
    ],
)
def test_what_distilling_would_refuse_is_told_before_the_training(
    overrides: list[str], trajectory: Trajectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(overrides, tmp_path, monkeypatch)
    with pytest.raises(InputError) as told:
        work("run", recipe)
    real = patterned() if recipe.distill.reads_data else None
    with pytest.raises(InputError) as refused:
        normalization = {"mean": recipe.data.mean, "std": recipe.data.std}
        distill(trajectory, real, "a.beton", recipe.distill, device="cpu", progress_bar=False, **normalization)
    assert not Path("out/trajectory/job.json").exists()
    assert str(told.value) == str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["distill.images_per_class=20"],
        ["distill.images_per_class=21", "distill.start=noise"],
        ["distill.images_per_class=40", "distill.source=recorded", "record.runs=2"],
        ["distill.real_per_class=21", "distill.source=exemplars"],
        ["distill.real_per_class=21", "distill.source=sampled"],
        ["data.mean=[0.5]", "data.std=[0.5]"],
    ],
)
def test_what_distilling_takes_is_recorded(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(["distill.images_per_class=2", *overrides], tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match="the training begins"):
        work("run", recipe)


def recipe_of(overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of data that nothing is known of beforehand, where a training would be an error of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(steps, "load_data", lambda *_, **__: (patterned(), patterned()))

    def begin(*_: object, **__: object) -> None:
        raise RuntimeError("the training begins")

    monkeypatch.setattr(steps, "record", begin)
    Path("my.yaml").write_text(OWN + FEW)
    return read_job("run", "my.yaml", overrides)


@pytest.mark.parametrize(
    ("distilled", "random", "decoded", "told"),
    [
        ((0.5, 0.6), (0.5, 0.5), (0.5, 0.59), []),
        ((0.5, 0.6), (0.6, 0.5), (0.1, 0.2), [" (row 'random')"]),
        ((0.5, 0.6), (0.5, 0.5), (0.5, 0.7), [" (row 'random, decoded number')"]),
        ((0.5, 0.5), (0.6, 0.9), (0.6, 0.9), [" (row 'random' and row 'random, decoded number')"]),
    ],
)
def test_a_set_that_is_worth_no_more_than_random_images_is_told(
    distilled: Any,
    random: Any,
    decoded: Any,
    told: list[str],
    trajectory: Trajectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As many as are stored and as many as are decoded; rows of all images and of other networks are another matter."""
    recipe = recipe_of([], tmp_path, monkeypatch)
    distill(trajectory, patterned(), recipe.beton, recipe.distill, device="cpu", progress_bar=False)
    better = [Row("full data", network="A", accuracies=[0.95], seconds=[1.0])]
    rows = [
        Row("distilled", network="A", accuracies=[*distilled], seconds=[1.0]),
        Row("random", network="A", accuracies=[*random], seconds=[1.0]),
        Row("random, decoded number", network="A", accuracies=[*decoded], seconds=[1.0]),
    ]
    others = [
        Row("distilled", network="B", accuracies=[0.1], seconds=[1.0]),
        Row("random", network="B", accuracies=[0.9], seconds=[1.0]),
    ]
    monkeypatch.setattr(comparison, "retrain", lambda *given, **options: [*rows, *better, *others])
    work("retrain", recipe)
    assert re.findall(r"random images do as well(.*?)\.", capsys.readouterr().out) == told


@pytest.mark.parametrize("folder", ["runs\N{ROCKET}", "a: b", 'it\'s "x"'])
def test_a_path_may_have_any_letters(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    card = Card(["a", "b"], 0, 1, [], [0.5] * 3, [0.5] * 3)
    write_beton(Path(folder) / "a.beton", torch.zeros(2, 3, 8, 8).byte(), torch.arange(2), card)
    assert read_job("retrain", f"{folder}/a.beton", ["data.name=digits"]).beton == Path(folder) / "a.beton"


def test_pictures_are_what_torchvision_reads() -> None:
    assert PICTURES == IMG_EXTENSIONS
