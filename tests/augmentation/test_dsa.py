"""Augmentation against a slow reference written from DSA's definition, image by image and pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.common import seeded
from tgdd_plugin.augmentation.dsa import augment, draw_augmentation
from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.errors import InputError

pytestmark = pytest.mark.numerical

ALL = "color_crop_cutout_flip_scale_rotate"


def draw(strategy, groups, size=(8, 6), seed=0):
    return draw_augmentation(strategy, groups, size, seeded(seed))


# The reference. Each function takes one image (C, H, W) and plain numbers.


def colour(x, brightness, saturation, contrast):
    x = x + brightness
    gray = x.mean(0)
    x = (x - gray) * saturation + gray
    mean = x.mean()
    return (x - mean) * contrast + mean


def crop(x, down, right):
    """Shifted by whole pixels; what comes in is zero."""
    out = np.zeros_like(x)
    _, height, width = x.shape
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[:, i, j] = x[:, i + down, j + right]
    return out


def cutout(x, top, left, tall, wide):
    out = x.copy()
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            if top <= i < top + tall and left <= j < left + wide:
                out[:, i, j] = 0
    return out


def resample(x, theta):
    """Bilinear at theta (x, y, 1), positions running from -1 to 1 between the borders; zero outside."""
    channels, height, width = x.shape
    out = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            at = theta @ np.array([(2 * j + 1) / width - 1, (2 * i + 1) / height - 1, 1.0])
            column, row = ((at[0] + 1) * width - 1) / 2, ((at[1] + 1) * height - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return out


def run(bounds):
    """First and length of a run of consecutive positions."""
    assert bounds == list(range(bounds[0], bounds[0] + len(bounds))) if bounds else True
    return (bounds[0], len(bounds)) if bounds else (0, 0)


def numbers(d, g, size):
    """Group g's draw as plain numbers, of those operations that it has."""
    found = {name: float(d[name][g]) for name in ("brightness", "saturation", "contrast") if name in d}
    if "affine" in d:
        found["theta"] = d["affine"][g].double().numpy()
    if "rows" in d:
        rows, columns = d["rows"][g].tolist(), d["columns"][g].tolist()
        steps = [b - a for a, b in zip(columns, columns[1:], strict=False) if min(a, b) >= 0]
        assert set(steps) in ({1}, {-1})
        found["flip"] = steps[0] < 0
        columns = columns[::-1] if found["flip"] else columns
        for name, index in (("down", rows), ("right", columns)):
            shifts = {source - i for i, source in enumerate(index) if source >= 0}
            (found[name],) = shifts
            assert index == [i + found[name] if 0 <= i + found[name] < len(index) else -1 for i in range(len(index))]
    if "kept_rows" in d:
        found["top"], found["tall"] = run((~d["kept_rows"][g]).nonzero()[:, 0].tolist())
        found["left"], found["wide"] = run((~d["kept_columns"][g]).nonzero()[:, 0].tolist())
    return found


def reference(x, n):
    if "brightness" in n:
        x = colour(x, n["brightness"], n["saturation"], n["contrast"])
    if "theta" in n:
        x = resample(x, n["theta"])
    if "down" in n:
        x = crop(x, n["down"], n["right"])
        x = x[:, :, ::-1].copy() if n["flip"] else x
    if "top" in n:
        x = cutout(x, n["top"], n["left"], n["tall"], n["wide"])
    return x


@pytest.mark.parametrize("strategy", ["color", "crop", "cutout", "flip", "scale", "rotate", "color_crop_flip", ALL])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_is_the_references(strategy, channels):
    groups, count, size = 6, 2, (8, 6)
    d = draw(strategy, groups, size, seed=len(strategy))
    images = torch.randn(groups, count, channels, *size, generator=seeded(1), dtype=torch.float64)
    came = augment(images, d)
    assert came.shape == images.shape and came.dtype == images.dtype
    changed = 0
    for g in range(groups):
        for i in range(count):
            wanted = reference(images[g, i].numpy(), numbers(d, g, size))
            np.testing.assert_allclose(came[g, i].numpy(), wanted, rtol=1e-9, atol=1e-9)
            changed += not np.allclose(wanted, images[g, i].numpy())
    assert changed > 0


@pytest.mark.parametrize("strategy", ["color", "crop_flip", "cutout", "scale_rotate", ALL])
def test_gradients(strategy):
    d = draw(strategy, 3, (4, 5), seed=4)
    images = torch.randn(3, 2, 2, 4, 5, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: augment(x, d), (images,))


def test_one_draw_is_shared_by_the_images_of_a_group_and_by_no_others():
    images = torch.randn(1, 3, 8, 6, generator=seeded(1), dtype=torch.float64).expand(4, 5, 3, 8, 6)
    came = augment(images, draw(ALL, 4))
    for g in range(4):
        assert all(torch.equal(came[g, 0], came[g, i]) for i in range(5))
        assert all(not torch.allclose(came[g, 0], came[other, 0]) for other in range(g))


def test_one_image_a_group_is_the_same_with_and_without_the_dimension():
    d = draw(ALL, 7)
    images = torch.randn(7, 3, 8, 6, generator=seeded(1))
    assert torch.equal(augment(images, d), augment(images.unsqueeze(1), d).squeeze(1))


