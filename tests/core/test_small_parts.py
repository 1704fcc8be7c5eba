"""Small parts of the core: differences, generators by key, imports by name, devices, errors in one line."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.common import streams
from tgdd_plugin import InputError, evaluate, mixed_loader, rank_networks, retrain
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.differences import first_difference
from tgdd_plugin.core.errors import brief
from tgdd_plugin.core.import_string import import_function
from tgdd_plugin.core.seeding import forked_streams, keyed_generator
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.nas.optuna_search import search
from tgdd_plugin.recording.runs import record
from tgdd_plugin.replay.learner import learn


def test_the_first_difference_is_named_by_its_key() -> None:
    assert first_difference({"a": {"b": [1]}}, {"a": {"b": [1]}}) is None
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c was 2 and is now 3"
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b was None and is now 2"
    assert first_difference({"a": 1}, {}) == "a was 1 and is now None"


def test_several_differences_are_named_and_the_others_counted() -> None:
    earlier, now = {"a": {"b": 1, "c": 2}, "d": 3, "e": 4}, {"a": {"b": 0, "c": 2}, "d": 0, "e": 0}
    three = ["a.b was 1 and is now 0", "d was 3 and is now 0", "e was 4 and is now 0"]
    assert first_difference(earlier, now) == three[0]
    assert first_difference(earlier, now, most=2) == f"{three[0]}; {three[1]}; 1 more"
    assert first_difference(earlier, now, most=3) == first_difference(earlier, now, most=9) == "; ".join(three)
    assert first_difference(now, now, most=3) is None


def test_the_random_streams_of_several_gpus_are_kept_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors here, and torch's own fork_rng() warns where it sees more than one."""
    kept: dict[int, str] = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"state {device}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: kept.update({device: state}))
    before = torch.get_rng_state()
    with forked_streams():
        torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before) and kept == {0: "state 0", 1: "state 1"}


def test_within_forked_streams_all_three_start_from_a_seed_and_go_back_after_an_error() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    before = streams()
    with pytest.raises(KeyError), forked_streams(3):
        found = draw()
        raise KeyError
    assert streams() == before
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    assert found == draw()
    with forked_streams(2**64 - 1):  # more than NumPy takes
        draw()


def test_generators_depend_on_their_key_alone() -> None:
    draws = [torch.rand(4, generator=keyed_generator(*key)).tolist() for key in ((1, 2), (1, 2), (2, 1), (1, 2, 1))]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) == 3


@pytest.mark.parametrize("seed", [-1, 1.5, "7", 2**32 - 1, 2**64])
def test_a_seed_that_the_libraries_refuse_later_is_refused_first(seed: Any) -> None:
    """As a recipe refuses it, whatever else is given."""
    calls: list[Callable[..., Any]] = [evaluate, learn, mixed_loader, rank_networks, record, retrain, search]
    for call in calls:
        needed = [name for name, about in signature(call).parameters.items() if about.default is Parameter.empty]
        given = {**dict.fromkeys(needed, 1), "seed": seed}
        with pytest.raises(InputError, match=f"^`seed` must be .* of at most 4000000000, got {seed!r}. Give"):
            call(**given)


def test_functions_are_imported_by_name() -> None:
    assert import_function("data", "os.path:join")("a", "b") == "a/b"
    with pytest.raises(InputError, match=r"^`data` must be a function that can be imported, got 'nowhere:f' \(Module"):
        import_function("data", "nowhere:f")
    with pytest.raises(InputError, match="`network` must be a function, got 'sys:path', a list. Name a function"):
        import_function("network", "sys:path")
    with pytest.raises(InputError, match="got 'sys:no', which the module does not have. Name a function of the module"):
        import_function("network", "sys:no")


def test_the_current_folder_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only once a function is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the file in the current folder')")
    (tmp_path / "tgdd_test_mine.py").write_text("def build(): return 3")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert str(tmp_path) not in sys.path
    assert import_function("network", "colorsys:rgb_to_hsv")(1, 1, 1) == (0.0, 0.0, 1)
    assert import_function("network", "tgdd_test_mine:build")() == 3
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1


def test_devices_and_versions() -> None:
    assert torch_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="`device` must be 'cpu', 'gpu', or None .*, got 'tpu'. Name one"):
        torch_device("tpu")  # type: ignore[arg-type]
    assert installed_versions("numpy", "no-such-package").keys() == {"tgdd_plugin", "torch", "numpy"}


def test_an_error_of_another_library_in_one_line() -> None:
    assert brief(ValueError("first\nsecond")) == "ValueError: first"
    assert brief(ValueError()) == "ValueError"
