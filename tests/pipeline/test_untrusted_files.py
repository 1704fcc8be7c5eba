"""`tgdd show` of cards and manifests that somebody changed: words or one line, never a traceback, never a command."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tgdd_plugin import cli
from tgdd_plugin.beton.card import Card, card_path, read_card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.result import method_of
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.networks.factory import convnet, recorded_factory
from tgdd_plugin.recording.description import describe_run
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.writing import add_stage

OTHERS: list[Any] = [None, True, -1, 10**30, float("nan"), "x", [], [[1]], {"a": 1}]
"""What every value is replaced by."""

DIRTY = "\x1b]0;owned\x07\r\u202ecat é 猫"
CLEAN = r"\x1b]0;owned\x07\x0d\u202ecat é 猫"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a .beton with all that a card can hold, and a trajectory."""
    folder = tmp_path_factory.mktemp("made")
    network = convnet(2, 1, 8, width=2, depth=1)
    run = describe_run("run", network, 2, classes=["cat", "dog"], mean=[0.5], std=[0.25], augmentation="flip")
    run.input = {"shape": [1.0, 8.0, 8.0], "mean": [0.0], "std": [1.0]}
    run.gaps = [{"epoch": 1, "batch": 3, "reason": "the disk was full"}]
    for epoch in range(2):
        metrics = {"loss": 1.5} if epoch else {}
        state = network.state_dict()
        add_stage(
            folder / "trajectory/run", run, state, None, epoch=epoch, batch=epoch, sample=8 * epoch, metrics=metrics
        )
    run.complete = True
    run.write(folder / "trajectory/run")
    row = {"name": "distilled", "images": 2, "epochs": 5, "mean_percent": 50.5, "std_points": 1.5, "labels": "soft"}
    card = Card(
        classes=["cat", "dog"],
        images=0,
        images_per_class=1,
        shape=[],
        mean=[0.5],
        std=[0.25],
        method=method_of(DistillSettings(images_per_class=1, factor=1)),
        network=run.network,
        real={"images": 20, "fingerprint": "f" * 64},
        trajectory={"runs": ["run"], "stages": [stage.sha256 for stage in run.stages], "networks": [run.network]},
        versions=run.versions,
        accuracy=[
            {"network": "ConvNet", "seeds": [0, 1], "test_images": 9, "rows": [row, {**row, "std_points": None}]}
        ],
    )
    write_beton(folder / "set.beton", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2), card)
    return folder


def mutants(content: Any) -> Iterator[tuple[str, Any]]:
    """Every value in parsed JSON replaced by each of :data:`OTHERS`, and removed."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield (*path, key)
            yield from places(value[key], (*path, key))

    for path in places(content, ()):
        for other in (..., *OTHERS):
            changed = copy.deepcopy(content)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if other is ...:
                del place[path[-1]]
            else:
                place[path[-1]] = other
            yield f"{path} = {other!r}", changed


def shown(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What `tgdd show` printed; it succeeded, or ended with one line."""
    status = cli.main(["show", *map(str, arguments)])
    out, err = capfd.readouterr()
    if status == 2:
        assert err.startswith("tgdd: ") and err.count("\n") == 1 and len(err) < 600
        return err
    assert status == 0 and err == ""
    assert all(character.isprintable() or character == "\n" for character in out)
    return out


