"""Images of three shades, which candidates are trained and judged on."""

import torch

from tgdd_plugin.data.image_pool import ImagePool

K = 3


def pool(count, seed):
    """Class 0 is dark, 1 is grey, 2 is bright, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % K
    noise = torch.randint(0, 80, (count, 1, 8, 8), generator=generator)
    return ImagePool((noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels, ["dark", "grey", "bright"])
