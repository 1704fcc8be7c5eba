"""Writing and reading a ``.beton`` (FFCV) and the card beside it.

The file is plain FFCV: ``image`` (raw uint8 RGB), ``label`` (int) and, where there are any, ``soft_label`` (float32).
A stock ``ffcv.Loader`` with the usual pipelines reads it. What FFCV has no place for lies in the card,
``<name>.beton.yaml``. FFCV itself writes and reads the format; ``ffcv`` is imported only when a function is called.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tgdd_plugin.errors import InputError
from tgdd_plugin.files import sha256, whole_file, write_whole

FORMAT = 1
MIN_PAGE = 2**21
"""FFCV's smallest page. A file has at least one page of samples and is padded to whole ones: 4 MiB in all."""


@dataclass
class Card:
    """What one must know to use a compact set, and where it comes from.

    Args:
        classes: Names of the K classes.
        images: Images in the file, as a loader sees them.
        images_per_class: Stored images for each class (the field's "IPC"); ``images`` is K · IPC · factor².
        shape: (C, H, W) of the images. With C = 1 the file holds the grey value three times, as FFCV's image field is
            RGB; :func:`beton_loader` gives one channel back.
        mean, std: Per-channel normalisation, for pixels in [0, 1].
        factor: f of multi-formation. The images in the file are decoded: nothing is left to be done by the user.
        method: Settings of the distillation, empty for a set made otherwise.
        network: What it was distilled on.
        trajectory: ``runs`` and the SHA-256 of their ``stages``.
        versions: Of the packages that wrote it.
        accuracy: What networks trained on this very file reach, row by row, beside as many random real images.
        sha256: Checksum of the ``.beton``.
    """

    classes: list[str]
    images: int
    images_per_class: int
    shape: list[int]
    mean: list[float]
    std: list[float]
    factor: int = 1
    method: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    trajectory: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    accuracy: list[dict[str, Any]] = field(default_factory=list)
    sha256: str = ""

    def write(self, beton: Path) -> None:
        """Writes the card of ``beton``, whole."""
        content = {"format": FORMAT, **asdict(self)}
        write_whole(card_path(beton), yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110))


def card_path(beton: str | Path) -> Path:
    """``name.beton.yaml`` beside ``name.beton``."""
    return Path(f"{beton}.yaml")


def read_card(beton: str | Path) -> Card:
    """Reads the card of ``beton``.

    Raises:
        InputError: If it is missing or damaged, or belongs to another file.
    """
    path = card_path(beton)
    if not Path(beton).is_file():
        raise InputError(f"there is no file '{beton}'; wanted a .beton written by distill()")
    try:
        content = yaml.safe_load(path.read_text())
        if content.pop("format") != FORMAT:
            raise InputError(f"'{path}' has another format than {FORMAT}; it needs another version of tgdd_plugin")
        known = {f.name for f in fields(Card)}
        card = Card(**{key: value for key, value in content.items() if key in known})
    except FileNotFoundError:
        raise InputError(f"'{beton}' has no card '{path.name}' beside it; copy both files together") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"the card '{path}' is damaged: {str(error).splitlines()[0]}") from error
    if card.sha256 != sha256(Path(beton)):
        raise InputError(f"'{beton}' is not the file that '{path.name}' describes (checksums differ); copy both again")
    return card


def write_beton(
    path: str | Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    card: Card,
    soft_labels: torch.Tensor | None = None,
) -> Path:
    """Writes a ``.beton`` and its card, each whole.

    Args:
        path: The file.
        images: uint8, ``(N, C, H, W)``; grey ones (C = 1) are written three times.
        labels: Class ids, ``(N,)``.
        card: Its ``images``, ``shape`` and ``sha256`` are filled in here.
        soft_labels: Class probabilities ``(N, K)``, or none.

    Raises:
        InputError: If shapes, types or values are not as said. FFCV's writer would wait for ever on such an image, so
            everything is checked before it starts.
    """
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    path = Path(path)
    arrays = [_rgb(images), labels.cpu().numpy().astype(np.int64)]
    if len(images) == 0 or labels.shape != (len(images),):
        raise InputError(f"{len(images)} images came with labels of shape {tuple(labels.shape)}; wanted one each")
    if labels.min() < 0 or labels.max() >= len(card.classes):
        raise InputError(f"labels leave 0..{len(card.classes) - 1}; wanted class ids of the card's classes")
    written = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    if soft_labels is not None:
        wanted = (len(images), len(card.classes))
        if soft_labels.shape != wanted or not soft_labels.isfinite().all():
            raise InputError(f"soft labels are {tuple(soft_labels.shape)}; wanted finite values of shape {wanted}")
        arrays.append(np.ascontiguousarray(soft_labels.detach().float().cpu().numpy()))
        written["soft_label"] = NDArrayField(np.dtype("float32"), (len(card.classes),))
    page = MIN_PAGE
    while page < arrays[0][0].nbytes:
        page *= 2
    with whole_file(path) as temporary:
        # One worker writes the same bytes every time. Its progress bar would be of a second's work.
        with contextlib.redirect_stderr(io.StringIO()):
            DatasetWriter(str(temporary), written, page_size=page, num_workers=1).from_indexed_dataset(_Rows(arrays))
        card.images, card.shape = len(images), list(images.shape[1:])
        card.sha256 = sha256(temporary)
    card.write(path)
    return path


class _Rows:
    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(int(a[index]) if a.ndim == 1 else a[index] for a in self.arrays)


def _rgb(images: torch.Tensor) -> np.ndarray:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"images are {images.dtype} {tuple(images.shape)}; wanted uint8 (N, C, H, W), C 1 or 3")
    return np.ascontiguousarray(images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def read_beton(path: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the images and labels of any ``.beton`` with fields ``image`` and ``label``, through FFCV.

    Returns:
        uint8 images ``(N, C, H, W)``, with C = 1 if the file has a card that says so and else 3, and labels ``(N,)``.

    Raises:
        InputError: If there is no such file, it is no such ``.beton``, or its images have several sizes.
    """
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader

    if not Path(path).is_file():
        raise InputError(f"there is no file '{path}'; wanted a .beton")
    try:
        reader = Reader(str(path))
        names = set(reader.handlers)
        count = reader.num_samples
    except Exception as error:  # FFCV parses bytes without checks, so anything may come out
        raise InputError(f"'{path}' is no FFCV file ({type(error).__name__}: {error})") from error
    if not {"image", "label"} <= names:
        raise InputError(f"'{path}' has fields {sorted(names)}; wanted 'image' and 'label'")
    with restored_threads():
        try:
            loader = Loader(
                str(path),
                batch_size=min(count, 512),
                num_workers=1,
                order=OrderOption.SEQUENTIAL,
                os_cache=True,
                drop_last=False,
                pipelines={
                    "image": [SimpleRGBImageDecoder()],
                    "label": [IntDecoder()],
                    **dict.fromkeys(names - {"image", "label"}),
                },
            )
            # FFCV reuses its buffers, so each batch is copied.
            batches = [(torch.tensor(image), torch.tensor(label)) for image, label in loader]
        except TypeError as error:
            raise InputError(
                f"the images of '{path}' have several sizes; write it again with one size (resize the images first)"
            ) from error
    images = torch.cat([image for image, _ in batches]).permute(0, 3, 1, 2)
    labels = torch.cat([label for _, label in batches]).flatten()
    if card_path(path).is_file() and read_card(path).shape[0] == 1:
        images = images[:, :1]
    return images.contiguous(), labels


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """FFCV's Loader sets torch's and numba's thread numbers for the whole process; this sets them back."""
    import numba

    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)
