"""Reading distilled sets that other code wrote, so that theirs and ours can be scored alike.

What the published code writes and reads:

- DC, DSA, DM (VICO-UoE/DatasetCondensation): ``{'data': [[images, labels], ...]}``, one pair for each experiment, of
  which IDC and dc_benchmark take the last. Images are normalized.
- MTT, DATM: ``images_best.pt`` and ``labels_best.pt``. Images are normalized, or with ``--zca`` (their CIFAR settings)
  whitened; DATM's labels are logits.
- IDC, DANCE, TGDD, NCFM: ``data.pt``, ``[images, labels]`` in [0, 1], of multi-formation the stored images.

Every file is read with ``torch.load(weights_only=True)``: none can run code.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.existing import check_replaceable, existing_card
from tgdd_plugin.beton.factors import check_factor
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.beton.multi_formation import decode
from tgdd_plugin.beton.pt_reader import read_labels, read_pair
from tgdd_plugin.core.atomic_files import check_writable
from tgdd_plugin.core.class_names import number_names
from tgdd_plugin.core.differences import as_plain, first_difference
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.data.normalization import Normalization

TOLERANCE = 0.1
"""How much clamping may change a value in [0, 1], on average over all of them, before it is taken for a mistake."""


LEEWAY = 0.25
"""Images are normalized if more than this share of their values leave [0, 1] by more than this. Of normalized ones
about half do, of pixels that were never clamped few."""


AS_PIXELS = "give normalised=False if they are pixels"
AS_NORMALIZED = "give normalised=True if they are normalized"
"""How to have images read the other way, as an argument of :func:`import_tensors`."""


_PIXEL_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def import_tensors(
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    factor: int = 1,
    normalised: bool | None = None,
    experiment: int = -1,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> Path:
    """Writes a distilled set of other code as a ``.beton`` and its card, sorted by class.

    A ``.beton`` holds pixels, so what lies outside [0, 1] is clamped: the images of DC, DM and MTT do. How much that
    changes is noted in the card's ``method``, and a warning says it, with how the images were read where ``normalised``
    was not given.

    ❗ ZCA-whitened images (MTT and DATM with ``--zca``) are not pixels, and no mean and std turns them into pixels;
    their values do not show it. Give the ``images_zca_<step>.pt`` that such a run saves beside them, which are pixels
    again.

    Args:
        source: A ``.pt`` with images and labels, or two of them: (images, labels). Images are float ``(N, C, H, W)``,
            or uint8. Labels are class ids ``(N,)``; or ``(N, K)``, one-hot, probabilities or logits. Both of the latter
            are kept as soft labels, as probabilities, beside the likeliest class.
        output: The ``.beton`` to write.
        classes: Names of the K classes. Default: their numbers.
        mean, std: Per-channel normalization for pixels in [0, 1], for the card: what networks are to be trained with.
            Normalized images must have been normalized by the same. Both are needed.
        factor: f of multi-formation, for images that are not decoded yet, in a uniform grid (IDC's ``single``).
            Default: ``1``.
        normalised: Whether the images are normalized. Default: ``None``, as the values look, see :data:`LEEWAY`.
        experiment: Which of several sets in one file. Default: ``-1``, the last.
        tolerance: The largest change by clamping, on average. Default: :data:`TOLERANCE`.
        overwrite: Whether an ``output`` that is there already and is not the same set is replaced. Default: ``False``.

    Raises:
        InputError: If a file is not such a ``.pt``, images and labels do not fit each other or ``classes``, a class has
            more images than another, clamping would change too much, or ``output`` is there already and another set.
    """
    earlier = existing_card(Path(output), overwrite=overwrite)
    paths = [Path(source)] if isinstance(source, str | os.PathLike) else [Path(path) for path in source]
    named = " and ".join(f"'{path}'" for path in paths)
    images, found, method = read_pair(paths, experiment, named)
    _check_images(images, named)
    labels = read_labels(found, len(images), None if classes is None else len(classes), named)
    images_per_class = _count_per_class(labels.ids, labels.num_classes, named)
    normalization = Normalization.of(mean, std)
    if normalization is None:
        raise InputError(
            f"`mean` and `std` must be given for {named}, got neither. Give those of the code that made it, per "
            f"channel and for pixels in [0, 1]."
        )
    normalization.check_channels(images.shape[1])
    pixels, was_normalized = _to_pixels(images, normalization, normalised, named)
    order = labels.ids.argsort(stable=True)
    check_factor(factor, *pixels.shape[-2:])
    decoded, clamping = _decode_to_uint8(pixels[order].unflatten(0, (labels.num_classes, -1)), factor)
    _check_clamping(clamping, tolerance, was_normalized, named, guessed=normalised is None)
    card = Card(
        classes=number_names(labels.num_classes) if classes is None else [str(name) for name in classes],
        images=0,
        images_per_class=images_per_class,
        shape=[],
        mean=list(normalization.mean),
        std=list(normalization.std),
        factor=factor,
        method=method | {"normalised": was_normalized, "clamped": clamping.words or "nothing", **labels.note},
        versions=installed_versions("ffcv", "numpy"),
    )
    order = order.repeat_interleave(factor**2)
    soft = None if labels.soft is None else labels.soft[order]
    if earlier is not None:
        with tempfile.TemporaryDirectory() as folder:
            write_beton(Path(folder) / "again.beton", decoded, labels.ids[order], card, soft)
        difference = first_difference(_set_of(earlier), _set_of(card))
        check_replaceable(Path(output), difference, overwrite=overwrite)
        if difference is None:
            return Path(output)
    return write_beton(check_writable(Path(output)), decoded, labels.ids[order], card, soft)


def _set_of(card: Card) -> dict[str, Any]:
    """What a card says of its file, whoever wrote it and whatever it has reached since."""
    plain: dict[str, Any] = as_plain(asdict(card))
    return {key: value for key, value in plain.items() if key not in ("versions", "accuracy")}


def _check_images(images: torch.Tensor, named: str) -> None:
    if images.dtype not in _PIXEL_TYPES or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise InputError(
            f"The images of {named} must be float or uint8 (N, C, H, W), C 1 or 3, got {images.dtype} "
            f"{tuple(images.shape)}. Permute or convert them, and save them again."
        )


def _count_per_class(labels: torch.Tensor, num_classes: int, named: str) -> int:
    """Returns the number of images of each class, which must be the same for all."""
    counts = torch.bincount(labels, minlength=num_classes)
    if counts.min() != counts.max():
        few, many = int(counts.argmin()), int(counts.argmax())
        raise InputError(
            f"The classes of {named} must have equally many images, the card's images_per_class, got {counts[few]} of "
            f"class {few} and {counts[many]} of class {many}. Leave some out, or correct labels or class names."
        )
    return int(counts[0])


def _to_pixels(
    images: torch.Tensor, normalization: Normalization, normalised: bool | None, named: str
) -> tuple[torch.Tensor, bool]:
    """Returns float32 pixels, 0 for black and 1 for white, not clamped, and whether the images were normalized."""
    if images.dtype == torch.uint8:
        if normalised:
            raise InputError(
                f"`normalised` must be left out for uint8 images, which are never normalized, got true for {named}. "
                f"Leave it out."
            )
        return images.float() / 255, False
    images = images.float()
    if not images.isfinite().all():
        count = int((~images.isfinite()).sum())
        raise InputError(
            f"The images of {named} must be finite, got {count} values that are not. Fix these images or leave them "
            f"out."
        )
    if normalised is None:
        normalised = bool((torch.maximum(-images, images - 1) > LEEWAY).float().mean() > LEEWAY)
        # Bright images may be normalized to values in [0, 1]; but only pixels are bytes that lie close together.
        some = images[:256]
        normalised |= _are_bytes(normalization.denormalize(some)) and not _are_bytes(some)
    return (normalization.denormalize(images) if normalised else images), normalised


def _are_bytes(images: torch.Tensor) -> bool:
    """Whether all values are multiples of 1/255 in [0, 1], up to rounding, and not of a larger step from the least."""
    levels = np.unique((255 * images).numpy())
    nearest = np.unique(levels.round().clip(0, 255).astype(int))
    near = np.abs(levels - levels.round().clip(0, 255)).max() < 0.01
    return bool(near and np.gcd.reduce(np.diff(nearest)) <= 1)


@dataclass(frozen=True)
class _Clamping:
    """What clamping to [0, 1] changes.

    Args:
        words: Which values it changes and by how much, in words; empty if none.
        change: The mean change over all values.
    """

    words: str
    change: float


def _check_clamping(clamping: _Clamping, tolerance: float, was_normalized: bool, named: str, *, guessed: bool) -> None:
    """Warns of clamped values; raises an InputError if clamping changes too much for the images to be pixels."""
    if clamping.change > tolerance:
        undone = "de-normalizing" if was_normalized else "reading them as pixels, not normalized"
        raise InputError(
            f"The images of {named} must be pixels, got {clamping.words} outside [0, 1] after {undone} (clamping would "
            f"change a value by {clamping.change:.2f} on average). Give the mean and std that they were normalized by, "
            f"say whether they are (normalised), or raise tolerance. ZCA-whitened images cannot be used: take "
            f"images_zca_*.pt."
        )
    if clamping.words:
        text = f"{clamping.words} of {named} lay outside [0, 1] and were clamped"
        if guessed:  # bright normalized images may look like pixels that overshoot
            taken, other = ("normalized images", AS_PIXELS) if was_normalized else ("pixels", AS_NORMALIZED)
            text += f"; by their values, they were taken for {taken}: {other}"
        warnings.warn(text, stacklevel=3)


def _decode_to_uint8(stored: torch.Tensor, factor: int) -> tuple[torch.Tensor, _Clamping]:
    """Decodes stored images ``(K, n, C, H, W)`` to uint8 ``(K·n·f², C, H, W)``, clamped to [0, 1]."""
    images, cut, total, most = [], 0, 0.0, 0.0
    for own in stored.split(1):  # one class at a time, for the memory
        values = decode(own, factor)[0]
        excess = torch.maximum(-values, values - 1)
        excess = excess[excess > 0.5 / 255]  # less is lost in rounding anyway
        if len(excess):
            cut, total, most = cut + len(excess), total + float(excess.double().sum()), max(most, float(excess.max()))
        images.append(values.clamp(0, 1).mul(255).round().to(torch.uint8))
    decoded = torch.cat(images)
    count = decoded.numel()
    if not cut:
        return decoded, _Clamping("", 0.0)
    words = f"{100 * cut / count:.2g} % of the values, by {total / cut:.2g} on average and {most:.2g} at most"
    return decoded, _Clamping(words, total / count)
