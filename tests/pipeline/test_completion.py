"""Completion: what a shell is told, by argcomplete's own way of asking, and in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tgdd_plugin import cli

pytest.importorskip("argcomplete")


def asked(folder: Path, line: str) -> list[str]:
    """What bash would be told of a command line whose end is to be completed."""
    environment = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash"}
    environment |= {"_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "answer"), "COMP_TYPE": "63"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(cli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    code = "from tgdd_plugin import cli; cli.main()"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, timeout=60, check=True)
    return [word.strip() for word in (folder / "answer").read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("tgdd re", ["record", "retrain", "replay", "report"]),
        ("tgdd run dig", ["digits"]),
        ("tgdd run my", ["my.yaml"]),
        ("tgdd run digits distill.st", ["distill.start=", "distill.steps=", "distill.stages="]),
        ("tgdd run digits distill.start=n", ["distill.start=noise"]),
        ("tgdd retrain x.beton distill.", []),
        ("tgdd retrain x.beton overw", ["overwrite="]),
        ("tgdd retrain x.beton overwrite=", ["overwrite=true", "overwrite=false"]),
        ("tgdd show x.beton --js", ["--json"]),
        ("tgdd completion z", ["zsh"]),
    ],
)
def test_what_is_offered(tmp_path: Path, line: str, wanted: list[str]) -> None:
    (tmp_path / "my.yaml").write_text("")
    assert sorted(filter(None, asked(tmp_path, line))) == sorted(wanted)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_lines_are_ones_that_the_shell_reads(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "tgdd" in script
    if (found := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell} here")
    subprocess.run([found, "-n"], input=script, text=True, check=True)
