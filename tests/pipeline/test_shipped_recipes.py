"""Recipes by their names, a start for one's own, and a subcommand that was meant."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tgdd_plugin import InputError, cli
from tgdd_plugin.pipeline.job import read_job
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.pipeline.shipped_recipes import shipped_recipes

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_found_by_its_name() -> None:
    assert set(shipped_recipes()) == {path.stem for path in RECIPES.glob("*.yaml")}
    for name, path in shipped_recipes().items():
        if name.startswith("replay") or name.startswith("nas"):
            continue
        if (data := read_recipe(path).data).name == "image_folder":  # which must be there, or there is an error
            for folder in (part / name for part in data.image_folders() for name in "ab"):
                folder.mkdir(parents=True)
                (folder / "0.png").touch()
        assert read_job("run", name, ["seed=3"]) == read_recipe(path, ["seed=3"])


def test_a_file_of_that_name_comes_first() -> None:
    Path("digits").write_text("seed: 77")
    assert read_job("run", "digits", []).seed == 77


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(InputError, match="There is no 'digts'. Give a recipe .* with the package: .*digits, "):
        read_job("run", "digts", [])


def test_a_start_for_a_recipe_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    """It says nothing but the defaults, apart from what data and network it is for; an editor finds its schema."""
    assert cli.main(["init", "new/my.yaml"]) == 0
    assert capsys.readouterr().out == "written   new/my.yaml: keep what you change, then tgdd run new/my.yaml\n"
    own, usual = asdict(read_recipe("new/my.yaml")), asdict(Recipe())
    assert {key for key in own if own[key] != usual[key]} == {"output", "data", "network"}
    schema = Path("new/my.yaml").read_text().splitlines()[0].partition("$schema=")[2]
    assert Path(schema).is_absolute() and Path(schema).is_file()
    before = Path("new/my.yaml").read_bytes()
    assert cli.main(["init", "new/my.yaml"]) == 2
    assert "must be new, got 'new/my.yaml', which is there already" in capsys.readouterr().err
    assert Path("new/my.yaml").read_bytes() == before


@pytest.mark.parametrize(("given", "meant"), [("destil", "distill"), ("retrian", "retrain"), ("reprot", "report")])
def test_the_subcommand_that_was_meant(capsys: pytest.CaptureFixture[str], given: str, meant: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([given, "x"])
    assert stopped.value.code == 2
    assert f"there is no '{given}'. Did you mean '{meant}'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["qqqq", "x"])
    assert "invalid choice: 'qqqq'" in capsys.readouterr().err
