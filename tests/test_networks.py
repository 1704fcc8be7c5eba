"""The benchmark networks: parameter counts and shapes of the papers, options, and refused arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tgdd_plugin.errors import InputError
from tgdd_plugin.networks.convnet import ACTIVATIONS, NORMS, POOLINGS, convnet
from tgdd_plugin.networks.resnet import RESNET_NORMS, resnet10, resnet18
from tgdd_plugin.networks.resnet_ap import BasicBlockAP, resnet_ap10

FACTORIES = [convnet, resnet10, resnet18, resnet_ap10]


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def assert_backpropagates(net: nn.Module, images: Tensor) -> None:
    net(images).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()


@pytest.mark.parametrize(
    ("factory", "count"),
    [(convnet, 320_010), (resnet18, 11_173_962), (resnet10, 4_903_242), (resnet_ap10, 4_903_242)],
)
def test_parameter_count(factory: Callable[..., nn.Module], count: int) -> None:
    assert parameter_count(factory(10)) == count


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("image_size", [28, 32, 128])
def test_logits_shape(factory: Callable[..., nn.Module], in_channels: int, image_size: int) -> None:
    net = factory(7, in_channels, image_size, width=8)
    assert net(torch.randn(2, in_channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("factory", FACTORIES)
def test_8_px(factory: Callable[..., nn.Module]) -> None:
    assert factory(7, 3, 8, width=8, norm="batch")(torch.randn(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_head_is_the_last_linear_layer(factory: Callable[..., nn.Module]) -> None:
    net = factory(7, width=8)
    head = net.classifier if factory is convnet else net.fc
    assert [module for module in net.modules() if isinstance(module, nn.Linear)][-1] is head


@pytest.mark.parametrize("factory", FACTORIES)
def test_second_derivative_reaches_the_images(factory: Callable[..., nn.Module]) -> None:
    """Gradient matching differentiates the weights' gradient with respect to the images."""
    net = factory(3, 3, 16, width=8)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    loss = nn.functional.cross_entropy(net(images), torch.tensor([0, 1]))
    gradients = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_convnet_options(norm: str, activation: str, pooling: str) -> None:
    net = convnet(3, 1, 8, depth=3, width=8, norm=norm, activation=activation, pooling=pooling)
    assert_backpropagates(net, torch.randn(2, 1, 8, 8, requires_grad=True))


@pytest.mark.parametrize(
    ("image_size", "options", "features"),
    [
        (32, {}, 128 * 4 * 4),
        (28, {}, 128 * 4 * 4),
        (8, {}, 128),
        (128, {"depth": 5}, 128 * 4 * 4),
        (30, {}, 128 * 3 * 3),
        (8, {"pooling": "none"}, 128 * 8 * 8),
    ],
)
def test_convnet_feature_size(image_size: int, options: dict[str, Any], features: int) -> None:
    net = convnet(10, image_size=image_size, **options)
    assert net.classifier.in_features == features
    assert net(torch.randn(1, 3, image_size, image_size)).shape == (1, 10)


@pytest.mark.parametrize("factory", [resnet10, resnet_ap10])
@pytest.mark.parametrize("norm", RESNET_NORMS)
def test_resnet_norms(factory: Callable[..., nn.Module], norm: str) -> None:
    net = factory(3, 3, 16, width=8, norm=norm)
    assert_backpropagates(net, torch.randn(2, 3, 16, 16, requires_grad=True))


@pytest.mark.parametrize("width", [4, 20])
def test_resnet_width(width: int) -> None:
    net = resnet18(3, width=width)
    assert net.conv1.out_channels == width and net.fc.in_features == 8 * width
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(("image_size", "last_size"), [(32, 4), (64, 8), (128, 8), (224, 7)])
def test_resnet_ap_downsamples_by_pooling_alone(image_size: int, last_size: int) -> None:
    net = resnet_ap10(10, image_size=image_size, width=4)
    assert all(module.stride == (1, 1) for module in net.modules() if isinstance(module, nn.Conv2d))
    sizes = []
    net.layer4.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2:]))
    net(torch.randn(1, 3, image_size, image_size))
    assert sizes == [(last_size, last_size)]


def test_resnet_ap_shortcut_may_pool_first() -> None:
    block = resnet_ap10(10, width=4).layer2[0]
    assert isinstance(block, BasicBlockAP) and isinstance(block.downsample, nn.Sequential)
    pool, conv, norm = block.downsample
    maps = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(block.downsample(maps), norm(pool(conv(maps))))


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (convnet, {"norm": "spectral"}, "norm came as 'spectral'; wanted one of 'none', 'batch'"),
        (convnet, {"norm": ["batch"]}, "norm came as"),
        (convnet, {"activation": "swish"}, "activation came as 'swish'; wanted one of 'relu'"),
        (convnet, {"pooling": "sum"}, "pooling came as 'sum'; wanted one of 'none', 'max', 'avg'"),
        (convnet, {"image_size": 8, "depth": 4}, "at most 3"),
        (convnet, {"image_size": 28, "depth": 6}, "at most 5"),
        (convnet, {"image_size": 1, "pooling": "none"}, "constant"),
        (convnet, {"image_size": (32, 32)}, r"image_size came as \(32, 32\); wanted a whole number"),
        (convnet, {"depth": 0}, "depth came as 0"),
        (convnet, {"width": 6, "norm": "group"}, "multiple of 4"),
        (resnet18, {"norm": "none"}, "norm came as 'none'; wanted one of 'batch'"),
        (resnet10, {"image_size": 8, "norm": "instance"}, "constant"),
        (resnet10, {"num_classes": 0}, "num_classes came as 0"),
        (resnet_ap10, {"image_size": 15}, "constant"),
        (resnet_ap10, {"image_size": 7, "norm": "batch"}, "at least 8"),
    ],
)
def test_refused(factory: Callable[..., nn.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        factory(**{"num_classes": 10, **arguments})
