"""What a Trainer's batches are before any algorithm touches them, and what its ``DataSpec`` does to them.

Callbacks come after algorithms at every event that has a batch, so none of these shows the loader's own images where,
for example, ProgressiveResizing makes them smaller. And what normalizes in a ``DataSpec`` is on no path from the
Trainer's state. So the two transforms of the ``DataSpec``, which the Trainer calls first, are watched.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from composer import Trainer
from composer.core import DataSpec

from tgdd_plugin.core.batches import images_and_labels
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.pixel_range import Affine, affine_between, normalization_of

ENOUGH = 64
"""The images that show what a transform does."""

Look = Callable[[Any, Any, Normalization | None], None]


def data_specs_of(loader: Any) -> list[DataSpec]:
    """Returns the ``DataSpec`` around a Trainer's loader, to which neither the loader nor the state leads.

    It is the calling Trainer's. Where none is found that way, all around that loader are taken; there are several where
    it is evaluated on, too, or was given to an earlier Trainer. To go through all objects takes 0.1 seconds or more.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames else None
        spec = getattr(caller, "_train_data_spec", None) if isinstance(caller, Trainer) else None
        if isinstance(spec, DataSpec) and spec.dataloader is loader:
            return [spec]
        frame = frame.f_back
    specs = [each for each in gc.get_objects() if issubclass(type(each), DataSpec)]
    return [spec for spec in specs if spec.dataloader is loader]


class BatchWatch:
    """Shows a recording each batch of the training as the network would get it without any algorithm.

    Args:
        look: Called with images, labels and the normalization that the ``DataSpec`` was seen to do, if any.
        wanted: Whether a batch is looked at; if not, watching it costs nothing.
        covers: A context in which errors of the looking, not of the transforms, are handled.
    """

    def __init__(self, look: Look, wanted: Callable[[], bool], covers: Callable[[], AbstractContextManager]) -> None:
        self._look, self._wanted, self._covers = look, wanted, covers
        self._originals: list[tuple[DataSpec, Any, Any]] = []
        self._expected = False
        # What the transforms were seen to do to the first batch, and the normalization that it is.
        self._done: dict[str, Affine | None] = {}
        self._normalization: Normalization | None = None
        self._held: Any = None
        """The batch at hand, until its first microbatch shows what becomes of it."""

    def has_missed(self) -> bool:
        """Whether the batch that was expected did not come through the transforms that are watched. Asked once."""
        missed, self._expected = self._expected, False
        return missed

    @property
    def changes_images(self) -> bool:
        """Whether a transform was seen to do anything to images but one factor and one summand for each channel."""
        return None in self._done.values()

    def attach(self, specs: Sequence[DataSpec]) -> None:
        """Watches the transforms of some ``DataSpec`` from now on, and of no others."""
        self.detach()
        self._done, self._normalization = {}, None
        for spec in specs:
            whole, part = spec.batch_transforms, spec.microbatch_transforms
            self._originals.append((spec, whole, part))
            spec.batch_transforms = functools.partial(self._batch, whole, not _is_default(part))
            if not _is_default(part):
                spec.microbatch_transforms = functools.partial(self._microbatch, part)

    def detach(self) -> None:
        """Leaves every ``DataSpec`` as it was."""
        for spec, whole, part in self._originals:
            spec.batch_transforms, spec.microbatch_transforms = whole, part
        self._originals, self._held, self._expected = [], None, False

    def expect(self) -> None:
        """The next batch is one of the training; without this, it may be of an evaluation that shares the loader."""
        self._expected = True

    def _batch(self, transform: Callable[[Any], Any], deferred: bool, batch: Any) -> Any:
        looking, self._expected = self._expected and self._wanted(), False
        first = looking and "batch" not in self._done
        before = _copied(batch) if first and not _is_default(transform) else None
        after = transform(batch)
        self._held = None
        if looking:
            with self._covers():
                if first and before is not None:
                    self._done["batch"] = _affine(before, after)
                    self._normalization = normalization_of(before, self._done["batch"])
                self._show_or_hold(before, after, deferred)
        return after

    def _show_or_hold(self, before: torch.Tensor | None, after: Any, deferred: bool) -> None:
        images, labels = images_and_labels(after)
        if not deferred or not _are_images(images):
            self._look(images, labels, self._normalization)
        elif "microbatch" in self._done and self._done["microbatch"] is not None:
            self._look(_changed(images, self._done["microbatch"]), labels, self._normalization)
        else:  # algorithms may change it in place before the microbatch comes
            self._held = images.clone(), labels, before

    def _microbatch(self, transform: Callable[[Any], Any], batch: Any) -> Any:
        held, self._held = self._held, None
        before = _copied(batch) if held is not None else None
        after = transform(batch)
        if held is not None:
            with self._covers():
                self._show_held(held, before, after)
        return after

    def _show_held(self, held: Any, before: torch.Tensor | None, after: Any) -> None:
        """Shows a whole batch as the network gets it, by what becomes of its first microbatch."""
        images, labels, raw = held
        if "microbatch" not in self._done:
            self._done["microbatch"] = own = _affine(before, after)
            if "batch" in self._done and own is not None:
                earlier = self._done["batch"]
                own = None if earlier is None else (earlier[0] * own[0], earlier[1] * own[0] + own[1])
            self._normalization = normalization_of(images if raw is None else raw, own)
        if (own := self._done["microbatch"]) is None:  # the microbatch is all that can be shown
            self._look(*images_and_labels(after), None)
        else:
            self._look(_changed(images, own), labels, self._normalization)


def _is_default(transform: Any) -> bool:
    """Whether a transform is Composer's own, which does nothing."""
    return getattr(transform, "__func__", None) is getattr(DataSpec, "_default_transforms", transform)


def _are_images(images: Any) -> bool:
    return isinstance(images, torch.Tensor) and images.ndim == 4


def _copied(batch: Any) -> torch.Tensor | None:
    """A copy of a batch's first images, which a transform may change in place."""
    images = images_and_labels(batch)[0]
    return images[:ENOUGH].clone() if _are_images(images) else None


def _affine(before: torch.Tensor | None, after: Any) -> Affine | None:
    images = images_and_labels(after)[0]
    return affine_between(before, images[:ENOUGH]) if before is not None and _are_images(images) else None


def _changed(images: torch.Tensor, affine: Affine) -> torch.Tensor:
    factor, summand = (values.to(images.device) for values in affine)
    return (images.double() * factor + summand).float()
