"""The benchmark networks: parameter counts and shapes of the papers, options, and refused arguments."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from tgdd_plugin import networks
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.networks.convnets import ACTIVATIONS, NORMS, POOLINGS, convnet
from tgdd_plugin.networks.densenets import densenet121
from tgdd_plugin.networks.factory import OWN, build_recorded
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.networks.heads import find_head
from tgdd_plugin.networks.noted_class import class_name
from tgdd_plugin.networks.resnet_ap import BasicBlockAP, resnet_ap10
from tgdd_plugin.networks.resnets import RESNET_NORMS, resnet10, resnet18
from tgdd_plugin.networks.settings import OWN as NAMES
from tgdd_plugin.networks.vision_transformers import vit
from tgdd_plugin.recording.description import describe_module

NARROW: dict[Callable[..., nn.Module], dict[str, Any]] = {
    convnet: {"width": 8},
    resnet10: {"width": 8},
    resnet18: {"width": 8},
    resnet_ap10: {"width": 8},
    densenet121: {"growth_rate": 2},
    vit: {"width": 12, "depth": 2},
}


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def assert_backpropagates(net: nn.Module, images: Tensor) -> None:
    net(images).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()


@pytest.mark.parametrize(
    ("factory", "count"),
    [
        (convnet, 320_010),
        (resnet18, 11_173_962),
        (resnet10, 4_903_242),
        (resnet_ap10, 4_903_242),
        (densenet121, 1_000_618),
        (vit, 2_693_578),
    ],
)
def test_parameter_count(factory: Callable[..., nn.Module], count: int) -> None:
    assert parameter_count(factory(10)) == count


@pytest.mark.parametrize("factory", NARROW)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("image_size", [28, 32, 128])
def test_logits_shape(factory: Callable[..., nn.Module], in_channels: int, image_size: int) -> None:
    net = factory(7, in_channels, image_size, **NARROW[factory])
    assert net(torch.randn(2, in_channels, image_size, image_size)).shape == (2, 7)


@pytest.mark.parametrize("factory", NARROW)
def test_8_px(factory: Callable[..., nn.Module]) -> None:
    norm = {} if factory in (densenet121, vit) else {"norm": "batch"}
    assert factory(7, 3, 8, **NARROW[factory], **norm)(torch.randn(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "head", "features"),
    [
        ("convnet", "classifier", 128),
        ("resnet10", "fc", 64),
        ("resnet18", "fc", 64),
        ("resnet_ap10", "fc", 64),
        ("densenet121", "classifier", 64),
        ("vit", "heads.head", 12),
    ],
)
def test_the_head_is_found_and_gets_the_features(name: str, head: str, features: int) -> None:
    # 12 classes: the vision transformer's other linear layers have as many outputs.
    net = OWN[name](12, **NARROW[OWN[name].__wrapped__])
    assert find_head(net, 12) == head
    images = torch.randn(2, 3, 32, 32)
    weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    got, logits = FeatureNetwork(net, head)(weights, images)
    assert got.shape == (2, features) and logits.shape == (2, 12)
    torch.testing.assert_close(net.get_submodule(head)(got), logits)


def test_a_recipe_knows_the_names_that_there_are() -> None:
    assert tuple(OWN) == NAMES and sorted(networks.__all__) == sorted(["described", *NAMES])


@pytest.mark.parametrize("name", OWN)
def test_is_built_again_from_its_record(name: str) -> None:
    net = OWN[name](5, 1, 16, **NARROW[OWN[name].__wrapped__])
    assert json.loads(json.dumps(net.tgdd_network)) == net.tgdd_network
    again = build_recorded(net.tgdd_network, (1, 16, 16), 5)
    again.load_state_dict(net.state_dict())
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(again.eval()(images), net.eval()(images))


@pytest.mark.parametrize("factory", [factory for factory in NARROW if factory is not vit])
def test_second_derivative_reaches_the_images(factory: Callable[..., nn.Module]) -> None:
    """Gradient matching differentiates the weights' gradient with respect to the images; torch's attention cannot."""
    net = factory(3, 3, 16, **NARROW[factory])
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


def test_densenet_of_the_papers_growth_rate_is_torchvisions_behind_the_stem() -> None:
    net, theirs = densenet121(10, growth_rate=32), models.densenet121(num_classes=10)
    assert parameter_count(net) == 6_956_298  # kuangliu/pytorch-cifar's DenseNet121
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items() if "norm0" not in name}
    shapes["features.conv0.weight"] = torch.Size([64, 3, 3, 3])
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes


@pytest.mark.parametrize(("image_size", "last_size"), [(32, 4), (28, 3), (64, 8)])
def test_densenet_pools_three_times(image_size: int, last_size: int) -> None:
    net = densenet121(3, image_size=image_size, growth_rate=2)
    sizes = []
    net.features.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1:]))
    images = torch.randn(2, 3, image_size, image_size, requires_grad=True)
    assert_backpropagates(net, images)
    assert sizes == [(64, last_size, last_size)]


@pytest.mark.parametrize("in_channels", [1, 3])
def test_vit_is_torchvisions(in_channels: int) -> None:
    net = vit(10, in_channels, 28, depth=2, width=12)
    theirs = models.VisionTransformer(28, 4, 2, 3, 12, 48, num_classes=10)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    shapes["conv_proj.weight"] = torch.Size([12, in_channels, 4, 4])
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes
    assert {module.p for module in net.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert net.conv_proj.weight.std().item() == pytest.approx((in_channels * 16) ** -0.5, rel=0.3)
    nn.init.normal_(net.heads.head.weight)  # zero at first, so that no gradient would pass
    assert_backpropagates(net, torch.randn(2, in_channels, 28, 28, requires_grad=True))


@pytest.mark.parametrize(
    ("image_size", "patch_size"), [(4, 1), (8, 1), (16, 2), (28, 4), (32, 4), (64, 8), (96, 12), (128, 16), (224, 32)]
)
def test_vit_chooses_its_patches(image_size: int, patch_size: int) -> None:
    assert vit(3, 3, image_size, depth=1, width=3).patch_size == patch_size


def test_vit_takes_other_patches() -> None:
    net = vit(3, 1, 8, patch_size=2, depth=1, width=12)
    assert net.seq_length == 17 and net(torch.randn(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (convnet, {"norm": "spectral"}, "`norm` must be one of 'none', 'batch', .* got 'spectral'"),
        (convnet, {"norm": ["batch"]}, r"`norm` must be one of .*, got \['batch'\]"),
        (convnet, {"activation": "swish"}, "`activation` must be one of 'relu', .* got 'swish'"),
        (convnet, {"pooling": "sum"}, "`pooling` must be one of 'none', 'max', 'avg', got 'sum'"),
        (convnet, {"image_size": 8, "depth": 4}, "at most 3"),
        (convnet, {"image_size": 28, "depth": 6}, "at most 5"),
        (convnet, {"image_size": 1, "pooling": "none"}, "constant"),
        (convnet, {"image_size": (32, 32)}, r"`image_size` must be a whole number of at least 1, got \(32, 32\)"),
        (convnet, {"depth": 0}, "`depth` must be .*, got 0"),
        (convnet, {"depth": True}, "`depth` must be .*, got True"),
        (convnet, {"width": 6, "norm": "group"}, "multiple of 4"),
        (resnet18, {"norm": "none"}, "`norm` must be one of 'batch', .* got 'none'"),
        (resnet10, {"image_size": 8, "norm": "instance"}, "constant"),
        (resnet10, {"num_classes": 0}, "`num_classes` must be .*, got 0"),
        (resnet_ap10, {"image_size": 15}, "constant"),
        (resnet_ap10, {"image_size": 7, "norm": "batch"}, "at least 8"),
        (densenet121, {"image_size": 7}, "at least 8"),
        (densenet121, {"growth_rate": 0}, "`growth_rate` must be .*, got 0"),
        (densenet121, {"in_channels": 2.0}, "`in_channels` must be .*, got 2.0"),
        (vit, {"patch_size": 5}, "`patch_size` must divide image_size 32, got 5. Choose one of 1, 2, 4, 8, 16, 32"),
        (vit, {"patch_size": 0}, "`patch_size` must be a whole number .*, got 0"),
        (vit, {"heads": 5}, "`heads` must divide the width 192, got 5"),
        (vit, {"depth": 0}, "`depth` must be .*, got 0"),
    ],
)
def test_refused(factory: Callable[..., nn.Module], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        factory(**{"num_classes": 10, **arguments})


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("convnet", "tgdd_plugin.networks.convnet:ConvNet"),
        ("resnet10", "tgdd_plugin.networks.resnet:ResNet"),
        ("resnet18", "tgdd_plugin.networks.resnet:ResNet"),
        ("resnet_ap10", "tgdd_plugin.networks.resnet:ResNet"),
        ("densenet121", "torchvision.models.densenet:DenseNet"),
        ("vit", "torchvision.models.vision_transformer:VisionTransformer"),
    ],
)
def test_manifests_note_classes_by_the_names_of_the_first_release(name: str, noted: str) -> None:
    assert class_name(OWN[name](3, 3, 16)) == noted
    assert class_name(nn.Linear(1, 1)) == "torch.nn.modules.linear:Linear"


def test_sizes_may_be_numbers_of_any_library() -> None:
    torch.manual_seed(3)
    wanted = convnet(3, 1, 8, width=4, depth=2)
    torch.manual_seed(3)
    found = convnet(np.int64(3), np.uint8(1), torch.tensor(8), width=np.int32(4), depth=np.int64(2))  # type: ignore
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in wanted.state_dict().items())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(found(images), wanted(images))
    assert describe_module(found)["arguments"] == describe_module(wanted)["arguments"]


def test_what_a_manifest_notes_of_a_convnet() -> None:
    assert OWN["convnet"](3, 1, width=4).tgdd_network == {
        "factory": "tgdd_plugin.networks:convnet",
        "arguments": {
            "num_classes": 3,
            "in_channels": 1,
            "image_size": 32,
            "depth": 3,
            "width": 4,
            "norm": "instance",
            "activation": "relu",
            "pooling": "avg",
        },
    }


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("convnet", {"width": 10**9}),
        ("convnet", {"width": 60_000}),
        ("resnet18", {"width": 10_000}),
        ("vit", {"depth": 10**9}),
        ("vit", {"depth": 1000, "width": 1200}),
    ],
)
def test_a_recorded_network_that_is_too_large_is_not_built(name: str, arguments: dict[str, int]) -> None:
    record = {"class": "m:N", "parameters": 9, "factory": f"tgdd_plugin.networks:{name}", "arguments": arguments}
    with pytest.raises(InputError, match="`network` must be given where the recorded one would have more than 200,000"):
        build_recorded(record, (3, 32, 32), 10)


def test_building_a_recorded_network_draws_what_its_factory_draws() -> None:
    record = {"class": "m:N", "parameters": 9, "factory": "tgdd_plugin.networks:convnet", "arguments": {"width": 4}}
    torch.manual_seed(3)
    wanted = OWN["convnet"](10, 3, 32, width=4).state_dict()
    torch.manual_seed(3)
    found = build_recorded(record, (3, 32, 32), 10).state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in wanted.items())
