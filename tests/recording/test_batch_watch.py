"""What the recording sees of batches: as the loader and its DataSpec make them, before any algorithm."""

import functools

import pytest
import torch
from composer import Callback, DataSpec
from composer.algorithms import CutOut, ProgressiveResizing
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.common import CLASSES, fit, manifest, statistics
from tgdd_plugin import TGDDCallback
from tgdd_plugin.data.pixel_range import affine_between, normalization_of, pixel_scale
from tgdd_plugin.recording.batch_watch import data_specs_of

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]
COUNT = 24


def pixels(count=COUNT):
    """Bytes with a marked row for each class, and the classes."""
    images = torch.randint(0, 200, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    images[torch.arange(count), :, labels] = 255
    return images, labels


class Net(nn.Module):
    """Takes images of any size, as bytes or not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images.float()).relu().mean((2, 3)))


class OldNormalization:
    """As ``composer.datasets.utils.NormalizationFn`` was: for bytes, keeps its numbers as tensors, works in place."""

    def __init__(self, mean, std) -> None:
        self.mean, self.std = mean, std

    def __call__(self, batch):
        images, labels = batch
        if not isinstance(self.mean, torch.Tensor):
            self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return images.float().sub_(self.mean).div_(self.std), labels


def old_normalization():
    return OldNormalization([255 * value for value in MEAN], [255 * value for value in STD])


def to_floats(batch):
    return batch[0].float() / 255, batch[1]


def normalized(batch, factor=1.0):
    """A function that says nothing of what it does, in place where that is possible."""
    mean, std = (factor * torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return batch[0].float().sub_(mean).div_(std), batch[1]


def train(folder, network=None, *, algorithms=(), data=None, options=None, **transforms):
    images, labels = pixels()
    loader = DataLoader(data or TensorDataset(images, labels), batch_size=8)
    spec = DataSpec(loader, **transforms)
    before = spec.batch_transforms, spec.microbatch_transforms
    network = network or Net()
    fit(
        network,
        train_dataloader=spec,
        callbacks=[TGDDCallback(str(folder), exemplars=4)],
        algorithms=list(algorithms),
        max_duration="2ep",
        device_train_microbatch_size=4,
        **(options or {}),
    )
    assert (spec.batch_transforms, spec.microbatch_transforms) == before
    return manifest(folder / "run")


def kept(folder):
    return load_file(folder / "run" / "exemplars.safetensors")["images"]


@pytest.mark.parametrize(
    "transforms",
    [
        {"batch_transforms": old_normalization()},
        {"microbatch_transforms": old_normalization()},
        {"batch_transforms": functools.partial(normalized, factor=255)},
        {"microbatch_transforms": functools.partial(normalized, factor=255)},
        {"batch_transforms": to_floats, "microbatch_transforms": normalized},
    ],
    ids=["batch", "microbatch", "function", "function of microbatches", "both"],
)
def test_normalization_in_the_data_spec(tmp_path, transforms):
    noted = train(tmp_path, algorithms=[CutOut(length=0.5)], **transforms)
    assert noted["mean"] == pytest.approx(MEAN, abs=1e-4) and noted["std"] == pytest.approx(STD, abs=1e-4)
    images, labels = pixels()
    wanted = (images[:8].float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert noted["input"]["shape"] == [3, 8, 8]
    torch.testing.assert_close(noted["input"]["mean"], wanted.mean((0, 2, 3)).tolist(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noted["input"]["std"], wanted.std((0, 2, 3)).tolist(), rtol=1e-4, atol=1e-4)
    first = torch.cat([images[labels == label][:4] for label in range(CLASSES)])
    assert (kept(tmp_path).int() - first.int()).abs().max() <= 1
    first, *later = statistics(tmp_path / "run").values()
    assert first == {} and later and all(found["counts"].min() > 0 for found in later)


def test_training_is_left_as_it_is(tmp_path):
    networks = []
    for callbacks in ([], [TGDDCallback(str(tmp_path))]):
        torch.manual_seed(0)
        networks.append(Net())
        loader = DataLoader(TensorDataset(*pixels()), batch_size=8)
        spec = DataSpec(loader, batch_transforms=to_floats, microbatch_transforms=normalized)
        fit(networks[-1], train_dataloader=spec, callbacks=callbacks, device_train_microbatch_size=4)
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("where", ["batch_transforms", "microbatch_transforms"])
def test_images_that_an_algorithm_makes_smaller(tmp_path, where):
    shrinking = ProgressiveResizing(initial_scale=0.5, delay_fraction=0.5, finetune_fraction=0.2)
    noted = train(tmp_path, algorithms=[shrinking], **{where: old_normalization()})
    assert noted["input"]["shape"] == [3, 8, 8] and kept(tmp_path).shape == (12, 3, 8, 8)
    images, labels = pixels()
    assert (kept(tmp_path)[:4].int() - images[labels == 0][:4].int()).abs().max() <= 1


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_plain_bytes(tmp_path, kind):
    images, labels = pixels()
    noted = train(tmp_path, data=TensorDataset(images.to(kind), labels))
    assert (noted["mean"], noted["std"]) == ([0.0] * 3, [1 / 255] * 3)
    assert torch.equal(kept(tmp_path)[:4], images[labels == 0][:4])


def scrambled(batch):
    return batch[0].float().flip(3) / 255, batch[1]


@pytest.mark.parametrize("where", ["batch_transforms", "microbatch_transforms"])
def test_a_transform_that_augments_is_not_taken_for_none(tmp_path, where):
    noted = train(tmp_path, **{where: scrambled})
    assert noted["augmentation"] is None and noted["input"]["shape"] == [3, 8, 8]
    assert noted["complete"]


def test_a_loader_that_several_trainers_and_evaluations_share(tmp_path):
    loader = DataLoader(TensorDataset(*pixels()), batch_size=8)
    spec = DataSpec(loader, batch_transforms=old_normalization())
    for name in ("one", "two"):
        options = {"eval_dataloader": spec, "eval_interval": "1ba"}
        callback = TGDDCallback(str(tmp_path / name), exemplars=8)
        fit(Net(), train_dataloader=spec, callbacks=[callback], max_duration="1ep", **options)
        assert manifest(tmp_path / name / "run")["mean"] == pytest.approx(MEAN, abs=1e-4)
        assert len(load_file(tmp_path / name / "run" / "exemplars.safetensors")["images"]) == COUNT


class Found(Callback):
    """What is found around the loader of the Trainer that calls."""

    def fit_start(self, state, logger):
        self.specs = data_specs_of(state.train_dataloader)


def test_only_the_calling_trainers_own_is_watched():
    loader = DataLoader(TensorDataset(*pixels()), batch_size=8)
    own, other = (DataSpec(loader, batch_transforms=to_floats) for _ in range(2))
    found = Found()
    fit(Net(), train_dataloader=own, callbacks=[found], max_duration="1ba")
    assert [id(spec) for spec in found.specs] == [id(own)]
    assert {id(spec) for spec in data_specs_of(loader)} == {id(own), id(other)}, "where no Trainer calls"


# The arithmetic.


def test_what_pixels_are_counted_up_to():
    images = pixels()[0]
    assert pixel_scale(images) == pixel_scale(images.float()) == 255
    assert pixel_scale(images.float() / 255) == 1
    for other in (images.float() / 255 - 0.5, images.float() / 254, images.float() * 2, images.float() * 0.001):
        assert pixel_scale(other) is None


def test_an_affine_change_is_found_and_no_other_is():
    images = pixels()[0]
    after = normalized((images, None), 255)[0]
    for changed in (after, after.half()):
        found = normalization_of(images, affine_between(images, changed))
        assert found.mean == pytest.approx(MEAN, abs=2e-3) and found.std == pytest.approx(STD, abs=2e-3)
    for other in (after.flip(3), after.square(), -after, after[:, :, ::2], images, after + torch.rand(8, 8)):
        assert affine_between(images, other) is None
    assert normalization_of(after, affine_between(after, after)) is None  # not pixels
