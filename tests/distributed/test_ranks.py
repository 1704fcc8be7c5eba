"""Recording, distilling and replay on several ranks of gloo, beside one process; this file is also what they run.

What must be equal: recorded weights and class means, up to rounding, for the same global batches; a distillation whose
ranks draw for themselves, to a loop that averages the gradients of their draws. No rank may wait for ever: one whose
recording fails goes on with the others, and one that is killed ends the run, which then resumes to the same bits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Logger, State
from composer.utils import checkpoint, dist
from safetensors.torch import load_file
from torch import nn

from tests.common import Pictures, assert_same, fit, manifest, recorded, statistics, tiny_network
from tests.distributed.launching import fork_ranks, outcome, run_file
from tests.patterned import SETTINGS, patterned, run, tiny
from tgdd_plugin import TGDDCallback, Trajectory, read_beton
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.recording import callback as callback_module
from tgdd_plugin.recording import safeguard
from tgdd_plugin.recording.class_means import ClassMeans
from tgdd_plugin.recording.exemplars import Exemplars
from tgdd_plugin.recording.head_statistics import HeadStatistics
from tgdd_plugin.recording.metric_means import MetricMeans
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.learner import learn
from tgdd_plugin.replay.policies import TaskResult
from tgdd_plugin.replay.settings import ReplaySettings
from tgdd_plugin.replay.tasks import split_classes
from tgdd_plugin.training import resuming
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import train_network
from tgdd_plugin.trajectory import writing
from tgdd_plugin.trajectory.manifest import Run

IMAGES = 32
DISTILL = replace(SETTINGS, steps=6)
KILLS = ("batch", "write", "step", "training")
"""Where a rank is killed: rank 1 within a batch, rank 0 while it writes a stage, rank 1 after a step of distilling, and
within a batch of a training of ours."""


# What the ranks run.


class Double(Pictures):
    """The pictures in double precision."""

    def __init__(self) -> None:
        super().__init__(IMAGES)
        self.images = self.images.double()


def train_alike(root: Path, ranks: int) -> None:
    """4 batches an epoch of the same 8 images on any number of ranks."""
    fit(
        tiny_network().double(),
        Double(),
        batch_size=8 // ranks,
        run_name=f"of{ranks}",
        callbacks=[TGDDCallback(str(root / "alike"), interval="3ba", exemplars=2, on_error="raise")],
    )


def distill_alike(root: Path, ranks: int) -> None:
    run(root / "trajectory", patterned(), root / f"of{ranks}.beton", DISTILL)


class OverflowsOnOneRank(nn.Module):
    """Gives infinite outputs under autocast on rank 1, from its third pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = tiny_network(norm=True), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        logits: torch.Tensor = self.inner(images)
        bad = torch.is_autocast_enabled("cpu") and self.passes > 2 and dist.get_global_rank() == 1
        return logits * torch.inf if bad else logits


def train_in_bf16(result: Path) -> None:
    pictures = Pictures(IMAGES)
    pixels, normalization = (pictures.images * 255).to(torch.uint8), Normalization([0.5], [0.3])
    settings = TrainSettings(epochs=2, batch_size=4, augmentation="none", cutmix=0.0, precision="bf16", compile=False)
    loader = DeviceLoader(pixels, pictures.labels, normalization, batch_size=4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        network = train_network(OverflowsOnOneRank(), loader, 3, settings, device="cpu")
    words = [str(warning.message) for warning in told if "not finite" in str(warning.message)]
    torch.save({"weights": network.state_dict(), "told": words}, result)


def kill(rank: int, when: bool) -> None:
    if when and dist.get_global_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)


class KillAt(Callback):
    """Kills rank 1 within a batch, when the others already wait for its gradients; or after it."""

    def __init__(self, forward: int = -1, end: int = -1) -> None:
        self.forward, self.end = forward, end

    def after_forward(self, state: State, logger: Logger) -> None:
        kill(1, state.timestamp.batch.value == self.forward)

    def batch_end(self, state: State, logger: Logger) -> None:
        kill(1, state.timestamp.batch.value == self.end)


