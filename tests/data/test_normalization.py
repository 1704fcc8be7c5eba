"""Normalization: what it computes, to the bit, and what it refuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from tgdd_plugin import InputError
from tgdd_plugin.beton.card import Card
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.trajectory.manifest import Run

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_images_are_normalized_per_channel_to_the_bit(lead: tuple[int, ...]) -> None:
    images = torch.randint(256, (*lead, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalization = Normalization(MEAN, STD)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (MEAN, STD))
    assert torch.equal(normalization(images), (images.float() / 255 - mean) / std)
    assert torch.equal(normalization.normalize(images.float() / 255), normalization(images))
    assert normalization(images).dtype == torch.float32
    pixels = normalization.denormalize(normalization(images))
    assert torch.equal((pixels * 255).round().to(torch.uint8), images)


def test_one_value_is_for_all_channels() -> None:
    images = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(Normalization([0.5], [0.25])(images), torch.full((2, 3, 4, 4), 2.0))


def test_it_is_a_value() -> None:
    one = Normalization(MEAN, STD)
    assert one == Normalization(tuple(MEAN), torch.tensor(STD, dtype=torch.float64).numpy()) and len({one, one}) == 1
    assert (one.mean, one.std, one.channels) == (tuple(MEAN), tuple(STD), 3)
    assert all(type(value) is float for value in Normalization([0], [1]).mean)
    assert str(Normalization([0], [1])) == "mean [0.0] and std [1.0]"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.mean = ()  # type: ignore[misc]


@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5])
def test_numbers_of_numpy_and_torch_are_numbers(number: Any) -> None:
    assert Normalization.of(number, number) == Normalization([0.5], [0.5])


def test_close_is_up_to_rounding() -> None:
    one = Normalization([0.491, 0.482], [0.247, 0.244])
    assert one.is_close(Normalization([0.49, 0.48], [0.25, 0.24]))
    assert not one.is_close(Normalization([0.49, 0.48], [0.25, 0.26]))
    assert not one.is_close(Normalization([0.47, 0.48], [0.25, 0.24]))
    assert not one.is_close(Normalization([0.49], [0.25]))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], [0.1, 0.1], r"must be equally many .*, got mean \[0.5\] and std \[0.1, 0.1\]\. Give the values"),
        ([], [], r"one per channel, .* got mean \[\] and std \[\]\. Give the values"),
        ([float("nan")], [0.1], r"finite values, .* got mean \[nan\]"),
        ([0.5], [float("inf")], r"finite values, .* std \[inf\]"),
        ([0.5], [0.0], r"each std above 0, got mean \[0.5\] and std \[0.0\]"),
        ([0.5], [-0.1], r"each std above 0, .* std \[-0.1\]"),
    ],
)
def test_what_is_not_a_normalization_is_refused_in_one_line(mean: Any, std: Any, message: str) -> None:
    for make in (Normalization, Normalization.of):
        with pytest.raises(InputError, match=message) as error:
            make(mean, std)
        assert str(error.value).startswith("`mean` and `std` must be") and "\n" not in str(error.value)


def test_both_or_neither() -> None:
    assert Normalization.of(None, None) is None
    assert Normalization.of(MEAN, STD) == Normalization(MEAN, STD)
    for given in ((MEAN, None), (None, STD)):
        with pytest.raises(InputError, match=r"must be given together, got mean .* and std .*None|None .*\. Give both"):
            Normalization.of(*given)


def test_numbers_are_for_all_channels_and_pixels_up_to_255_are_refused() -> None:
    assert Normalization.of(0.5, 0.25) == Normalization([0.5], [0.25])
    for mean, std in (([127.5] * 3, [63.75] * 3), ([0.0], [255.0])):
        with pytest.raises(InputError, match=r"must be for pixels in \[0, 1\], got mean .* Divide both by 255"):
            Normalization.of(mean, std)


def test_its_channels_are_the_images() -> None:
    Normalization(MEAN, STD).check_channels(3)
    with pytest.raises(InputError, match=r"each channel of the images, which have 1, got mean .*\. Give 1 value"):
        Normalization(MEAN, STD).check_channels(1)


def test_cards_and_manifests_have_one() -> None:
    assert Card(["a"], 0, 1, [], MEAN, STD).normalization == Normalization(MEAN, STD)
    run = Run(name="run", network={}, head="fc", num_classes=1)
    assert run.normalization is None
    run.mean, run.std = MEAN, STD
    assert run.normalization == Normalization(MEAN, STD)


def test_checking_one_imports_no_torch() -> None:
    script = "import sys; from tgdd_plugin.data.normalization import Normalization; Normalization([0], [1]); "
    subprocess.run([sys.executable, "-c", script + "assert 'torch' not in sys.modules"], check=True)
