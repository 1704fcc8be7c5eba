"""TrajectoryRecorder in a plain PyTorch loop: what it records is what the callback records of the same batches."""

from __future__ import annotations

import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Trainer
from composer.models import ComposerClassifier
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from tests.common import CLASSES, Pictures, manifest, tiny_network, trained
from tgdd_plugin import DistillSettings, TGDDCallback, Trajectory, TrajectoryRecorder, describe_run, distill, read_card
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.evaluation.comparison import evaluate
from tgdd_plugin.recording.head_statistics import HeadStatistics
from tgdd_plugin.recording.metric_means import MetricMeans
from tgdd_plugin.trajectory import manifest as manifests
from tgdd_plugin.trajectory import writing

ROOT = Path(__file__).parents[2]
RATE, EPOCHS, BATCH = 0.1, 3, 8


class Crash(Exception):
    pass


def loader(shape=(1, 8, 8)):
    return DataLoader(Pictures(36, shape), batch_size=BATCH)  # the last batch of an epoch is smaller


def optimizer_of(network):
    return torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)


def plain_loop(folder, *, epochs=EPOCHS, every=None, checkpoint=None, crash_at=None, **options):
    """The loop of a user without Composer: a stage each epoch, or every so many batches."""
    network = tiny_network(norm=True)
    optimizer = optimizer_of(network)
    recorder = TrajectoryRecorder(folder, **options)
    first = 0
    if checkpoint is not None:
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        recorder.load_state_dict(checkpoint["recorder"])
        first = checkpoint["epoch"]
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0], augmentation="none"), network)
    saved = None
    for epoch in range(first + 1, epochs + 1):
        for images, labels, loss in trained(network, optimizer, loader()):
            recorder.batch(images, labels, {"loss/train/total": loss})
            if every and recorder.batches % every == 0:
                recorder.stage(epoch - 1)
            if crash_at == recorder.batches:
                recorder.detach()
                return saved
        if not every:
            recorder.stage(epoch)
        states = {"network": network, "optimizer": optimizer, "recorder": recorder}
        saved = {name: torch.load(_saved(part), weights_only=True) for name, part in states.items()}
        saved["epoch"] = epoch
    recorder.finish(epoch=epochs)
    return saved


def _saved(part):
    """As a checkpoint on disk holds it."""
    from io import BytesIO

    file = BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    return file


def composer_run(folder, interval="1ep", **options):
    network = tiny_network(norm=True)
    trainer = Trainer(
        model=ComposerClassifier(network, num_classes=CLASSES),
        train_dataloader=loader(),
        optimizers=optimizer_of(network),
        max_duration=f"{EPOCHS}ep",
        device="cpu",
        progress_bar=False,
        run_name="run",
        callbacks=[TGDDCallback(str(folder), interval, mean=[0.0], std=[1.0], **options)],
    )
    trainer.fit()
    trainer.close()


def files(folder):
    """Every tensor of every file of a run: weights, class means, exemplars."""
    return {path.name: load_file(path) for path in sorted((folder / "run").glob("*.safetensors"))}


def assert_equal_files(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].keys() == other[name].keys(), name
        for key, tensor in one[name].items():
            assert tensor.dtype == other[name][key].dtype and torch.equal(tensor, other[name][key]), (name, key)


@pytest.mark.parametrize(
    ("every", "options"),
    [
        (None, {}),
        (None, {"dtype": "float16", "max_stages": 3}),
        (2, {"exemplars": 2}),
        (None, {"statistics": False, "exemplars": 0}),
    ],
)
def test_a_plain_loop_records_what_the_callback_records(tmp_path, every, options):
    plain_loop(tmp_path / "plain", every=every, **options)
    composer_run(tmp_path / "composer", f"{every}ba" if every else "1ep", **options)
    assert_equal_files(files(tmp_path / "plain"), files(tmp_path / "composer"))
    plain, composer = (manifest(tmp_path / name / "run") for name in ("plain", "composer"))
    for key in ("head", "num_classes", "mean", "std", "input", "complete", "exemplars"):
        assert plain[key] == composer[key], key
    assert plain["network"] == {**composer["network"], "algorithms": []}
    for ours, theirs in zip(plain["stages"], composer["stages"], strict=True):
        assert {**ours, "metrics": None} == {**theirs, "metrics": None}
        loss = theirs["metrics"].get("loss/train/total")
        assert ours["metrics"].get("loss/train/total") == (None if loss is None else pytest.approx(loss, rel=1e-6))


