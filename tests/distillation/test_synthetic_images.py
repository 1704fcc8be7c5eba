"""Multi-formation, starts and the form that ships, against loops over single images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tgdd_plugin.beton.multi_formation import unpack
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels

SHAPE = (3, 2, 3, 8, 12)


def pool(per_class: int = 20) -> ImagePool:
    labels = torch.arange(3).repeat(per_class)
    generator = torch.Generator().manual_seed(0)
    return ImagePool(torch.randint(0, 256, (len(labels), *SHAPE[2:]), generator=generator, dtype=torch.uint8), labels)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_decoding_cuts_a_grid_and_enlarges_each_part(factor):
    pixels = torch.rand(SHAPE)
    decoded = SyntheticImages(pixels, factor).decode(torch.tensor([2, 0]))
    assert decoded.shape == (2, 2 * factor**2, *SHAPE[2:])
    height, width = 8 // factor, 12 // factor
    for row, label in enumerate([2, 0]):
        position = 0
        for image in pixels[label]:
            for i in range(factor):
                for j in range(factor):
                    part = image[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
                    wanted = F.interpolate(part[None], (8, 12), mode="bilinear", align_corners=False)[0]
                    torch.testing.assert_close(decoded[row, position], wanted)
                    position += 1


def test_a_start_of_real_images_is_real_images_of_the_right_class():
    real = pool()
    pixels = start_pixels("real", SHAPE, 1, real, torch.Generator().manual_seed(0))
    for label in range(3):
        known = {image.numpy().tobytes() for image in real.images[real.labels == label]}
        stored = {(image * 255).round().to(torch.uint8).numpy().tobytes() for image in pixels[label]}
        assert stored <= known and len(stored) == 2


def test_a_mixed_start_decodes_to_one_shrunken_real_image_in_each_part():
    real = pool()
    pixels = start_pixels("mix", SHAPE, 2, real, torch.Generator().manual_seed(0))
    index = real.draw(torch.arange(3), 8, torch.Generator().manual_seed(0))
    for label in range(3):
        for position in range(8):
            image = real.images[index[label, position]].float() / 255
            small = F.interpolate(image[None], (4, 6), mode="bilinear", antialias=True)[0]
            stored, part = divmod(position, 4)
            i, j = divmod(part, 2)
            found = pixels[label, stored][:, 4 * i : 4 * i + 4, 6 * j : 6 * j + 6]
            torch.testing.assert_close(found, small.clamp(0, 1))


def test_noise_reads_no_real_image():
    pixels = start_pixels("noise", SHAPE, 2, None, torch.Generator().manual_seed(0))
    assert pixels.shape == SHAPE and 0 <= pixels.min() and pixels.max() <= 1
    assert pixels.mean() == pytest.approx(0.5, abs=0.05)


def test_what_ships_is_rounded_not_cut_off():
    synthetic = SyntheticImages(torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.0]).view(5, 1, 1, 1, 1))
    images, labels = synthetic.to_uint8()
    assert images.flatten().tolist() == [0, 0, 1, 255, 255] and labels.tolist() == [0, 1, 2, 3, 4]


def doubled(values: np.ndarray) -> np.ndarray:
    """Four times the first axis at twice its length: three parts of the nearer pixel, one of the farther."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.stack([3 * values + padded[:-2], 3 * values + padded[2:]], axis=1).reshape(-1, *values.shape[1:])


def test_packed_images_are_decoded_to_the_bytes_of_whole_number_arithmetic():
    """More of them than are decoded at once; ties go to the even number."""
    stored = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 3, 4, 6), dtype=np.uint8))
    decoded = unpack(stored, 2)
    assert decoded.dtype == torch.uint8 and decoded.shape == (1200, 3, 4, 6)
    ties = 0
    for position, image in enumerate(decoded.numpy()):
        number, part = divmod(position, 4)
        i, j = divmod(part, 2)
        grid = stored[number, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].numpy().astype(int)
        sixteenths = np.stack([doubled(doubled(channel).T).T for channel in grid])
        ties += (sixteenths % 16 == 8).sum()
        np.testing.assert_array_equal(image, np.rint(sixteenths / 16))
    assert ties > 1000


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_what_ships_packed_are_the_stored_images_rounded(factor):
    pixels = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    synthetic = SyntheticImages(pixels, factor)
    stored, labels = synthetic.to_uint8(packed=True)
    np.testing.assert_array_equal(stored.numpy(), np.rint(pixels.numpy().reshape(6, 3, 8, 12) * np.float32(255)))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    decoded, decoded_labels = synthetic.to_uint8()
    assert torch.equal(decoded_labels, labels.repeat_interleave(factor**2))
    # In the same order, and no further apart than two roundings.
    assert (unpack(stored, factor).int() - decoded.int()).abs().max() <= (0 if factor == 1 else 1)


@pytest.mark.parametrize("factor", [0, 3])
def test_a_factor_that_does_not_divide_is_refused(factor):
    wanted = f"`factor` must divide both sides of the images, 8x12 pixels, got {factor}. Choose 1, 2 or 4.$"
    with pytest.raises(InputError, match=wanted):
        SyntheticImages(torch.rand(SHAPE), factor)
    with pytest.raises(InputError, match=f"got {factor}. Choose 1.$"):
        SyntheticImages(torch.rand(1, 1, 3, 7, 8), factor)
    with pytest.raises(InputError, match=f"`factor` .* got {factor}"):
        start_pixels("mix", SHAPE, factor, pool(), torch.Generator())


def test_a_start_of_too_few_images_is_refused():
    with pytest.raises(InputError, match="has 7 real images to start from.*factor² = 8 of each[.] Lower .* to 1"):
        start_pixels("mix", SHAPE, 2, pool(7), torch.Generator())
