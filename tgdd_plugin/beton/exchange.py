"""Distilled sets to and from the files of other code, so that theirs and ours can be scored alike.

What the published code writes and reads:

- DC, DSA, DM (VICO-UoE/DatasetCondensation): ``{'data': [[images, labels], ...]}``, one pair for each experiment, of
  which IDC and dc_benchmark take the last. Images are normalised.
- MTT, DATM: ``images_best.pt`` and ``labels_best.pt``. Images are normalised, or with ``--zca`` (their CIFAR settings)
  whitened; DATM's labels are logits.
- IDC, DANCE, TGDD, NCFM: ``data.pt``, ``[images, labels]`` in [0, 1], of multi-formation the stored images.
- ``ddranking`` reads no such file: it is handed normalised tensors, or a folder for torchvision's ``ImageFolder``.

Every file is read with ``torch.load(weights_only=True)``: none can run code.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import read_beton, restored_threads, write_beton
from tgdd_plugin.beton.multi_formation import check_factor, decode
from tgdd_plugin.beton.pt_reader import read_labels, read_pair
from tgdd_plugin.core.atomic_files import check_writable, whole_folder
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.versions import versions
from tgdd_plugin.data.normalization import Normalization

TOLERANCE = 0.1
"""How much clamping may change a value in [0, 1], on average over all of them, before it is taken for a mistake."""


LEEWAY = 0.25
"""Images are normalised if more than this share of their values leave [0, 1] by more than this. Of normalised ones
about half do, of pixels that were never clamped few."""


def export_tensors(
    beton: str | Path,
    folder: str | Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Writes a distilled set as the tensors that other code reads: decoded, float32, in class order.

    - ``data.pt``: ``[images, labels]``, images in [0, 1]. For IDC, DANCE, TGDD and NCFM (with factor 1 there: nothing
      is left to decode), and for :func:`import_tensors`.
    - ``images.pt``, ``labels.pt``: images normalised, labels int64. For MTT, DATM and dc_benchmark, and for
      ``ddranking``: ``compute_metrics(image_tensor=torch.load('images.pt'), hard_labels=torch.load('labels.pt'))``.
      Without ``hard_labels`` it takes the first ``ipc`` images for class 0, and so on, which is wrong with a factor.
    - ``soft_labels.pt``, if the set has any: logits, as DATM and ``ddranking`` apply softmax to them.
    - ``card.yaml``: class names and the normalisation of ``images.pt``, beside all else that the card says.

    Args:
        beton: The ``.beton``, its card beside it.
        folder: New, or empty.
        mean, std: What the reading code normalises its test images by, where that is not what the card says
            (``ddranking`` has constants for each data set). Default: the card's.

    Raises:
        InputError: If the file or its card cannot be used, the normalisation does not fit, or ``folder`` has content.
    """
    card, images, labels, soft = _read(Path(beton))
    normalization = Normalization.of(mean, std) or card.normalization
    normalization.check_channels(images.shape[1])
    card.mean, card.std = list(normalization.mean), list(normalization.std)
    pixels = images.float() / 255
    contents = {"data.pt": [pixels, labels], "images.pt": normalization.normalize(pixels), "labels.pt": labels}
    if soft is not None:
        contents["soft_labels.pt"] = soft.clamp(min=1e-12).log()
    with whole_folder(Path(folder)) as temporary:
        for name, content in contents.items():
            torch.save(content, temporary / name)
        (temporary / "card.yaml").write_text(card.text())
    return Path(folder)


