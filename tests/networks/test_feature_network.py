"""Networks as functions of (weights, images), and fitting recorded names to them."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vit_b_16

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.networks import convnet, described
from tgdd_plugin.networks.factory import build_network
from tgdd_plugin.networks.feature_network import FeatureNetwork, fit_names
from tgdd_plugin.networks.heads import find_head

pytestmark = pytest.mark.numerical


class Net(nn.Module):
    """Two linear layers after normalisation and dropout; the head is not the last layer by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.body = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.body(x.flatten(1))).relu()))


def test_features_are_the_heads_input_under_the_given_weights():
    torch.manual_seed(0)
    own, other = Net(), Net()
    with torch.no_grad():
        other.norm.running_mean.normal_()
        other.norm.running_var.uniform_(0.5, 2)
    images = torch.randn(5, 3, 2, 2)
    features, logits = FeatureNetwork(own, "head")(other.state_dict(), images)
    other.eval()
    torch.testing.assert_close(features, other.norm(other.body(images.flatten(1))).relu())
    torch.testing.assert_close(logits, other(images))
    assert not any(p.requires_grad for p in own.parameters())


class Tied(nn.Module):
    """Two layers of one weight, as a stage's file holds it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x.flatten(1)).relu()))


class Shared(Tied):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.two = self.one


@pytest.mark.parametrize("build", [Tied, Shared])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.once)])
def test_tied_weights(build, compiled):
    networks, images = [build() for _ in range(3)], torch.randn(5, 3, 2, 2)
    bank = [{name: tensor.clone() for name, tensor in other.state_dict().items()} for other in networks]
    frozen = FeatureNetwork(build(), "head", compiled=compiled)
    for other, stage in zip([*networks, networks[0]], [*bank, bank[0]], strict=True):
        torch.testing.assert_close(frozen(stage, images)[1], other(images))


def test_an_images_features_do_not_depend_on_the_others():
    network = FeatureNetwork(resnet18(num_classes=3), "fc")
    weights = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    together, alone = network(weights, images)[0], network(weights, images[:1])[0]
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.network.state_dict().items())


@pytest.mark.parametrize(
    ("network", "head"),
    [(Net(), "head"), (resnet18(num_classes=4), "fc"), (convnet(4, 3, 8, depth=2, width=4), "classifier")],
)
def test_the_head_is_the_last_linear_layer_as_wide_as_the_classes(network, head):
    assert find_head(network, 4) == head


def test_a_wide_last_layer_is_found_without_the_number_of_classes():
    assert find_head(vit_b_16(num_classes=7)) == "heads.head"


@pytest.mark.parametrize(
    ("num_classes", "name", "match"),
    [
        (5, None, "no linear layer with 5 outputs"),
        (None, "norm", "`head` must be the name of an nn.Linear of the network, got 'norm'"),
        (4, "body", "with 4 outputs"),
    ],
)
def test_a_network_without_such_a_head_is_refused(num_classes, name, match):
    with pytest.raises(InputError, match=match):
        find_head(Net(), num_classes, name)


def test_names_recorded_under_a_prefix_fit():
    network = Net()
    recorded = {f"wrapped.net.{name}": tensor for name, tensor in network.state_dict().items()}
    recorded["other.body.weight"] = torch.zeros(1)
    assert fit_names(recorded, network, "stage")["body.weight"] == "wrapped.net.body.weight"


@pytest.mark.parametrize("change", [{"body.weight": torch.zeros(6, 13)}, {"norm.running_var": None}])
def test_a_stage_of_another_network_is_refused(change):
    recorded = {name: tensor for name, tensor in {**Net().state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(InputError, match=f"does not fit stage 7.*{next(iter(change))}"):
        fit_names(recorded, Net(), "stage 7")


def test_a_network_that_answers_with_something_else_is_refused():
    network = FeatureNetwork(Net(), "head")
    weights = network.network.state_dict()
    network.check(weights, (3, 2, 2), 4)
    with pytest.raises(InputError, match=r"must return logits of shape \(1, 9\) for one image, got \(1, 4\)"):
        network.check(weights, (3, 2, 2), 9)
    with pytest.raises(InputError, match="does not take images of shape"):
        network.check(weights, (1, 2, 2), 4)


def test_a_described_network_can_be_built_again():
    network = convnet(5, 1, 8, depth=2, width=4)
    known = network.tgdd_network
    assert known["factory"] == "tgdd_plugin.networks:convnet"
    again = build_network("convnet", known["arguments"], (1, 8, 8), 5)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in network.state_dict().items()}


def own_factory(num_classes: int, hidden: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, hidden), nn.Linear(hidden, num_classes))


def test_any_factory_by_name():
    built = build_network(f"{__name__}:own_factory", {"hidden": 2}, (3, 2, 2), 6)
    assert built[1].out_features == 2 and built[2].out_features == 6
    assert build_network("torchvision.models:resnet18", {}, (3, 32, 32), 6).fc.out_features == 6
    assert described(own_factory)(4).tgdd_network["arguments"] == {"num_classes": 4, "hidden": 3}


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("convnet3", {}, "`network` must be one of convnet, .* got 'convnet3'"),
        ("no_such_module:f", {}, "can be imported, got 'no_such_module:f'"),
        ("torch:no_such_function", {}, "got .torch:no_such_function., which the module does not have"),
        ("convnet", {"breadth": 3}, "arguments that 'convnet' takes, got .*'breadth': 3"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(name, arguments, match):
    with pytest.raises(InputError, match=match):
        build_network(name, arguments, (3, 8, 8), 4)


def test_a_network_that_changes_its_input_in_place_leaves_the_images():
    class InPlace(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mul_(2.0).add_(0.5))

    images = torch.randn(5, 3, 2, 2, requires_grad=True)
    before = images.detach().clone()
    torch.manual_seed(0)
    network = InPlace()
    for size in (None, 2):
        changing, plain = FeatureNetwork(network, "head"), FeatureNetwork(Net(), "head")
        changing.slice_size = size
        features = changing(network.state_dict(), images)[0]
        torch.testing.assert_close(features, plain(network.state_dict(), 2 * images + 0.5)[0])
        features.sum().backward()
        assert torch.equal(images.detach(), before) and images.grad.abs().sum() > 0


def test_a_copy_of_a_network_leaves_nothing_behind_in_it():
    network = Net()
    own = FeatureNetwork(network, "head")
    copied = FeatureNetwork(copy.deepcopy(network), "head")
    for _ in range(3):
        copied(network.state_dict(), torch.randn(5, 3, 2, 2))
    assert len(own._with_features._seen) <= 1
