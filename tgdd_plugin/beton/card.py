"""The card of a ``.beton``: what one must know to use it, in a YAML file beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, Strict, with_config
from typing_extensions import NotRequired, TypedDict

from tgdd_plugin.core.atomic_files import sha256, write_whole
from tgdd_plugin.core.bounded_reading import CARD_SIZE, read_bounded
from tgdd_plugin.core.bounded_yaml import parse_yaml
from tgdd_plugin.core.checked_json import (
    MOST_CLASSES,
    MOST_SIDE,
    OPEN,
    Count,
    Finite,
    Flag,
    NonNegative,
    Positive,
    Sha256,
    Text,
    Whole,
    build_checked,
    shaped,
)
from tgdd_plugin.core.errors import InputError, shown
from tgdd_plugin.core.network_record import PartialNetworkRecord, network_in_words
from tgdd_plugin.data.normalization import Normalization

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1


PACKED_FORMAT = 2
"""The format of a packed file's card: an earlier version, which would take the grids for images, refuses it."""


MEMORY = "replay memory"
"""The name of the method in the card of a saved :class:`tgdd_plugin.replay.memory.ReplayMemory`."""


Side = Annotated[int, Strict(), Field(ge=1, le=MOST_SIDE)]


@with_config(OPEN)
class _Origin(TypedDict, total=False):
    """What `tgdd show` prints of ``trajectory``."""

    runs: list[Text]
    stages: list[Text]
    networks: list[Annotated[dict[str, Any], shaped(PartialNetworkRecord)]]


@with_config(OPEN)
class _Row(TypedDict):
    """What `tgdd show` prints of a row of ``accuracy``."""

    name: Text
    images: Whole
    epochs: Whole
    passes: NotRequired[Whole | None]
    mean_percent: Finite
    std_points: NonNegative | None
    labels: NotRequired[Text]


@with_config(OPEN)
class _Accuracy(TypedDict):
    network: Text
    architecture: NotRequired[Annotated[dict[str, Any], shaped(PartialNetworkRecord)] | None]
    parameters: NotRequired[Whole]
    seeds: list[Whole]
    test_images: Whole
    rows: list[_Row]


def scored_network(entry: Mapping[str, Any]) -> str:
    """The network of an entry of ``accuracy`` in words, with arguments and size, which earlier versions left out."""
    architecture, parameters = entry.get("architecture"), entry.get("parameters")
    words = network_in_words(architecture) if architecture else shown(entry["network"], 120)
    return words if parameters is None else f"{words}, {parameters:,} parameters"


def entries_agree(one: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str]) -> bool:
    """Whether two entries of ``accuracy`` have the same of some keys; an earlier version noted no architecture."""
    later = ("architecture", "parameters")
    return all(one.get(key) == other.get(key) for key in keys if key not in later or (key in one and key in other))


def passes_of(row: Mapping[str, Any]) -> int:
    """The image passes of a row of ``accuracy``, also where an earlier version noted none."""
    passes: int = row.get("passes") or row["images"] * row["epochs"]
    return passes


def ending_of_name(row: Mapping[str, Any]) -> str:
    """What stands behind the name of a row of ``accuracy``: ``", soft labels"``, unless they are hard or it says so."""
    return ", soft labels" if row.get("labels") == "soft" and "soft labels" not in row["name"] else ""


def accuracy_cells(entry: Mapping[str, Any], text: Callable[[Any], str]) -> list[list[Any]]:
    """The rows of an entry of ``accuracy`` for a table: what was trained on, images, passes and accuracy in per cent.

    Args:
        entry: The entry.
        text: What makes a name from the card, which may be anything, fit to be shown.
    """
    cells = []
    for row in entry["rows"]:
        spread = "" if row["std_points"] is None else f" ± {row['std_points']:.1f}"
        name = text(row["name"]) + ending_of_name(row)
        cells.append([name, row["images"], passes_of(row), f"{row['mean_percent']:.1f}{spread}"])
    return cells


