"""A run that crashed and was resumed leaves the bytes of one that was never interrupted."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Logger, State
from composer.algorithms import EMA, SWA
from torch.utils.data import DataLoader

from tests.common import (
    Crash,
    Pictures,
    Probe,
    TinyNetwork,
    assert_same,
    differ,
    fit,
    make_trainer,
    manifest,
    recorded,
    snapshot,
    statistics,
    tiny_network,
)
from tgdd_plugin import TGDDCallback
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.trajectory.store import Trajectory

# Of Composer, when a checkpoint from before a callback was added, or without callbacks' states, is loaded.
pytestmark = pytest.mark.filterwarnings("ignore:.* is not in the state_dict:UserWarning")


def network(seed: int = 0) -> TinyNetwork:
    # Dropout draws and running statistics, so that a resumed run must get the generator and the buffers back too.
    return tiny_network(seed, norm=True, dropout=0.5)


def train(
    root: Path, crash: int | None = None, *, tgdd: dict[str, Any] | TGDDCallback | None = None, **options: Any
) -> Probe:
    """Trains 3 epochs of 4 batches with autoresume; crashes in batch ``crash`` (counted from 0) if one is named."""
    net = network(options.pop("start", 0))
    probe = Probe(net)
    recorder = tgdd if isinstance(tgdd, TGDDCallback) else TGDDCallback(str(root / "trajectory"), **(tgdd or {}))
    callbacks = [probe, *options.pop("callbacks", []), recorder]
    if crash is not None:
        callbacks.append(Crash(crash))
    options = {"save_interval": "1ep", "autoresume": True, **options}
    if options.pop("shuffle", False):
        options["train_dataloader"] = DataLoader(Pictures(), batch_size=8, shuffle=True)
    fit(net, callbacks=callbacks, save_folder=str(root / "checkpoints"), **options)
    return probe


def crash(root: Path, batch: int, **options: Any) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        train(root, batch, **options)


class CrashAtEnd(Callback):
    """Ends the run between its last checkpoint and its last event."""

    def fit_end(self, state: State, logger: Logger) -> None:
        raise RuntimeError("crash")


def test_killed_after_last_checkpoint_is_complete_once_loaded(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path / "crashed", callbacks=[CrashAtEnd()])
    assert not manifest(tmp_path / "crashed/trajectory/run")["complete"]
    # Composer refuses to train what is trained to its end; that the recording is whole is noted all the same.
    with pytest.raises(ValueError, match="No training would occur"):
        train(tmp_path / "crashed")
    assert manifest(tmp_path / "crashed/trajectory/run") == manifest(tmp_path / "whole/trajectory/run")


def test_lost_stage_is_not_complete_once_loaded(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, callbacks=[CrashAtEnd()])
    (tmp_path / "trajectory/run" / manifest(tmp_path / "trajectory/run")["stages"][1]["file"]).unlink()
    with pytest.raises(ValueError, match="No training would occur"):
        train(tmp_path)
    assert not manifest(tmp_path / "trajectory/run")["complete"]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "default, before the first checkpoint": ({}, {}, [1]),
    "default": ({}, {}, [5]),
    "default, last batch": ({}, {}, [11]),
    "plain shuffle": ({"interval": "2ba"}, {"shuffle": True}, [7]),
    "batches": ({"interval": "3ba"}, {}, [7]),
    "share of the run": ({"interval": "0.25dur"}, {}, [5]),
    "checkpoints within epochs": ({"interval": "1ep"}, {"save_interval": "3ba"}, [7]),
    "checkpoint at an epoch's last batch": ({"interval": "4ba"}, {"save_interval": "4ba"}, [11]),
    "due at every event": ({"interval": lambda state, event: True}, {"save_interval": "4ba"}, [6, 10]),
    "half precision": ({"interval": "3ba", "dtype": "float16"}, {}, [7]),
    "thinned to 2": ({"interval": "1ba", "max_stages": 2}, {}, [7]),
    "thinned to 4": ({"interval": "1ba", "max_stages": 4}, {}, [7, 11]),
    "thinned to 6": ({"interval": "1ba", "max_stages": 6}, {"save_interval": "3ba"}, [8]),
    "thinned, due at every event": (
        {"interval": lambda state, event: True, "max_stages": 3},
        {"save_interval": "4ba"},
        [7],
    ),
    "microbatches": ({"interval": "2ba"}, {"device_train_microbatch_size": 3}, [7]),
    "EMA": ({"interval": "2ba"}, {"algorithms": EMA}, [7]),
    "EMA, checkpoints within epochs": ({"interval": "1ep"}, {"algorithms": EMA, "save_interval": "2ba"}, [3, 7]),
    "two crashes": ({"interval": "2ba"}, {}, [6, 10]),
}


@pytest.mark.parametrize(("tgdd", "options", "crashes"), CASES.values(), ids=list(CASES))
def test_crash_and_autoresume(
    tmp_path: Path, tgdd: dict[str, Any], options: dict[str, Any], crashes: list[int]
) -> None:
    def fresh() -> dict[str, Any]:
        return {**options, "algorithms": [EMA(half_life="3ba")]} if "algorithms" in options else options

    probe = train(tmp_path / "whole", tgdd=tgdd, **fresh())
    for batch in crashes:
        crash(tmp_path / "crashed", batch, tgdd=tgdd, **fresh())
        assert not manifest(tmp_path / "crashed/trajectory/run")["complete"]
    train(tmp_path / "crashed", tgdd=tgdd, **fresh())
    wanted, got = snapshot(tmp_path / "whole/trajectory/run"), snapshot(tmp_path / "crashed/trajectory/run")
    if options.get("save_interval", "1ep") != "1ep":
        # Composer forgets metrics half-way through an epoch, and of a first epoch that broke off exemplars are those
        # since the checkpoint; all the rest must agree.
        for files in (wanted, got):
            del files["exemplars.safetensors"]
            content = json.loads(files.pop("manifest.json"))
            files["manifest.json"] = {
                **content,
                "exemplars": None,
                "stages": [{**s, "metrics": None} for s in content["stages"]],
            }  # type: ignore
    assert got == wanted
    # And the uninterrupted run itself is what training went through.
    if tgdd.get("dtype") is None:
        stages = recorded(tmp_path / "whole/trajectory/run")
        assert_same(stages, {batch: probe.weights[batch] for batch in stages})


def test_a_number_of_outputs_of_numpys_is_recorded_and_resumed(tmp_path: Path) -> None:
    def go(*callbacks: Callback) -> None:
        torch.manual_seed(0)
        net = TinyNetwork(1, Pictures().labels.numpy().max() + 1)
        options = {"save_folder": str(tmp_path / "checkpoints"), "autoresume": True, "max_duration": "2ep"}
        fit(net, callbacks=[TGDDCallback(str(tmp_path / "trajectory")), *callbacks], **options)

    with pytest.raises(RuntimeError, match="crash"):
        go(Crash(6))
    go()
    run = Trajectory.open(tmp_path / "trajectory").run
    assert run.num_classes == 3 and [stage.batch for stage in run.stages] == [0, 4, 8]


def test_a_folder_spelt_in_another_way_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    often = {"save_interval": "1ba"}
    train(tmp_path / "whole", **often)
    crash(tmp_path / "crashed", 6, tgdd=TGDDCallback("crashed/../crashed/trajectory"), **often)
    train(tmp_path / "crashed", **often)
    whole, crashed = (statistics(tmp_path / name / "trajectory/run") for name in ("whole", "crashed"))
    assert whole[8] and list(whole) == list(crashed)
    for batch, found in whole.items():
        torch.testing.assert_close(crashed[batch], found, rtol=0, atol=0)


def checkpoint(root: Path, epoch: int) -> str:
    return str(root / f"checkpoints/ep{epoch}-ba{4 * epoch}-rank0.pt")


@pytest.mark.parametrize("same", [False, True], ids=["new callback", "same callback"])
@pytest.mark.parametrize("ignored", [None, ["state/callbacks/*"]], ids=["whole checkpoint", "without callbacks"])
def test_going_back_to_an_earlier_checkpoint(tmp_path: Path, ignored: list[str] | None, same: bool) -> None:
    """Stages later than it are made again, also where the run had come to its end."""
    recorder = TGDDCallback(str(tmp_path / "trajectory"), interval="2ba")
    train(tmp_path, tgdd=recorder)
    wanted = snapshot(tmp_path / "trajectory/run")
    (tmp_path / "trajectory/run/stage-ep1-ba8.safetensors").write_bytes(b"from before")
    # Half as long, so that what is not made again must go.
    train(
        tmp_path,
        tgdd=recorder if same else {"interval": "2ba"},
        autoresume=False,
        load_path=checkpoint(tmp_path, 1),
        load_ignore_keys=ignored,
        max_duration="2ep",
        save_overwrite=True,
    )
    got = snapshot(tmp_path / "trajectory/run")
    kept = [f"stage-{name}.safetensors" for name in ("ep0-ba0", "ep0-ba2", "ep0-ba4", "ep1-ba6", "ep1-ba8")]
    assert {name: got[name] for name in kept} == {name: wanted[name] for name in kept}
    assert set(got) == {*kept, "manifest.json", "exemplars.safetensors"}
    assert got["exemplars.safetensors"] == wanted["exemplars.safetensors"]
    stages = manifest(tmp_path / "trajectory/run")["stages"]
    assert [(stage["batch"], stage["index"]) for stage in stages] == [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]


def test_going_on_with_a_finished_run(tmp_path: Path) -> None:
    """Longer training by load_path: the stages of both parts are those of training in one go."""
    train(tmp_path / "whole", autoresume=False)
    train(tmp_path / "parts", autoresume=False, max_duration="2ep")
    train(tmp_path / "parts", autoresume=False, load_path=checkpoint(tmp_path / "parts", 2))
    assert snapshot(tmp_path / "parts/trajectory/run") == snapshot(tmp_path / "whole/trajectory/run")


def test_going_on_with_a_run_that_was_stopped(tmp_path: Path) -> None:
    """The last checkpoint was saved before the callback learnt that this was the last moment."""

    class Stop(Callback):
        def batch_checkpoint(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch.value == 6:
                state.stop_training()

    tgdd = {"interval": "3ep"}
    train(tmp_path, tgdd=tgdd, save_interval="6ba", callbacks=[Stop()])
    assert list(recorded(tmp_path / "trajectory/run")) == [0, 6]
    probe = train(tmp_path, tgdd=tgdd, save_interval="6ba")
    run = Trajectory.open(tmp_path / "trajectory").run
    assert [(stage.batch, stage.index) for stage in run.stages] == [(0, 0), (6, 1), (12, 2)]
    stages = recorded(tmp_path / "trajectory/run")
    assert_same({batch: stages[batch] for batch in (6, 12)}, {batch: probe.weights[batch] for batch in (6, 12)})


def test_going_back_twice_under_another_name(tmp_path: Path) -> None:
    """The checkpoint counts the stages of the run it was saved by, not of this one."""
    train(tmp_path, autoresume=False)
    again = {"run_name": "other", "load_path": checkpoint(tmp_path, 1), "autoresume": False, "save_overwrite": True}
    with pytest.warns(UserWarning, match="recording starts here"), pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, 9, **again)
    train(tmp_path, **again)
    stages = manifest(tmp_path / "trajectory/other")["stages"]
    assert [(stage["batch"], stage["index"]) for stage in stages] == [(4, 0), (8, 1), (12, 2)]


@pytest.mark.parametrize("algorithms", [None, EMA], ids=["plain", "EMA"])
def test_resume_under_another_name(tmp_path: Path, algorithms: Any) -> None:
    """Recording starts at the checkpoint, with the weights in training, and says so."""

    def options() -> dict[str, Any]:
        return {"algorithms": [EMA(half_life="3ba")] if algorithms else [], "autoresume": False}

    first = train(tmp_path, **options())
    with pytest.warns(UserWarning, match="training resumes at batch 4 but .* recording starts here .*'.*/run'"):
        train(
            tmp_path,
            run_name="other",
            load_path=checkpoint(tmp_path, 1),
            save_overwrite=True,
            **options(),
        )
    other = tmp_path / "trajectory/other"
    assert_same(recorded(other), {batch: first.weights[batch] for batch in (4, 8, 12)})
    assert [stage["index"] for stage in manifest(other)["stages"]] == [0, 1, 2]
    where = [(stage["epoch"], stage["batch"], stage["sample"]) for stage in manifest(other)["stages"]]
    assert where == [(1, 4, 32), (2, 8, 64), (3, 12, 96)]
    assert manifest(other)["exemplars"], "of the first epoch that is recorded there"
    assert list(recorded(tmp_path / "trajectory/run")) == [0, 4, 8, 12]
    if algorithms:
        saved = torch.load(checkpoint(tmp_path, 1), weights_only=False)["state"]["model"]
        averaged = {name.removeprefix("module."): tensor for name, tensor in saved.items()}
        assert differ(averaged, first.weights[4]), "EMA's weights were expected in the checkpoint"


@pytest.mark.parametrize("ignored", [None, ["state/callbacks/*"]], ids=["whole checkpoint", "without callbacks"])
def test_a_checkpoint_of_another_training_mixes_no_stages(tmp_path: Path, ignored: list[str] | None) -> None:
    """A complete recording is refused to it, one that was cut short is replaced with a warning."""
    train(tmp_path / "one", autoresume=False, tgdd=TGDDCallback(str(tmp_path / "both")))
    train(tmp_path / "two", autoresume=False, start=1)
    how = {"autoresume": False, "load_path": checkpoint(tmp_path / "two", 2), "load_ignore_keys": ignored}
    how["save_overwrite"] = True
    before = snapshot(tmp_path / "both")
    with pytest.raises(InputError, match="Run 'run' is already recorded in .*, by another training than the checkp"):
        train(tmp_path / "two", tgdd=TGDDCallback(str(tmp_path / "both")), **how)
    assert snapshot(tmp_path / "both") == before
    text = (tmp_path / "both/run/manifest.json").read_text().replace('"complete": true', '"complete": false')
    (tmp_path / "both/run/manifest.json").write_text(text)
    with pytest.warns(UserWarning) as told:
        probe = train(tmp_path / "two", tgdd=TGDDCallback(str(tmp_path / "both")), **how)
    assert_same(recorded(tmp_path / "both/run"), {batch: probe.weights[batch] for batch in (8, 12)})
    texts = [str(one.message) for one in told]
    assert any("its 4 stages" in one and "(they are of another training than what was loaded)" in one for one in texts)
    assert any("training resumes at batch 8 but" in one for one in texts)


def test_another_network_keeps_no_stages_of_an_earlier_one(tmp_path: Path) -> None:
    """Also where no stage is of the checkpoint's batch."""
    crash(tmp_path / "one", 11, tgdd=TGDDCallback(str(tmp_path / "both"), interval="3ba"))
    data = Pictures(shape=(2, 8, 8))
    fit(TinyNetwork(2), data, save_folder=str(tmp_path / "two"))
    loaded = str(tmp_path / "two/ep2-ba8-rank0.pt")
    with pytest.warns(UserWarning) as told:
        fit(TinyNetwork(2), data, load_path=loaded, callbacks=[TGDDCallback(str(tmp_path / "both"))])
    assert any("run 'run' begins anew: its 4 stages" in str(one.message) for one in told)
    assert list(recorded(tmp_path / "both/run")) == [8, 12]


