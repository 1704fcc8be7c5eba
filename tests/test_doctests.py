"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import tgdd_plugin

ROOT = Path(tgdd_plugin.__file__).parent
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert outcome.attempted and not outcome.failed


def test_no_example_is_skipped() -> None:
    assert not [path for path in ROOT.rglob("*.py") if "doctest: +SKIP" in path.read_text()]
