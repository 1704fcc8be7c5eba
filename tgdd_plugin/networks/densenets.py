"""DenseNet for small images, a check of distilled sets that is further from ConvNet than ResNet is.

From G. Huang, Z. Liu, L. van der Maaten and K. Q. Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
in the form that distilled sets of 32 px images are tested on (the code of IDC and of TGDD, after
kuangliu/pytorch-cifar): the four ImageNet blocks, narrow, after a single 3x3 convolution of stride 1. The blocks, the
forward pass and the initialisation are torchvision's.
"""

from torch import nn
from torchvision.models.densenet import DenseNet

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.networks.convnets import check_counts


def densenet121(num_classes: int, in_channels: int = 3, image_size: int = 32, *, growth_rate: int = 12) -> DenseNet:
    """Builds a DenseNet-121 (blocks of 6, 12, 24 and 16 layers, batch norm) for small images.

    Args:
        num_classes: Number of logits.
        in_channels: 1 for grayscale images, 3 for colour (default).
        image_size: Side of the square images in pixels; default 32. It only serves to refuse images too small for
            the three poolings: the features are averaged over the map, whatever its size.
        growth_rate: Channels that every layer adds, half of the stem's; default 12, which is what tables of distilled
            sets call DenseNet-121 (1.0 million parameters). That of the paper has 32 (7.0 million).

    Returns:
        The network, from images of shape ``(N, C, H, W)`` to logits of shape ``(N, num_classes)``; its linear head is
        ``classifier``, on ``32 * growth_rate`` globally averaged features.

    Raises:
        InputError: A count below 1, or an image of less than 8 px.
    """
    check_counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size, growth_rate=growth_rate)
    if image_size < 8:
        raise InputError(
            f"`image_size` must be at least 8, as three poolings follow, got {image_size}. Give larger images."
        )
    width = 2 * growth_rate
    net = DenseNet(growth_rate, (6, 12, 24, 16), width, num_classes=num_classes)
    stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    # The first layer begins with a norm and an activation of its own.
    del net.features.norm0, net.features.relu0, net.features.pool0
    net.features.conv0 = stem
    return net
