"""The features of images under a network, and the images that herding selects by them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tgdd_plugin.core.weights import only_tensors
from tgdd_plugin.data.coresets import herding
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.chunk_size import chunk_sizes
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.networks.heads import find_head

CHOSEN_FROM = 1000
"""The images of a class that :func:`herding_subset` looks at."""


@torch.no_grad()
def features_of(
    network: nn.Module,
    pool: ImagePool,
    normalization: Normalization,
    head: str | None = None,
    batch_size: int = 512,
) -> torch.Tensor:
    """Computes φ(x) of every image of a pool, in evaluation mode. The network is copied and stays as it is.

    Args:
        network: From normalized images ``(N, C, H, W)`` to logits ``(N, K)``; it is run on the device of its weights.
        pool: The images.
        normalization: What the images are normalized with.
        head: The name of the linear layer whose input is φ(x). Default: ``None``, found by
            :func:`tgdd_plugin.networks.heads.find_head`.
        batch_size: The number of images that are moved to the device at a time. Default: ``512``.

    Returns:
        Features ``(N, D)``, float32 on the CPU, in the order of the pool.

    Raises:
        InputError: If the network has no such head or does not take these images, or if the normalization does not fit
            their channels.
    """
    normalization = normalization.of_channels(pool.shape[0])
    frozen = FeatureNetwork(copy.deepcopy(network), find_head(network, pool.num_classes, head, pool.shape))
    weights = only_tensors(network.state_dict())
    frozen.check(weights, pool.shape, pool.num_classes)
    device = next(iter(weights.values())).device
    # On a CPU in parts that fit its caches.
    frozen.slice_size = chunk_sizes(frozen.footprint(weights, pool.shape), 1, 1, 0, device)[1]
    return features_by(frozen, weights, pool, normalization, batch_size)


@torch.no_grad()
def features_by(
    frozen: FeatureNetwork,
    weights: Mapping[str, torch.Tensor],
    pool: ImagePool,
    normalization: Normalization,
    batch_size: int = 512,
) -> torch.Tensor:
    """Computes what :func:`features_of` does by a network that is frozen already, under ``weights`` on their device.

    A compiled network gets batches of ``batch_size`` images alone, the last one filled up with images that it has
    already, since it is compiled anew for every other number.
    """
    device = next(iter(weights.values())).device
    features = torch.empty(0)
    for index in torch.arange(len(pool)).split(batch_size):
        filled = index.repeat(-(-batch_size // len(index)))[:batch_size] if frozen.compiled else index
        part = frozen(weights, normalization(pool.take(filled).to(device)))[0][: len(index)]
        if not len(features):  # all at once, as joining the parts would need room for them twice
            features = torch.empty(len(pool), part.shape[1], dtype=torch.float32)
        features[index] = part.float().cpu()
    return features


def herding_subset(
    pool: ImagePool,
    classes: Sequence[int],
    per_class: int,
    generator: torch.Generator,
    features: Callable[[ImagePool], torch.Tensor],
) -> ImagePool:
    """Selects images of some classes by :func:`herding` on features of length 1, and returns them as a pool.

    Args:
        pool: The images to select from; of each class, :data:`CHOSEN_FROM` images drawn at random are used, or as many
            as are to be selected, if it has so many.
        classes: The ids of the classes in the pool.
        per_class: The number of images of each class, in herding's order. Where a class has fewer, it has all.
        generator: The source of randomness, on the CPU.
        features: Computes the features ``(N, D)`` of a pool, as :func:`features_of` does.
    """
    chosen = []
    for label in classes:
        have = min(int(pool.counts[label]), max(CHOSEN_FROM, per_class))
        index = pool.draw(torch.tensor([label]), have, generator)[0]
        if have:
            own = F.normalize(features(pool.subset(index)))
            index = index[herding(own, torch.zeros(have, dtype=torch.int64), min(have, per_class))]
        chosen.append(index)
    return pool.subset(torch.cat(chosen))
