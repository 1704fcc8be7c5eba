"""What distill() returns: a path that also knows what lies there."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.errors import InputError, printable
from tgdd_plugin.logs.log_file import SECONDS, log_path, read_log

if TYPE_CHECKING:
    from tgdd_plugin.core.figures import Figure


class Distilled(os.PathLike[str]):
    """A distilled set. It stands wherever its path does: ``retrain(distilled, ...)``, ``open(distilled, "rb")``,
    ``str(distilled)``, ``distilled == path``, and ``distilled.parent`` or whatever else a ``Path`` has.

    Everything else is read from the disk when it is asked for, and again each time. In Jupyter it is a picture.

    Args:
        path: The ``.beton``, its card beside it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def card(self) -> Card:
        """Its card.

        Raises:
            InputError: If the file or its card cannot be used.
        """
        return read_card(self.path)

    @property
    def images(self) -> torch.Tensor:
        """Its images, decoded, uint8 ``(N, C, H, W)``, class after class."""
        return read_beton(self.path)[0]

    @property
    def labels(self) -> torch.Tensor:
        """Their class ids, int64 ``(N,)``."""
        return read_beton(self.path)[1]

    @property
    def losses(self) -> dict[str, list[float]]:
        """The columns of the log beside it (``<name>-log.csv``) by name: ``step``, ``loss``, ``match``, ``constraint``,
        ``learning_rate``, ``gradient_norm`` and ``probe_accuracy``. A value is NaN where it was not measured, and a
        column left out where none was; without a log there are none."""
        columns = {name: values for name, values in self._log().items() if name != SECONDS}
        return {name: values for name, values in columns.items() if not all(map(math.isnan, values))}

    @property
    def seconds(self) -> float | None:
        """How long its steps took in all, without the set-up, also over several calls; ``None`` without a log."""
        return next(iter(self._log().get(SECONDS, [])[-1:]), None)

    def figure(self) -> Figure:
        """Draws its images by class, as a Matplotlib figure."""
        from tgdd_plugin.data.set_figure import set_figure  # loads matplotlib, which takes a second

        images, labels = read_beton(self.path)
        return set_figure(images, labels, self.card.classes)

    def _log(self) -> dict[str, list[float]]:
        return read_log(log_path(self.path))

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.figure().savefig(png, format="png", dpi=100, bbox_inches="tight")
        return png.getvalue()

    def __repr__(self) -> str:
        try:
            card = self.card
            what = f"{card.images} images of {len(card.classes)} classes, {math.prod(card.shape):,} values each"
        except (InputError, OSError) as error:
            what = f"{error}"
        return f"Distilled('{printable(str(self.path))}': {what})"

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    def __eq__(self, other: object) -> bool:
        return self.path == (other.path if isinstance(other, Distilled) else other)

    def __hash__(self) -> int:
        return hash(self.path)

    def __getattr__(self, name: str) -> Any:
        # What a Path has, for code that was written when distill() returned one.
        if name.startswith("_") or name == "path":
            raise AttributeError(f"'Distilled' has no attribute '{name}'")
        return getattr(self.path, name)
