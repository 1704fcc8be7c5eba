"""ResNet for small images, the usual check that a distilled set serves networks it was not made with.

From K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, in the
form used for 32 px images: a 3x3 stem of stride 1 without max-pooling before the four ImageNet stages.
The blocks, the forward pass and the initialisation are torchvision's.
"""

from torch import nn
from torchvision.models import resnet as torchvision_resnet
from torchvision.models.resnet import BasicBlock

from tgdd_plugin.networks.convnets import NORMS, check_counts, check_norm, choose

# No "none": torchvision's convolutions have no bias of their own and count on the norm's.
RESNET_NORMS = {name: make for name, make in NORMS.items() if name != "none"}


class ResNet(torchvision_resnet.ResNet):
    """torchvision's ResNet with a stem for small images, any first width and any number of channels.

    Attributes:
        fc: The linear head, on the ``8 * width`` globally averaged features.
    """

    def __init__(
        self,
        block: type[BasicBlock],
        blocks: list[int],
        num_classes: int,
        in_channels: int,
        *,
        width: int,
        norm: str,
        stem_kernel: int = 3,
    ) -> None:
        check_counts(num_classes=num_classes, in_channels=in_channels, width=width)
        make_norm = choose("norm", norm, RESNET_NORMS)
        self._width = width  # Before super().__init__(), which calls _make_layer.
        super().__init__(block, blocks, norm_layer=make_norm)
        self.conv1 = nn.Conv2d(in_channels, width, stem_kernel, padding=stem_kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = make_norm(width)
        self.maxpool: nn.Module = nn.Identity()
        self.fc = nn.Linear(8 * width, num_classes)

    def _make_layer(
        self,
        block: type[BasicBlock],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        # torchvision fixes the stages to 64, 128, 256 and 512 channels: rescale them to the width.
        if planes == 64:
            self.inplanes = self._width
        stage: nn.Sequential = super()._make_layer(block, planes // 64 * self._width, blocks, stride, dilate)
        return stage


def _small_image_resnet(
    blocks: list[int], num_classes: int, in_channels: int, image_size: int, width: int, norm: str
) -> ResNet:
    check_counts(image_size=image_size, width=width)
    # Three strided convolutions, each of which rounds up.
    check_norm(norm, width, image_size, last_size=-(-image_size // 8))
    return ResNet(BasicBlock, blocks, num_classes, in_channels, width=width, norm=norm)


def resnet18(
    num_classes: int, in_channels: int = 3, image_size: int = 32, *, width: int = 64, norm: str = "batch"
) -> ResNet:
    """Builds a ResNet-18 (two blocks a stage) for small images of shape ``(N, C, H, W)``.

    Args:
        num_classes: Number of logits.
        in_channels: 1 for grayscale images, 3 for colour (default).
        image_size: Side of the square images in pixels; default 32. It only serves to refuse images too
            small for the norm: the features are averaged over the map, whatever its size.
        width: Channels of the stem and the first stage, doubled in each further stage; default 64.
        norm: ``batch`` (default), ``layer``, ``instance`` or ``group`` (4 groups).

    Returns:
        The network, from images of shape ``(N, C, H, W)`` to logits of shape ``(N, num_classes)``.

    Raises:
        InputError: An unknown norm, a count below 1, or a norm that cannot work on the width or on its
            smallest map (``instance`` wants more than 8 px).
    """
    return _small_image_resnet([2, 2, 2, 2], num_classes, in_channels, image_size, width, norm)


def resnet10(
    num_classes: int, in_channels: int = 3, image_size: int = 32, *, width: int = 64, norm: str = "batch"
) -> ResNet:
    """Builds a ResNet-10, which is :func:`resnet18` with one block a stage; same arguments and errors."""
    return _small_image_resnet([1, 1, 1, 1], num_classes, in_channels, image_size, width, norm)
