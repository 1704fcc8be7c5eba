"""What a manifest says of a run before it begins: its network, classes and normalization, and its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tgdd_plugin.augmentation.strategy import parse_augmentation
from tgdd_plugin.core.differences import as_plain
from tgdd_plugin.core.errors import InputError, whole_number
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.pixel_range import pixel_scale
from tgdd_plugin.networks.classifiers import bare_network
from tgdd_plugin.networks.heads import find_head
from tgdd_plugin.networks.noted_class import class_name
from tgdd_plugin.trajectory.manifest import Run


def describe_module(
    network: nn.Module,
    parameters: int | None = None,
    algorithms: Sequence[str] = (),
    surgery: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """What the manifest says of a network (see :class:`tgdd_plugin.trajectory.manifest.Run`).

    Args:
        network: The bare network.
        parameters: The number of its parameters. Default: ``None``, counted; where they are sharded, the count of the
            whole ones must be given.
        algorithms: Names of what may have changed the network. Default: none.
        surgery: What did so, as :func:`tgdd_plugin.networks.surgery.note_surgery` notes it. Default: none.
    """
    notes = (getattr(module, "tgdd_network", None) for module in network.modules())
    built: dict[str, Any] = next(filter(None, notes), {})
    return {
        "class": class_name(network),
        "parameters": sum(p.numel() for p in network.parameters()) if parameters is None else parameters,
        "factory": built.get("factory"),
        "arguments": as_plain(built.get("arguments", {})),
        "algorithms": list(algorithms),
        **({"surgery": list(surgery)} if surgery else {}),
    }


def describe_run(
    name: str,
    network: nn.Module,
    num_classes: int,
    *,
    head: str | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: str | None = None,
    shape: Sequence[int] | None = None,
    interval: str = "1ep",
) -> Run:
    """The manifest of a run that is about to begin, for :meth:`TrajectoryRecorder.start`.

    Args:
        name: The run's name, and that of its folder.
        network: The network that will be trained; it may be wrapped by ``torch.compile`` or for several GPUs.
        num_classes: K, a whole number of any library.
        head: Name of the linear layer whose input is matched. Default: the ``nn.Linear`` with K outputs; of several the
            one called last, if ``shape`` is given, and else the last one in the module listing.
        classes: Class names. Default: ``None``, numbers.
        mean, std: Per-channel normalization of the inputs, for pixels in [0, 1]. Default: not known, and then to be
            given when distilling; without it no exemplars are kept.
        augmentation: The augmentation of the training images as a strategy, such as ``'color_crop_flip'`` or
            ``'none'``. Distillation gives the synthetic images the same. Default: ``None``, not known.
        shape: (C, H, W) of the images, for finding the head. Default: ``None``.
        interval: How often a stage is recorded, in words, as a note. Default: ``'1ep'``.

    Raises:
        InputError: If the network has no such head, or an argument does not fit.
    """
    if (outputs := whole_number(num_classes)) is None:
        raise InputError(f"`num_classes` must be a whole number, got {num_classes!r}. Give the number of classes.")
    if not isinstance(interval, str):
        raise InputError(f"`interval` must be text, got {interval!r}. Write it like '1ep', or leave it out.")
    check_class_names(classes, outputs, "the network")
    bare = bare_network(network)[0]
    if augmentation is not None:
        parse_augmentation(augmentation)
    normalization = Normalization.of(mean, std)
    return Run(
        name=name,
        network=describe_module(bare),
        head=find_head(bare, outputs, head, shape),
        num_classes=outputs,
        classes=None if classes is None else [str(one) for one in classes],
        mean=list(normalization.mean) if normalization else None,
        std=list(normalization.std) if normalization else None,
        interval=interval,
        augmentation=augmentation,
        versions=installed_versions(),
    )


def check_class_names(classes: Sequence[str] | None, num_classes: int, owner: str) -> None:
    """Raises an InputError if there are class names, and not one for each output of ``owner``."""
    if classes is not None and len(classes) != num_classes:
        raise InputError(
            f"`classes` must be {num_classes} names, one for each output of {owner}, got {len(classes)}. Name each "
            f"class once."
        )


def note_input(run: Run, images: torch.Tensor) -> None:
    """Notes what the first batch of finite values is like, for distillation to compare its own inputs with.

    Where the normalization is not known and the values are plain pixels, up to 1 or to 255, it is noted as well.
    """
    values = images.float()
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    if not (mean.isfinite().all() and std.isfinite().all()):
        return  # it says nothing; the next batch may
    run.input = {"shape": [float(n) for n in values.shape[1:]], "mean": mean.tolist(), "std": std.tolist()}
    if run.mean is not None and not normalization_fits(run):
        warnings.warn(
            f"the normalization is of {len(run.mean)} channels, the inputs have {values.shape[1]}: it is not noted, "
            f"and no real image is kept. Give the mean= and std= of all channels",
            stacklevel=2,
        )
        run.mean = run.std = None
    elif run.mean is None and (scale := pixel_scale(images)) is not None:
        run.mean = [0.0] * values.shape[1]
        run.std = [1 / scale] * values.shape[1]


def normalization_fits(run: Run) -> bool:
    """Whether a run's normalization is of one channel or of as many as its inputs, as far as both are known."""
    return run.mean is None or run.input is None or len(run.mean) in (1, int(run.input["shape"][0]))