def test_a_card_with_any_value_changed(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = Path(shutil.copy(made / "set.beton", tmp_path))
    content = yaml.safe_load(card_path(made / "set.beton").read_text())
    for many in ("method", "versions"):  # all are printed alike
        content[many] = dict(list(content[many].items())[:1])
    for alike in (content["trajectory"]["networks"], content["accuracy"][0]["rows"]):
        del alike[1:]
    content["network"]["arguments"] = {"width": 2}
    content["trajectory"]["networks"] = [{}]
    refused = 0
    for what, changed in mutants(content):
        card_path(file).write_text(yaml.dump(changed, Dumper=yaml.CSafeDumper))
        try:
            refused += shown(capfd, file).startswith("tgdd: ")
        except Exception as error:
            raise AssertionError(what) from error
    assert refused > 300


def test_a_manifest_with_any_value_changed(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(made / "trajectory", tmp_path / "trajectory"))
    content = json.loads((folder / "run/manifest.json").read_text())
    content["network"]["arguments"] = {"width": 2}
    refused = 0
    for what, changed in mutants(content):
        (folder / "run/manifest.json").write_text(json.dumps(changed))
        try:
            refused += shown(capfd, folder).startswith("tgdd: ")
        except Exception as error:
            raise AssertionError(what) from error
    assert refused > 300


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"std": [-1.0]}, r"`std[0]` must be greater than 0, got -1.0"),
        ({"std": [float("inf")]}, r"`std[0]` must be a finite number, got inf"),
        ({"mean": [0.5, 0.5]}, "`mean` and `std` must have a value for each of the 1 channel(s) of `shape`"),
        ({"shape": [1, 8]}, "`shape` must have at least 3 items"),
        ({"shape": [1, 8, 10**6]}, "`shape[2]` must be less than or equal to 65535"),
        ({"sha256": "0" * 63}, "`sha256` must match pattern"),
        ({"accuracy": [{}]}, "`accuracy[0].network` is missing"),
        ({"format": "\x1b[2J"}, r"must be of format 1 or 2, got \x1b[2J"),
    ],
)
def test_what_is_wrong_with_a_card_is_said(made: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    file = Path(shutil.copy(made / "set.beton", tmp_path))
    content = yaml.safe_load(card_path(made / "set.beton").read_text())
    card_path(file).write_text(yaml.safe_dump({**content, **changes}))
    with pytest.raises(InputError) as error:
        read_card(file)
    assert reason in str(error.value) and str(error.value).startswith(f"The card '{card_path(file)}'")


def test_no_text_of_a_card_reaches_the_terminal_raw(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(made / "set.beton", tmp_path))
    content = yaml.safe_load(card_path(made / "set.beton").read_text())
    content["classes"][0] = content["network"]["factory"] = content["trajectory"]["runs"][0] = DIRTY
    content["method"][DIRTY] = content["versions"][DIRTY] = DIRTY
    content["accuracy"][0]["network"] = content["accuracy"][0]["rows"][0]["name"] = DIRTY
    card_path(file).write_text(yaml.safe_dump(content))
    out = shown(capfd, file)
    assert out.count(CLEAN) == 9
    card_path(file).write_text(yaml.safe_dump({**content, DIRTY: 1, "classes": [{DIRTY: 1}]}))
    err = shown(capfd, file)
    assert r"\x1b]0;owned\x07" in err and "\x1b" not in err


def test_no_text_of_a_manifest_reaches_the_terminal_raw(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made / "trajectory", tmp_path / "trajectory"))
    content = json.loads((folder / "run/manifest.json").read_text())
    content["name"] = content["head"] = content["classes"][0] = content["network"]["class"] = DIRTY
    content["network"] |= {"factory": DIRTY, "arguments": {DIRTY: DIRTY}}
    content["augmentation"] = content["versions"][DIRTY] = content["gaps"][0]["reason"] = DIRTY
    content["stages"][1]["metrics"] = {DIRTY: 1.0}
    (folder / "run/manifest.json").write_text(json.dumps(content))
    assert shown(capfd, folder).count(CLEAN) == 11
    content["stages"][1]["file"] = DIRTY
    (folder / "run/manifest.json").write_text(json.dumps(content))
    assert CLEAN in shown(capfd, folder)


def test_a_factory_of_a_file_is_never_part_of_a_command() -> None:
    record = {"class": "m:N", "parameters": 1, "factory": "os:system", "arguments": {"command": "touch /tmp/\x1b[2J"}}
    with pytest.raises(InputError) as error:
        recorded_factory(record)
    text = str(error.value)
    assert "network.name=module:function" in text and "network.name=os" not in text and "network.command" not in text
    assert r"(class 'm:N', built by 'os:system(command=touch /tmp/\x1b[2J)'; so says the file, unchecked)" in text


# The command in a folder that somebody else filled.

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').write_text(__name__)\nraise SystemExit('evil')\n"


@pytest.mark.parametrize("module", [False, True])
def test_nothing_in_the_current_folder_is_imported(made: Path, tmp_path: Path, module: bool) -> None:
    for path in (made / "set.beton", made / "set.beton.yaml"):
        shutil.copy(path, tmp_path)
    shutil.copytree(made / "trajectory", tmp_path / "trajectory")
    for name in ("torch", "yaml", "numpy", "pydantic", "ffcv", "PIL", "safetensors", "tabulate", "typing_extensions"):
        (tmp_path / f"{name}.py").write_text(EVIL)
    script = "import sys; from tgdd_plugin.cli import main; sys.exit(main())"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tgdd").write_text(script)  # as pip makes it
    command = [sys.executable, *(["-m", "tgdd_plugin.cli"] if module else [tmp_path / "bin/tgdd"])]
    root = str(Path(cli.__file__).parents[1])
    # The images of a .beton are read with torch and FFCV; Python itself puts the current folder first for -m.
    for arguments in [["show", "trajectory"], ["schema"]] if module else [["show", "set.beton"]]:
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0 and not (tmp_path / "ran").exists(), done.stderr
    assert module or (tmp_path / "set.png").is_file()


@pytest.mark.parametrize("kind", ["recipe", "card", "manifest"])
def test_a_named_pipe_is_not_waited_for(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    shutil.copytree(made, tmp_path / "made")
    path = {
        "recipe": tmp_path / "recipe.yaml",
        "card": tmp_path / "made/set.beton.yaml",
        "manifest": tmp_path / "made/trajectory/run/manifest.json",
    }[kind]
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if kind == "manifest":
        with pytest.raises(InputError, match="must be a regular file, got a named pipe"):
            Run.read(path.parent)
        assert "must be a regular file, got a named pipe" in shown(capfd, path.parents[1])
    elif kind == "card":
        assert "must be a regular file, got a named pipe" in shown(capfd, tmp_path / "made/set.beton")
    else:
        assert cli.main(["run", str(path)]) == 2 and cli.main(["run", "/dev/zero"]) == 2
        err = capfd.readouterr().err
        assert (
            "must be a regular file, got a named pipe" in err and "'/dev/zero' must be a regular file, got a dev" in err
        )
