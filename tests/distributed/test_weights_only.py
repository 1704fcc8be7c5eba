"""Checkpoints under a Trainer that loads them with ``weights_only=True``: nothing of ours in them needs more."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback
from torch import nn
from torch.torch_version import TorchVersion

from tests.common import Crash, assert_same, fit, manifest, recorded, statistics, tiny_network
from tests.patterned import SETTINGS, patterned, run, tiny
from tests.patterned import Crash as Interrupt
from tests.replay.filled import memory
from tgdd_plugin import DistilledReplay, TGDDCallback
from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings

# What Composer itself keeps: its clocks, torch's version, and the state of numpy's random numbers.
COMPOSERS = [timedelta, TorchVersion, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
RECONSTRUCT = np.zeros(1).__reduce__()[0]


@contextmanager
def weights_only() -> Iterator[list[Path]]:
    """Composer's loading as in its next version; gives the files that were loaded."""
    load, loaded = torch.load, []

    def safe_load(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, io.BytesIO):  # a message between ranks, where an earlier test left a process group
            return load(file, *arguments, **options)
        loaded.append(Path(file))
        return load(file, *arguments, **{**options, "weights_only": True})

    with pytest.MonkeyPatch.context() as patch, torch.serialization.safe_globals([*COMPOSERS, RECONSTRUCT]):
        patch.setattr(torch, "load", safe_load)
        yield loaded


def train(folder: Path, name: str, *callbacks: Callback) -> nn.Module:
    network = tiny_network(norm=True, dropout=0.5)
    fit(
        network,
        algorithms=[SiameseAugmentation(), DistilledReplay(memory()), RandomCutMix()],
        callbacks=[*callbacks, TGDDCallback(str(folder / "trajectory"), interval="3ba", exemplars=2)],
        save_folder=str(folder / name),
        save_interval="2ba",
        autoresume=True,
        run_name=name,
    )
    return network


def test_a_recording_beside_replay_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole")
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, "crashed", Crash(8))
    with weights_only() as loaded:
        resumed = train(tmp_path, "crashed")
    assert len(loaded) == 1
    assert_same({0: resumed.state_dict()}, {0: whole.state_dict()})
    runs = tmp_path / "trajectory/crashed", tmp_path / "trajectory/whole"
    assert_same(recorded(runs[0]), recorded(runs[1]))
    assert_same(statistics(runs[0]), statistics(runs[1]))
    assert {**manifest(runs[0]), "name": "whole"} == manifest(runs[1])


def test_a_distillation_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    settings = RecordSettings(epochs=2, runs=1, batch_size=8, learning_rate=0.05)
    trajectory = record(tmp_path / "trajectory", patterned(), tiny, settings, device="cpu", progress_bar=False)
    averaged, paths = replace(SETTINGS, ema="3ba"), [tmp_path / name / "a.beton" for name in ("whole", "crashed")]
    run(trajectory, patterned(), paths[0], averaged)
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, patterned(), paths[1], averaged, callbacks=[Interrupt(8)], checkpoint_interval="5ba")
    with weights_only() as loaded:
        run(trajectory, patterned(), paths[1], averaged, checkpoint_interval="5ba")
    assert len(loaded) == 2, "it is looked at before Composer loads it"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_nothing_of_ours_needs_to_be_allowed(tmp_path: Path) -> None:
    train(tmp_path, "run")
    state = torch.load(tmp_path / "run" / "ep0-ba4-rank0.pt", weights_only=False)["state"]
    ours = {**state["callbacks"], **dict(state["algorithms"])}
    del ours["CheckpointSaver"]
    assert "TGDDCallback" in ours and ours["TGDDCallback"]["class_means"]["batches"] == 1
    torch.save(ours, tmp_path / "ours.pt")
    assert str(torch.load(tmp_path / "ours.pt", weights_only=True)) == str(ours)