def train_to_the_end(root: Path, name: str, *callbacks: Callback) -> None:
    network = tiny_network(norm=True, dropout=0.5)
    fit(
        network,
        batch_size=4,
        run_name=name,
        callbacks=[*callbacks, TGDDCallback(str(root / "killed"), interval="3ba", exemplars=2)],
        save_folder=str(root / "checkpoints" / name),
        save_interval="2ba",
        autoresume=True,
    )


def distill_to_the_end(root: Path, name: str, *callbacks: Callback) -> None:
    settings = replace(DISTILL, steps=12, ema="3ba")
    path = root / name / "set.beton"
    run(root / "trajectory", patterned(), path, settings, callbacks=callbacks, checkpoint_interval="5ba")


def kill_batch(root: Path) -> None:
    train_to_the_end(root, "batch", KillAt(forward=7))


def kill_write(root: Path) -> None:
    whole = writing.write_whole

    def write(path: Path, content: bytes, **options: Any) -> None:
        kill(0, "ba9" in path.name)  # rank 1 waits for its word
        whole(path, content, **options)

    writing.write_whole = write
    train_to_the_end(root, "write")


def kill_step(root: Path) -> None:
    distill_to_the_end(root, "step", KillAt(end=8))


class Begun(Callback):
    """Notes after how many batches a training begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fit_start(self, state: State, logger: Logger) -> None:
        with self.path.open("a") as file:
            file.write(f"{state.timestamp.batch.value} ")


def record_to_the_end(root: Path, name: str, *callbacks: Callback) -> None:
    settings = RecordSettings(epochs=3, batch_size=4, learning_rate=0.05, interval="2ba", precision="fp32")
    options = {"callbacks": [*callbacks, Begun(root / f"{name}-begun{dist.get_global_rank()}")]}
    with patched(resuming, "SAVED_EVERY", 0.0):
        record(root / "ours" / name, patterned(), tiny, settings, device="cpu", trainer_options=options)


def train_without_room(root: Path) -> None:
    """As with a disk that is full for a while, of which rank 0 alone knows."""
    saves, save = [], resuming.save_checkpoint

    def full(state: State, filename: str) -> Any:
        saves.append(None)
        if len(saves) in (2, 3) and dist.get_global_rank() == 0:
            with patched(checkpoint, "_write_checkpoint_file", nth(lambda *_: None, lambda call: True)):
                return save(state, filename)
        return save(state, filename)

    with patched(resuming, "save_checkpoint", full), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        record_to_the_end(root, "room")
    words = [str(warning.message) for warning in told if "no checkpoint could" in str(warning.message)]
    (root / f"room{dist.get_global_rank()}.json").write_text(json.dumps({"told": words, "saves": len(saves)}))


def kill_training(root: Path) -> None:
    record_to_the_end(root, "training", KillAt(forward=11))


def on_two(root: Path) -> None:
    """All that two ranks do beside being killed: see the functions it calls."""
    dist.initialize_dist("cpu")
    train_alike(root, 2)
    distill_alike(root, 2)
    train_in_bf16(root / f"bf16-{dist.get_global_rank()}.pt")
    learn_tasks(root / f"learned{dist.get_global_rank()}.pt", root / "learned")
    for name in ("batch", "write", "undisturbed"):
        train_to_the_end(root, name)
    for name in ("step", "undisturbed"):
        distill_to_the_end(root, name)
    for name in ("training", "undisturbed"):
        record_to_the_end(root, name)
    train_without_room(root)
    with open(root / f"faults{dist.get_global_rank()}.json", "w") as file:
        json.dump({name: train_with_fault(root, name) for name in ("none", *FAULTS)}, file)


def on_four(root: Path) -> None:
    train_alike(root, 4)
    distill_alike(root, 4)


def learn_tasks(result: Path, folder: Path) -> None:
    """Two tasks; the first real images of each class are kept."""
    train, test = patterned(1, per_class=30).split(1 / 3, torch.Generator().manual_seed(0))
    settings = ReplaySettings(tasks=2, finetune_epochs=1)
    networks: list[nn.Module] = []

    def keep(task: TaskResult) -> Any:
        networks.append(task.network)
        pool = task.task.train
        return pool.subset(torch.cat([(pool.labels == one).nonzero()[:2, 0] for one in pool.labels.unique()]))

    scores = learn(
        split_classes(train, test, settings),
        lambda classes: tiny_for(classes),
        folder,
        keep,
        2,
        RecordSettings(epochs=1, batch_size=5, learning_rate=0.02, exemplars=0),
        settings,
        mean=[0.4],
        std=[0.3],
        device="cpu",
        progress_bar=False,
    )
    torch.save({"rows": scores.rows, "weights": [network.state_dict() for network in networks]}, result)


def tiny_for(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))


# One rank's recording fails, in one place.


def nth(original: Callable[..., Any], fails: Callable[[int], bool], after: bool = False) -> Callable[..., Any]:
    """A function that raises in some of its calls, counted from 1; before it does its work, or after."""
    calls = []

    def function(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if fails(len(calls)) and not after:
            raise RuntimeError("fault")
        result = original(*arguments, **options)
        if fails(len(calls)):
            raise RuntimeError("fault")
        return result

    return function


Fault = tuple[int, Any, str, Callable[[int], bool], bool]
FAULTS: dict[str, Fault] = {
    "a stage's file": (0, writing, "write_whole", lambda call: call == 3, False),
    "the manifest": (0, Run, "write_stage", lambda call: call == 2, False),
    "exemplars, each time": (0, Exemplars, "write", lambda call: True, False),
    "looking for exemplars": (0, Exemplars, "add", lambda call: call == 2, False),
    "adding up a batch's features": (1, ClassMeans, "add", lambda call: True, False),
    "the batch's end, first rank": (0, ClassMeans, "commit", lambda call: call == 3, False),
    "every batch's end": (1, ClassMeans, "commit", lambda call: True, False),
    "a batch's metrics": (1, MetricMeans, "add", lambda call: call == 3, False),
    "the metrics of a stage": (1, MetricMeans, "take", lambda call: call == 3, False),
    "the class means of a stage": (1, HeadStatistics, "take", lambda call: call == 3, True),
    "the class means, each time": (0, HeadStatistics, "take", lambda call: call > 1, True),
    "the weights": (1, callback_module, "network_weights", lambda call: call == 3, False),
    "the metrics in a checkpoint": (1, MetricMeans, "state_dict", lambda call: call == 2, False),
}


GAPS = ("a stage's file", "the manifest", "the weights")
"""The faults that cost a stage; the others cost its class means or metrics, or some exemplars."""


@contextmanager
def patched(owner: Any, name: str, function: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


def train_with_fault(root: Path, name: str) -> dict[str, Any]:
    """3 epochs of 4 batches, a stage every 3 of them, with a checkpoint each epoch; what comes of it on this rank."""
    rank, owner, attribute, fails, after = FAULTS.get(name, (-1, ClassMeans, "add", bool, False))
    network = tiny_network(norm=True)
    function = getattr(owner, attribute)
    if rank == dist.get_global_rank():
        function = nth(function, fails, after)
    with (
        patched(owner, attribute, function),
        patched(safeguard, "PAUSES", ()),
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        fit(
            network,
            batch_size=4,
            run_name=name.replace(" ", "-"),
            callbacks=[TGDDCallback(str(root / "faults"), interval="3ba", mean=[0.0], std=[1.0], exemplars=2)],
            save_folder=str(root / "faults-checkpoints" / name),
            save_interval="1ep",
        )
    parameters = {n: p.tolist() for n, p in network.named_parameters()}
    words = [str(warning.message) for warning in told if "recording" in str(warning.message).lower()]
    return {"weights": parameters, "told": words}


# The tests.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trajectory to distill, in which one process has recorded as the ranks will."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ranks")
    settings = RecordSettings(epochs=3, runs=2, batch_size=8, learning_rate=0.05)
    record(folder / "trajectory", patterned(), tiny, settings, device="cpu", progress_bar=False)
    train_alike(folder, 1)
    return folder


@pytest.fixture(scope="module")
def done(root: Path) -> Path:
    """The folder once all ranks have done their work."""
    run_file(__file__, root)
    return root


def test_all_ranks_come_to_their_end(done: Path) -> None:
    for name in ("on_two", "on_four"):
        for status, _, text in outcome(done, name):
            assert status == 0, text


def test_where_bf16_overflows_on_one_rank_all_go_back_to_float32(done: Path) -> None:
    one, other = (torch.load(done / f"bf16-{rank}.pt") for rank in (0, 1))
    assert one["told"] == other["told"] and "training goes on in float32 with the weights of batch 0" in one["told"][0]
    # Running statistics are each rank's own.
    parameters = [{n: w for n, w in rank["weights"].items() if "running" not in n} for rank in (one, other)]
    assert_same({0: parameters[0]}, {0: parameters[1]})
    assert all(tensor.isfinite().all() for tensor in one["weights"].values())


@pytest.mark.parametrize("ranks", [2, 4])
def test_recording_equals_that_of_one_process(done: Path, ranks: int) -> None:
    folders = {number: done / "alike" / f"of{number}" for number in (1, ranks)}
    alone, ours = (manifest(folder) for folder in folders.values())
    # A stage stores float32, and so are the sums of the class means.
    torch.testing.assert_close(recorded(folders[ranks]), recorded(folders[1]), rtol=3e-7, atol=1e-9)
    found, wanted = statistics(folders[ranks]), statistics(folders[1])
    assert list(wanted) == [0, 3, 6, 9, 12] and all(wanted[batch] for batch in (3, 6, 9, 12))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for stage, other in zip(ours.pop("stages"), alone.pop("stages"), strict=True):
        for name in ("file", "index", "epoch", "batch", "sample"):
            assert stage[name] == other[name], name
        assert stage["metrics"] == pytest.approx(other["metrics"], rel=1e-6)
    # Those of the first rank's images alone: what the inputs are like, and the exemplars.
    for one in (ours, alone):
        del one["name"], one["input"], one["exemplars"]
    assert ours == alone


@pytest.mark.parametrize("ranks", [2, 4])
def test_exemplars_are_the_first_of_the_first_rank(done: Path, ranks: int) -> None:
    pictures = Double()
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))[::ranks]  # as DistributedSampler deals
    kept = load_file(done / "alike" / f"of{ranks}" / "exemplars.safetensors")
    for label in range(3):
        first = [number for number in order.tolist() if pictures.labels[number] == label][:2]
        wanted = (pictures.images[first] * 255).round().to(torch.uint8)
        assert torch.equal(kept["images"][kept["labels"] == label], wanted)


@pytest.mark.parametrize("ranks", [2, 4])
def test_distilling_averages_the_gradients_of_the_ranks_own_draws(done: Path, ranks: int) -> None:
    """So its expectation is that of one process, and its variance is the N-th part."""
    pool, network, settings = patterned(), tiny(), DISTILL.resolved(8)
    bank = StageBank(Trajectory.open(done / "trajectory"), [network])
    synthetic = SyntheticImages(start_pixels("mix", (3, 2, 3, 8, 8), 1, pool, keyed_generator(0, 0, 2**31)), 1)
    model = DistillationModel(
        synthetic,
        [FeatureNetwork(network, "classifier")],
        bank,
        pool,
        normalization=Normalization(*pool.statistics()),
        alpha=settings.alpha or 0.0,
    )
    for step in range(settings.steps):
        batches = [Draws(settings, bank, pool, synthetic, rank)(step) for rank in range(ranks)]
        assert not torch.equal(batches[0]["real"], batches[1]["real"])
        losses = [model.loss(model(batch), batch)["total"] for batch in batches]
        (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), synthetic.pixels)
        synthetic.pixels.data.sub_((settings.learning_rate or 0.0) * gradient).clamp_(0, 1)
    images, _ = read_beton(done / f"of{ranks}.beton")
    assert (images.int() - synthetic.to_uint8()[0].int()).abs().max() <= 1, "as far as the order of additions goes"


def test_learning_tasks_on_two_ranks(done: Path) -> None:
    """Both end with the same scores and weights, and the memory is written once."""
    first, second = (torch.load(done / f"learned{rank}.pt") for rank in (0, 1))
    assert first["rows"] == second["rows"] and [len(row) for row in first["rows"]] == [1, 2]
    assert len(first["weights"]) == 2
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert json.loads((done / "learned/scores.json").read_text())["rows"] == first["rows"]
    assert len(read_beton(done / "learned/task1/memory.beton")[1]) == 6


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_rank_ends_the_run_within_a_minute(done: Path, name: str) -> None:
    ended, died = outcome(done, f"kill_{name}"), 0 if name == "write" else 1
    (status, moment, _), (other, later, text) = ended[died], ended[1 - died]
    print(f"{name}: the other rank ended {later - moment:.2f} s after")
    assert status == -signal.SIGKILL and other != 0, text
    assert later - moment < 60


@pytest.mark.parametrize("name", ["batch", "write"])
def test_a_recording_resumes_to_the_same_bits_after_a_rank_was_killed(done: Path, name: str) -> None:
    """Class means alone are equal but for rounding: the first rank goes on from the sums of both."""
    whole, resumed = (done / "killed" / one for one in ("undisturbed", name))
    assert list(recorded(whole)) == [0, 3, 6, 9, 12]
    assert_same(recorded(resumed), recorded(whole))
    torch.testing.assert_close(statistics(resumed), statistics(whole), rtol=1e-5, atol=1e-6)
    noted, other = manifest(resumed), manifest(whole)
    for stage in [*noted["stages"], *other["stages"]]:
        del stage["sha256"]  # of the class means, too
    assert {**noted, "name": "undisturbed"} == other and noted["complete"] and noted["exemplars"]


def test_a_distillation_resumes_to_the_same_bits_after_a_rank_was_killed(done: Path) -> None:
    assert (done / "step/set.beton").read_bytes() == (done / "undisturbed/set.beton").read_bytes()
    assert sorted(path.name for path in (done / "step").iterdir()) == ["set-log.csv", "set.beton", "set.beton.yaml"]


def test_a_training_of_ours_resumes_to_the_same_bits_after_a_rank_was_killed(done: Path) -> None:
    whole, resumed = (done / "ours" / name for name in ("undisturbed", "training"))
    assert_same(recorded(resumed / "seed0"), recorded(whole / "seed0"))
    assert manifest(resumed / "seed0")["complete"] and not list(resumed.glob(".training*"))
    assert [(done / f"training-begun{rank}").read_text() for rank in (0, 1)] == ["0 11 "] * 2, "not from the start"


def test_ranks_go_on_where_no_checkpoint_can_be_saved(done: Path) -> None:
    first, second = (json.loads((done / f"room{rank}.json").read_text()) for rank in (0, 1))
    assert first["saves"] == second["saves"] > 4 and not second["told"]
    assert len(first["told"]) == 1 and "work goes on without: RuntimeError: fault" in first["told"][0]
    assert_same(recorded(done / "ours/room/seed0"), recorded(done / "ours/undisturbed/seed0"))


@pytest.mark.parametrize("name", FAULTS)
def test_training_goes_on_alike_when_one_ranks_recording_fails(done: Path, name: str) -> None:
    first, second = (json.loads((done / f"faults{rank}.json").read_text()) for rank in (0, 1))
    assert first[name]["weights"] == second[name]["weights"] == first["none"]["weights"]
    assert not first["none"]["told"] and not second[name]["told"]
    told = first[name]["told"]
    assert len(told) == 2, told
    assert told[0].startswith("RECORDING FAILED, training goes on") and "RuntimeError: fault" in told[0]
    assert told[1].startswith("the recording of run ") and "is not whole" in told[1]
    noted = manifest(done / "faults" / name.replace(" ", "-"))
    assert noted["complete"] and any("fault" in gap["reason"] for gap in noted["gaps"])
    batches = [stage["batch"] for stage in noted["stages"]]
    missing = [gap["batch"] for gap in noted["gaps"]] if name in GAPS else []
    assert batches == [batch for batch in (0, 3, 6, 9, 12) if batch not in missing] and len(missing) <= 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kill_one in (kill_batch, kill_write, kill_step, kill_training):
        fork_ranks(kill_one, Path(sys.argv[1]))
    fork_ranks(on_two, Path(sys.argv[1]))
    fork_ranks(on_four, Path(sys.argv[1]), 4)
