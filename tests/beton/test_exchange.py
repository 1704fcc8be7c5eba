"""Exchange with other code: the same bytes there and back; what cannot be kept is told; no file runs code."""

import os
import pickle
import resource
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, PILToTensor, ToTensor

from tgdd_plugin import cli
from tgdd_plugin.beton.card import Card, card_path, read_card
from tgdd_plugin.beton.exporting import export_folder, export_tensors
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.beton.importing import import_tensors
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.synthetic_images import SyntheticImages

K, PER_CLASS = 12, 3  # more than ten classes: '10' sorts before '2'
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def made(channels=3, side=(6, 8), seed=0):
    """Random uint8 images, sorted by class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (K * PER_CLASS, channels, *side), generator=generator, dtype=torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255])
    return images, torch.arange(K).repeat_interleave(PER_CLASS)


def card(channels=3, **more):
    names = [f"animal {K - i}/é" for i in range(K)]  # in no order, and no names for folders
    return Card(names, 0, PER_CLASS, [], MEAN[:channels], STD[:channels], **more)


@pytest.fixture(params=[1, 3])
def channels(request):
    return request.param


@pytest.fixture
def beton(tmp_path, channels):
    """A file whose images are in no order, those images in class order, and the labels."""
    images, labels = made(channels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    path = write_beton(tmp_path / "set.beton", images[order], labels[order], card(channels))
    sort = labels[order].argsort(stable=True)
    return path, images[order][sort], labels


def normalise(images, mean=MEAN, std=STD):
    channels = images.shape[1]
    return Normalize(mean[:channels], std[:channels])(images.float() / 255)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def imported(source, output, channels=3, **options):
    """:func:`import_tensors` with the usual normalisation; that nothing was said is part of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return import_tensors(source, output, mean=MEAN[:channels], std=STD[:channels], **options)


# There and back.


def test_tensors_there_and_back_are_the_same_bytes(tmp_path, beton, channels):
    path, images, labels = beton
    folder = export_tensors(path, tmp_path / "deep/er/out")
    assert sorted(os.listdir(folder)) == ["card.yaml", "data.pt", "images.pt", "labels.pt"]
    names = card().classes
    for source in (folder / "data.pt", (folder / "images.pt", str(folder / "labels.pt"))):
        back = imported(source, tmp_path / "back.beton", channels, classes=names, overwrite=True)
        assert torch.equal(read_beton(back)[0], images) and torch.equal(read_beton(back)[1], labels)
        found = read_card(back)
        assert (found.classes, found.images_per_class, found.factor) == (names, PER_CLASS, 1)
        assert (found.mean, found.std) == (MEAN[:channels], STD[:channels])
        pair = isinstance(source, tuple)
        assert found.method == {
            "name": "imported",
            "files": ["images.pt", "labels.pt"] if pair else ["data.pt"],
            "normalised": pair,
            "clamped": "nothing",
        }


def test_the_exported_tensors_are_what_the_other_code_takes(tmp_path, beton, channels):
    path, images, labels = beton
    folder = export_tensors(path, tmp_path / "out", mean=[0.5] * channels, std=[0.25] * channels)
    data, pixels, hard = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("data", "images", "labels"))
    assert isinstance(data, list) and torch.equal(data[0], images.float() / 255) and torch.equal(data[1], labels)
    assert pixels.dtype == torch.float32 and torch.equal(pixels, normalise(images, [0.5] * 3, [0.25] * 3))
    assert hard.dtype == torch.int64 and torch.equal(hard, labels)
    content = yaml.safe_load((folder / "card.yaml").read_text())
    assert (content["mean"], content["std"], content["classes"]) == (
        [0.5] * channels,
        [0.25] * channels,
        card().classes,
    )
    with pytest.raises(InputError, match=r"`mean` and `std` must be given together, got mean \[0.5.*\] and std None"):
        export_tensors(path, tmp_path / "half", mean=[0.5] * channels)
    assert not (tmp_path / "half").exists()


def test_an_image_folder_has_the_same_pixels_and_class_ids(tmp_path, beton, channels):
    path, images, labels = beton
    folder = export_folder(path, tmp_path / "deep/er/out")
    assert sorted(os.listdir(folder)) == [*(f"{i:05d}" for i in range(K)), "card.yaml"]
    read = ImageFolder(folder, transform=PILToTensor())
    assert read.targets == labels.tolist()
    assert torch.equal(torch.stack([image for image, _ in read]), images.expand(-1, 3, -1, -1))
    with Image.open(folder / "00000/00000.png") as image:
        assert image.mode == ("L" if channels == 1 else "RGB")
    assert yaml.safe_load((folder / "card.yaml").read_text())["classes"] == card().classes