@dataclass(repr=False)
class Card:
    """What one must know to use a compact set, and where it comes from.

    Args:
        classes: Names of the K classes.
        images: The number of images as a loader sees them, decoded.
        images_per_class: Stored images for each class (the field's "IPC"); ``images`` is K · IPC · factor².
        shape: (C, H, W) of the images. With C = 1 the file holds the gray value three times, as FFCV's image field is
            RGB; :func:`beton_loader` gives one channel back.
        mean, std: Per-channel normalization, for pixels in [0, 1]; as one object, :attr:`normalization`.
        factor: f of multi-formation. The file holds the decoded images, unless it is packed.
        packed: Whether the file holds the stored images, f² times fewer; :func:`read_beton` decodes them.
        method: Settings of the distillation; empty for a set made otherwise.
        network: The network that it was distilled on; of several, the first.
        real: How many real ``images`` were read, and their :meth:`ImagePool.fingerprint`.
        trajectory: ``runs``, the SHA-256 of their ``stages``, and the ``networks`` they are of.
        versions: The versions of the packages that wrote it.
        accuracy: What networks trained on this very file reach, row by row, beside as many random real images.
        sha256: Checksum of the ``.beton``.
    """

    classes: Annotated[list[Text], Field(min_length=1, max_length=MOST_CLASSES)]
    images: Count
    images_per_class: Whole
    shape: Annotated[list[Side], Field(min_length=3, max_length=3)]
    mean: list[Finite]
    std: list[Positive]
    factor: Side = 1
    packed: Flag = False
    method: dict[Text, Any] = field(default_factory=dict)
    network: Annotated[dict[str, Any], shaped(PartialNetworkRecord)] = field(default_factory=dict)
    real: dict[Text, Any] = field(default_factory=dict)
    trajectory: Annotated[dict[str, Any], shaped(_Origin)] = field(default_factory=dict)
    versions: dict[Text, Text] = field(default_factory=dict)
    accuracy: list[Annotated[dict[str, Any], shaped(_Accuracy)]] = field(default_factory=list)
    sha256: Sha256 = ""

    @property
    def normalization(self) -> Normalization:
        """What the images are normalized with."""
        return Normalization(self.mean, self.std)

    @property
    def parts(self) -> int:
        """The number of images that one of the file's images decodes to: factor² if it is packed, else 1."""
        return self.factor**2 if self.packed else 1

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.shape)
        return f"Card({self.images} images of {shape} in {len(self.classes)} classes; all of it: print(card.text()))"

    def text(self) -> str:
        """Returns the card as YAML."""
        content = {"format": PACKED_FORMAT if self.packed else FORMAT, **asdict(self)}
        return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)

    def write(self, beton: Path) -> None:
        """Writes the card of ``beton``, whole."""
        write_whole(card_path(beton), self.text())


def card_path(beton: str | os.PathLike[str]) -> Path:
    """Returns the path of the card of ``beton``, ``name.beton.yaml`` beside ``name.beton``."""
    return Path(f"{os.fspath(beton)}.yaml")


def read_card(beton: str | os.PathLike[str]) -> Card:
    """Reads the card of ``beton``.

    Raises:
        InputError: If it is missing or damaged, or belongs to another file.
    """
    path = card_path(beton)
    if not Path(beton).is_file():
        raise InputError(f"There is no file '{beton}'. Name a .beton that distill() or tgdd distill wrote.")
    try:
        text = read_bounded(path, CARD_SIZE, "card")
    except FileNotFoundError:
        missing = f"The file '{beton}' has no card '{path.name}' beside it"
        if Path(beton).suffix != ".beton":
            raise InputError(f"{missing}, and its name does not end in .beton. Name a .beton file.") from None
        raise InputError(f"{missing}. Copy both files together.") from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"The card '{path}' is damaged ({error}). Copy it again.") from None
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"The file '{path}' is not the card of a .beton. Copy it again, beside its file.")
    if content["format"] not in (FORMAT, PACKED_FORMAT):
        raise InputError(
            f"The card '{path}' must be of format {FORMAT} or {PACKED_FORMAT}, got {shown(content['format'], 40)}. "
            f"Update tgdd_plugin to open it."
        )
    try:
        card = build_checked(Card, content)
        if not len(card.mean) == len(card.std) == card.shape[0]:
            raise ValueError(
                f"`mean` and `std` must have a value for each of the {card.shape[0]} channel(s) of `shape`, got "
                f"{len(card.mean)} and {len(card.std)}"
            )
    except ValueError as error:
        raise InputError(f"The card '{path}' is damaged ({error}). Copy it again.") from None
    if card.sha256 != sha256(Path(beton)):
        raise InputError(
            f"The file '{beton}' is not the one that '{path.name}' describes (checksums differ). Copy both again."
        )
    return card


def find_mismatch(card: Card, labels: np.ndarray, height: int, width: int) -> str | None:
    """Says in words what in a card contradicts its file, or returns ``None``: a card can be edited by hand.

    Args:
        card: The card.
        labels: The labels of the images in the file, ``(N,)``.
        height, width: The size of every image.
    """
    classes, factor = len(card.classes), card.factor
    decoded = classes * card.images_per_class * factor**2
    if labels.min() < 0 or labels.max() >= classes:
        return f"labels run from {labels.min()} to {labels.max()}, the card names {classes} classes"
    if card.shape[0] not in (1, 3) or card.shape[1:] != [height, width]:
        return f"the images are {height}x{width}, the card's shape is {card.shape}"
    if factor < 1 or (card.packed and (height % factor or width % factor)):
        return f"the images are {height}x{width}, which the card's factor {factor} does not divide"
    if card.images != len(labels) * card.parts:
        packed = f" in {len(labels)} packed ones" if card.packed else ""
        return f"there are {len(labels) * card.parts} images{packed}, the card says {card.images}"
    # Other sets, and a memory, need not have as many images of each class.
    name = card.method.get("name")
    if (card.packed or name == "TGDD") and name != MEMORY and card.images != decoded:
        return (
            f"there are {card.images} images, the card's {classes} classes of {card.images_per_class} stored ones at "
            f"factor {factor} are {decoded}"
        )
    return None
