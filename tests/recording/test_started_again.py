"""A recorder that is started more than once, as in a notebook, and networks inside wrappers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.common import CLASSES, Pictures, manifest, tiny_network, trained
from tgdd_plugin import TGDDCallback, TrajectoryRecorder, describe_run
from tgdd_plugin.core.errors import InputError

SCALE = {"mean": [0.0], "std": [1.0]}


def batches():
    data = Pictures(16)
    return [(data.images[part], data.labels[part]) for part in torch.arange(16).split(8)]


def train(recorder, run, network, epochs=2):
    recorder.start(run, network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for epoch in range(1, epochs + 1):
        for images, labels, loss in trained(network, optimizer, batches()):
            recorder.batch(images, labels, {"loss": loss})
        recorder.stage(epoch)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("same", ["recorder", "description", "both"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_second_start_records_what_a_first_one_would(tmp_path, same, ended):
    twice, run = tmp_path / "twice", describe_run("run", tiny_network(seed=1), CLASSES, **SCALE)
    recorder = TrajectoryRecorder(twice, overwrite=True)
    train(recorder, run, tiny_network(seed=1), epochs=3)
    if ended:
        recorder.finish()
    network = tiny_network(seed=2)
    if same == "description":
        recorder = TrajectoryRecorder(twice, overwrite=True)
    if same == "recorder":
        run = describe_run("run", network, CLASSES, **SCALE)
    train(recorder, run, network)
    recorder.finish()
    once, network = TrajectoryRecorder(tmp_path / "once"), tiny_network(seed=2)
    train(once, describe_run("run", network, CLASSES, **SCALE), network)
    once.finish()
    assert files(twice / "run") == files(tmp_path / "once" / "run")
    assert recorder.samples == 32


def test_a_complete_run_is_not_gone_on_with_unasked(tmp_path):
    recorder, network = TrajectoryRecorder(tmp_path), tiny_network()
    train(recorder, describe_run("run", network, CLASSES, **SCALE), network)
    recorder.finish()
    before, (images, labels) = files(tmp_path / "run"), batches()[0]
    with pytest.raises(InputError, match="under way, got one that is finished. Call start"):
        recorder.batch(images, labels)
    with pytest.raises(InputError, match="is finished"):
        recorder.stage(1)
    with pytest.raises(InputError, match="Run 'run' is already recorded"):
        recorder.start(describe_run("run", network, CLASSES, **SCALE), network)
    with pytest.raises(InputError, match="is finished"):
        recorder.stage(1)
    assert files(tmp_path / "run") == before
    with pytest.raises(InputError, match="is not started"):
        TrajectoryRecorder(tmp_path).batch(images, labels)


def test_a_start_that_is_refused_leaves_the_complete_run_as_it_is(tmp_path):
    """Also while another run is under way, whose next stage must not go into the folder of the complete one."""
    done, network = TrajectoryRecorder(tmp_path), tiny_network()
    train(done, describe_run("done", network, CLASSES, **SCALE), network)
    for _ in range(2):
        done.finish()  # a second call does nothing
    before = files(tmp_path / "done")
    recorder = TrajectoryRecorder(tmp_path)
    train(recorder, describe_run("other", network, CLASSES, **SCALE), network)
    with pytest.raises(InputError, match="is already recorded"):
        recorder.start(describe_run("done", network, CLASSES, **SCALE), network)
    with pytest.raises(InputError, match="must be under way"):
        recorder.stage(3)
    assert files(tmp_path / "done") == before
    recorder.detach()


def test_a_whole_checkpoint_in_place_of_the_state_is_refused(tmp_path):
    state = {"state": {"callbacks": {"TGDDCallback": TrajectoryRecorder(tmp_path).state_dict()}}, "rng": []}
    for one in (TrajectoryRecorder(tmp_path), TGDDCallback()):
        with pytest.raises(InputError, match=r"`state` must be what state_dict\(\) .* got the keys state, rng"):
            one.load_state_dict(state)
        one.load_state_dict(state["state"]["callbacks"]["TGDDCallback"])


def test_what_was_loaded_is_kept_until_a_start_succeeds(tmp_path):
    network = tiny_network()
    first = TrajectoryRecorder(tmp_path)
    train(first, describe_run("run", network, CLASSES, **SCALE), network)
    first.detach()
    resumed = TrajectoryRecorder(tmp_path)
    resumed.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match="`head` must be"):
        resumed.start(describe_run("run", nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), CLASSES), network)
    resumed.start(describe_run("run", network, CLASSES, **SCALE), network)
    resumed.finish()
    assert [stage["batch"] for stage in manifest(tmp_path / "run")["stages"]] == [0, 2, 4]


WRAPPERS = {
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda network: torch.compile(nn.DataParallel(network), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("described", ["bare", "wrapped"])
def test_a_wrapped_network_is_recorded_as_the_bare_one(tmp_path, wrapper, described):
    network = tiny_network()
    recorder = TrajectoryRecorder(tmp_path / "bare")
    train(recorder, describe_run("run", network, CLASSES, **SCALE), network)
    recorder.finish()
    network = tiny_network()
    wrapped = WRAPPERS[wrapper](network)
    recorder = TrajectoryRecorder(tmp_path / "wrapped")
    train(recorder, describe_run("run", wrapped if described == "wrapped" else network, CLASSES, **SCALE), wrapped)
    recorder.finish()
    assert files(tmp_path / "wrapped" / "run") == files(tmp_path / "bare" / "run")