def test_weights_that_change_between_two_fits_are_still_of_one_run(tmp_path: Path) -> None:
    """As where the best weights so far are loaded."""
    net = network()
    trainer = make_trainer(net, callbacks=[TGDDCallback(str(tmp_path))], max_duration="1ep")
    trainer.fit()
    net.load_state_dict(network(5).state_dict())
    trainer.fit(duration="1ep")
    trainer.close()
    assert list(recorded(tmp_path / "run")) == [0, 4, 8]


@pytest.mark.parametrize("interval", ["1ep", "2ba"])
def test_averaged_stages_are_gone_on_with(tmp_path: Path, interval: str) -> None:
    """Those of SWA are other weights than the checkpoint's, or than the network's at its end."""

    def go(crash_at: int | None) -> None:
        swa = SWA(swa_start="1ep", swa_end="2ep", update_interval="1ep", schedule_swa_lr=False)
        options: dict[str, Any] = {"algorithms": [swa], "save_interval": "2ba", "tgdd": {"interval": interval}}
        train(tmp_path, crash_at, **options)

    with pytest.raises(RuntimeError, match="crash"):
        go(9)
    go(None)
    batches = range(0, 13, 4 if interval == "1ep" else 2)
    assert list(recorded(tmp_path / "trajectory/run")) == list(batches)


