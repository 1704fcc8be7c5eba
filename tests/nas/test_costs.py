"""What a network costs, beside counts and loops written from the formulas."""

import pytest
import torch
from torch import nn

from tests.common import tiny_network
from tgdd_plugin.nas.costs import costs_of, flops, latency, synflow
from tgdd_plugin.networks.convnets import convnet
from tgdd_plugin.networks.vision_transformers import vit

CPU = torch.device("cpu")


def test_flops_are_two_for_each_multiply_accumulate():
    network = convnet(5, 3, 16, depth=2, width=8, norm="group", pooling="max")
    # Each output of a convolution is 9 products for each input channel; pooling halves 16 to 8 to 4.
    assert flops(network, (3, 16, 16)) == 2 * (16 * 16 * 8 * 3 * 9 + 8 * 8 * 8 * 8 * 9 + 8 * 4 * 4 * 5)


def test_flops_of_attention_count():
    network = vit(10, 1, 28, depth=1, width=24, heads=3)
    patches, width = 49, 24
    tokens = patches + 1
    layers = patches * 16 * width + tokens * width * (3 * width + width + 2 * 4 * width) + width * 10
    assert flops(network, (1, 28, 28)) == 2 * (layers + 2 * tokens**2 * width)


def conv_by_hand(images, weight, bias):
    """A 3x3 convolution with a padding of 1, of nested lists."""
    side = len(images[0])
    at = lambda c, y, x: images[c][y][x] if 0 <= y < side and 0 <= x < side else 0.0  # noqa: E731
    return [
        [
            [
                bias[k] + sum(
                    weight[k][c][i][j] * at(c, y + i - 1, x + j - 1)
                    for c in range(len(images)) for i in range(3) for j in range(3)
                )
                for x in range(side)
            ]
            for y in range(side)
        ]
        for k in range(len(weight))
    ]  # fmt: skip


def flow_by_hand(weights):
    """R of two convolutions with ReLU and a linear layer, all weights by their magnitude, for an image of ones."""
    w1, b1, w2, b2, w3, b3 = (w.abs().tolist() for w in weights)
    maps = [[[1.0] * 4 for _ in range(4)]]
    for weight, bias in ((w1, b1), (w2, b2)):
        maps = conv_by_hand(maps, weight, bias)  # nothing is below 0, so ReLU changes nothing
    flat = [value for channel in maps for row in channel for value in row]
    return sum(b3) + sum(sum(w * v for w, v in zip(row, flat, strict=True)) for row in w3)


class Plain(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), norm(2), nn.ReLU(), nn.Conv2d(2, 4, 3, padding=1), norm(4), nn.ReLU()
        )
        self.head = nn.Linear(64, 3)

    def forward(self, images):
        return self.head(self.features(images).flatten(1))


@pytest.mark.parametrize(
    "norm",
    [nn.Identity, nn.BatchNorm2d, nn.InstanceNorm2d, lambda width: nn.GroupNorm(1, width)],
    ids=["none", "batch", "instance", "layer"],
)
def test_synflow_is_that_of_the_formula_whatever_the_normalization(norm):
    torch.manual_seed(0)
    network = Plain(norm)
    layers = network.features[0], network.features[3], network.head
    weights = [tensor.detach().double() for layer in layers for tensor in (layer.weight, layer.bias)]
    expected = 0.0
    for number in (0, 2, 4):  # R is linear in each weight, so that a difference quotient is its derivative
        for place in range(weights[number].numel()):
            more = [weight.clone() for weight in weights]
            value = more[number].view(-1)[place].abs()
            more[number].view(-1)[place] = value + 1.0
            expected += float(value) * (flow_by_hand(more) - flow_by_hand(weights))
    assert synflow(network, (1, 4, 4)) == pytest.approx(expected, rel=1e-9)


def test_synflow_is_in_double_precision_and_beyond_it_none():
    network = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in range(4)), nn.Flatten())
    with torch.no_grad():
        for layer in network[:4]:
            layer.weight.fill_(-1e20)
    assert synflow(network, (1, 1, 1)) == pytest.approx(4 * 1e80)
    with torch.no_grad():
        for layer in network[:4]:
            layer.weight.fill_(1e38)
    network = nn.Sequential(*(network[0] for _ in range(9)), nn.Flatten())
    assert synflow(network, (1, 1, 1)) is None


class SinglePrecision(nn.Module):
    """A network of a user's, whose forward pass works in float32 alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 16))

    def forward(self, images):
        return images.flatten(1).float() @ self.weight.T


def test_a_cost_that_cannot_be_computed_is_none_and_the_others_are_there():
    found = costs_of(SinglePrecision(), (1, 4, 4), CPU)
    assert found.synflow is None
    assert (found.parameters, found.flops) == (48, 2 * 48) and found.latency > 0


def test_the_costs_leave_the_network_as_it_was():
    network = tiny_network(norm=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = costs_of(network, (1, 8, 8), CPU)
    assert found.latency > 0 and found.synflow > 0 and latency(network, (1, 8, 8), CPU) > 0
    assert network.training and not any(weights.grad is not None for weights in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network(torch.zeros(2, 1, 8, 8)).dtype == torch.float32
