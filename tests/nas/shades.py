"""Images of three shades, which candidates are trained and judged on."""

import torch

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.data.image_pool import ImagePool

K = 3


def pool(count, seed):
    """Class 0 is dark, 1 is grey, 2 is bright, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % K
    noise = torch.randint(0, 80, (count, 1, 8, 8), generator=generator)
    return ImagePool((noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels, ["dark", "grey", "bright"])


def write_few(folder):
    """Writes a set of one image of each shade, and returns its path."""
    few = pool(12, 1)
    mean, std = few.statistics()
    card = Card(few.classes, 0, 4, [1, 8, 8], mean, std, 1, method={"name": "none"}, network={}, real={}, trajectory={})
    write_beton(folder / "few.beton", few.images, few.labels, card)
    return folder / "few.beton"
