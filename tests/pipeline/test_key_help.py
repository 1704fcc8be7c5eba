"""The help of every step and the JSON schema: both follow from the settings' declarations."""

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tgdd_plugin import cli
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.key_help import json_schema, schema_text
from tgdd_plugin.pipeline.recipe import SECTIONS
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.pipeline.step_table import STEPS
from tgdd_plugin.recording.settings import RecordSettings

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "tgdd_plugin" / "pipeline" / "recipe.schema.json"


def options_of(section):
    cls = NetworkSettings if section == "network" else type(getattr(Recipe(), section))
    return [f.name for f in dataclasses.fields(cls) if f.name != "arguments"] if dataclasses.is_dataclass(cls) else []


@pytest.mark.parametrize("step", STEPS)
def test_help_of_a_step_lists_every_key_with_default_and_meaning(step, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([step, "--help"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for section in STEPS[step].sections:
        assert any(line.startswith(f"{section}: ") for line in lines)
        for key in options_of(section):
            (place,) = [i for i, line in enumerate(lines) if line.startswith(f"  {section}.{key}=")]
            default = getattr(getattr(Recipe(), section) or NetworkSettings(), key)
            assert lines[place].split("=", 1)[1].partition("   (")[0] == (
                default if isinstance(default, str) else json.dumps(default)
            )
            assert lines[place + 1].startswith("      ") and len(lines[place + 1].split()) > 1
    alone = [field.name for field in dataclasses.fields(Recipe) if field.name not in SECTIONS]
    assert "output" in alone and "overwrite" in alone
    for key in alone:
        assert any(line.startswith(f"  {key}=") for line in lines)


def test_every_key_is_documented():
    def check(schema, where):
        for key, value in schema["properties"].items():
            assert len(value.get("description", "").split()) > 1, f"{where}.{key}"

    schema = json_schema()
    check(schema, "recipe")
    for name, section in schema["$defs"].items():
        check(section, name)


@pytest.mark.parametrize(
    "settings", [DistillSettings, RetrainSettings, EvaluateSettings, RecordSettings, LoggerSettings]
)
def test_pythons_help_tells_of_every_key(settings):
    described = json_schema()["$defs"][settings.__name__]["properties"]
    told = " ".join((inspect.getdoc(settings) or "").split())
    assert described and all(
        f"{name}: {' '.join(key['description'].split())}" in told for name, key in described.items()
    )


def test_the_shipped_schema_is_the_settings_own(capsys):
    assert SCHEMA.read_text() == schema_text(), "write it again: tgdd schema > tgdd_plugin/pipeline/recipe.schema.json"
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == schema_text()


def test_recipes_name_the_schema_and_use_keys_that_it_knows():
    schema = json.loads(SCHEMA.read_text())
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        first = path.read_text().splitlines()[0]
        assert first == "# yaml-language-server: $schema=../tgdd_plugin/pipeline/recipe.schema.json", path
        for key, value in yaml.safe_load(path.read_text()).items():
            place = schema["properties"][key]
            reference = place.get("$ref") or next((one.get("$ref") for one in place.get("anyOf", [])), None)
            if isinstance(value, dict):
                section = schema["$defs"][reference.rpartition("/")[2]]
                assert section["additionalProperties"] is (key == "network")
                assert key == "network" or set(value) <= set(section["properties"]), path


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["distill", "--help"]])
def test_answers_at_once(arguments):
    """Neither torch nor Composer nor FFCV is loaded, which take seconds."""
    code = f"""
import sys
from tgdd_plugin import cli
try:
    cli.main({arguments!r})
except SystemExit:
    pass
print({{"torch", "composer", "ffcv", "torchvision", "optuna"}} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr.strip() == "set()", done.stderr
