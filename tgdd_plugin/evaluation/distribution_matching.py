"""Plain distribution matching (DM; Zhao and Bilen, WACV 2023), as a baseline: fresh networks, and nothing else.

It is :func:`tgdd_plugin.distill` with networks that were never trained: the mean features of the classes are matched,
and nothing keeps the classes apart.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.utils import dist
from torch import nn

from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.weights import only_tensors
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.distiller import distill
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.networks.heads import find_head
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.writing import add_stage, write_manifest_and_prune

NETWORKS, NETWORK_BYTES = 100, 2**28
"""The most fresh networks that steps draw from, and the most memory they take. DM draws a new network at each step."""


def matching_settings(settings: DistillSettings) -> DistillSettings:
    """Returns the settings of plain distribution matching, which are otherwise those of a distillation by TGDD.

    As DM does, it works without the constraint (``alpha`` 0) and multi-formation (``factor`` 1), and starts from real
    images.
    """
    return replace(settings, source="sampled", alpha=0.0, factor=1, start="real", stages="all", packed=False)


def match_distributions(
    real: ImagePool,
    output: str | Path,
    settings: DistillSettings,
    build: Callable[[], nn.Module],
    *,
    normalization: Normalization,
    **options: Any,
) -> Path:
    """Distills real images into a ``.beton`` by plain distribution matching, unless the file is there already.

    Args:
        real: The real training images.
        output: The ``.beton`` to write. The networks lie in a hidden folder beside it until then.
        settings: The settings of :func:`tgdd_plugin.distill`, as far as :func:`matching_settings` leaves them.
        build: Builds a freshly initialized network.
        normalization: What the images are normalized with.
        options: More arguments of :func:`tgdd_plugin.distill`.

    Returns:
        The path of the ``.beton``.
    """
    output = Path(output)
    settings = matching_settings(settings)
    folder = output.with_name(f".{output.stem}-networks")
    if dist.get_global_rank() == 0:
        trajectory = fresh_networks(folder, build, real.classes, normalization, settings.seed, real.shape)
    dist.barrier()
    if dist.get_global_rank() != 0:
        trajectory = Trajectory.open(folder)
    mean, std = normalization.mean, normalization.std
    # What lies there of another job is a part of a comparison that was deleted.
    options = {"loggers": {"csv": False}, **options}  # a log of losses without a constraint would only confuse
    distill(trajectory, real, output, settings, network=build, mean=mean, std=std, overwrite=True, **options)
    dist.barrier()
    if dist.get_global_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return output


def fresh_networks(
    folder: Path,
    build: Callable[[], nn.Module],
    classes: Sequence[str],
    normalization: Normalization,
    seed: int = 0,
    shape: Sequence[int] | None = None,
) -> Trajectory:
    """Writes freshly initialized networks as the stages of a run that was never trained.

    Args:
        folder: The trajectory folder. What an interrupted call left there is written anew, to the same bytes.
        build: Builds a freshly initialized network.
        classes: The names of the K classes.
        normalization: The normalization to note in the manifest.
        seed: The seed of the weights. Default: ``0``.
        shape: (C, H, W) of the images, for networks with several layers that could be the head. Default: ``None``.

    Returns:
        The opened trajectory.
    """
    with forked_streams(seed):
        network = build()
        size = sum(tensor.numel() * tensor.element_size() for tensor in only_tensors(network.state_dict()).values())
        count = sum(parameter.numel() for parameter in network.parameters())
        run = Run(
            name="fresh",
            network={"class": type(network).__qualname__, "parameters": count},
            head=find_head(network, len(classes), shape=shape),
            num_classes=len(classes),
            classes=list(classes),
            mean=list(normalization.mean),
            std=list(normalization.std),
            complete=True,
        )
        write_manifest_and_prune(folder / run.name, run)
        for number in range(max(2, min(NETWORKS, NETWORK_BYTES // size))):
            when: dict[str, Any] = {"epoch": number, "batch": number, "sample": 0, "metrics": {}}
            add_stage(folder / run.name, run, network.state_dict(), None, **when)
            network = build()
    return Trajectory.open(folder)