def export_folder(beton: str | Path, folder: str | Path) -> Path:
    """Writes a distilled set as an image folder: ``00000/00000.png``, ``00000/00001.png``, ..., ``00001/00000.png``.

    ``ImageFolder`` numbers the classes by the order of their folders' names, so these are the class ids, with zeros in
    front; so does ``ddranking`` name its own. Class names are in ``card.yaml``, beside the class folders. PNG is
    lossless. Grayscale images stay grayscale; ``ImageFolder``'s own loader makes RGB of them. Only hard labels survive.

    For ``ddranking``: ``compute_metrics(image_path=folder)``, with ``custom_train_trans`` set to torchvision's
    ``ToTensor`` and ``Normalize``: without it, it normalises no image of a folder.

    Args:
        beton: The ``.beton``, its card beside it.
        folder: New, or empty.

    Raises:
        InputError: If the file or its card cannot be used, a class has no images, or ``folder`` has content.
    """
    card, images, labels, _ = _read(Path(beton))
    counts = torch.bincount(labels, minlength=len(card.classes))
    if not counts.all():
        empty = int(counts.argmin())
        raise InputError(
            f"class {empty} ('{card.classes[empty]}') of '{beton}' has no images, and an image folder would hand its "
            f"number on to the next class; export tensors"
        )
    with whole_folder(Path(folder)) as temporary:
        for label, group in enumerate(images.split(counts.tolist())):
            (temporary / f"{label:05d}").mkdir()
            for i, image in enumerate(group):
                pixels = image.permute(1, 2, 0).squeeze(2).contiguous().numpy()
                Image.fromarray(pixels).save(temporary / f"{label:05d}" / f"{i:05d}.png")
        (temporary / "card.yaml").write_text(card.text())
    return Path(folder)


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
) -> Path:
    """Writes a distilled set of other code as a ``.beton`` and its card, sorted by class.

    A ``.beton`` holds pixels, so what lies outside [0, 1] is clamped: the images of DC, DM and MTT do. How much that
    changes is noted in the card's ``method``, and a warning says it.

    ❗ ZCA-whitened images (MTT and DATM with ``--zca``) are no pixels, and no mean and std makes them such; nothing in
    their values tells. Give the ``images_zca_<step>.pt`` that such a run saves beside them, which are pixels again.

    Args:
        source: A ``.pt`` with images and labels, or two of them: (images, labels). Images are float ``(N, C, H, W)``,
            or uint8. Labels are class ids ``(N,)``; or ``(N, K)``, one-hot, probabilities or logits. Both of the latter
            are kept as soft labels, as probabilities, beside the likeliest class.
        output: The ``.beton``.
        classes: Names of the K classes. Default: their numbers.
        mean, std: Per-channel normalisation for pixels in [0, 1], for the card: what networks are to be trained with.
            Normalised images must have been normalised by the same. Both are needed.
        factor: f of multi-formation, for images that are not decoded yet, in a uniform grid (IDC's ``single``).
            Default: ``1``.
        normalised: Whether the images are. Default: ``None``, as the values look, see :data:`LEEWAY`.
        experiment: Which of several sets in one file. Default: ``-1``, the last.
        tolerance: Of what clamping changes. Default: :data:`TOLERANCE`.

    Raises:
        InputError: If a file is no such ``.pt``, images and labels do not fit each other or ``classes``, a class has
            more images than another, or clamping would change too much.
    """
    paths = [Path(source)] if isinstance(source, str | os.PathLike) else [Path(path) for path in source]
    named = " and ".join(f"'{path}'" for path in paths)
    images, found, method = read_pair(paths, experiment, named)
    if images.dtype not in _PIXEL_TYPES or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise InputError(
            f"the images of {named} are {images.dtype} {tuple(images.shape)}; wanted float or uint8 (N, C, H, W), C 1 "
            f"or 3: permute or convert them, and save them again"
        )
    labels, soft, num_classes, note = read_labels(found, len(images), None if classes is None else len(classes), named)
    counts = torch.bincount(labels, minlength=num_classes)
    if counts.min() != counts.max():
        few, many = int(counts.argmin()), int(counts.argmax())
        raise InputError(
            f"class {few} has {counts[few]} images in {named}, class {many} has {counts[many]}; wanted as many of "
            f"each, the card's images_per_class: leave some out, or correct labels or class names"
        )
    normalization = Normalization.of(mean, std)
    if normalization is None:
        raise InputError(
            f"no mean and std came with {named}; give those of the code that made it, per channel and for pixels in "
            f"[0, 1]"
        )
    normalization.check_channels(images.shape[1])
    pixels, was_normalised = _pixels(images, normalization, normalised, named)
    order = labels.argsort(stable=True)
    check_factor(factor, *pixels.shape[-2:])
    decoded, clamped, change = _decoded(pixels[order].unflatten(0, (num_classes, -1)), factor)
    if change > tolerance:
        undone = "de-normalising" if was_normalised else "reading them as pixels, not normalised"
        raise InputError(
            f"{clamped} of {named} lie outside [0, 1] after {undone}, so these are no pixels (clamping would change a "
            f"value by {change:.2f} on average); give the mean and std that they were normalised by, say whether they "
            f"are (normalised), or raise tolerance. ZCA-whitened images cannot be used: take images_zca_*.pt"
        )
    method |= {"normalised": was_normalised, "clamped": clamped or "nothing", **note}
    if clamped:
        warnings.warn(f"{clamped} of {named} lay outside [0, 1] and were clamped", stacklevel=2)
    card = Card(
        classes=[str(name) for name in (classes if classes is not None else range(num_classes))],
        images=0,
        images_per_class=int(counts[0]),
        shape=[],
        mean=list(normalization.mean),
        std=list(normalization.std),
        factor=factor,
        method=method,
        versions=versions("ffcv", "numpy"),
    )
    order = order.repeat_interleave(factor**2)
    return write_beton(
        check_writable(Path(output)), decoded, labels[order], card, soft[order] if soft is not None else None
    )


