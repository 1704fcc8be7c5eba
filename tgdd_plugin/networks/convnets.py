"""ConvNet, the small network that most dataset-distillation results are measured on.

From B. Zhao, K. R. Mopuri and H. Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, and
B. Zhao and H. Bilen, "Dataset Condensation with Distribution Matching", WACV 2023. The default,
"ConvNet-3" of width 128, has 320,010 parameters for ten classes of 32 px colour images.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from tgdd_plugin.core.errors import InputError, check_whole_number

Option = TypeVar("Option")

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "batch": nn.BatchNorm2d,
    "layer": lambda width: nn.GroupNorm(1, width),
    # The papers' "instance norm": one group a channel, and no running statistics.
    "instance": lambda width: nn.GroupNorm(width, width, affine=True),
    "group": lambda width: nn.GroupNorm(4, width),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "max": lambda: nn.MaxPool2d(2, stride=2),
    "avg": lambda: nn.AvgPool2d(2, stride=2),
}


def choose(name: str, came: str, options: Mapping[str, Option]) -> Option:
    """Looks up a named option; raises InputError, with the names there are, for any other."""
    if came not in tuple(options):  # A tuple, so that an unhashable value gets the message too.
        raise InputError(f"`{name}` must be one of {', '.join(map(repr, options))}, got {came!r}. Choose one of them.")
    return options[came]


def check_counts(**counts: int) -> None:
    """Raises InputError unless every argument is a whole number of at least 1."""
    for name, came in counts.items():
        check_whole_number(name, came, 1)


def check_norm(norm: str, width: int, image_size: int, last_size: int) -> None:
    """Raises InputError where a norm cannot work on ``width`` channels or on its last, smallest map."""
    if norm == "group" and width % 4:
        raise InputError(
            f"`width` must be a multiple of 4, the groups of norm 'group', got {width}. Change the width, or the norm."
        )
    if norm == "instance" and last_size == 1:
        raise InputError(
            f"`image_size` must leave norm 'instance' a map larger than 1x1, where its output is constant (its bias), "
            f"got {image_size}. Give larger images, or another norm."
        )


class ConvNet(nn.Module):
    """``depth`` blocks of [3x3 convolution, norm, activation, 2x2 pooling], then one linear layer.

    The arguments are those of :func:`convnet`, which has the defaults.

    Attributes:
        features: The blocks: ``(N, C, H, W)`` to ``(N, width, h, w)``, 4x4 maps by default.
        classifier: The linear head, on the flattened features.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        *,
        depth: int,
        width: int,
        norm: str,
        activation: str,
        pooling: str,
    ) -> None:
        super().__init__()
        check_counts(num_classes=num_classes, in_channels=in_channels, image_size=image_size, depth=depth, width=width)
        make_norm = choose("norm", norm, NORMS)
        make_activation = choose("activation", activation, ACTIVATIONS)
        make_pooling = choose("pooling", pooling, POOLINGS)

        # As published: 28 px (MNIST, FashionMNIST) become 32, so that three poolings leave 4x4.
        padding = 3 if image_size == 28 else 1
        size = image_size + 2 * (padding - 1)
        halvings = 0 if pooling == "none" else depth
        if size >> halvings == 0:
            raise InputError(
                f"`depth` must be at most {size.bit_length() - 1} with image_size {image_size}, as each block halves "
                f"the image, got {depth}. Lower it, or set pooling to 'none'."
            )
        # The norm comes before the pooling, so the last one sees maps of one halving less.
        check_norm(norm, width, image_size, last_size=size >> max(halvings - 1, 0))

        layers: list[nn.Module] = []
        channels = in_channels
        for _ in range(depth):
            convolution = nn.Conv2d(channels, width, 3, padding=padding)
            layers += [convolution, make_norm(width), make_activation(), make_pooling()]
            channels, padding = width, 1
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (size >> halvings) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images of shape ``(N, C, H, W)`` to logits of shape ``(N, num_classes)``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def convnet(
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    *,
    depth: int = 3,
    width: int = 128,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "avg",
) -> ConvNet:
    """Builds a freshly initialised ConvNet for images of shape ``(N, in_channels, image_size, image_size)``.

    Args:
        num_classes: Number of logits.
        in_channels: 1 for grayscale images, 3 for colour (default).
        image_size: Side of the square images in pixels; default 32. 28 px are padded to 32.
        depth: Number of blocks, each halving the maps; default 3. The literature takes 4 for 64 px,
            5 for 128 px and 6 for 256 px.
        width: Number of filters of every convolution; default 128.
        norm: ``none``, ``batch``, ``layer``, ``instance`` (default) or ``group`` (4 groups).
        activation: ``relu`` (default), ``leakyrelu``, ``sigmoid``, ``gelu`` or ``silu``.
        pooling: ``none``, ``max`` or ``avg`` (default).

    Returns:
        The network, whose features are flattened to ``(N, classifier.in_features)`` for the head.

    Raises:
        InputError: An unknown option, a count below 1, an image too small for the depth, or a norm that
            cannot work on the width or on its smallest map.
    """
    return ConvNet(
        num_classes,
        in_channels,
        image_size,
        depth=depth,
        width=width,
        norm=norm,
        activation=activation,
        pooling=pooling,
    )
