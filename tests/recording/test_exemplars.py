"""Real images that a run keeps: bit for bit those of the data, and refused when they are not as written."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.algorithms import LabelSmoothing
from safetensors.torch import load_file, save

import tgdd_plugin.recording.exemplars
from tests.common import CLASSES, Crash, Pictures, fit, manifest, refusal, tiny_network
from tgdd_plugin import TGDDCallback, Trajectory, TrajectoryRecorder, describe_run
from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.pipeline.show import describe_trajectory
from tgdd_plugin.recording.exemplars import Exemplars
from tgdd_plugin.recording.runs import record as record_runs
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.tensor_files import read_exemplars

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
FILE = "exemplars.safetensors"


def pictures(count: int = 48, channels: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % CLASSES


def record(
    folder: Path, exemplars: int = 4, name: str = "run", tgdd: dict[str, Any] | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Trains on :func:`pictures`, normalised, in their own order; returns them."""
    images, labels = pictures(seed=options.pop("data", 0))
    loader = DeviceLoader(images, labels, Normalization(MEAN, STD), batch_size=8, shuffle=options.pop("shuffle", False))
    callbacks = [*options.pop("callbacks", []), TGDDCallback(str(folder), exemplars=exemplars, **(tgdd or {}))]
    defaults: dict[str, Any] = {"train_dataloader": loader, "max_duration": "2ep", "run_name": name}
    fit(tiny_network(channels=3), callbacks=callbacks, **{**defaults, **options})
    return images, labels