def test_weights_of_a_checkpoint_start_a_new_run(tmp_path: Path) -> None:
    first = train(tmp_path, autoresume=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="composer|torch.*")
        train(
            tmp_path,
            run_name="tuned",
            autoresume=False,
            load_path=checkpoint(tmp_path, 3),
            load_weights_only=True,
            save_overwrite=True,
        )
    stages = recorded(tmp_path / "trajectory/tuned")
    assert list(stages) == [0, 4, 8, 12]
    assert_same({0: stages[0]}, {0: first.weights[12]})


def test_folder_lost_between(tmp_path: Path) -> None:
    crash(tmp_path, 7)
    shutil.rmtree(tmp_path / "trajectory")
    with pytest.warns(UserWarning, match="training resumes at batch 4 but .* has no stage from before"):
        train(tmp_path)
    assert list(recorded(tmp_path / "trajectory/run")) == [4, 8, 12]


def test_new_start_after_a_crash_keeps_nothing(tmp_path: Path) -> None:
    """Without autoresume the run starts anew, perhaps from another seed."""
    crash(tmp_path, 7, autoresume=False, tgdd={"interval": "1ba"})
    with pytest.warns(UserWarning, match="run 'run' begins anew: its 8 stages"):
        probe = train(tmp_path, autoresume=False, save_overwrite=True, start=1)
    assert_same(recorded(tmp_path / "trajectory/run"), {batch: probe.weights[batch] for batch in (0, 4, 8, 12)})
    assert len(snapshot(tmp_path / "trajectory/run")) == 6