@pytest.mark.parametrize("inside", [False, True], ids=["batch() outside", "batch() inside"])
def test_a_loop_under_autocast_is_recorded_in_float32(tmp_path, inside):
    network, features = tiny_network(norm=True), []
    optimizer = optimizer_of(network)
    network.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
    images, labels = next(iter(loader()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(network(images), labels)
    loss.backward()
    optimizer.step()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        recorder.batch(images, labels, {"loss": loss})
    recorder.stage(1)
    recorder.finish()
    trajectory = Trajectory.open(tmp_path)
    stage = trajectory.run.stages[-1]
    means, counts = trajectory.class_means(tmp_path / "run", stage)
    assert features[0].dtype == torch.bfloat16 and means.dtype == torch.float32
    wanted = torch.stack([features[0][labels == label].double().mean(0) for label in range(CLASSES)])
    torch.testing.assert_close(means.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(counts, torch.bincount(labels, minlength=CLASSES).float())
    assert stage.metrics["loss"] == pytest.approx(float(loss))
    kept = load_file(tmp_path / "run" / stage.file)
    for name, tensor in network.state_dict().items():
        assert torch.equal(kept[name], tensor), name


@pytest.mark.parametrize("every", [None, 3])
def test_a_crashed_loop_goes_on_and_ends_with_the_stages_of_an_uninterrupted_one(tmp_path, every):
    plain_loop(tmp_path / "whole", every=every)
    saved = plain_loop(tmp_path / "crashed", every=every, crash_at=13)  # after two epochs of five, three batches on
    assert saved["epoch"] == 2 and not manifest(tmp_path / "crashed" / "run")["complete"]
    plain_loop(tmp_path / "crashed", every=every, checkpoint=saved)
    assert_equal_files(files(tmp_path / "crashed"), files(tmp_path / "whole"))
    crashed, whole = (manifest(tmp_path / name / "run") for name in ("crashed", "whole"))
    assert crashed == whole


def test_the_recording_distills_without_the_data(tmp_path):
    plain_loop(tmp_path / "plain")
    settings = DistillSettings(images_per_class=1, factor=1, steps=2, compile=False)
    network = tiny_network(norm=True)
    path = distill(tmp_path / "plain", None, tmp_path / "a.beton", settings, network=network, progress_bar=False)
    assert read_card(path).trajectory["stages"] == Trajectory.open(tmp_path / "plain").checksums


def recorded_stages(folder):
    return [(stage.epoch, stage.batch) for stage in Trajectory.open(folder).run.stages]


def test_a_second_stage_at_the_same_batch_is_none(tmp_path):
    """As where one is due each so many batches and at the end of each epoch."""
    network = tiny_network()
    optimizer = optimizer_of(network)
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
    for epoch in (1, 2):
        for images, labels, _ in trained(network, optimizer, DataLoader(Pictures(32, (1, 8, 8)), batch_size=8)):
            recorder.batch(images, labels)
            if recorder.batches % 2 == 0:
                recorder.stage(epoch - 1)
        recorder.stage(epoch)
    recorder.finish(epoch=2)
    assert recorded_stages(tmp_path) == [(0, 0), (0, 2), (0, 4), (1, 6), (1, 8)]
    assert Trajectory.open(tmp_path).exemplar_counts() == [11, 11, 10], "the epoch ended, whatever recorded its end"


def test_a_loop_that_saves_before_its_stage_goes_on(tmp_path):
    network = tiny_network()
    optimizer = optimizer_of(network)
    batches = list(loader())

    def go(saved, *epochs):
        recorder = TrajectoryRecorder(tmp_path)
        if saved:
            recorder.load_state_dict(saved)
        recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
        if saved:
            recorder.stage(epochs[0] - 1)  # which its checkpoint was too early for
        for epoch in epochs:
            for images, labels, _ in trained(network, optimizer, batches):
                recorder.batch(images, labels)
            saved = recorder.state_dict()
            recorder.stage(epoch)
        recorder.detach()
        return saved

    go(go(None, 1, 2), 3)
    assert recorded_stages(tmp_path) == [(0, 0), (1, 5), (2, 10), (3, 15)]


def test_a_loop_that_never_tells_of_a_batch_is_told(tmp_path):
    network = tiny_network()
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
    with pytest.warns(UserWarning, match=r"no stage is recorded, as there was no batch. Call batch\(\)") as told:
        recorder.stage(1)
        recorder.stage(2)
        recorder.finish()
    assert len(told) == 1 and [stage["batch"] for stage in manifest(tmp_path / "run")["stages"]] == [0]


class Scaled(torch.nn.Linear):
    """A layer whose state holds more than tensors."""

    def get_extra_state(self):
        return {"scale": 1.0}

    def set_extra_state(self, state):
        assert state == {"scale": 1.0}


def test_what_is_no_tensor_in_a_networks_state_is_passed_over(tmp_path):
    def build():
        network = tiny_network(norm=True)
        network.fc = Scaled(16, CLASSES)
        return network

    network = build()
    optimizer = optimizer_of(network)
    recorder = TrajectoryRecorder(tmp_path / "run/trajectory", exemplars=12)
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0], augmentation="none"), network)
    for images, labels, _ in trained(network, optimizer, loader()):
        recorder.batch(images, labels)
    recorder.finish(epoch=1)
    trajectory = Trajectory.open(tmp_path / "run/trajectory")
    assert recorded_stages(tmp_path / "run/trajectory") == [(0, 0), (1, 5)]
    last = load_file(tmp_path / "run/trajectory/run" / trajectory.run.stages[-1].file)
    assert torch.equal(last["fc.weight"], network.fc.weight) and "fc._extra_state" not in last
    settings = DistillSettings(images_per_class=1, steps=2, factor=1)
    beton = tmp_path / "set.beton"
    distill(trajectory, None, beton, settings, network=build, device="cpu", progress_bar=False)
    how = {"trajectory": trajectory, "network": build, "device": "cpu", "progress_bar": False}
    options = {"baselines": ["random"], "networks": []}
    rows = evaluate(beton, Pictures(24), Pictures(24), options, {"epochs": 2, "seeds": 1}, **how)
    assert {(row.name, row.labels) for row in rows} >= {("distilled", "hard"), ("distilled", "soft")}