def _read(path: Path) -> tuple[Card, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Card, images, labels and soft labels of a ``.beton``, in class order."""
    card = replace(read_card(path), packed=False)  # what is exported is decoded
    images, labels = read_beton(path)
    soft = _read_soft_labels(path, (len(labels), len(card.classes)))
    order = labels.argsort(stable=True)
    return card, images[order], labels[order], None if soft is None else soft[order]


def _read_soft_labels(path: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    with restored_threads():
        from ffcv.reader import Reader

    reader = Reader(str(path))  # read_beton() has checked the tables
    if "soft_label" not in reader.field_names:
        return None
    field = reader.handlers["soft_label"]
    content = np.memmap(path, np.uint8, mode="r")
    width = 4 * shape[1]
    starts = reader.metadata[f"f{reader.field_names.index('soft_label')}"]
    fits = getattr(field, "dtype", None) == np.float32 and tuple(field.shape) == shape[1:] and len(starts) == shape[0]
    if not fits or int(starts.max()) + width > len(content):
        raise InputError(f"the soft labels of '{path}' are not float32 of {shape[1]} classes each; write it again")
    rows = [content[int(start) : int(start) + width].view(np.float32) for start in starts]
    return torch.from_numpy(np.stack(rows))


_PIXEL_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _pixels(
    images: torch.Tensor, normalization: Normalization, normalised: bool | None, named: str
) -> tuple[torch.Tensor, bool]:
    """Float32 pixels, 0 for black and 1 for white, not clamped, and whether the images were normalised."""
    if images.dtype == torch.uint8:
        if normalised:
            raise InputError(f"the images of {named} are uint8, which are never normalised; leave normalised out")
        return images.float() / 255, False
    images = images.float()
    if not images.isfinite().all():
        count = int((~images.isfinite()).sum())
        raise InputError(f"the images of {named} have {count} values that are no finite number; mend or leave them out")
    if normalised is None:
        normalised = bool((torch.maximum(-images, images - 1) > LEEWAY).float().mean() > LEEWAY)
    return (normalization.denormalize(images) if normalised else images), normalised


def _decoded(stored: torch.Tensor, factor: int) -> tuple[torch.Tensor, str, float]:
    """Decoded images as uint8, which values were clamped, in words, and by how much on average over all values."""
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
        return decoded, "", 0.0
    words = f"{100 * cut / count:.2g} % of the values, by {total / cut:.2g} on average and {most:.2g} at most"
    return decoded, words, total / count
