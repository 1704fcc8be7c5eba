"""A trajectory folder under all that may happen to it, in any order, beside a list of the stages that it must hold."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.common import CLASSES, tiny_network
from tgdd_plugin import Trajectory, TrajectoryRecorder, describe_run
from tgdd_plugin.core.errors import InputError


@dataclass(frozen=True)
class Wanted:
    """A stage that the folder must hold: how many were due before it, and the batch after which it was recorded."""

    index: int
    batch: int


def thinned(stages: list[Wanted], most: int | None) -> list[Wanted]:
    """The first, the last, and every 2^m-th between them, with the smallest m that fits."""
    for stride in (2**m for m in range(20)):
        kept = [stage for stage in stages if stage.index % stride == 0 or stage is stages[-1]]
        # By the last index: of what was thinned before, no stage comes back.
        if most is None or -(-stages[-1].index // stride) + 1 <= most:
            return kept
    raise AssertionError


class Folder(RuleBasedStateMachine):
    """Records batches and stages, is killed and resumed, loses files, and is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="tgdd-stateful-"))
        self.images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(3)
        self.finished = False

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @initialize(most=st.sampled_from([None, 3, 4]))
    def begin(self, most: int | None) -> None:
        self.most = most
        self.checkpoints: list[tuple[int, bytes, int, int]] = []
        self._start(None)

    # What a training does.

    @precondition(lambda self: not self.finished)
    @rule()
    def train(self) -> None:
        with torch.no_grad():
            self.network(self.images)
            self.network.fc.bias.fill_(self.batch + 1)
        self.recorder.batch(self.images, self.labels, {"loss": float(self.batch)})
        self.batch += 1

    @precondition(lambda self: not self.finished and self.batch > self.last)
    @rule()
    def record(self) -> None:
        with self._tells_losses():
            self.recorder.stage(0)
        self._has_stage()

    @precondition(lambda self: not self.finished)
    @rule()
    def checkpoint(self) -> None:
        file = io.BytesIO()
        torch.save(self.recorder.state_dict(), file)
        self.checkpoints.append((self.batch, file.getvalue(), self.due, self.last))

    @precondition(lambda self: not self.finished)
    @rule()
    def finish(self) -> None:
        with self._tells_losses():
            self.recorder.finish(epoch=1)
        if self.batch > self.last:
            self._has_stage()
        else:
            self._drop_lost()
        self.finished = True
        self.deleted.clear()

    # What happens to it.

    @precondition(lambda self: not self.finished)
    @rule(choice=st.randoms(use_true_random=False), torn=st.booleans())
    def kill_and_resume(self, choice, torn: bool) -> None:
        """Without a word to the recorder; from any checkpoint, or from none."""
        self.recorder.detach()
        if torn:
            self._tear()
        if self.checkpoints and choice.random() < 0.8:
            number = choice.randrange(len(self.checkpoints))
            del self.checkpoints[number + 1 :]  # those later than the one it goes on from belong to another future
            self._start(self.checkpoints[number])
        else:
            self.checkpoints.clear()
            self._start(None)

    @precondition(lambda self: not self.finished and len(self.stages) > 1 and not self.deleted)
    @rule(choice=st.randoms(use_true_random=False))
    def delete_a_stage(self, choice) -> None:
        stage = choice.choice(self.stages)
        (path,) = self._run.glob(f"stage-*-ba{stage.batch}.safetensors")
        path.unlink()
        self.deleted.append(stage)

    # What must hold.

    @invariant()
    def it_opens_as_it_should(self) -> None:
        if not hasattr(self, "stages"):
            return
        if self.deleted:
            with pytest.raises(InputError):
                Trajectory.open(self.place)
            return
        if len(self.stages) < 2:
            with pytest.raises(InputError, match="needs at least 2"):
                Trajectory.open(self.place)
            return
        trajectory = Trajectory.open(self.place)  # compares checksums
        (folder,) = trajectory.runs
        assert [Wanted(stage.index, stage.batch) for stage in trajectory.run.stages] == self.stages
        for stage in trajectory.run.stages:
            assert trajectory.load(folder, stage)["fc.bias"].tolist() == [float(stage.batch)] * CLASSES

    @invariant()
    def it_says_whether_it_is_complete(self) -> None:
        if not hasattr(self, "stages") or self.deleted or len(self.stages) < 2:
            return
        run = Trajectory.open(self.place, check=False).run
        assert run.complete == (self.finished and not self.lost)
        if self.finished and self.lost:
            assert run.gaps or not run.complete

    @precondition(lambda self: self.finished)
    @rule()
    def finished_work_is_whole_and_alone(self) -> None:
        named = json.loads((self._run / "manifest.json").read_text())
        found = {path.name for path in self._run.iterdir()}
        assert found <= {stage["file"] for stage in named["stages"]} | {"manifest.json", "exemplars.safetensors"}
        assert [path.name for path in self.place.iterdir()] == ["run"]
        for stage in named["stages"]:
            assert hashlib.sha256((self._run / stage["file"]).read_bytes()).hexdigest() == stage["sha256"]
        if named["complete"]:
            with pytest.raises(InputError, match="already recorded"):
                TrajectoryRecorder(self.place).start(self._describe(), tiny_network())

    # How.

    @property
    def _run(self) -> Path:
        return self.place / "run"

    def _describe(self):
        return describe_run("run", tiny_network(), CLASSES, mean=[0.0], std=[1.0], augmentation="none")

    def _start(self, checkpoint: tuple[int, bytes, int, int] | None) -> None:
        """A new process begins, or goes on from a checkpoint."""
        self.network = tiny_network()
        self.recorder = TrajectoryRecorder(self.place, max_stages=self.most, exemplars=1)
        if checkpoint is not None:
            self.batch, state, self.due, self.last = checkpoint
            self.recorder.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        if checkpoint is None or self.batch == 0:  # it begins anew
            self.batch, self.due, self.last, self.stages, self.deleted, self.lost = 0, 0, -1, [], [], False
        else:
            # Later stages are dropped; what thinning dropped meanwhile is gone, as it would be in the end.
            self.stages = [stage for stage in self.stages if stage.batch <= self.batch]
            self.deleted = [stage for stage in self.deleted if stage in self.stages]
            if self.stages and self.stages[-1].batch > self.last:  # recorded right after the checkpoint
                self.due, self.last = self.stages[-1].index + 1, self.stages[-1].batch
        with torch.no_grad():
            self.network.fc.bias.fill_(self.batch)
        again = "run 'run' begins anew|training resumes at batch|RECORDING FAILED"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=again)
            self.recorder.start(self._describe(), self.network)
        if not self.stages:
            self.due = 0
            self._has_stage()

    def _has_stage(self) -> None:
        self._drop_lost()
        self.stages = thinned([*self.stages, Wanted(self.due, self.batch)], self.most)
        self.due, self.last = self.due + 1, self.batch

    def _drop_lost(self) -> None:
        if self.deleted:
            self.lost = True
            self.stages = [stage for stage in self.stages if stage not in self.deleted]
            self.deleted = []

    @contextmanager
    def _tells_losses(self) -> Iterator[None]:
        with warnings.catch_warnings():
            if self.deleted or self.lost:
                warnings.filterwarnings("ignore", message="RECORDING FAILED|the recording of run")
            yield

    def _tear(self) -> None:
        """What a kill in the middle of writing leaves: half a temporary file, and half a line of a journal."""
        (self._run / ".stage-ep0-ba9.safetensors.abcdefgh.tmp").write_bytes(b"half")
        for journal in self._run.glob("*.jsonl"):
            with journal.open("ab") as file:
                file.write(b'{"stage": {"file": "stage-ep0-ba')


TestFolder = Folder.TestCase
TestFolder.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
