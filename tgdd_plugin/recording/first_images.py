"""What a recording keeps of the images themselves: what the first batch is like, and a few of each class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.core.checked_json import MOST_SIDE
from tgdd_plugin.core.ranks import rank
from tgdd_plugin.recording.description import note_input
from tgdd_plugin.recording.exemplars import Exemplars
from tgdd_plugin.trajectory.manifest import Run


class FirstImages:
    """Looks at the batches of a run, on rank 0, until it has seen enough.

    Args:
        per_class: Real images of each class to keep; 0 for none.
        warn: Called with a key and a message; of several with one key, the first is told.
    """

    def __init__(self, per_class: int, warn: Callable[[str, str], None]) -> None:
        self.per_class, self._warn = per_class, warn
        self.exemplars = Exemplars(0, 0)
        self._run: Run | None = None
        self._folder = Path()
        self.first_epoch = 0
        """The epochs completed when the looking began; images come again once there are more."""
        self.within_epoch = False
        """Whether the looking began in the midst of an epoch, the rest of which may have few images of a class."""
        self._anew = False
        self._held: list[tuple[Any, Any]] | None = None

    def start(self, run: Run, folder: Path, epoch: int, *, settled: bool = True) -> None:
        """Begins to look at a run's batches after ``epoch`` epochs; exemplars that its folder has are kept.

        Args:
            run, folder, epoch: The run, its folder, and its epochs so far.
            settled: Whether the number of classes is known. If not, batches are held until :meth:`settle`. Default:
                ``True``.
        """
        self._run, self._folder, self.first_epoch, self._anew = run, folder, epoch, False
        self._held = None if settled else []
        if rank() == 0:
            self.exemplars = Exemplars(run.num_classes, 0 if run.exemplars else self.per_class)

    def settle(self) -> None:
        """The run's number of classes is known now; keeps exemplars of the batches that were held for it."""
        held, self._held = self._held, None
        if held is None or self._run is None or rank() != 0:
            return
        self.exemplars = Exemplars(self._run.num_classes, 0 if self._run.exemplars else self.per_class)
        for images, targets in held:
            self._keep(images, targets, self._run)

    @property
    def wanted(self) -> bool:
        """Whether there is still something to look for on this rank."""
        return self._run is not None and rank() == 0 and (self._run.input is None or not self.exemplars.done)

    def look_at(self, images: Any, targets: Any) -> None:
        """Notes what the inputs are like, and keeps exemplars; anything but images and labels is passed over."""
        run = self._run
        if run is None or rank() != 0:
            return
        if isinstance(images, torch.Tensor) and images.dtype == torch.uint8:
            images = images.float()
        if isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point():
            if images.shape[1] not in (1, 3):  # the first warning about kept images is the only one
                self._warn(
                    "exemplars",
                    f"the inputs have {images.shape[1]} channels: the run is recorded, but cannot be distilled into a "
                    f".beton, whose images have 1 or 3, and no real image is kept",
                )
            if run.input is None:
                self._note_input(images, run)
        if self._anew:  # what the rest of an epoch gave would come again
            self.exemplars, self._anew = Exemplars(run.num_classes, self.per_class), False
        if self._held is not None:
            self._held.append(tuple(copy.deepcopy(part) for part in (images, targets)))  # some algorithms change them
        elif not self.exemplars.done:
            self._keep(images, targets, run)

    def _note_input(self, images: torch.Tensor, run: Run) -> None:
        if (longest := max(images.shape[1:])) > MOST_SIDE:  # a manifest that has such a shape cannot be read
            text = (
                f"the inputs have a side of {longest}: nothing can be distilled that has more than {MOST_SIDE} pixels"
            )
            return self._warn("input", f"{text} a side")
        note_input(run, images)
        self.write()  # at once, as a resumed run would note another batch

    def _keep(self, images: Any, targets: Any, run: Run) -> None:
        problem = self.exemplars.add(images, targets, run.normalization)
        if problem:
            self._warn(
                "exemplars",
                f"fewer than exemplars={self.per_class} real images of each class are kept, or none: "
                f"{problem}. To distill without the data set, take start='noise' or fewer images per class",
            )
        self.exemplars.keep(self._folder, run)

    def end_epoch(self) -> None:
        """From here on images come again: those of an epoch that was seen in part are taken from the next one."""
        if self.within_epoch and not self.exemplars.done:
            self.within_epoch, self._anew, self.first_epoch = False, True, self.first_epoch + 1
            return
        self.exemplars.done = True
        if self._run is not None:
            self.exemplars.keep(self._folder, self._run)

    def write(self) -> None:
        """Writes the manifest, on rank 0. If the disk is full, the next stage will say so."""
        if self._run is not None and rank() == 0:
            with suppress(OSError):
                self._run.write(self._folder, ongoing=True)
