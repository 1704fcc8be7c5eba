"""How much of a step is computed at once: the classes in a chunk, and the images in one call of the network."""

from __future__ import annotations

import torch

from tgdd_plugin.core.usage import free_gpu_memory


def even_part(count: int, limit: int | None) -> int:
    """Returns how much of ``count`` to take at a time: at most ``limit``, or a little less to leave no remainder.

    Example:
        >>> even_part(128, 40), even_part(7, 5)
        (32, 5)
    """
    most = min(limit or count, count)
    return next((size for size in range(most, most // 2, -1) if count % size == 0), most)


CPU_ACTIVATION = 10 * 2**20
"""Bytes of the largest activation in one call on a CPU; with two threads this is faster than twice as much. Beyond
32 MiB, glibc maps and unmaps every tensor, and touching the new pages costs more than computing: ReLU on 64 MiB took 20
times as long as on 16."""

GPU_SHARE = 0.5
"""The share of a GPU's free memory that is planned for; a chunk that is too large after all is halved."""


def chunk_sizes(
    footprint: tuple[int, int], num_classes: int, synthetic: int, real: int, device: torch.device
) -> tuple[int, int | None]:
    """Chooses the classes in one forward and backward pass, and the most images in one call of the network.

    Args:
        footprint: The bytes of an image's largest activation, and of all its activations.
        num_classes: The number of classes K.
        synthetic: The number of decoded synthetic images of a class in a step.
        real: The number of real images of a class in a step.
        device: The device that the networks run on.

    Returns:
        The number of classes, from 1 to K, and the number of images, ``None`` for no limit.
    """
    largest, every = footprint
    if device.type != "cuda":
        images = max(1, CPU_ACTIVATION // largest)
        return even_part(num_classes, max(1, images // synthetic)), images
    # The activations of both networks are kept for the backward pass, which needs about as much again; those of real
    # images are not kept.
    of_a_class = 3 * synthetic * every + 2 * real * largest
    fitting = int(free_gpu_memory(device) * GPU_SHARE) // of_a_class
    return even_part(num_classes, max(1, fitting)), None