def test_a_packed_file_is_exported_decoded(tmp_path):
    images, labels = made()
    path = write_beton(tmp_path / "set.beton", images, labels, card(factor=2, packed=True))
    folder = export_tensors(path, tmp_path / "out")
    decoded, pixels = read_beton(path)[0], torch.load(folder / "data.pt", weights_only=True)
    assert len(decoded) == 4 * len(images)
    assert torch.equal(pixels[0], decoded.float() / 255) and len(pixels[1]) == len(decoded)


# What the published code writes.


def experiments(images, labels, **more):
    """DC's, DSA's and DM's: several experiments, and accuracies that are numpy's numbers."""
    sets = [[normalise(made(seed=i)[0]), labels] for i in (5, 6)] + [[normalise(images), labels]]
    return {"data": sets, "accs_all_exps": {"ConvNet": [np.float64(0.5), np.float64(0.25)]}, **more}


CONVENTIONS = {
    "DC, DSA, DM": experiments,
    "IDC, DANCE, TGDD": lambda images, labels: [images.float() / 255, labels],
    "a tuple": lambda images, labels: (images.float() / 255, labels),
    "a parameter": lambda images, labels: [nn.Parameter(normalise(images)), labels],
    "one pair under 'data'": lambda images, labels: {"data": [normalise(images), labels]},
    "double precision": lambda images, labels: [normalise(images).double(), labels.int()],
    "uint8": lambda images, labels: [images, labels.to(torch.uint8)],
    "one-hot": lambda images, labels: [normalise(images), torch.eye(K)[labels]],
    "one-hot integers": lambda images, labels: [normalise(images), torch.eye(K, dtype=torch.int64)[labels]],
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_convention_gives_the_same_pixels(tmp_path, convention):
    images, labels = made()
    order = torch.randperm(len(labels))
    source = saved(tmp_path / "x.pt", CONVENTIONS[convention](images[order], labels[order]))
    back = imported(source, tmp_path / "back.beton")
    sort = labels[order].argsort(stable=True)
    assert torch.equal(read_beton(back)[0], images[order][sort]) and torch.equal(read_beton(back)[1], labels)
    found = read_card(back)
    assert found.classes == [str(i) for i in range(K)]  # none were named
    assert found.method["normalised"] is not (convention in ("IDC, DANCE, TGDD", "a tuple", "uint8"))
    assert "soft_labels" not in found.method


def test_the_pair_of_mtt(tmp_path):
    images, labels = made()
    pair = [saved(tmp_path / "images_best.pt", normalise(images).requires_grad_()), tmp_path / "labels_best.pt"]
    saved(pair[1], labels)
    back = imported(pair, tmp_path / "back.beton")
    assert torch.equal(read_beton(back)[0], images) and torch.equal(read_beton(back)[1], labels)


def test_any_of_several_experiments(tmp_path):
    images, labels = made()
    source = saved(tmp_path / "x.pt", experiments(images, labels))
    back = imported(source, tmp_path / "back.beton", experiment=1)
    assert torch.equal(read_beton(back)[0], made(seed=6)[0])
    assert read_card(back).method["experiment"] == "1 of 3"
    with pytest.raises(InputError, match="`experiment` must be from 0 to 2 for '.*x.pt', got 3[.] Count from 0"):
        imported(source, tmp_path / "back.beton", experiment=3)


@pytest.mark.parametrize("name", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_accuracies_of_an_older_numpy_are_passed_over(tmp_path, name):
    """numpy 1 and 2 pickle their numbers under different names; the user's own list of safe globals stays as it was."""
    images, labels = made()
    source = saved(tmp_path / "x.pt", experiments(images, labels), _use_new_zipfile_serialization=False)
    content = source.read_bytes()
    (present,) = {n for n in (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n") if n in content}
    source.write_bytes(content.replace(present, f"c{name}\n".encode()))
    with torch.serialization.safe_globals([Path]):
        before = set(torch.serialization.get_safe_globals())
        assert torch.equal(read_beton(imported(source, tmp_path / "back.beton"))[0], images)
        assert Path in before and set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("normalised", [False, True])
def test_multi_formation_is_decoded_as_ours_and_idcs_is(tmp_path, normalised):
    images, labels = made()
    order = torch.randperm(len(labels))
    content = [normalise(images) if normalised else images.float() / 255, labels]
    source = saved(tmp_path / "data.pt", [part[order] for part in content])
    back = imported(source, tmp_path / "back.beton", factor=2)
    sort = order[labels[order].argsort(stable=True)]
    stored = (images[sort].float() / 255).view(K, PER_CLASS, *images.shape[1:])
    wanted, ids = SyntheticImages(stored, 2).to_uint8()
    difference = (read_beton(back)[0].int() - wanted.int()).abs()
    # From whole numbers, factor 2 makes exact halves, which de-normalising may round the other way.
    assert difference.max() <= normalised and difference.count_nonzero() < 0.05 * difference.numel()
    assert torch.equal(read_beton(back)[1], ids)
    found = read_card(back)
    assert (found.images, found.images_per_class, found.factor) == (K * PER_CLASS * 4, PER_CLASS, 2)
    # Once more without our decoder: IDC crops the four quarters of all images and enlarges each.
    quarters = [images[sort][..., y : y + 3, x : x + 4].float() for y in (0, 3) for x in (0, 4)]
    enlarged = torch.stack([nn.Upsample(size=(6, 8), mode="bilinear")(quarter) for quarter in quarters], 1)
    assert (enlarged.flatten(0, 1) - wanted.float()).abs().max() < 0.51


# What cannot be kept is told.


def test_what_is_clamped_is_told(tmp_path):
    images, labels = made()
    pixels = images.float() / 255
    pixels[0, 0, 0, :4] = torch.tensor([-0.5, 1.25, 1.001, -0.001])  # the latter two are less than rounding takes
    pixels[1, 1, 1, 1] = 1.75
    source = saved(tmp_path / "x.pt", [Normalize(MEAN, STD)(pixels), labels])
    share = 100 * 3 / pixels.numel()
    words = f"{share:.2g} % of the values, by 0.5 on average and 0.75 at most"
    with pytest.warns(UserWarning, match="lay outside") as told:
        back = import_tensors(source, tmp_path / "back.beton", mean=MEAN, std=STD)
    assert str(told[0].message) == (
        f"{words} of '{source}' lay outside [0, 1] and were clamped; by their values, they were taken for normalized "
        f"images: give normalised=False if they are pixels"
    )
    assert told[0].filename == __file__
    assert read_card(back).method["clamped"] == words
    assert torch.equal(read_beton(back)[0], pixels.clamp(0, 1).mul(255).round().to(torch.uint8))


def test_how_images_were_read_is_told_with_how_to_have_it_otherwise(tmp_path, capfd):
    """Bright images, normalized by 0.5 and 0.5, look like pixels of which a few overshoot."""
    noise = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bright = (0.72 + 0.12 * noise).clamp(0, 1)
    source, output = saved(tmp_path / "x.pt", [2 * bright - 1, torch.arange(20) // 10]), tmp_path / "back.beton"
    halves = {"mean": [0.5] * 3, "std": [0.5] * 3, "overwrite": True}
    with pytest.warns(UserWarning, match="taken for pixels: give normalised=True if they are normalized$"):
        import_tensors(source, output, **halves)
    with pytest.warns(UserWarning, match="and were clamped$"):  # as was said
        import_tensors(source, output, normalised=False, **halves)
    command = ["import", str(source), str(output), "--overwrite", *["--mean"] + 3 * ["0.5"], *["--std"] + 3 * ["0.5"]]
    assert cli.main(command) == 0
    assert capfd.readouterr().err.endswith("were taken for pixels: add --normalised if they are\n")
    assert cli.main([*command, "--normalised"]) == 0
    assert capfd.readouterr().err == "" and torch.equal(read_beton(output)[0], bright.mul(255).round().to(torch.uint8))


def test_pixels_that_overshoot_are_not_taken_for_normalised_ones(tmp_path):
    images, labels = made()
    pixels = images.float() / 255 * 1.1 - 0.05  # as IDC's and TGDD's after their last step
    pixels[:, :, :2] *= 1.5  # and, in a third, as MTT's images_zca_*.pt, which are never clamped
    with pytest.warns(UserWarning, match="were clamped"):
        back = import_tensors(saved(tmp_path / "x.pt", [pixels, labels]), tmp_path / "b.beton", mean=MEAN, std=STD)
    assert read_card(back).method["normalised"] is False
    assert torch.equal(read_beton(back)[0], pixels.clamp(0, 1).mul(255).round().to(torch.uint8))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.48, 0.25), (0.0, 1.0)])
def test_bright_images_come_back_as_they_were_exported(tmp_path, mean, std):
    """Normalized, they lie within what pixels could be."""
    images = torch.randint(200, 252, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels, card = torch.arange(2).repeat_interleave(2), Card(["a", "b"], 0, 2, [], [mean] * 3, [std] * 3)
    write_beton(tmp_path / "a.beton", images, labels, card)
    export_tensors(tmp_path / "a.beton", tmp_path / "out")
    files = [tmp_path / "out" / name for name in ("images.pt", "labels.pt")]
    back = import_tensors(files, tmp_path / "back.beton", mean=[mean] * 3, std=[std] * 3)
    assert torch.equal(read_beton(back)[0], images)


def test_whether_values_are_normalised_can_be_said(tmp_path):
    images, labels = made()
    dark = normalise(images // 8 + 112)  # all near the mean: within what pixels could be
    assert dark.min() < 0 < dark.max() < 1
    source = saved(tmp_path / "x.pt", [dark, labels])
    back = imported(source, tmp_path / "back.beton", normalised=True)
    assert torch.equal(read_beton(back)[0], images // 8 + 112)
    with pytest.raises(InputError, match=r"outside \[0, 1\] after reading them as pixels, not normalized"):
        imported(saved(tmp_path / "y.pt", [normalise(images), labels]), tmp_path / "c.beton", normalised=False)
    with pytest.raises(InputError, match="for uint8 images, which are never normalized, got true"):
        imported(saved(tmp_path / "z.pt", [images, labels]), tmp_path / "c.beton", normalised=True)


def test_what_is_far_from_pixels_is_refused_with_advice(tmp_path):
    images, labels = made()
    source = saved(tmp_path / "x.pt", [images.float(), labels])
    advice = r"% of the values, by .* outside \[0, 1\] after de-normalizing.*Give the mean and std.*ZCA-whitened"
    with pytest.raises(InputError, match=advice) as caught:
        imported(source, tmp_path / "back.beton")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == ["x.pt"]
    with pytest.warns(UserWarning, match="were clamped"):
        import_tensors(source, tmp_path / "back.beton", mean=MEAN, std=STD, tolerance=100)


# Soft labels.


@pytest.mark.parametrize("kind", ["probabilities", "softmax of logits"])
@pytest.mark.parametrize("factor", [1, 2])
def test_soft_labels_are_kept_and_come_back(tmp_path, kind, factor):
    images, labels = made()
    logits = torch.randn(len(labels), K, generator=torch.Generator().manual_seed(3)) + 9 * torch.eye(K)[labels]
    shares = logits.softmax(1)
    order = torch.randperm(len(labels))
    given = shares if kind == "probabilities" else logits
    source = saved(tmp_path / "x.pt", [images[order].float() / 255, given[order]])
    back = imported(source, tmp_path / "back.beton", factor=factor)
    assert read_card(back).method["soft_labels"] == kind
    assert torch.equal(read_beton(back)[1], labels.repeat_interleave(factor**2))
    folder = export_tensors(back, tmp_path / "out")
    soft, hard = (torch.load(folder / name, weights_only=True) for name in ("soft_labels.pt", "labels.pt"))
    wanted = shares[order][labels[order].argsort(stable=True)].repeat_interleave(factor**2, 0)
    torch.testing.assert_close(soft.softmax(1), wanted)
    assert torch.equal(hard, labels.repeat_interleave(factor**2))
    # What was written for DATM and ddranking reads back, too.
    pair = folder / "images.pt", folder / "soft_labels.pt"
    again = export_tensors(imported(pair, tmp_path / "again.beton"), tmp_path / "more")
    torch.testing.assert_close(torch.load(again / "soft_labels.pt", weights_only=True), soft, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.load(again / "data.pt", weights_only=True)[0], read_beton(back)[0].float() / 255)


def test_soft_labels_stay_with_their_images_where_a_file_is_in_no_order(tmp_path):
    images, labels = made()
    shares = torch.rand(len(labels), K, generator=torch.Generator().manual_seed(3)).softmax(1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    path = write_beton(tmp_path / "set.beton", images[order], labels[order], card(), shares[order])
    folder = export_tensors(path, tmp_path / "out")
    data, soft = (torch.load(folder / name, weights_only=True) for name in ("data.pt", "soft_labels.pt"))
    assert len(data[0]) == len(soft) == len(labels)
    for pixels, share in zip((data[0] * 255).round(), soft.softmax(1), strict=True):
        (place,) = [i for i in range(len(images)) if torch.equal(images[i], pixels)]
        torch.testing.assert_close(share, shares[place])


def test_soft_labels_of_other_classes_in_a_file_are_refused(tmp_path):
    images, labels = made()
    path = write_beton(tmp_path / "set.beton", images, labels, card(), torch.full((len(labels), K), 1 / K))
    found = read_card(path)
    replace(found, classes=[*found.classes, "one more"]).write(path)
    with pytest.raises(InputError, match="soft labels|fit"):
        export_tensors(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Files that do not fit.

IMAGES, LABELS = made()
PIXELS = IMAGES.float() / 255
NAN = PIXELS.clone()
NAN[0, 0, 0, 0] = float("nan")
MALFORMED = {
    "a tensor alone": (PIXELS, "must hold two dense tensors, images and labels, got Tensor[.] Give the file of its"),
    "nothing": (None, "got NoneType"),
    "an empty list": ([], "got nothing"),
    "an empty dict": ({}, "must have the key data, .* got a dict of nothing"),
    "other keys": ({"weight": PIXELS, 7: LABELS}, "must have the key data, .* got a dict of weight, 7"),
    "no experiments": ({"data": []}, "got nothing"),
    "numbers for data": ({"data": 3}, "got int"),
    "three tensors": ([PIXELS, LABELS, LABELS], "got Tensor, Tensor, Tensor"),
    "text for labels": ([PIXELS, "cats"], "got Tensor, str"),
    "sparse images": ([PIXELS.to_sparse(), LABELS], "must hold two dense tensors"),
    "images nowhere": ([PIXELS.to("meta"), LABELS], "must hold two dense tensors"),
    "flat images": ([PIXELS.flatten(1), LABELS], r"float or uint8 \(N, C, H, W\), .* got torch.float32 \(36, 144\)"),
    "channels last": ([PIXELS.permute(0, 2, 3, 1), LABELS], "Permute or convert"),
    "whole numbers": ([IMAGES.long(), LABELS], "must be float or uint8 .*got torch.int64 "),
    "no images": ([PIXELS[:0], LABELS[:0]], r"\(0, 3, 6, 8\)"),
    "empty images": ([PIXELS[..., :0], LABELS], r"\(36, 3, 6, 0\)"),
    "not a number": ([NAN, LABELS], "must be finite, got 1 values that are not"),
    "infinity": ([NAN / 0, LABELS], "must be finite, got"),
    "fewer labels": ([PIXELS, LABELS[:-1]], r"for 36 images, got torch.int64 of shape \(35,\)"),
    "label columns": ([PIXELS, LABELS[:, None]], r"got torch.int64 of shape \(36, 1\)"),
    "fractions": ([PIXELS, LABELS.float()], "labels .* got torch.float32"),
    "complex labels": ([PIXELS, torch.eye(K)[LABELS] * 1j], "labels .* got torch.complex64"),
    "labels that are not finite": ([PIXELS, torch.eye(K)[LABELS] / 0], "labels of .* must be finite"),
    "negative": ([PIXELS, LABELS - 1], "got -1 to 10"),
    "huge, of another type": ([PIXELS, (LABELS + 60_000).to(torch.uint16)], "must be in 0..35, got 6000"),
    "bits": ([PIXELS, LABELS > 4], "labels .* got torch.bool"),
    "huge": ([PIXELS, LABELS + 10**12], "must be in 0..35, got 1000000000000 to"),
    "unequal classes": ([PIXELS, (LABELS - 1).clamp(min=0)], "equally many images, .*3 of class 1 and 6 of class 0"),
    "a class left out": ([PIXELS, LABELS + (LABELS > 4)], "got 0 of class 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_tensors_that_do_not_fit_are_a_clear_line(tmp_path, case):
    content, pattern = MALFORMED[case]
    source = saved(tmp_path / "x.pt", content)
    with pytest.raises(InputError, match=pattern) as caught:
        imported(source, tmp_path / "deep/back.beton")
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert os.listdir(tmp_path) == ["x.pt"]


OPTIONS = {
    "no mean": (
        {"mean": None, "std": None},
        "`mean` and `std` must be given for .*Give those of the code that made it",
    ),
    "mean of one channel": (
        {"mean": [0.5], "std": [0.5]},
        r"which have 3, got mean \[0.5\] and std \[0.5\]. Give 3 value",
    ),
    "std of nought": ({"mean": MEAN, "std": [0.0] * 3}, r"with each std above 0, got .* and std \[0.0, 0.0, 0.0\]"),
    "mean that is no number": (
        {"mean": [float("nan")] * 3, "std": STD},
        r"finite values, one per channel, .* got mean \[nan, nan, nan\]",
    ),
    "fewer names": ({"classes": ["a", "b"]}, r"must be in 0..1, got 0 to 11[.] Correct them, or the class names"),
    "more names": ({"classes": [*"abcdefghijklm"]}, "got 0 of class 12"),
    "a factor that does not divide": ({"factor": 4}, "both sides of the images, 6x8 pixels, got 4. Choose 1 or 2."),
    "no factor": ({"factor": 0}, "`factor` must .* got 0"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit_are_a_clear_line(tmp_path, case):
    options, pattern = OPTIONS[case]
    source = saved(tmp_path / "x.pt", [PIXELS, LABELS])
    with pytest.raises(InputError, match=pattern):
        import_tensors(source, tmp_path / "deep/back.beton", **{"mean": MEAN, "std": STD, **options})
    assert os.listdir(tmp_path) == ["x.pt"]


def test_names_must_be_as_many_as_soft_labels_have(tmp_path):
    source = saved(tmp_path / "x.pt", [PIXELS, torch.eye(K)[LABELS]])
    with pytest.raises(
        InputError, match=r"class ids \(N,\), or \(N, 2\), for 36 images, got torch.float32 of shape \(36, 12\)"
    ):
        imported(source, tmp_path / "back.beton", classes=["a", "b"])


def test_files_that_are_no_pt_are_a_clear_line(tmp_path):
    whole = saved(tmp_path / "x.pt", [PIXELS, LABELS]).read_bytes()
    old = saved(tmp_path / "x.pt", [PIXELS, LABELS], _use_new_zipfile_serialization=False).read_bytes()
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    blobs = [b"", b"text\n" * 300, bytes(5000), whole[: len(whole) // 2], old[: len(old) // 2], old[:50]]
    blobs += [(tmp_path / "x.png").read_bytes(), pickle.dumps([1, 2]), b"PK\x03\x04" + bytes(100)]
    for blob in blobs:
        (tmp_path / "x.pt").write_bytes(blob)
        with pytest.raises(
            InputError, match="is not a .pt that torch.save wrote, or is damaged|holds|must hold"
        ) as caught:
            imported(tmp_path / "x.pt", tmp_path / "deep/back.beton")
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    for source, pattern in ((tmp_path / "none.pt", "There is no file"), (tmp_path, "There is no file")):
        with pytest.raises(InputError, match=pattern):
            imported(source, tmp_path / "deep/back.beton")
    with pytest.raises(InputError, match="must be one .pt with images and labels, or two: .* got 3 files"):
        imported([tmp_path / "x.pt"] * 3, tmp_path / "deep/back.beton")
    assert sorted(os.listdir(tmp_path)) == ["x.png", "x.pt"]


class Payload:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize("where", ["alone", "in the list", "among the accuracies", "a plain pickle"])
@pytest.mark.parametrize("how", ["os.system", "open", "Path.touch"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # pickle's own payload, which opens and is gone
def test_no_file_runs_code(tmp_path, where, how):
    """Each payload would create a file, and does under pickle; here it is refused by name and nothing happens."""
    mark = tmp_path / "ran"
    payload = {
        "os.system": Payload(os.system, f"touch '{mark}'"),
        "open": Payload(open, str(mark), "w"),
        "Path.touch": Payload(Path.touch, mark),
    }[how]
    content = {
        "in the list": [PIXELS, LABELS, payload],
        "among the accuracies": experiments(IMAGES, LABELS, more=payload),
    }.get(where, payload)
    source = tmp_path / "x.pt"
    if where == "a plain pickle":
        source.write_bytes(pickle.dumps(content, protocol=2))
    else:
        saved(source, content)
    with pytest.raises(InputError) as caught:
        imported(source, tmp_path / "deep/back.beton")
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    if where != "a plain pickle":
        assert "could run foreign code. Save tensors alone" in str(caught.value)
    assert os.listdir(tmp_path) == ["x.pt"]
    pickle.loads(source.read_bytes()) if where == "a plain pickle" else torch.load(source, weights_only=False)
    assert mark.exists()


# Folders appear whole or not at all.


@pytest.mark.parametrize("export", [export_tensors, export_folder])
def test_only_a_new_or_empty_folder_is_written(tmp_path, export):
    path = write_beton(tmp_path / "set.beton", *made(), card())
    full, file, empty, link = (tmp_path / name for name in ("full", "file", "empty", "link"))
    full.mkdir()
    (full / "mine").write_text("mine")
    file.write_text("mine")
    empty.mkdir()
    link.symlink_to(empty)
    with pytest.raises(InputError, match="full' has content. Name a folder that is new or empty"):
        export(path, full)
    with pytest.raises(InputError, match="file' is a file. Name a folder"):
        export(path, file)
    assert os.listdir(full) == ["mine"] and file.read_text() == "mine"
    mask = os.umask(0o027)
    try:
        assert export(path, link) == link
    finally:
        os.umask(mask)
    assert (empty / "card.yaml").is_file() and empty.stat().st_mode & 0o777 == 0o750
    assert len(os.listdir(tmp_path)) == 6  # nothing temporary


@pytest.mark.parametrize("export", [export_tensors, export_folder])
def test_a_failure_midway_leaves_nothing(tmp_path, monkeypatch, export):
    path = write_beton(tmp_path / "set.beton", *made(), card())
    before = sorted(os.listdir(tmp_path))
    torch_save, image_save, calls = torch.save, Image.Image.save, []

    def failing(function):
        def save(*arguments, **options):
            calls.append(1)
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return save

    monkeypatch.setattr(torch, "save", failing(torch_save))
    monkeypatch.setattr(Image.Image, "save", failing(image_save))
    with pytest.raises(OSError, match="No space left"):
        export(path, tmp_path / "out")
    assert len(calls) == 2 and sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("export", [export_tensors, export_folder])
def test_a_file_that_cannot_be_written_in_full_is_an_error_of_the_system(tmp_path, export):
    path = write_beton(tmp_path / "set.beton", *made(), card())
    before = sorted(os.listdir(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))  # as a full disk, after so many bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            export(path, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_class_without_images_is_refused_in_a_folder(tmp_path):
    images, labels = made()
    held = labels != 4
    try:
        path = write_beton(tmp_path / "set.beton", images[held], labels[held], card())
    except InputError:
        pytest.skip("no such file can be written")
    with pytest.raises(InputError, match=r"Class 4 \('animal 8/é'\) .* has no images.*[.] Export tensors"):
        export_folder(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_needs_the_card(tmp_path):
    path = write_beton(tmp_path / "set.beton", *made(), card())
    (tmp_path / "set.beton.yaml").unlink()
    for export in (export_tensors, export_folder):
        with pytest.raises(InputError, match="has no card"):
            export(path, tmp_path / "out")


def test_another_set_is_not_replaced_unasked(tmp_path, capfd):
    source, output = saved(tmp_path / "x.pt", [PIXELS, LABELS]), tmp_path / "set.beton"
    other = saved(tmp_path / "y.pt", [PIXELS.flip(-1), LABELS])

    def tgdd_import(path, *options):
        numbers = [list(map(str, values)) for values in (MEAN, STD)]
        command = ["import", path, output, *options, "--mean", *numbers[0], "--std", *numbers[1]]
        return cli.main(list(map(str, command))), capfd.readouterr().err

    def contents():
        return [path.read_bytes() for path in (output, card_path(output))]

    assert tgdd_import(source) == (0, "")
    scored = read_card(output)
    scored.accuracy = [{"network": "ConvNet", "seeds": [0], "test_images": 3, "rows": []}]
    scored.write(output)
    before = contents()
    assert tgdd_import(source) == (0, "") and contents() == before, "the same set stays, with what it has reached"
    status, error = tgdd_import(other)
    assert status == 2 and f"'{output}' is of another job (method.files was ['x.pt'] and is now ['y.pt'])" in error
    assert error.count("\n") == 1 and contents() == before
    os.replace(other, source)  # under the same name, other images
    status, error = tgdd_import(source)
    assert status == 2 and "is of another job (sha256 was" in error and contents() == before
    card_path(output).unlink()
    status, error = tgdd_import(source)
    assert status == 2 and "there already, and nothing says what it is" in error and output.read_bytes() == before[0]
    assert "add --overwrite to replace it" in error and "`overwrite`" not in error, "the option of this command"
    assert tgdd_import(source, "--overwrite") == (0, "") and output.read_bytes() != before[0]
    assert read_card(output).accuracy == []


def test_the_output_must_be_a_file(tmp_path):
    source = saved(tmp_path / "x.pt", [PIXELS, LABELS])
    with pytest.raises(InputError, match="is a folder. Name a file in it"):
        imported(source, tmp_path)


# The real thing.

PACKAGES = ("ddranking==0.2.0", "kornia", "kornia-rs", "timm", "pandas")

SCORING = """
    import hashlib, json, pickle, sys
    import numpy as np, torch, torchvision
    from pathlib import Path
    from torchvision.transforms import Compose, Normalize, ToTensor
    try:
        from ddranking.metrics import LabelRobustScoreHard, hard_label
    except ImportError as error:
        sys.exit(f"IMPORT {error}")

    work, mean, std = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    # A CIFAR-10 of 20 random images, in the layout of the real one; torchvision is told its checksums.
    random, folder = np.random.default_rng(0), work / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)

    def batch(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    def pictures():
        return {"data": random.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}

    cifar = torchvision.datasets.CIFAR10
    cifar.train_list, cifar.test_list = [batch("data_batch_1", pictures())], [batch("test_batch", pictures())]
    name, md5 = batch("batches.meta", {"label_names": [str(i) for i in range(10)]})
    cifar.meta = {"filename": name, "key": "label_names", "md5": md5}

    trained_on, train_one_epoch = [], hard_label.train_one_epoch

    def noted(*arguments, loader, **options):
        trained_on.append(loader.dataset)
        return train_one_epoch(*arguments, loader=loader, **options)

    hard_label.train_one_epoch = noted
    # It lists each score twice among single ones, which pandas refuses to write whatever was scored.
    hard_label.save_results = lambda results, path: None
    evaluator = LabelRobustScoreHard(
        dataset="CIFAR10", real_data_path=str(work / "data"), ipc=1, model_name="ConvNet-3", data_aug_func=None,
        step_size=5, num_eval=1, num_epochs=10, num_workers=0, device="cpu", eval_full_data=True,
        custom_train_trans=Compose([ToTensor(), Normalize(mean, std)]), save_path=str(work / "scores/unwritten.csv"),
        random_data_path=str(work / "random"),
    )

    def keep(kind):
        pairs = [trained_on[0][i] for i in range(len(trained_on[0]))]
        images, labels = torch.stack([image for image, _ in pairs]), torch.tensor([int(label) for _, label in pairs])
        torch.save([images, labels], work / f"{kind}.pt")
        trained_on.clear()

    images, labels = (torch.load(work / f"tensors/{part}.pt") for part in ("images", "labels"))
    scores = evaluator.compute_metrics(image_tensor=images, hard_labels=labels, syn_lr=0.01)
    keep("tensors")
    # The part of compute_metrics() that an image_path goes into; the rest would be the same once more.
    percent, _ = evaluator._compute_hard_label_metrics_helper(None, str(work / "folder"), None, 0.01, "syn")
    keep("folder")
    (work / "found.json").write_text(json.dumps({**{k: float(v) for k, v in scores.items()}, "folder": percent}))
"""


def test_ddranking_scores_both_exports(tmp_path):
    """``ddranking`` 0.2.0 itself, as pip installs it, scores the tensors and trains on the folder.

    Covered: ``LabelRobustScoreHard.compute_metrics(image_tensor=...)``, and of ``compute_metrics(image_path=...)`` the
    reading, training and testing, on the CPU; that both trainings are on our very pixels, normalised by its own
    constants (the folder's by ``custom_train_trans``), under our labels. Not covered: what a score is worth (its
    CIFAR-10 is 20 random images, and it trains for 10 epochs), soft labels (which want its teachers' weights), its
    augmentations, several processes and GPUs, and the CSV it writes at the end, where 0.2.0 fails.
    """
    if os.environ.get("TGDD_DDRANKING") != "1":
        pytest.skip("it installs ddranking and its dependencies from PyPI; set TGDD_DDRANKING=1 to run it")
    target = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    done = subprocess.run([*install, "--target", str(target), *PACKAGES], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"ddranking cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(20) % 10
    made_by = Card([str(i) for i in range(10)], 0, 2, [], [0.5] * 3, [0.25] * 3)
    path = write_beton(tmp_path / "set.beton", images, labels, made_by)
    # ddranking normalises its test images by these, whatever we trained with.
    export_tensors(path, tmp_path / "tensors", mean=MEAN, std=STD)
    export_folder(path, tmp_path / "folder")
    script = [sys.executable, "-c", textwrap.dedent(SCORING), str(tmp_path), str(MEAN), str(STD)]
    environment = {**os.environ, "PYTHONPATH": f"{target}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    if "IMPORT" in done.stderr:
        pytest.skip(f"ddranking cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    order = labels.argsort(stable=True)
    wanted = torch.stack(
        [Compose([ToTensor(), Normalize(MEAN, STD)])(i.permute(1, 2, 0).numpy()) for i in images[order]]
    )
    found = yaml.safe_load((tmp_path / "found.json").read_text())
    for kind in ("tensors", "folder"):
        pixels, ids = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert torch.equal(pixels, wanted) and torch.equal(ids, labels[order])
    assert len(found) == 7 and all(np.isfinite(value) for value in found.values())
