"""The examples of README and docs/ run: Python and ``tgdd`` commands for real on small data, YAML by the recipe reader.

What is changed is length alone: the numbers of steps, passes and epochs, in the text of an example and in the defaults.
Commands that install, start a launcher or need a large data set are read, and what they name must be there.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import PAGES, ROOT, Block, blocks_of
from tests.docs.objects import example_names
from tgdd_plugin import DistillSettings, cli
from tgdd_plugin.data.settings import NAMES
from tgdd_plugin.distillation.settings import SizedSettings
from tgdd_plugin.evaluation import settings as evaluation
from tgdd_plugin.pipeline.job import read_job
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.pipeline.shipped_recipes import shipped_recipes
from tgdd_plugin.pipeline.step_table import STEPS

RUNNABLE = [page for page in PAGES if any(block.language in ("python", "bash", "yaml") for block in blocks_of(page))]
SHORTER = {
    r"\bsteps=[\d_]+": "steps=2",
    r"\bpasses=[\d_]+": "passes=24",
    r'max_duration="\d+ep"': 'max_duration="2ep"',
    r"nas\.candidates=\d+": "nas.candidates=2",
    r"RetrainSettings\(passes": "RetrainSettings(full_epochs=1, passes",
    r"range\(1, 4\)": "range(1, 2)",
}
"""What of the text of an example is made shorter."""
QUICK = {
    "run": [
        "record.epochs=1",
        "distill.steps=2",
        "retrain.epochs=1",
        "retrain.full_epochs=0",
        "retrain.seeds=1",
        "record.exemplars=2",
    ],
    "distill": ["distill.steps=2"],
    "retrain": ["retrain.full_epochs=1", "retrain.seeds=1"],
    "evaluate": ["retrain.full_epochs=1", "retrain.seeds=1", "evaluate.networks=[]", "evaluate.worth=false"],
    "nas": ["retrain.seeds=1", "nas.choices={depth: [1], width: [4, 8]}"],
}
"""What is said on the command line beside what an example says; a budget's many images are made few, too."""
LARGE = set(NAMES) - {"digits", "image_folder", "beton"}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = DistillSettings.sized

    def sized(settings: DistillSettings, *size: Any) -> SizedSettings:
        return resolve(settings if settings.budget or settings.steps else replace(settings, steps=2), *size)

    monkeypatch.setattr(DistillSettings, "sized", sized)
    monkeypatch.setattr(evaluation, "FAST_EPOCHS", 1)


@pytest.mark.filterwarnings("default")  # as a reader has them
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_the_examples_of(page: Path, here: Path) -> None:
    names = example_names()
    for block in blocks_of(page):
        if block.language == "python" and not (block.title and _is_missing(block.title)):
            code = "\n" * block.line + _shorter(block.code)  # so that a traceback names the line of the page
            exec(compile(code, str(page), "exec"), names)
        elif block.language == "bash":
            for command in _commands(block):
                _check_command(command)
        elif block.language == "yaml":
            (here / "block.yaml").write_text(block.code)
            read_recipe(here / "block.yaml")


def _is_missing(title: str) -> bool:
    """Whether a block needs a package that is not installed, as its title says."""
    needed = re.search(r"needs ([\w-]+)", title)
    return needed is not None and importlib.util.find_spec(needed[1].removesuffix("-lib")) is None


def _shorter(text: str) -> str:
    for pattern, shorter in SHORTER.items():
        text = re.sub(pattern, shorter, text)
    return text


def _commands(block: Block) -> list[list[str]]:
    """The commands of a block as words, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def _check_command(words: list[str]) -> None:
    name, *arguments = words
    if name == "tgdd":
        _run_tgdd(arguments)
    elif name == "make":
        targets = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", targets, re.M) for target in arguments if "=" not in target), words
    elif name == "composer":
        script = next(word for word in arguments if word.endswith(".py") or word.startswith("tgdd_plugin."))
        assert (ROOT / script).is_file() or importlib.util.find_spec(script), words
    elif name == "python":
        assert (ROOT / arguments[0]).is_file() or importlib.util.find_spec(arguments[1]), words
    elif name == "source":
        assert arguments == [".venv/bin/activate"], words  # where setup.sh installs
    else:
        assert name in ("pip", "apt-get"), f"no test knows what to do with {words}"


def _run_tgdd(arguments: list[str]) -> None:
    step, *rest = [_shorter(word) for word in arguments]
    if step not in STEPS:
        assert cli.main([step, *rest]) == 0
        return
    path, *overrides = rest
    if is_large(step, path, overrides):
        read_job("record" if step == "distill" else step, path, overrides)
        return
    quick = [
        word for word in QUICK.get(step, []) if word.partition("=")[0] not in {o.partition("=")[0] for o in overrides}
    ]
    if any(word.startswith("distill.budget=") for word in overrides):
        quick.append("distill.images_per_class=2")
    if path == "my.yaml":
        quick.append("network.width=4")
    assert cli.main([step, path, *overrides, *quick, "device=cpu"]) == 0


def is_large(step: str, path: str, overrides: list[str]) -> bool:
    """Whether a command needs a data set that must be downloaded."""
    recipe = shipped_recipes().get(path)
    named = [word.partition("=")[2] for word in overrides if word.startswith("data.name=")]
    return (named[-1] if named else recipe and read_recipe(recipe).data.name) in LARGE


def test_every_command_of_the_package_is_shown() -> None:
    """Each subcommand stands in an example that runs."""
    shown = {
        words[1]
        for page in RUNNABLE
        for b in blocks_of(page)
        if b.language == "bash"
        for words in _commands(b)
        if words[0] == "tgdd"
    }
    assert shown >= {*STEPS, "show", "init", "report", "schema", "export", "import"}
