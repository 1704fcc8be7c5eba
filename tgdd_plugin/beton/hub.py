"""A set as a data set folder of the Hugging Face Hub: the file itself, its images as PNG, and a data set card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tgdd_plugin.beton.card import Card, accuracy_cells, card_path, scored_network
from tgdd_plugin.beton.exporting import folder_names, read_decoded, write_pictures
from tgdd_plugin.core.atomic_files import whole_folder
from tgdd_plugin.core.errors import printable, shown
from tgdd_plugin.core.network_record import network_in_words
from tgdd_plugin.core.tables import markdown_table

PICTURES = Path("data") / "train"
"""Where the images are in the folder, as the Hub finds the split by its name."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def export_hub(beton: str | Path, folder: str | Path) -> Path:
    """Writes a distilled set as a folder that ``datasets.load_dataset`` loads, and that can be uploaded as it is.

    - ``README.md``: the data set card; its first lines say how the folder is loaded, and leave the licence to you.
    - ``data/train/<class>/00000.png`` and so on, decoded, and ``data/train/metadata.jsonl`` with their labels: the
      class ids are those of the file, whatever the order of the folders.
    - The ``.beton`` with its card, byte for byte, and a figure of the set: without the images at the start, which the
      figure of a distillation shows, since they are mostly real ones.

    Args:
        beton: The ``.beton``, its card beside it.
        folder: The folder to write, new or empty.

    Raises:
        InputError: If the file or its card cannot be used, or ``folder`` has content.
    """
    beton = Path(beton)
    card, images, labels, _ = read_decoded(beton)
    from tgdd_plugin.data.set_figure import draw_set  # loads matplotlib, which takes a second

    picture = beton.with_suffix(".png").name
    with whole_folder(Path(folder)) as temporary:
        where = temporary / PICTURES
        paths = write_pictures(where, images, labels, folder_names(card.classes))
        rows = [
            {"file_name": path.as_posix(), "label": label} for path, label in zip(paths, labels.tolist(), strict=True)
        ]
        (where / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for file in (beton, card_path(beton)):
            shutil.copyfile(file, temporary / file.name)
        draw_set(temporary / picture, images, labels, card.classes)
        (temporary / "README.md").write_text(_readme(beton, card, labels, picture), encoding="utf-8")
    return Path(folder)


def _readme(beton: Path, card: Card, labels: torch.Tensor, picture: str) -> str:
    environment = Environment(
        loader=PackageLoader("tgdd_plugin.beton", "."), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters |= {"plain": _plain, "network": scored_network}
    return environment.get_template("dataset_card.md").render(
        name=beton.stem,
        file=beton.name,
        card=card,
        count=len(labels),
        head=yaml.safe_dump(_head(beton, card, len(labels)), sort_keys=False, allow_unicode=True),
        network=network_in_words(card.network),
        method={str(key): value for key, value in card.method.items() if key != "name" and value is not None},
        accuracies=[(entry, _table(entry)) for entry in reversed(card.accuracy)],
        picture=picture,
    )


def _head(beton: Path, card: Card, count: int) -> dict[str, Any]:
    """The lines at the head of the card by which the Hub lists and loads the data set."""
    names = [printable(name) for name in card.classes]  # a line of dashes in one would end the head
    if len(set(names)) < len(names):  # datasets wants each once
        names = [f"{name} ({label})" for label, name in enumerate(names)]
    labels = {"class_label": {"names": dict(zip(map(str, range(len(names))), names, strict=True))}}
    config = {
        "config_name": "default",
        "data_files": [{"split": "train", "path": f"{PICTURES.as_posix()}/**"}],
        # Else datasets would read the labels as plain numbers.
        "features": [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": labels}],
    }
    return {
        "pretty_name": printable(beton.stem),
        "task_categories": ["image-classification"],
        "size_categories": [next((name for most, name in _SIZES if count < most), "n>1M")],
        "tags": ["dataset-distillation", "ffcv", "tgdd", "synthetic"],
        "configs": [config],
    }


def _table(entry: dict[str, Any]) -> str:
    return markdown_table(["trained on", "images", "passes", "test accuracy %"], accuracy_cells(entry, _plain), "lrrr")


def _plain(value: Any) -> str:
    """Text from a card that is text in Markdown, too: what could be a tag, a link or a table's edge is escaped."""
    text = shown(value, 400)
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#!&" else letter for letter in text)
