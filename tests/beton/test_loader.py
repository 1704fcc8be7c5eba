"""Loaders: every image once an epoch, in a new order that repeats from its seed, and never an empty epoch."""

import threading

import numpy as np
import pytest
import torch
from composer import Trainer
from composer.models import ComposerClassifier
from torch import nn

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.beton.loader import beton_loader
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data import device_loader as loader_module
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.recording.data_introspection import find_normalization

N, K = 23, 4
MEAN, STD = [0.2, 0.4, 0.6], [0.1, 0.3, 0.5]


def made(channels=3):
    """Random images whose first pixel is their number."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, channels, 6, 6), dtype=np.uint8))
    images[:, :, 0, 0] = torch.arange(N, dtype=torch.uint8)[:, None]
    return images, torch.arange(N) % K


def device_loader(**options):
    return DeviceLoader(*made(), Normalization(MEAN, STD), **{"batch_size": 5, **options})


def numbers(batches, channels=3):
    """Which images came, in their order, told by the first pixel, and their labels."""
    came = [
        (round(float(image[0, 0, 0]) * STD[0] * 255 + MEAN[0] * 255), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]
    assert all(label == number % K for number, label in came)
    return [number for number, _ in came]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("files"), {}
    for channels in (1, 3):
        card = Card([str(i) for i in range(K)], 0, 5, [], MEAN[:channels], STD[:channels])
        soft = torch.full((N, K), 0.25) if channels == 3 else None
        paths[channels] = write_beton(folder / f"{channels}.beton", *made(channels), card, soft)
    return paths


def test_images_are_normalised_as_numpy_would():
    images, labels = made()
    came = list(device_loader(shuffle=False))
    wanted = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(torch.cat([i for i, _ in came]).numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.cat([n for _, n in came]), labels)
    assert came[0][0].dtype == torch.float32 and came[0][1].dtype == torch.int64


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5, 5, 5, 3]), (23, [23]), (1000, [23]), (1, [1] * 23)])
def test_every_image_once_an_epoch_and_no_epoch_is_empty(batch_size, sizes):
    loader = device_loader(batch_size=batch_size)
    for _ in range(3):
        batches = list(loader)
        assert [len(images) for images, _ in batches] == sizes and len(loader) == len(sizes)
        assert sorted(numbers(batches)) == list(range(N))


def test_orders_are_new_each_epoch_and_repeat_from_the_seed():
    first, again, other = device_loader(seed=3), device_loader(seed=3), device_loader(seed=4)
    epochs = [numbers(first) for _ in range(4)]
    assert [numbers(again) for _ in range(4)] == epochs
    assert len({tuple(epoch) for epoch in [*epochs, numbers(other)]}) == 5
    # An epoch that is left early counts, as Composer leaves it when it resumes.
    later = device_loader(seed=3)
    for _ in later:
        break
    assert numbers(later) == epochs[1]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    numbers(first)
    assert torch.equal(torch.get_rng_state(), state)  # a stream of its own
    assert numbers(device_loader(shuffle=False)) == list(range(N))


def test_order_is_uniform():
    places = torch.zeros(N, N)
    for seed in range(600):
        places[torch.arange(N), torch.tensor(numbers([next(iter(device_loader(seed=seed, batch_size=N)))]))] += 1
    expected = 600 / N
    assert 380 < ((places - expected) ** 2 / expected).sum() < 600  # chi-square of 22 * 22 degrees of freedom: 484 ± 31


@pytest.mark.parametrize("ranks", [2, 3, 30])
def test_ranks_share_an_epoch_evenly(monkeypatch, ranks):
    """As many batches on every rank, or one would wait for ever; every image at least once."""
    monkeypatch.setattr(loader_module.dist, "get_world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(loader_module.dist, "get_global_rank", lambda rank=rank: rank)
        loader = device_loader(batch_size=5, seed=2)
        batches = list(loader)
        assert len(batches) == len(loader)
        shares.append(numbers(batches))
    assert {len(share) for share in shares} == {-(-N // ranks)}
    every = [number for share in shares for number in share]
    assert set(every) == set(range(N)) and len(every) - N < ranks


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "`batch_size` must be a whole number of at least 1, got 2.5"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(files, option, pattern):
    with pytest.raises(InputError, match=pattern):
        device_loader(**option)
    for backend in ("device", "ffcv"):
        with pytest.raises(InputError, match=pattern):
            beton_loader(files[3], backend=backend, **option)


def test_other_backends_and_devices_and_a_missing_card_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="`backend` must be 'device' or 'ffcv', got 'dali'"):
        beton_loader(files[3], backend="dali")
    for device, message in (
        ("gpu", "'cpu' where torch finds no GPU"),
        ("cuda:1", "'cpu' where"),
        ("tpu", "a torch dev"),
    ):
        with pytest.raises(InputError, match=f"`device` must be .*{message}.*, got '{device}'"):
            beton_loader(files[3], device=device)
    (tmp_path / "x.beton").write_bytes(files[3].read_bytes())
    for backend in ("device", "ffcv"):
        with pytest.raises(InputError, match="has no card"):
            beton_loader(tmp_path / "x.beton", backend=backend)


def test_a_packed_file_is_decoded_on_the_device_and_refused_by_ffcv(tmp_path):
    images, labels = made()
    card = Card([str(i) for i in range(K)], 0, 5, [], MEAN, STD, factor=2, packed=True)
    path = write_beton(tmp_path / "packed.beton", images[:20], labels[:20], card)
    loader = beton_loader(path, 1000, shuffle=False)
    ((batch, numbers),) = loader
    wanted = (read_beton(path)[0].numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(batch.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert len(loader) == 1 and numbers.tolist() == [int(label) for label in labels[:20] for _ in range(4)]
    with pytest.raises(
        InputError, match="is packed, and which FFCV cannot decode, got 'ffcv'. Choose backend='device', or"
    ):
        beton_loader(path, backend="ffcv")


@pytest.mark.parametrize("channels", [1, 3])
def test_both_backends_give_the_same_images_and_labels(files, channels):
    on_device = list(beton_loader(files[channels], 10, shuffle=False))
    ffcv_loader = beton_loader(files[channels], 10, backend="ffcv", shuffle=False)
    by_ffcv = [
        (images.clone(), labels.clone()) for images, labels in ffcv_loader
    ]  # two fields, though the file has three
    assert len(on_device) == len(by_ffcv) == len(ffcv_loader) == 3
    for (images, labels), (same, same_labels) in zip(on_device, by_ffcv, strict=True):
        assert images.shape == same.shape == (len(labels), channels, *images.shape[2:])
        assert images.dtype == same.dtype == torch.float32 and labels.dtype == same_labels.dtype == torch.int64
        torch.testing.assert_close(images, same, rtol=0, atol=2e-6)
        assert torch.equal(labels, same_labels) and labels.ndim == same_labels.ndim == 1
    # What TGDDCallback needs to know is found on either.
    threefold = ([MEAN[0]] * 3, [STD[0]] * 3) if channels == 1 else (MEAN, STD)
    assert find_normalization(ffcv_loader) == Normalization(*threefold)
    assert find_normalization(beton_loader(files[channels])) == Normalization(MEAN[:channels], STD[:channels])


def test_the_ffcv_backend(files):
    """Epochs as from 'device', the process' thread numbers left alone, and no thread left behind by an early stop."""
    torch.set_num_threads(2)
    loader = beton_loader(files[3], 5, backend="ffcv", seed=1)
    epochs = []
    for _ in range(3):
        came = []
        for batch in loader:
            assert torch.get_num_threads() == 2
            came += numbers([batch])
        assert sorted(came) == list(range(N))
        epochs.append(came)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = beton_loader(files[3], 5, backend="ffcv", seed=1)
    assert [[n for batch in again for n in numbers([batch])] for _ in range(3)] == epochs
    whole = beton_loader(files[3], 1000, backend="ffcv")
    assert len(whole) == 1 and [len(labels) for _, labels in whole] == [N]
    before = threading.active_count()
    for _ in range(6):
        for _ in loader:
            break
    deadline = threading.Event()
    for _ in range(50):
        if threading.active_count() <= before:
            break
        deadline.wait(0.1)
    assert threading.active_count() <= before


@pytest.mark.parametrize("backend", ["device", "ffcv"])
def test_in_a_composer_trainer(files, backend):
    """The batch is larger than the set, where FFCV's own default makes epochs without a batch."""
    seen = []

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3 * 36, K)

        def forward(self, images):
            seen.append(len(images))
            return self.layer(images.flatten(1))

    loader = beton_loader(files[3], 256, backend=backend)
    model = ComposerClassifier(Network(), num_classes=K)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration="3ep",
        device="cpu",
        progress_bar=False,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01),
    )
    trainer.fit()
    time = trainer.state.timestamp
    trainer.close()
    assert (time.epoch.value, time.batch.value, time.sample.value) == (3, 3, 3 * N) and seen == [N] * 3
