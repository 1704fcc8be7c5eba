"""A few of the images as they are at the start and after some steps, kept for a look at how they changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Logger, State

from tgdd_plugin.data.film_strip import MOST_FRAMES, strip_columns, write_strip
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, as_bytes


def strip_path(picture: str | Path) -> Path:
    """Returns where the film strip lies beside the figure of a set: ``name-evolution.png`` beside ``name.png``."""
    picture = Path(picture)
    return picture.with_name(f"{picture.stem}-evolution.png")


def moments(steps: int) -> list[int]:
    """The steps after which images are kept: the start, then ever further apart, as they change ever more slowly."""
    count = MOST_FRAMES - 2
    return sorted({0, *(round(steps ** (i / count)) for i in range(count + 1))})


class Evolution(Callback):
    """Keeps a few images, about one of each class, after the steps of :func:`moments`; checkpoints hold them, too.

    Args:
        synthetic: The images that are trained.
        steps: The number of steps in all.
    """

    def __init__(self, synthetic: SyntheticImages, steps: int) -> None:
        self.synthetic = synthetic
        self.steps = steps
        self.frames: dict[int, torch.Tensor] = {}
        self._due = set(moments(steps))
        stored = synthetic.pixels.shape
        classes, count = strip_columns(stored[0], synthetic.decoded_per_class, stored[2:])
        self._classes = torch.arange(classes)
        # Spread over all images: those that decode from one stored image are of a kind.
        self._chosen = (torch.arange(count) * synthetic.decoded_per_class // count).expand(classes, -1)

    def fit_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 0:
            self.frames = {0: self._look()}

    def batch_end(self, state: State, logger: Logger) -> None:
        if (step := state.timestamp.batch.value) in self._due:
            self.frames[step] = self._look()

    def state_dict(self) -> dict[str, Any]:
        return {"frames": dict(self.frames)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frames = dict(state["frames"])

    def write(self, path: Path, classes: Sequence[str]) -> None:
        """Writes the film strip, with the images as they are now for the last step, and the classes' names."""
        frames = {**self.frames, self.steps: self._look()}
        labels = self._classes.repeat_interleave(self._chosen.shape[1]).tolist()
        write_strip(path, frames, labels, self.synthetic.to_uint8()[0], classes)

    @torch.no_grad()
    def _look(self) -> torch.Tensor:
        device = self.synthetic.pixels.device
        return as_bytes(self.synthetic.decode(self._classes.to(device), self._chosen.to(device)))