def test_inputs_too_large_for_a_manifest_leave_it_readable(tmp_path):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(1, 2))
    recorder = TrajectoryRecorder(tmp_path, exemplars=0)
    recorder.start(describe_run("run", network, 2, mean=[0.5], std=[0.5]), network)
    with pytest.warns(UserWarning, match="the inputs have a side of 70000: nothing can be distilled") as told:
        for epoch in (1, 2):
            images = torch.zeros(2, 1, 1, 70_000)
            network(images)
            recorder.batch(images, torch.tensor([0, 1]))
            recorder.stage(epoch)
    assert len([one for one in told if "nothing can be distilled" in str(one.message)]) == 1
    assert recorded_stages(tmp_path) == [(0, 0), (1, 1), (2, 2)] and Trajectory.open(tmp_path).run.input is None


def test_a_manifest_stays_readable_however_many_metrics_come(tmp_path, monkeypatch):
    """Thinned stages make room again; without thinning later stages have none, which is told once."""
    monkeypatch.setattr(manifests, "METRICS_SIZE", 10_000)
    network = tiny_network()
    metrics = {f"accuracy of class {number}": number / 3 for number in range(20)}  # of about 1,200 bytes

    def go(folder, **options):
        recorder = TrajectoryRecorder(folder, exemplars=0, **options)
        recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
        for epoch in range(1, 41):
            network(torch.zeros(1, 1, 8, 8))
            recorder.batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]), metrics)
            recorder.stage(epoch)
        recorder.finish()
        return [len(stage.metrics) for stage in Trajectory.open(folder).run.stages]

    with pytest.warns(UserWarning, match="no room for metrics of more stages") as told:
        numbers = go(tmp_path / "all")
    assert numbers[1:8] == [20] * 7 and not any(numbers[9:]) and len(numbers) == 41 and len(told) == 1
    assert all(go(tmp_path / "thinned", max_stages=5)[1:])


