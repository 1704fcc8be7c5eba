"""A small vision transformer, the check of a distilled set that shares no convolution with ConvNet.

From A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021. Width and heads are those of the smallest DeiT
(H. Touvron et al., ICML 2021), which has twice the depth. The computation and its initialisation are torchvision's.
"""

import math

from torch import nn
from torchvision.models import VisionTransformer

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.networks.convnets import check_counts


def vit(
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    *,
    patch_size: int | None = None,
    depth: int = 6,
    width: int = 192,
    heads: int = 3,
) -> VisionTransformer:
    """Builds a vision transformer without dropout for images of shape ``(N, in_channels, image_size, image_size)``.

    Args:
        num_classes: Number of logits.
        in_channels: 1 for grayscale images, 3 for colour (default).
        image_size: Side of the square images in pixels; default 32. The network takes no other.
        patch_size: Side of a patch in pixels. Default: ``None``, the largest that leaves at least 7 patches to a side:
            4 for 28 and 32 px, 8 for 64 px, 32 for 224 px.
        depth: Number of blocks; default 6.
        width: Features of a patch, four times as many within the blocks; default 192.
        heads: Number of attention heads; default 3.

    Returns:
        The network, from images to logits of shape ``(N, num_classes)``; its linear head is ``heads.head``, on the
        ``width`` features of the class token, and starts as zero.

    Raises:
        InputError: A count below 1, a patch size that does not divide the image's, or heads that do not divide the
            width.
    """
    check_counts(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, depth=depth, width=width, heads=heads
    )
    sizes = [size for size in range(1, image_size + 1) if image_size % size == 0]
    if patch_size is None:
        patch_size = max((size for size in sizes if image_size // size >= 7), default=1)
    check_counts(patch_size=patch_size)
    if patch_size not in sizes:
        raise InputError(
            f"`patch_size` must divide image_size {image_size}, got {patch_size}. Choose one of "
            f"{', '.join(map(str, sizes))}."
        )
    if width % heads:
        raise InputError(f"`heads` must divide the width {width}, got {heads}. Change heads or width.")
    net = VisionTransformer(image_size, patch_size, depth, heads, width, 4 * width, num_classes=num_classes)
    net.conv_proj = nn.Conv2d(in_channels, width, patch_size, patch_size)
    nn.init.trunc_normal_(net.conv_proj.weight, std=math.sqrt(1 / (in_channels * patch_size**2)))
    nn.init.zeros_(net.conv_proj.bias)
    return net
