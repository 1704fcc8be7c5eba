"""What can be added to a replay memory, in one form, and whose classes are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_stored
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import MOST_CLASSES, ImagePool
from tgdd_plugin.data.normalization import Normalization

Source = str | Path | ImagePool | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Offer:
    """Images for a memory.

    Args:
        pool: The images; the stored ones of a packed file.
        factor: f of multi-formation at which they are stored.
        normalization: That of the card, if there is one.
        meant: For each label, which of the memory's classes it is: a name or an id.
    """

    pool: ImagePool
    factor: int
    normalization: Normalization | None
    meant: list[str | int]

    @classmethod
    def of(cls, source: Source, classes: Sequence[str | int] | None = None) -> Offer:
        """See :meth:`tgdd_plugin.replay.memory.ReplayMemory.add`.

        Raises:
            InputError: If a file or its card cannot be used, or the labels are not those of ``classes``.
        """
        factor, normalization, names = 1, None, None
        if isinstance(source, ImagePool):
            images, labels, names = source.images, source.labels, source.classes
        elif isinstance(source, tuple):
            images, labels = source
        else:
            card = read_card(source)
            images, labels, _ = read_stored(source)
            factor, normalization, names = card.factor if card.packed else 1, card.normalization, card.classes
        pool = ImagePool(images, labels, names if classes is None else [str(one) for one in classes])
        if classes is not None:
            return cls(pool, factor, normalization, list(classes))
        numbers = list(range(pool.num_classes))
        named = pool.classes != [str(number) for number in numbers]
        return cls(pool, factor, normalization, [*pool.classes] if named else [*numbers])

    def check_form(self, shape: Sequence[int], factor: int) -> None:
        """Raises an InputError if the images cannot be mixed with others of ``shape`` (C, H, W), at ``factor``."""
        if (self.pool.shape, self.factor) != (tuple(shape), factor):
            raise InputError(
                f"the images are {list(self.pool.shape)} (channels, height, width) at factor {self.factor}, those in "
                f"the memory {list(shape)} at factor {factor}; give all of one size, and all packed at one factor or "
                f"none"
            )

    def agreed_normalization(self, memory: Normalization | None) -> Normalization | None:
        """The memory's normalization; if it has none, the card's.

        Raises:
            InputError: If they differ, or are not of as many channels as the images.
        """
        if memory is None:
            return self.normalization
        memory.check_channels(self.pool.shape[0])
        if self.normalization and not self.normalization.is_close(memory):
            raise InputError(
                f"the set has {self.normalization}, the memory {memory}; distill all tasks with the normalization "
                f"that the learner trains with"
            )
        return memory


def identify(offer: Offer, classes: list[str], growing: bool) -> tuple[list[str], torch.Tensor]:
    """Class ids of the labels of an offer.

    Args:
        offer: The images; a class of which it has none is passed over.
        classes: Names of the memory's classes, by id.
        growing: Whether there may be others. A new name gets the next id, one that is a number that number.

    Returns:
        The names with those that are new, and an id for each label, ``(K,)``.

    Raises:
        InputError: If a class is not the memory's, or two labels are the same one.
    """
    names, ids = list(classes), torch.full((offer.pool.num_classes,), -1)
    for label in offer.pool.counts.nonzero().flatten().tolist():
        one = offer.meant[label]
        if isinstance(one, str) and one in names:
            one = names.index(one)
        elif isinstance(one, str) and growing and one.isdecimal():
            one = int(one)
        elif isinstance(one, str) and growing:
            names.append(one)
            one = len(names) - 1
        if isinstance(one, int) and growing and one < MOST_CLASSES:
            names += [str(number) for number in range(len(names), one + 1)]
        if isinstance(one, str) or not 0 <= one < len(names):
            raise InputError(
                f"class '{one}' is none of the memory's ({', '.join(names[:12])}); say with classes= which of them the "
                f"labels are"
            )
        if one in ids:
            raise InputError(f"two of the labels are class '{names[one]}'; give each label a class of its own")
        ids[label] = one
    return names, ids
