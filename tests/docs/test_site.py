"""The documentation builds as a site without a warning, and asks no other machine for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tgdd_plugin
from tests.docs.blocks import ROOT
from tgdd_plugin.pipeline.key_help import json_schema
from tgdd_plugin.pipeline.step_table import STEPS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_of_the_menu_is_there_and_nothing_comes_from_elsewhere(site: Path) -> None:
    for name in re.findall(r": (\S+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.M):
        page = (site / f"{name}.html").read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\" >]+)", page)
        loaded += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect)\"?[^>]* href=\"?(https?:[^\" >]+)", page)
        assert not loaded


def test_the_generated_pages_have_every_key_and_name(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    schema = json_schema()
    for name, value in schema["properties"].items():
        named = re.search(r"#/\$defs/(\w+)", str(value))
        keys = [f"{name}.{key}" for key in schema["$defs"][named[1]]["properties"]] if named else [name]
        for key in keys if name != "extra_networks" else []:
            assert f"<code>{key}</code>" in commands, key
    assert all(f"tgdd {step}" in commands for step in [*STEPS, "export", "import", "report", "init"])
    python = (site / "api.html").read_text(encoding="utf-8")
    for name, home in tgdd_plugin._HOMES.items():
        assert f'id="tgdd_plugin.{home}.{name}"' in python, name
    assert ":class:" not in python and ":func:" not in python and ":meth:" not in python
    recipes = (site / "recipes.html").read_text(encoding="utf-8")
    assert all(path.name in recipes for path in (ROOT / "recipes").glob("*.yaml"))