def test_stages_beyond_what_a_manifest_holds_are_gaps(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MOST_STAGES", 4)
    network = tiny_network()
    recorder = TrajectoryRecorder(tmp_path, exemplars=0)
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
    with pytest.warns(UserWarning, match="`max_stages` must be at most 4 where more are due, got None"):
        for epoch in range(1, 7):
            network(torch.zeros(1, 1, 8, 8))
            recorder.batch(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
            recorder.stage(epoch)
        recorder.finish()
    assert recorded_stages(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert len(list((tmp_path / "run").glob("stage-*"))) == 4, "nothing is left that no manifest names"


def test_microbatches_add_up_to_the_batch(tmp_path):
    """A loop that accumulates gradients calls the parts itself; class means are those of whole batches."""
    network = tiny_network()
    recorder = TrajectoryRecorder(tmp_path / "parts")
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
    whole = TrajectoryRecorder(tmp_path / "whole")
    twin = tiny_network()
    whole.start(describe_run("run", twin, CLASSES, mean=[0.0], std=[1.0]), twin)
    for number, (images, labels) in enumerate(loader(), 1):
        recorder.look_at(images, labels)
        recorder.features.begin_pass()
        for part, own in zip(images.split(3), labels.split(3), strict=True):
            network(part)
            recorder.features.add(own)
        recorder.features.end_pass()
        recorder.end_batch({}, number)
        twin(images)
        whole.batch(images, labels)
    recorder.stage(1)
    whole.stage(1)
    ours, theirs = (files(tmp_path / name)["stage-ep1-ba5.safetensors"] for name in ("parts", "whole"))
    torch.testing.assert_close(ours["tgdd/class_means"], theirs["tgdd/class_means"])
    assert torch.equal(ours["tgdd/class_counts"], theirs["tgdd/class_counts"])


def test_of_several_forward_passes_the_one_before_end_forward_counts(tmp_path):
    """As in semi-supervised training, where other images pass through the network in the same step."""
    recorder, network = started(tmp_path / "twice")
    once, twin = started(tmp_path / "once")
    for images, labels in loader():
        recorder.features.begin_forward()
        network(images)
        recorder.features.end_forward()
        network(1 - images)
        recorder.batch(images, labels)
        twin(images)
        once.batch(images, labels)
    for each in (recorder, once):
        each.finish(epoch=1)
    assert_equal_files(files(tmp_path / "twice"), files(tmp_path / "once"))


def test_parts_of_a_batch_that_are_not_told_are_named_as_the_reason(tmp_path):
    recorder, network = started(tmp_path)
    for images, labels in loader():
        for part in images.split(2):
            network(part)
        recorder.batch(images, labels)
    with pytest.warns(
        UserWarning, match=r"the head got 2 images last, and there are 4 labels: .* calls features.add\(\) after each"
    ):
        recorder.stage(1)
    recorder.finish()


def test_a_run_that_is_recorded_is_not_replaced_unless_asked(tmp_path):
    plain_loop(tmp_path, epochs=1)
    with pytest.raises(InputError, match="Run 'run' is already recorded in .* or set overwrite=True"):
        plain_loop(tmp_path, epochs=1)
    plain_loop(tmp_path, epochs=2, overwrite=True)
    assert [stage["epoch"] for stage in manifest(tmp_path / "run")["stages"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "`dtype` must be one of float32, float16, bfloat16, got 'int8'"),
        ({"max_stages": 1}, "`max_stages` must be a whole number of at least 2"),
        ({"exemplars": 1.5}, "`exemplars` must be a whole number"),
        ({"folder": "s3://bucket/run"}, "`folder` must be one of this machine, got 's3://bucket/run'. Record into a"),
    ],
)
def test_unusable_options_are_refused(tmp_path, options, message):
    for recorder in (TrajectoryRecorder, TGDDCallback):
        with pytest.raises(InputError, match=message):
            recorder(**{"folder": tmp_path, **options})
    for call in (TrajectoryRecorder(tmp_path).finish, lambda: TrajectoryRecorder(tmp_path).stage(1)):
        with pytest.raises(InputError, match=r"Call start\(\) first"):
            call()
    network = tiny_network()
    with pytest.raises(InputError, match="`classes` must be 3 names, one for each output of the network, got 2"):
        describe_run("run", network, CLASSES, classes=["a", "b"])
    with pytest.raises(InputError, match="`augmentation` must be operations of .* got 'flips'"):
        describe_run("run", network, CLASSES, augmentation="flips")


def test_a_class_may_have_a_name_of_any_length(tmp_path):
    network = tiny_network()
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, CLASSES, classes=["a" * 5000, "b", "c"]), network)
    images, labels = next(iter(loader()))
    network(images)
    recorder.batch(images, labels)
    recorder.finish(epoch=1)
    assert Trajectory.open(tmp_path).run.classes == ["a" * 4096, "b", "c"]


