"""Names of version 0.1 that moved: they still import, with a warning that says where they are now."""

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

import tgdd_plugin
from tgdd_plugin.old_names import MOVED

PAIRS = [(module, name) for module, names in MOVED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), PAIRS)
def test_an_old_name_is_the_present_one(module, name):
    home, _, present = MOVED[module][name].partition(":")
    expected = getattr(import_module(f"tgdd_plugin.{home}"), present or name)
    with pytest.warns(DeprecationWarning, match=f"tgdd_plugin.{module}.{name} is now tgdd_plugin.{home}"):
        found = getattr(import_module(f"tgdd_plugin.{module}"), name)
    assert found is expected


def test_imports_as_a_script_of_version_0_1_has_them():
    code = """
from tgdd_plugin.memory import ReplayMemory
from tgdd_plugin.replay import DistilledReplay
from tgdd_plugin.retraining import table
from tgdd_plugin.continual import learn
from tgdd_plugin import exchange
import tgdd_plugin.beton
tgdd_plugin.beton.read_beton, exchange.import_tensors
"""
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_never_was_is_an_attribute_error_and_public_names_do_not_warn():
    for module in ("memory", "beton"):
        with pytest.raises(AttributeError, match=f"'tgdd_plugin.{module}' has no attribute 'nothing'"):
            import_module(f"tgdd_plugin.{module}").nothing  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert all(getattr(tgdd_plugin, name) is not None for name in tgdd_plugin.__all__)