def first(images: torch.Tensor, labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` images of each class, class by class."""
    chosen = [i for label in range(CLASSES) for i in (labels == label).nonzero()[:, 0].tolist()[:count]]
    return images[chosen], labels[chosen]


def test_images_of_another_size_than_the_first_are_passed_over(tmp_path: Path) -> None:
    """As multi-scale training has them; what was kept by then stays, and nothing of the recording fails."""
    kept = Exemplars(CLASSES, 4)
    images, labels = pictures(6)
    normalization = Normalization([0.0] * 3, [1.0] * 3)
    assert kept.add(images.float() / 255, labels, normalization) is None
    assert "several sizes" in str(kept.add(images.repeat(1, 1, 2, 2).float() / 255, labels, normalization))
    assert kept.done and kept.write(tmp_path)
    assert len(load_file(tmp_path / FILE)["labels"]) == 6


def test_batches_in_channels_last_and_those_of_another_normalization(tmp_path: Path) -> None:
    """FFCV's ToTorchImage gives the former; of the latter white images would be kept."""
    images, labels = pictures(6)
    normalization, kept = Normalization(MEAN, STD), Exemplars(CLASSES, 2)
    assert kept.add(normalization(images).contiguous(memory_format=torch.channels_last), labels, normalization) is None
    assert kept.write(tmp_path) and torch.equal(load_file(tmp_path / FILE)["images"], first(images, labels, 2)[0])
    raw = Exemplars(CLASSES, 2)
    assert "outside [0, 1]: give the mean and std" in str(raw.add(images.float(), labels, normalization))
    assert raw.done and not len(raw)


@pytest.mark.parametrize(
    ("value", "percent", "kept"), [(1.6, 9, 1), (1.6, 11, 0), (1.4, 11, 1), (-0.6, 9, 1), (-0.6, 11, 0), (-0.4, 11, 1)]
)
def test_some_pixels_may_lie_outside_and_few_far_outside(value: float, percent: int, kept: int) -> None:
    """As augmentation moves them: all by half of [0, 1], and a tenth by more."""
    images = torch.full((1, 1, 10, 10), 0.5)
    images.view(-1)[:percent] = value
    exemplars = Exemplars(1, 1)
    message = exemplars.add(images, torch.tensor([0]), Normalization([0.0], [1.0]))
    assert len(exemplars) == kept and (message is None) == (kept == 1)


def check(folder: Path, wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    kept = load_file(folder / "run" / FILE)
    assert set(kept) == {"images", "labels"} and kept["images"].dtype == torch.uint8
    assert torch.equal(kept["images"], wanted[0]) and torch.equal(kept["labels"], wanted[1])
    assert manifest(folder / "run")["exemplars"] == hashlib.sha256((folder / "run" / FILE).read_bytes()).hexdigest()


def test_every_byte_survives_the_normalisation() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    ((images, labels),) = DeviceLoader(values, torch.tensor([0]), Normalization(MEAN, STD), batch_size=1)
    for dtype in (torch.float32, torch.float16):
        exemplars = Exemplars(1, 1)
        assert exemplars.add(images.to(dtype), labels, Normalization(MEAN, STD)) is None
        assert torch.equal(exemplars._images[0], values)


@pytest.mark.parametrize("interval", ["1ep", "2ba", "5ba", "2ep"])
@pytest.mark.parametrize("exemplars", [1, 4, 40])
def test_first_of_each_class(tmp_path: Path, interval: str, exemplars: int) -> None:
    """All of them where there are fewer, each once."""
    check(tmp_path, first(*record(tmp_path, exemplars, tgdd={"interval": interval}), exemplars))


def test_augmentation_mixing_and_smoothing_are_not_kept(tmp_path: Path) -> None:
    algorithms = [SiameseAugmentation(), RandomCutMix(0.7), LabelSmoothing()]
    check(tmp_path, first(*record(tmp_path, algorithms=algorithms, device_train_microbatch_size=4), 4))


def test_none(tmp_path: Path) -> None:
    record(tmp_path, 0)
    assert manifest(tmp_path / "run")["exemplars"] is None and not (tmp_path / "run" / FILE).exists()
    assert Trajectory.open(tmp_path).exemplars() is None


def test_run_that_is_stopped_within_the_first_epoch(tmp_path: Path) -> None:
    images, labels = record(tmp_path, 40, max_duration="2ba", tgdd={"interval": "1ba"})
    check(tmp_path, first(images[:16], labels[:16], 40))


def test_no_batch_is_looked_at_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    add = Exemplars.add
    monkeypatch.setattr(Exemplars, "add", lambda self, *rest: calls.append(1) or add(self, *rest))
    record(tmp_path / "few", 5, max_duration="3ep")
    assert len(calls) == 2
    record(tmp_path / "many", 40, max_duration="3ep")
    assert len(calls) == 2 + 6  # the first epoch


def test_unknown_normalisation(tmp_path: Path) -> None:
    data = Pictures(transform=lambda image: image - 0.3)
    with pytest.warns(UserWarning, match="or none: their normalization is not known: give mean= ") as seen:
        fit(tiny_network(), data, callbacks=[TGDDCallback(str(tmp_path))])
    assert sum("exemplars=100" in str(warning.message) for warning in seen) == 1
    assert not (tmp_path / "run" / FILE).exists() and manifest(tmp_path / "run")["exemplars"] is None


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tgdd_plugin.recording.exemplars, "LIMIT", 2 * CLASSES * 192 + 100)
    with pytest.warns(UserWarning, match="exemplars=4 .* more than 2 of each class would take more than"):
        images, labels = record(tmp_path, 4)
    check(tmp_path, first(images, labels, 2))
    monkeypatch.setattr(tgdd_plugin.recording.exemplars, "LIMIT", 100)
    with pytest.warns(UserWarning, match="more than 0 of each class"):
        record(tmp_path, 4, tgdd={"overwrite": True})
    assert not (tmp_path / "run" / FILE).exists()


@pytest.mark.parametrize(
    ("images", "targets", "problem"),
    [
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), "floating-point images"),
        (torch.zeros(4, 4, 8, 8), torch.arange(4), "floating-point images"),
        (torch.zeros(4, 64), torch.arange(4), "floating-point images"),
        (None, None, "floating-point images"),
        (torch.zeros(4, 3, 8, 8), None, "one label for each"),
        (torch.zeros(4, 3, 8, 8), torch.arange(3), "one label for each"),
    ],
)
def test_batches_that_are_none(images: Any, targets: Any, problem: str) -> None:
    exemplars = Exemplars(4, 2)
    message = exemplars.add(images, targets, Normalization(MEAN, STD))
    assert message is not None and problem in message
    assert exemplars.done and not len(exemplars)


# Several runs, resumed runs.


@pytest.mark.parametrize("first_epoch", [0, 1])
def test_epochs_counted_from_0_keep_no_image_twice(tmp_path: Path, first_epoch: int) -> None:
    images, labels = pictures(24)
    normalization, network = Normalization(MEAN, STD), tiny_network(channels=3)
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, CLASSES, mean=MEAN, std=STD), network)
    for epoch in range(first_epoch, first_epoch + 3):
        for part in torch.randperm(24, generator=torch.Generator().manual_seed(epoch)).split(8):
            network(normalization(images[part]))
            recorder.batch(normalization(images[part]), labels[part])
        recorder.stage(epoch)
    recorder.finish()
    kept = load_file(tmp_path / "run" / FILE)
    assert {image.numpy().tobytes() for image in kept["images"]} == {image.numpy().tobytes() for image in images}
    assert len(kept["images"]) == 24 and torch.equal(kept["labels"], labels.sort().values)


def test_what_are_no_images_is_told_before_that_a_normalization_is_missing() -> None:
    """As of batches of (number, image, label): to give the normalization would not help."""
    kept = Exemplars(CLASSES, 1)
    assert "floating-point images" in str(kept.add(torch.arange(4), torch.zeros(4, 3, 8, 8), None)) and kept.done


@pytest.mark.parametrize(("exemplars", "save"), [(3, "2ba"), (40, "1ep")])
def test_resumed_run_keeps_them(tmp_path: Path, exemplars: int, save: str) -> None:
    """Whether they were complete when it crashed or with the epoch, before the first stage in both cases."""
    options: dict[str, Any] = {
        "save_folder": str(tmp_path / "checkpoints"),
        "save_interval": save,
        "autoresume": True,
        "shuffle": True,
        "tgdd": {"interval": "2ep"},
        "max_duration": "3ep",
    }
    with pytest.raises(RuntimeError, match="crash"):
        record(tmp_path / "t", exemplars, callbacks=[Crash(7)], **options)
    kept = (tmp_path / "t/run" / FILE).read_bytes()
    record(tmp_path / "t", exemplars, **options)
    assert (tmp_path / "t/run" / FILE).read_bytes() == kept
    Trajectory.open(tmp_path / "t")


@pytest.mark.parametrize(("max_duration", "seen"), [("3ep", 0), ("1ep", 16)])
def test_a_run_that_goes_on_within_its_first_epoch_keeps_those_of_a_whole_one(
    tmp_path: Path, max_duration: str, seen: int
) -> None:
    """Of the next one, if there is one; the rest of the first has fewer."""
    options: dict[str, Any] = {"max_duration": max_duration, "tgdd": {"interval": "2ba"}, "autoresume": True}
    options |= {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "2ba"}
    with pytest.raises(RuntimeError, match="crash"):
        record(tmp_path / "t", 40, callbacks=[Crash(3)], **options)
    images, labels = record(tmp_path / "t", 40, **options)
    check(tmp_path / "t", first(images[seen:], labels[seen:], 40))


@pytest.mark.parametrize("exemplars", [4, 40])
def test_a_recording_that_begins_in_the_midst_of_training_keeps_some(tmp_path: Path, exemplars: int) -> None:
    """Of the first epoch that is recorded, also those after a stage within it."""
    saved = tmp_path / "checkpoints"
    record(tmp_path / "t", exemplars, "earlier", max_duration="1ep", save_folder=str(saved))
    options = {"load_path": str(saved / "latest-rank0.pt"), "max_duration": "3ep", "tgdd": {"interval": "2ba"}}
    with pytest.warns(UserWarning, match="training resumes at batch 6 but"):
        images, labels = record(tmp_path / "t", exemplars, **options)
    check(tmp_path / "t", first(images, labels, exemplars))


def test_a_new_run_removes_them(tmp_path: Path) -> None:
    record(tmp_path, 4)
    record(tmp_path, 0, tgdd={"overwrite": True})
    assert not (tmp_path / "run" / FILE).exists()
    images, labels = record(tmp_path, 4, tgdd={"overwrite": True}, data=1)
    check(tmp_path, first(images, labels, 4))


def test_they_must_not_stay_in_a_resumed_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_folder": str(tmp_path / "checkpoints"), "autoresume": True}
    record(tmp_path / "t", 4, **options)
    record(tmp_path / "t", 0, max_duration="3ep", **options)
    assert not (tmp_path / "t/run" / FILE).exists() and manifest(tmp_path / "t/run")["exemplars"] is None


def test_second_fit_collects_no_more(tmp_path: Path) -> None:
    images, labels = record(tmp_path, 4, max_duration="1ba", save_folder=str(tmp_path / "c"))
    check(tmp_path, first(images[:8], labels[:8], 4))
    record(tmp_path, 4, max_duration="1ep", load_path=str(tmp_path / "c/ep0-ba1-rank0.pt"), save_folder=None)
    check(tmp_path, first(images[:8], labels[:8], 4))


def test_full_disk_waits_for_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if FILE in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="Cannot record in .* Make room"):
        patch.setattr(os, "replace", full)
        record(tmp_path, 2, tgdd={"interval": "4ba", "on_error": "raise"})
    noted = manifest(tmp_path / "run")
    assert [stage["batch"] for stage in noted["stages"]] == [0] and noted["exemplars"] is None


def test_record_keeps_them_and_takes_them_for_part_of_the_job(tmp_path: Path) -> None:
    pool = ImagePool(*pictures())

    def job(exemplars: int) -> Trajectory:
        settings = RecordSettings(epochs=1, batch_size=8, exemplars=exemplars)
        return record_runs(tmp_path, pool, lambda: tiny_network(channels=3), settings, device="cpu", progress_bar=False)

    trajectory = job(5)
    assert trajectory.run.augmentation == "color_crop_flip"
    kept = trajectory.exemplars()
    assert kept is not None and kept.counts.tolist() == [5] * CLASSES
    real = {image.numpy().tobytes(): int(label) for image, label in zip(pool.images, pool.labels, strict=True)}
    assert [real[image.numpy().tobytes()] for image in kept.images] == kept.labels.tolist()
    with pytest.raises(InputError, match="record.exemplars was 5 and is now 0"):
        job(0)
    content = json.loads((tmp_path / "job.json").read_text())
    del content["settings"]["exemplars"]  # as the first version wrote it
    (tmp_path / "job.json").write_text(json.dumps(content))
    assert len(job(0).checksums) == 2
    with pytest.raises(InputError, match="`exemplars` must be a whole number of at least 0, got -1"):
        RecordSettings(exemplars=-1)


# Opening.


def opened(folder: Path) -> Any:
    record(folder, 3, "a")
    record(folder, 2, "b", data=1)
    return Trajectory.open(folder)


def test_all_runs_together(tmp_path: Path) -> None:
    pool = opened(tmp_path).exemplars()
    a, b = first(*pictures(), 3), first(*pictures(seed=1), 2)
    assert torch.equal(pool.images, torch.cat([a[0], b[0]])) and torch.equal(pool.labels, torch.cat([a[1], b[1]]))
    assert pool.classes == ["0", "1", "2"]
    assert "class means in 2 stages; 9 real images kept; augmentation none" in describe_trajectory(
        Trajectory.open(tmp_path)
    )


def test_damaged_and_missing(tmp_path: Path) -> None:
    opened(tmp_path)
    path = tmp_path / "b" / FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert refusal(Trajectory.open, tmp_path).startswith(
        f"The exemplars file '{path}' is damaged: its checksum differs from the manifest's."
    )
    path.unlink()
    assert (
        refusal(Trajectory.open, tmp_path)
        == f"The exemplars file '{path}' is missing. Copy the whole folder or record the run again."
    )
    with pytest.raises(InputError, match="cannot be read"):
        Trajectory.open(tmp_path, check=False).exemplars()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)},
        {"images": torch.zeros(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.long)},
        {"images": torch.zeros(2, 8, 8, dtype=torch.uint8), "labels": torch.zeros(2, dtype=torch.long)},
        {"images": torch.zeros(2, 2, 8, 8, dtype=torch.uint8), "labels": torch.zeros(2, dtype=torch.long)},
        {"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "labels": torch.zeros(0, dtype=torch.long)},
        {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "labels": torch.zeros(3, dtype=torch.long)},
        {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "labels": torch.zeros(2)},
        {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "labels": torch.tensor([0, 3])},
        {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "labels": torch.tensor([-1, 0])},
        {"x" * 5000: torch.zeros(1)},
    ],
)
def test_what_are_no_exemplars(tmp_path: Path, content: dict[str, torch.Tensor]) -> None:
    """With the checksum to match."""
    (tmp_path / FILE).write_bytes(save(content))
    wanted = "must have images uint8 .M, C, H, W. with 1 or 3 channels, and labels int64"
    with pytest.raises(InputError, match=wanted) as refused:
        read_exemplars(tmp_path, 3)
    assert len(str(refused.value)) < 1000
    (tmp_path / FILE).write_bytes(b"\x80\x04N.")
    with pytest.raises(InputError, match="cannot be read"):
        read_exemplars(tmp_path, 3)


def test_unlike_sizes(tmp_path: Path) -> None:
    trajectory = opened(tmp_path)
    other = {"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "labels": torch.tensor([0])}
    (tmp_path / "b" / FILE).write_bytes(save(other))
    with pytest.raises(
        InputError, match=r"must be of one shape, got \[\(3, 4, 4\), \(3, 8, 8\)\][.] Keep runs on images of diff"
    ):
        trajectory.exemplars()


def test_manifest_of_before(tmp_path: Path) -> None:
    """A folder recorded before there were statistics opens, without any."""
    record(tmp_path, 0, tgdd={"statistics": False})
    content = manifest(tmp_path / "run")
    assert content.pop("augmentation") == "none"
    del content["exemplars"]
    (tmp_path / "run/manifest.json").write_text(json.dumps(content))
    trajectory = Trajectory.open(tmp_path)
    assert trajectory.run.augmentation is None and trajectory.exemplars() is None
    assert all(trajectory.class_means(tmp_path / "run", stage) is None for stage in trajectory.run.stages)
    assert "class means in 0 stages; no real images kept; augmentation not known" in describe_trajectory(trajectory)


def test_nothing_warns_of_a_plain_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="composer|torch.*")
        record(tmp_path)
