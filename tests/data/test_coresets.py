"""Choosing real images: the same as loops over the published formulas, ties and copies included."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.common import CLASSES, Pictures, tiny_network
from tests.patterned import herding_by_hand, k_center_by_hand
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.coresets import herding, k_center, most_varied
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.factory import OWN
from tgdd_plugin.networks.features import features_of, herding_subset

pytestmark = pytest.mark.numerical

SELECTIONS = [herding, k_center]


BY_HAND = {herding: herding_by_hand, k_center: k_center_by_hand}


def shuffled_labels(counts, random):
    return random.permutation(np.repeat(np.arange(len(counts)), counts))


def assert_chosen(select, features, labels, per_class):
    got = select(torch.from_numpy(features), torch.from_numpy(labels), per_class)
    assert got.dtype == torch.int64 and got.shape == ((labels.max() + 1) * per_class,) and not got.is_cuda
    assert got.tolist() == BY_HAND[select](features.astype(np.float64), labels.tolist(), per_class)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_random_features(select, dtype, seed):
    random = np.random.default_rng(seed)
    counts = random.integers(6, 30, random.integers(1, 5))
    labels = shuffled_labels(counts, random)
    # Off the origin and of unequal lengths, as the outputs of a ReLU are.
    features = np.maximum(random.normal(0.5, 1, (len(labels), random.integers(1, 40))), 0) * random.uniform(0.1, 9)
    assert_chosen(select, features.astype(dtype), labels, int(random.integers(1, 7)))


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("seed", range(20))
def test_ties_go_to_the_first(select, seed):
    """Few whole numbers, so most images have copies and most distances tie; sums over 8 or 16 images are exact."""
    random = np.random.default_rng(seed)
    labels = shuffled_labels([16, 8, 8], random)
    features = random.integers(-1, 2, (len(labels), 2)).astype(np.float32)
    assert_chosen(select, features, labels, int(random.integers(1, 9)))


@pytest.mark.parametrize("select", SELECTIONS)
def test_copies_are_chosen_in_order_once_each(select):
    features, labels = torch.randn(1, 5).expand(6, 5), torch.tensor([1, 0, 1, 1, 0, 0])
    assert select(features, labels, 3).tolist() == [1, 4, 5, 0, 2, 3]


@pytest.mark.parametrize("select", SELECTIONS)
def test_all_of_a_class(select):
    random = np.random.default_rng(0)
    labels = shuffled_labels([7, 7], random)
    features = random.normal(size=(14, 3)).astype(np.float32)
    assert_chosen(select, features, labels, 7)
    got = select(torch.from_numpy(features), torch.from_numpy(labels), 7)
    assert sorted(got[:7].tolist()) == np.flatnonzero(labels == 0).tolist()


@pytest.mark.parametrize("select", SELECTIONS)
def test_one_image_of_each_class_is_the_nearest_to_its_mean(select):
    features = torch.tensor([[0.0], [10], [4], [12], [9], [100]])
    assert select(features, torch.tensor([0, 1, 0, 1, 0, 1]), 1).tolist() == [2, 3]


@pytest.mark.parametrize("select", SELECTIONS)
def test_fewer_are_the_first_of_more(select):
    features, labels = torch.randn(60, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
    many = select(features, labels, 12).view(3, 12)
    assert torch.equal(select(features, labels, 5).view(3, 5), many[:, :5])


def test_herding_keeps_to_the_mean_and_k_center_covers():
    features, labels = torch.randn(500, 4, generator=torch.Generator().manual_seed(2)), torch.zeros(500)
    drawn = features[:10]
    herd, spread = (features[select(features, labels, 10)] for select in SELECTIONS)
    assert (herd.mean(0) - features.mean(0)).norm() < (drawn.mean(0) - features.mean(0)).norm() / 5
    radius = [torch.cdist(features, chosen).amin(1).max() for chosen in (spread, drawn, herd)]
    assert radius[0] < min(radius[1:])


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize(
    ("features", "labels", "per_class", "message"),
    [
        (
            torch.zeros(5, 2),
            [0, 1, 1, 0, 1],
            3,
            "Class 0 has 2 images, 3 were to be selected. Ask for at most 2 per",
        ),
        (torch.zeros(3, 2), [0, 2, 2], 1, "Class 1 has 0 images"),
        (
            torch.tensor([[0.0], [1], [math.nan]]),
            [0, 1, 1],
            1,
            "`features` must be finite, got other values in class 1",
        ),
        (torch.tensor([[math.inf], [1], [2]]), [0, 1, 1], 1, "`features` must be finite, got other values in class 0"),
        (torch.zeros(2, 2), [0, 1], 0, "`per_class` must be at least 1, got 0"),
        (torch.zeros(2, 2), [0, -1], 1, "`labels` must be class ids 0, 1, 2, ..., got labels from -1"),
        (torch.zeros(2, 2), [0, 0, 0], 1, r"shape \(2, 2\) with labels of shape \(3,\)"),
        (
            torch.zeros(2, 2, 2),
            [0, 0],
            1,
            r"`features` must be floating point \(N, D\) .* got torch.float32 of shape \(2, 2, 2\)",
        ),
        (torch.zeros(2, 2, dtype=torch.uint8), [0, 0], 1, r"`features` must be floating point .* got torch.uint8"),
        (torch.zeros(0, 2), [], 1, r"shape \(0, 2\)"),
    ],
)
def test_refused(select, features, labels, per_class, message):
    with pytest.raises(InputError, match=message) as caught:
        select(features, torch.tensor(labels), per_class)
    assert "\n" not in str(caught.value)


def make_pool(count=23, shape=(1, 8, 8)):
    return ImagePool.from_dataset(Pictures(count, shape))


def test_features_are_those_of_each_image_and_the_network_stays_as_it_was():
    network = tiny_network(norm=True, dropout=0.5).train()
    network.features[1].running_mean.uniform_()
    before = copy.deepcopy(network.state_dict())
    pool, normalization = make_pool(), Normalization([0.3], [0.2])
    features = features_of(network, pool, normalization, batch_size=5)
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert not network.fc._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    with torch.no_grad():
        wanted = network.eval().features((pool.images / 255 - 0.3) / 0.2)
    torch.testing.assert_close(features, wanted)
    assert features.dtype == torch.float32 and features.shape == (23, 16) and not features.requires_grad
    torch.testing.assert_close(features_of(network, pool, normalization), features)
    torch.testing.assert_close(features_of(network, pool, normalization, head="fc"), features)


@pytest.mark.parametrize("name", OWN)
def test_features_of_the_packages_networks_can_be_chosen_by(name):
    pool = make_pool(9, (3, 16, 16))
    narrow = {"densenet121": {"growth_rate": 2}, "vit": {"width": 12, "depth": 1}}.get(name, {"width": 8})
    features = features_of(OWN[name](CLASSES, 3, 16, **narrow), pool, Normalization(*pool.statistics()), batch_size=4)
    for select in SELECTIONS:
        chosen = select(features, pool.labels, 2)
        assert pool.subset(chosen).labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (tiny_network(), {"mean": [0.1, 0.2]}, r"must be equally many .* got mean \[0.1, 0.2\] and std \[0.2\]"),
        (
            tiny_network(),
            {"mean": [0.1] * 3, "std": [0.1] * 3},
            r"one value for each channel of the images, which have 1, got mean \[0.1, 0.1, 0.1\]",
        ),
        (tiny_network(num_classes=5), {}, "no linear layer with 3 outputs"),
        (tiny_network(channels=3), {}, r"does not take images of shape \(1, 8, 8\)"),
        (tiny_network(), {"head": "features"}, "must be the name of an nn.Linear of the network, got 'features'"),
        (nn.Flatten(), {}, "has no linear layer with 3 outputs"),
    ],
)
def test_what_gives_no_features_is_refused(network, arguments, message):
    with pytest.raises(InputError, match=message):
        normalization = Normalization(arguments.pop("mean", [0.3]), arguments.pop("std", [0.2]))
        features_of(network, make_pool(), normalization, **arguments)


@pytest.mark.parametrize("seed", range(5))
def test_what_varies_most_is_chosen_by_its_standard_deviation(seed):
    random = np.random.default_rng(seed)
    labels = shuffled_labels(random.integers(4, 20, 3), random)
    confidences = random.uniform(size=(len(labels), int(random.integers(2, 9)))).astype(np.float32)
    confidences[1] = confidences[0]  # a copy: the first goes first
    expected = []
    for label in range(3):
        own = [place for place in range(len(labels)) if labels[place] == label]
        spread = {place: np.std(confidences[place].astype(np.float64)) for place in own}
        expected += sorted(own, key=lambda place: (-spread[place], place))[:4]
    assert most_varied(torch.from_numpy(confidences), torch.from_numpy(labels), 4).tolist() == expected


def test_one_stage_has_nothing_that_varies():
    with pytest.raises(InputError, match="`confidences` must be of at least two stages, got 1. Record more"):
        most_varied(torch.rand(6, 1), torch.arange(6) % 2, 1)


def test_a_class_without_images_has_none_and_a_small_one_all_in_herdings_order():
    network, labels = tiny_network(), torch.tensor([1] * 6 + [2] * 3)
    pool = ImagePool((Pictures(9).images * 255).to(torch.uint8), labels, ["none", "some", "few"])
    normalization = Normalization([0.5], [0.25])
    features = partial(features_of, network, normalization=normalization)
    chosen = herding_subset(pool, [0, 1, 2], 4, torch.Generator().manual_seed(0), features)
    assert chosen.counts.tolist() == [0, 4, 3]
    fewer = herding_subset(pool, [2], 1, torch.Generator().manual_seed(3), features)
    assert torch.equal(chosen.images[chosen.labels == 2][:1], fewer.images)


def test_more_images_than_herding_usually_looks_at_are_chosen_where_they_are_wanted(monkeypatch):
    monkeypatch.setattr("tgdd_plugin.networks.features.CHOSEN_FROM", 3)
    pool = ImagePool((Pictures(18).images * 255).to(torch.uint8), torch.arange(18) % 2)
    features = partial(features_of, tiny_network(num_classes=2), normalization=Normalization([0.5], [0.25]))
    for count, chosen in ((2, 2), (5, 5), (9, 9), (20, 9)):
        found = herding_subset(pool, [0, 1], count, torch.Generator().manual_seed(0), features)
        assert found.counts.tolist() == [chosen] * 2 and len(found.images.flatten(1).unique(dim=0)) == 2 * chosen
