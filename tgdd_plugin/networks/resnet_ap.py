"""ResNet-AP, the ResNet of dataset distillation at ImageNet's image sizes.

"AP" is average pooling, which takes the place of strided convolutions: B. Zhao, K. R. Mopuri and H. Bilen,
"Dataset Condensation with Gradient Matching", ICLR 2021. The form for large images, with its stem, is that
of J.-H. Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022 (IDC).
"""

from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.networks.convnets import check_counts, check_norm
from tgdd_plugin.networks.resnets import ResNet


class BasicBlockAP(BasicBlock):
    """torchvision's BasicBlock that down-samples by average pooling, in both of its branches.

    The main branch pools between the first activation and the second convolution, the shortcut before its
    1x1 convolution. The arguments are those of ``torchvision.models.resnet.BasicBlock``.
    """

    conv2: nn.Module

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Sequential | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if stride != 1 and downsample is not None:
            # A 1x1 convolution without bias commutes with the pooling; pooling first is the cheaper order.
            downsample = nn.Sequential(nn.AvgPool2d(stride), conv1x1(inplanes, planes), downsample[-1])
        super().__init__(inplanes, planes, 1, downsample, *args, **kwargs)
        if stride != 1:
            self.conv2 = nn.Sequential(nn.AvgPool2d(stride), self.conv2)


def resnet_ap10(
    num_classes: int, in_channels: int = 3, image_size: int = 128, *, width: int = 64, norm: str = "instance"
) -> ResNet:
    """Builds a ResNetAP-10: a stem and four one-block stages of 1, 2, 4 and 8 times ``width`` channels.

    The stem's convolution has stride 1 too, and its size follows the images', as in IDC: 3x3 up to 64 px,
    3x3 and 2x2 average pooling up to 128 px, 7x7 and 4x4 average pooling above. So the last maps are 8x8 for
    64 and 128 px, and 7x7 for 224 px.

    Args:
        num_classes: Number of logits.
        in_channels: 1 for grayscale images, 3 for colour (default).
        image_size: Side of the square images in pixels; default 128.
        width: Channels of the stem and the first stage; default 64.
        norm: ``batch``, ``layer``, ``instance`` (default) or ``group`` (4 groups).

    Returns:
        The network, from images of shape ``(N, C, H, W)`` to logits of shape ``(N, num_classes)``.

    Raises:
        InputError: An unknown norm, a count below 1, an image of less than 8 px, or a norm that cannot work
            on the width or on its smallest map (``instance`` wants at least 16 px).
    """
    check_counts(image_size=image_size, width=width)
    if image_size < 8:
        raise InputError(
            f"`image_size` must be at least 8, as three poolings follow, got {image_size}. Give larger images."
        )
    stem_kernel, stem_pool = (3, 1) if image_size <= 64 else (3, 2) if image_size <= 128 else (7, 4)
    check_norm(norm, width, image_size, last_size=image_size // stem_pool // 8)
    net = ResNet(BasicBlockAP, [1, 1, 1, 1], num_classes, in_channels, width=width, norm=norm, stem_kernel=stem_kernel)
    if stem_pool > 1:
        net.maxpool = nn.AvgPool2d(stem_pool)
    return net