@pytest.mark.parametrize("strategy", ["color", "crop_flip", "cutout", "scale", ALL])
def test_a_draw_splits_by_group(strategy):
    d = draw(strategy, 7)
    images = torch.randn(7, 2, 3, 8, 6, generator=seeded(1), dtype=torch.float64)
    assert all(isinstance(t, torch.Tensor) and len(t) == 7 for t in d.values())
    parts = [augment(images[a:b], {k: t[a:b] for k, t in d.items()}) for a, b in ((0, 3), (3, 4), (4, 7))]
    torch.testing.assert_close(torch.cat(parts), augment(images, d), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_images_type_is_kept(dtype):
    images = torch.randn(3, 3, 8, 8, generator=seeded(1))
    came = augment(images.to(dtype), draw("color_crop_cutout_flip", 3, (8, 8)))
    assert came.dtype == dtype
    exact = augment(images, draw("color_crop_cutout_flip", 3, (8, 8)))
    torch.testing.assert_close(came.float(), exact, rtol=0.05, atol=0.05)


def test_none_and_unknown_operations():
    assert parse_augmentation("none") == () and draw("none", 3) == {}
    images = torch.randn(3, 3, 8, 6)
    assert torch.equal(augment(images, {}), images)
    assert parse_augmentation("crop_flip") == ("crop", "flip")
    for strategy in ("colour", "crop flip", "", "crop__flip", "none_crop"):
        with pytest.raises(
            InputError, match="operations of color, crop, cutout, flip, scale, rotate joined by _, or none, got"
        ):
            parse_augmentation(strategy)


def test_draws_repeat_from_the_generator_and_leave_the_global_stream_alone():
    state = torch.get_rng_state()
    a, b, c = draw(ALL, 5, seed=1), draw(ALL, 5, seed=1), draw(ALL, 5, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


# Ranges and distributions, of many draws, as DSA's published code has them.

MANY = 20_000


def uniform(values, low, high):
    values = np.asarray(values)
    assert low <= values.min() and values.max() <= high
    assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-4


def uniform_integers(values, low, high):
    counts = np.bincount(np.asarray(values) - low, minlength=high - low + 1)
    assert min(values) >= low and len(counts) == high - low + 1
    assert stats.chisquare(counts).pvalue > 1e-4


def test_colour_draws():
    d = draw("color", MANY)
    uniform(d["brightness"], -0.5, 0.5)
    uniform(d["saturation"], 0, 2)
    uniform(d["contrast"], 0.5, 1.5)
    correlations = np.corrcoef([d[name].numpy() for name in ("brightness", "saturation", "contrast")])
    assert np.abs(correlations - np.eye(3)).max() < 0.04


@pytest.mark.parametrize(("size", "pads"), [((32, 32), (4, 4)), ((8, 28), (1, 4)), ((128, 20), (16, 3))])
def test_shifts_and_flips(size, pads):
    d = draw("crop_flip", 4000, size)
    found = [numbers(d, g, size) for g in range(4000)]
    uniform_integers([n["down"] for n in found], -pads[0], pads[0])
    uniform_integers([n["right"] for n in found], -pads[1], pads[1])
    assert stats.binomtest(sum(n["flip"] for n in found), 4000).pvalue > 1e-4
    assert abs(np.corrcoef([n["down"] for n in found], [n["right"] for n in found])[0, 1]) < 0.08


def test_crop_alone_never_flips_and_flip_alone_never_shifts():
    assert not any(numbers(draw("crop", 200), g, (8, 6))["flip"] for g in range(200))
    flips = [numbers(draw("flip", 200), g, (8, 6)) for g in range(200)]
    assert {(n["down"], n["right"]) for n in flips} == {(0, 0)} and {n["flip"] for n in flips} == {True, False}


@pytest.mark.parametrize("size", [(8, 8), (7, 6), (32, 28)])
def test_cutout_draws(size):
    """A square of half the side around a centre that is anywhere, cut off at the borders."""
    d = draw("cutout", 6000, size)
    for kept, side in ((d["kept_rows"], size[0]), (d["kept_columns"], size[1])):
        hole = int(side * 0.5 + 0.5)
        # DSA: offset ~ U{0 .. side - hole % 2}, the hole from offset - hole // 2 on.
        wanted = {}
        for offset in range(side + 1 - hole % 2):
            inside = tuple(0 <= p - (offset - hole // 2) < hole for p in range(side))
            wanted[inside] = wanted.get(inside, 0) + 1
        came = {}
        for row in (~kept).tolist():
            came[tuple(row)] = came.get(tuple(row), 0) + 1
        assert came.keys() == wanted.keys()
        total = sum(wanted.values())
        pvalue = stats.chisquare([came[k] for k in wanted], [6000 * n / total for n in wanted.values()]).pvalue
        assert pvalue > 1e-4


def test_scale_and_rotate_draws():
    scale = draw("scale", MANY)["affine"].numpy()
    uniform(scale[:, 0, 0], 1 / 1.2, 1.2)
    uniform(scale[:, 1, 1], 1 / 1.2, 1.2)
    assert not scale[:, 0, 1:].any() and not scale[:, 1, 0].any() and not scale[:, 1, 2].any()
    assert abs(np.corrcoef(scale[:, 0, 0], scale[:, 1, 1])[0, 1]) < 0.04
    turn = draw("rotate", MANY)["affine"].double()
    torch.testing.assert_close(
        torch.linalg.det(turn[:, :, :2]), torch.ones(MANY, dtype=torch.float64), atol=1e-6, rtol=0
    )
    uniform(np.degrees(np.arctan2(turn[:, 1, 0].numpy(), turn[:, 0, 0].numpy())), -15, 15)
    both = draw("scale_rotate", 50)["affine"].double()
    # Turned first, then scaled along the axes: S R, so the rows are orthogonal.
    assert (both[:, 0] * both[:, 1]).sum(1).abs().max() < 1e-6