def test_recording_that_failed_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the stage of epoch 2 is written: training stops, and goes on once there is room."""
    train(tmp_path / "whole")
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if "stage-ep2" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match=r"Cannot record in .* \(No space left on device\). Make room, or"):
            train(tmp_path / "crashed", tgdd={"on_error": "raise"})
    assert [stage.batch for stage in Trajectory.open(tmp_path / "crashed/trajectory").run.stages] == [0, 4]
    train(tmp_path / "crashed")
    assert manifest(tmp_path / "crashed/trajectory/run") == manifest(tmp_path / "whole/trajectory/run")


def test_state_is_plain(tmp_path: Path) -> None:
    """The callback adds nothing to a checkpoint that a cautious torch.load would refuse."""
    tgdd = TGDDCallback(str(tmp_path / "trajectory"), interval="1ba")
    states = []

    class Keep(Callback):
        def epoch_checkpoint(self, state: State, logger: Logger) -> None:
            states.append(tgdd.state_dict())

    trainer = make_trainer(network(), callbacks=[tgdd, Keep()], save_folder=str(tmp_path / "checkpoints"))
    trainer.fit()
    trainer.close()
    torch.save(states, tmp_path / "states.pt")
    assert torch.load(tmp_path / "states.pt", weights_only=True) == states
    assert [(state["last_batch"], state["due_so_far"]) for state in states] == [(4, 5), (8, 9), (12, 13)]
    saved = torch.load(checkpoint(tmp_path, 2), weights_only=False)["state"]["callbacks"]["TGDDCallback"]
    assert saved == states[1]