@pytest.mark.parametrize("three", [np.int64(3), torch.tensor(3), np.int32(2) + 1], ids=["NumPy", "torch", "sum"])
def test_numbers_of_other_libraries_are_recorded_as_plain_ones(tmp_path, three):
    network = tiny_network()
    network.tgdd_network = {"factory": "my:network", "arguments": {"classes": three, "rate": torch.tensor(0.5)}}
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, three, mean=np.float32([0]), std=torch.ones(1)), network)
    images, labels = next(iter(loader()))
    network(images)
    recorder.batch(images, labels)
    recorder.finish(epoch=1)
    run = Trajectory.open(tmp_path).run
    assert run.num_classes == 3 and run.network["arguments"] == {"classes": 3, "rate": 0.5}
    for other in (3.0, None, True):
        with pytest.raises(InputError, match="`num_classes` must be a whole number, got"):
            describe_run("run", network, other)


def started(folder, network=None, **options):
    """A recorder of a small network under way, and that network."""
    network = network or tiny_network()
    recorder = TrajectoryRecorder(folder, **options)
    recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
    return recorder, network


@pytest.mark.parametrize("epochs", [np.arange(1, 3), torch.arange(1, 3), (1.0, 2.0)], ids=["NumPy", "torch", "floats"])
def test_epochs_may_be_numbers_of_any_kind(tmp_path, epochs):
    recorder, network = started(tmp_path)
    for epoch in epochs:
        for images, labels, _ in trained(network, optimizer_of(network), loader()):
            recorder.batch(images, labels)
        recorder.stage(epoch)
    recorder.finish()
    assert recorded_stages(tmp_path) == [(0, 0), (1, 5), (2, 10)]


def test_what_is_no_number_of_epochs_and_no_batch_ends_no_training(tmp_path):
    recorder, network = started(tmp_path)
    images, labels = next(iter(loader()))
    with pytest.warns(UserWarning) as told:
        for epoch in (None, -1, "two"):
            network(images)
            recorder.batch(None, labels)
            recorder.stage(epoch)
        recorder.finish()
    assert recorded_stages(tmp_path) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert sum("RECORDING FAILED, training goes on" in str(one.message) for one in told) == 1
    run = Trajectory.open(tmp_path).run
    assert any("reading the number of epochs failed" in gap["reason"] for gap in run.gaps)
    with pytest.raises(InputError, match="`interval` must be text, got 1"):
        describe_run("run", network, CLASSES, interval=1)


def test_metrics_of_any_name_leave_the_recording_readable(tmp_path):
    recorder, network = started(tmp_path)
    images, labels = next(iter(loader()))
    network(images)
    names = ["loss", "\udcfc", "a" * 5000, ("accuracy", "cat"), 7, None]
    recorder.batch(images, labels, {name: number for number, name in enumerate(names)})
    recorder.finish(epoch=1)
    metrics = Trajectory.open(tmp_path).run.stages[-1].metrics
    assert metrics == {"loss": 0, "\\udcfc": 1, "a" * 4093 + "...": 2, "('accuracy', 'cat')": 3, "7": 4, "None": 5}


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    network = tiny_network()
    with pytest.raises(InputError, match=f"The run's name must be one for a folder in .*, got '{name}'. Give"):
        TrajectoryRecorder(tmp_path / "t").start(describe_run(name, network, CLASSES), network)
    assert list(tmp_path.iterdir()) == []


