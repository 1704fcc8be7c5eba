"""What a distillation ships: the ``.beton``, and the card that says where it comes from."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import check_room, write_beton
from tgdd_plugin.core.errors import brief
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.distillation.evolution import Evolution, strip_path
from tgdd_plugin.distillation.finished import method_of
from tgdd_plugin.distillation.inputs import Inputs
from tgdd_plugin.distillation.synthetic_images import SyntheticImages


def result_card(inputs: Inputs, head: str | None) -> Card:
    """Returns the card of what is distilled from ``inputs``.

    Args:
        inputs: What the distillation starts from.
        head: Name of the networks' linear head as the user gave it. It is noted if it is not the recorded one.
    """
    settings, trajectory = inputs.settings, inputs.trajectory
    recorded = [run.head for run in trajectory.runs.values()]
    other = {} if head is None or all(f".{name}".endswith(f".{head}") for name in recorded) else {"head": head}
    return Card(
        classes=inputs.class_names,
        images=0,  # write_beton() counts them
        images_per_class=settings.images_per_class,
        shape=list(inputs.shape),
        mean=list(inputs.normalization.mean),
        std=list(inputs.normalization.std),
        factor=settings.factor,
        packed=settings.packed,
        method=method_of(settings),
        network=trajectory.run.network,
        real={"images": len(inputs.pool) if inputs.pool else 0, "fingerprint": inputs.fingerprint},
        trajectory={
            "runs": [run.name for run in trajectory.runs.values()],
            "stages": trajectory.checksums,
            "networks": [run.network for run in trajectory.representative_runs.values()],
            **other,
        },
        versions=installed_versions("mosaicml", "ffcv", "numpy"),
    )


def check_room_for(path: Path, card: Card) -> None:
    """Checks, before hours of work, that there is room for the ``.beton`` that the card will be of.

    Raises:
        InputError: If there is not.
    """
    stored = len(card.classes) * card.images_per_class
    check_room(path.parent, stored if card.packed else stored * card.factor**2, 3 * math.prod(card.shape[1:]))


def draw_result(
    path: str | Path, synthetic: SyntheticImages, card: Card, start: torch.Tensor, evolution: Evolution
) -> None:
    """Draws the images, decoded, beside those at the start, and how they changed as a film strip beside the figure.

    What goes wrong with it is told and ends nothing.
    """
    try:
        from tgdd_plugin.data.set_figure import draw_set  # loads matplotlib, which takes a second

        draw_set(path, *synthetic.to_uint8(), card.classes, start=start)
        evolution.write(strip_path(path), card.classes)
    except Exception as error:
        warnings.warn(f"'{path}' could not be drawn ({brief(error)}); the set itself is not affected", stacklevel=2)


def write_result(path: Path, synthetic: SyntheticImages, card: Card) -> None:
    """Writes the images, decoded or packed as the card says, and the card beside them."""
    write_beton(path, *synthetic.to_uint8(packed=card.packed), card)
