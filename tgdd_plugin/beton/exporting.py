"""Writing distilled sets for other code, so that theirs and ours can be scored alike.

:mod:`tgdd_plugin.beton.importing` says which files the published code reads and writes. ``ddranking`` reads no such
file: it is handed normalized tensors, or a folder for torchvision's ``ImageFolder``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import read_beton, read_soft_labels
from tgdd_plugin.core.atomic_files import whole_folder
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.normalization import Normalization

LONGEST_NAME = 100
"""The most bytes of a folder's name."""


BESIDE = {"card.yaml", "metadata.jsonl"}
"""The files beside the folders of the classes."""


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
    - ``images.pt``, ``labels.pt``: images normalized, labels int64. For MTT, DATM and dc_benchmark, and for
      ``ddranking``: ``compute_metrics(image_tensor=torch.load('images.pt'), hard_labels=torch.load('labels.pt'))``.
      Without ``hard_labels`` it takes the first ``ipc`` images for class 0, and so on, which is wrong with a factor.
    - ``soft_labels.pt``, if the set has any: logits, as DATM and ``ddranking`` apply softmax to them.
    - ``card.yaml``: class names and the normalization of ``images.pt``, beside all else that the card says.

    Args:
        beton: The ``.beton``, its card beside it.
        folder: The folder to write, new or empty.
        mean, std: What the reading code normalizes its test images by, where that is not what the card says
            (``ddranking`` has constants for each data set). Default: the card's.

    Raises:
        InputError: If the file or its card cannot be used, the normalization does not fit, or ``folder`` has content.
    """
    card, images, labels, soft = read_decoded(Path(beton))
    normalization = Normalization.of(mean, std) or card.normalization
    normalization.check_channels(images.shape[1])
    card.mean, card.std = list(normalization.mean), list(normalization.std)
    pixels = images.float() / 255
    contents = {"data.pt": [pixels, labels], "images.pt": normalization.normalize(pixels), "labels.pt": labels}
    if soft is not None:
        contents["soft_labels.pt"] = soft.clamp(min=1e-12).log()
    with whole_folder(Path(folder)) as temporary:
        for name, content in contents.items():
            written = io.BytesIO()
            torch.save(content, written)  # to a file on a full disk it raises no OSError
            (temporary / name).write_bytes(written.getbuffer())
        (temporary / "card.yaml").write_text(card.text())
    return Path(folder)


def export_folder(beton: str | Path, folder: str | Path, *, class_names: bool = False) -> Path:
    """Writes a distilled set as an image folder: ``00000/00000.png``, ``00000/00001.png``, ..., ``00001/00000.png``.

    ``ImageFolder`` numbers the classes by the order of their folders' names, so these are the class ids, with zeros in
    front; so does ``ddranking`` name its own. Class names are in ``card.yaml``, beside the class folders. PNG is
    lossless. Grayscale images stay grayscale; ``ImageFolder``'s own loader makes RGB of them. Only hard labels survive.

    For ``ddranking``: ``compute_metrics(image_path=folder)``, with ``custom_train_trans`` set to torchvision's
    ``ToTensor`` and ``Normalize``: without it, it normalizes no image of a folder.

    Args:
        beton: The ``.beton``, its card beside it.
        folder: The folder to write, new or empty.
        class_names: Whether the folders have the names of the classes (:func:`folder_names`), by whose alphabet
            ``ImageFolder`` then numbers the classes. Default: ``False``.

    Raises:
        InputError: If the file or its card cannot be used, a class has no images, or ``folder`` has content.
    """
    card, images, labels, _ = read_decoded(Path(beton))
    counts = torch.bincount(labels, minlength=len(card.classes))
    if not counts.all():
        empty = int(counts.argmin())
        raise InputError(
            f"Class {empty} ('{card.classes[empty]}') of '{beton}' has no images, and an image folder would give its "
            f"number to the next class. Export tensors instead."
        )
    names = folder_names(card.classes) if class_names else [f"{label:05d}" for label in range(len(counts))]
    with whole_folder(Path(folder)) as temporary:
        write_pictures(temporary, images, labels, names)
        (temporary / "card.yaml").write_text(card.text())
    return Path(folder)


def folder_names(classes: Sequence[str]) -> list[str]:
    """Returns names of folders after those of classes, that any file system takes, each different.

    What a file system may not take becomes a dash. Where two would then be the same, or one would be empty or that of a
    file which is written beside the folders, the class ids stand in front of all of them.
    """
    names = [re.sub(r"[^\w ().+-]+", "-", name).encode()[:LONGEST_NAME].decode(errors="ignore") for name in classes]
    names = [name.strip(" .-") for name in names]
    taken = {name.casefold() for name in names}  # some disks know no capitals
    if all(names) and len(taken) == len(names) and not taken & BESIDE:
        return names
    return [f"{label:05d}-{name}".rstrip("-") for label, name in enumerate(names)]


def write_pictures(folder: Path, images: torch.Tensor, labels: torch.Tensor, names: Sequence[str]) -> list[Path]:
    """Writes images as PNG, ``<name of the class>/00000.png`` and so on.

    Args:
        folder: The folder for the folders of the classes.
        images: uint8 ``(N, C, H, W)``.
        labels: Their class ids ``(N,)``, in order.
        names: The name of each class' folder.

    Returns:
        The files' paths within ``folder``, in the order of the images.
    """
    paths, count = [], dict.fromkeys(range(len(names)), 0)
    for image, label in zip(images, labels.tolist(), strict=True):
        path = Path(names[label]) / f"{count[label]:05d}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().numpy()).save(folder / path)
        paths.append(path)
        count[label] += 1
    return paths


def read_decoded(path: Path) -> tuple[Card, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Reads the card of a ``.beton``, as of an unpacked file, and its images, decoded, labels and soft labels.

    Images and labels are in class order; without soft labels the last is ``None``.
    """
    card = replace(read_card(path), packed=False)
    images, labels = read_beton(path)
    soft = read_soft_labels(path, (len(labels), len(card.classes)))
    order = labels.argsort(stable=True)
    return card, images[order], labels[order], None if soft is None else soft[order]