def test_recording_alone_loads_neither_composer_nor_ffcv():
    code = """
import sys
from tgdd_plugin import TrajectoryRecorder, describe_run
print({"composer", "ffcv", "torchvision", "optuna"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "set()", done.stdout + done.stderr


def test_the_recipe_records_a_run(tmp_path, monkeypatch):
    """recipes/plain_pytorch.py as it stands, on a small stand-in for the downloaded data."""

    class Small(Pictures):
        classes = [str(number) for number in range(10)]

        def __init__(self, root, train, transform, download):
            super().__init__(40, (1, 28, 28))
            self.labels = torch.arange(40) % 10

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", Small)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plain_pytorch.py", "--epochs", "2", "--width", "4"])
    runpy.run_path(str(ROOT / "recipes" / "plain_pytorch.py"))
    trajectory = Trajectory.open(tmp_path / "plain" / "trajectory")
    assert [stage.epoch for stage in trajectory.run.stages] == [0, 1, 2] and trajectory.run.complete
    assert trajectory.exemplars() is not None


# A training that diverges.


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_training_that_diverges_is_recorded_and_told_once(tmp_path, monkeypatch, dtype):
    with monkeypatch.context() as patch, pytest.warns(UserWarning) as told:
        patch.setitem(globals(), "RATE", 3e38)
        plain_loop(tmp_path, dtype=dtype)
    assert [str(each.message) for each in told] == [
        "the training diverged at epoch 1 (run 'run'): its stages from batch 5 on hold values that are not finite. "
        "Distilling leaves them out; train again at a lower learning rate"
    ]
    assert [stage.get("finite", True) for stage in manifest(tmp_path / "run")["stages"]] == [True, False, False, False]
    # Nothing is called damaged: there are no class means that are not finite.
    trajectory = Trajectory.open(tmp_path)
    for stage in trajectory.run.stages:
        means = trajectory.class_means(tmp_path / "run", stage)
        assert means is None or means[0].isfinite().all()


def test_the_callback_notes_it_too(tmp_path, monkeypatch):
    with (
        monkeypatch.context() as patch,
        pytest.warns(UserWarning, match="diverged at epoch 1 .* at a lower learning rate"),
    ):
        patch.setitem(globals(), "RATE", 3e38)
        composer_run(tmp_path)
    assert [stage.get("finite", True) for stage in manifest(tmp_path / "run")["stages"]] == [True, False, False, False]


# Labels outside 0..K-1.


@pytest.mark.parametrize("ignored", [-100, -1, 255])
@pytest.mark.parametrize("composer", [False, True])
def test_images_whose_labels_are_ignored_count_nowhere(tmp_path, ignored, composer):
    """As ignore_index has them: training goes on, and they are in no class mean and no exemplar."""

    class Ignoring(Pictures):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, (ignored if index % 4 == 1 else label)

    def train(folder):
        losses = {"loss_fn": partial(F.cross_entropy, ignore_index=ignored)}
        network = tiny_network()
        data = DataLoader(Ignoring(36), batch_size=BATCH)
        optimizer = optimizer_of(network)
        if composer:
            none = MetricCollection([])  # torchmetrics takes no label outside
            model = ComposerClassifier(network, CLASSES, train_metrics=none, val_metrics=none, **losses)
            options = {"optimizers": optimizer, "device": "cpu", "progress_bar": False, "run_name": "run"}
            callback = TGDDCallback(str(folder), mean=[0.0], std=[1.0])
            trainer = Trainer(model=model, train_dataloader=data, max_duration="2ep", callbacks=[callback], **options)
            trainer.fit()
            trainer.close()
            return
        recorder = TrajectoryRecorder(folder)
        recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0]), network)
        for epoch in (1, 2):
            for images, labels in data:
                loss = losses["loss_fn"](network(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.batch(images, labels, {})
            recorder.stage(epoch)
        recorder.finish()

    if ignored > 0:
        with pytest.warns(UserWarning) as told:
            train(tmp_path)
        assert sum("there are labels up to 255 for 3 classes" in str(each.message) for each in told) == 1
    else:
        train(tmp_path)  # warnings are errors
    run = manifest(tmp_path / "run")
    assert run["complete"] and "gaps" not in run and len(run["stages"]) == 3
    kept = load_file(tmp_path / "run" / "exemplars.safetensors")
    data = Pictures(36)
    own = [i for i in range(36) if i % 4 != 1]
    assert kept["labels"].bincount().tolist() == data.labels[own].bincount().tolist()
    shown = {(data.images[i] * 255).round().to(torch.uint8).numpy().tobytes() for i in own}
    assert {image.numpy().tobytes() for image in kept["images"]} == shown
    # A batch counts by the square of its number, see ClassMeans.
    counts = load_file(tmp_path / "run" / run["stages"][1]["file"])["tgdd/class_counts"]
    wanted = torch.zeros(CLASSES)
    for i in own:
        wanted[data.labels[i]] += ((i // BATCH + 1) / 5) ** 2
    torch.testing.assert_close(counts, wanted)


def test_their_means_are_those_of_the_other_images_alone():
    means = HeadStatistics()
    head = torch.nn.Linear(2, 3)
    means.attach({"fc": head}, "fc", "cpu")
    features = torch.randn(6, 2)
    means.begin_pass()
    head(features)
    means.add(torch.tensor([0, -100, 1, 7, 2, -1]))
    means.end_pass()
    means.commit()
    with pytest.warns(UserWarning, match="labels up to 7 for 3 classes: images with a label of 3 or more count in no"):
        found, counts = means.take()
    torch.testing.assert_close(found, features[[0, 2, 4]])
    assert counts.tolist() == [1, 1, 1]


def test_two_classes_by_one_output_are_told_what_distilling_needs():
    means = HeadStatistics()
    head = torch.nn.Linear(2, 1)
    means.attach({"fc": head}, "fc", "cpu")
    means.begin_pass()
    head(torch.randn(2, 2))
    means.add(torch.tensor([0, 1]))
    means.end_pass()
    means.commit()
    with pytest.warns(UserWarning, match="labels up to 1 for 1 classes.*give the network an output for each"):
        means.take()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, int])
def test_numbers_of_numpy_are_metrics(kind: Any) -> None:
    means = MetricMeans()
    for _ in range(2000):
        means.add({"loss": kind(400), "name": "x", "several": np.zeros(2)})
    assert means.take() == {"loss": 400.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_in_half_precision_are_added_up_in_float32(dtype: torch.dtype) -> None:
    means = MetricMeans()
    for _ in range(2000):
        means.add({"loss": torch.tensor(400.0, dtype=dtype)})
    assert means.take() == {"loss": 400.0}


class Unpacking(nn.Linear):
    """A head that takes a tuple."""

    def forward(self, inputs):
        return super().forward(inputs[0])


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), Unpacking(8, CLASSES)

    def forward(self, images):
        return self.head((self.body(images.flatten(1)).relu(), None))


def test_a_head_that_takes_no_tensor_ends_no_training(tmp_path):
    def train(record):
        torch.manual_seed(0)
        network = TwoParts()
        optimizer, recorder = optimizer_of(network), TrajectoryRecorder(tmp_path)
        if record:
            recorder.start(describe_run("run", network, CLASSES, mean=[0.0], std=[1.0], shape=(1, 8, 8)), network)
        for images, labels in loader():
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if record:
                recorder.batch(images, labels)
        if record:
            with pytest.warns(UserWarning, match="no class statistics in the stage"):
                recorder.stage(1)
            recorder.finish()
        return network.state_dict()

    recorded, plain = train(True), train(False)
    assert all(torch.equal(recorded[name], tensor) for name, tensor in plain.items())
    stages = Trajectory.open(tmp_path).runs[tmp_path / "run"].stages
    assert [stage.epoch for stage in stages] == [0, 1]
