"""What can be added to a replay memory, in one form, and which of the memory's classes its labels are."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_stored
from tgdd_plugin.core.checked_json import MOST_CLASSES
from tgdd_plugin.core.class_names import number_names
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization

SourceLike = str | os.PathLike[str] | ImagePool | tuple[torch.Tensor, torch.Tensor]
"""A ``.beton`` with its card, a pool of images, or uint8 images ``(N, C, H, W)`` and their labels ``(N,)``."""


@dataclass(frozen=True)
class Source:
    """Images that are to be added to a memory.

    Args:
        pool: The images; the stored ones if the file is packed.
        factor: The factor f of multi-formation at which they are stored.
        normalization: The normalization that the card notes, if there is a card.
        meanings: For each label, which of the memory's classes it means: a name or an id.
    """

    pool: ImagePool
    factor: int
    normalization: Normalization | None
    meanings: list[str | int]

    @classmethod
    def of(cls, source: SourceLike, classes: Sequence[str | int] | None = None, known: Collection[str] = ()) -> Source:
        """Reads a source; see :meth:`tgdd_plugin.replay.memory.ReplayMemory.add` for the first two arguments.

        Names that are the numbers 0, 1, ... count as none, so that the labels are the memory's ids. Those of a file are
        names where the memory has classes of these names, ``known``: digits may be learned in any order.

        Raises:
            InputError: If a file or its card cannot be used, or the labels are not those of ``classes``.
        """
        given = None if classes is None else _names_or_ids(classes)
        factor, normalization, names = 1, None, None
        if isinstance(source, ImagePool):
            images, labels, names = source.images, source.labels, source.classes
        elif isinstance(source, tuple) and len(source) == 2:
            images, labels = source
        elif not isinstance(source, str | os.PathLike):
            raise InputError(
                f"`source` must be a .beton, an ImagePool, or images and labels, got a {type(source).__name__}. Of a "
                f"data set give ImagePool.from_dataset(...)."
            )
        else:
            card = read_card(Path(source))
            images, labels, _ = read_stored(Path(source))
            factor, normalization, names = card.factor if card.packed else 1, card.normalization, card.classes
        pool = ImagePool(images, labels, names if given is None else [str(one) for one in given])
        if given is not None:
            return cls(pool, factor, normalization, given)
        named = pool.classes != number_names(pool.num_classes)
        if not named and not isinstance(source, ImagePool | tuple):
            named = set(pool.names_of(pool.counts.nonzero().flatten())) <= set(known)
        return cls(pool, factor, normalization, [*pool.classes] if named else [*range(pool.num_classes)])

    def check_form(self, shape: Sequence[int], factor: int) -> None:
        """Checks that the images can be mixed with others of ``shape`` (C, H, W), stored at ``factor``.

        Raises:
            InputError: If they cannot.
        """
        if (self.pool.shape, self.factor) != (tuple(shape), factor):
            raise InputError(
                f"`source` must have images of {list(shape)} (channels, height, width) at factor {factor} like those "
                f"in the memory, got {list(self.pool.shape)} at factor {self.factor}. Give all images in one size, and "
                f"pack all at one factor or none."
            )

    def agreed_normalization(self, memory: Normalization | None) -> Normalization | None:
        """Returns the memory's normalization or, if it has none, the card's; it has a value for each channel.

        Raises:
            InputError: If the two differ, or do not have as many channels as the images.
        """
        if memory is None:
            return self.normalization
        memory = memory.of_channels(self.pool.shape[0])
        if self.normalization and not self.normalization.is_close(memory):
            raise InputError(
                f"`source` must have the normalization of the memory, {memory}, got {self.normalization}. Distill all "
                f"tasks with the normalization that the learner trains with."
            )
        return memory


def _names_or_ids(classes: Any) -> list[str | int]:
    """Returns names as they are, and whole numbers of any library, such as NumPy's, as ``int``.

    Raises:
        InputError: If one is neither, or these are no list.
    """
    try:
        return [one if isinstance(one, str) else operator.index(one) for one in classes]
    except TypeError as error:
        raise InputError(
            f"`classes` must be a list of names or whole numbers, got {classes!r}. Say for each label which of the "
            f"memory's classes it is."
        ) from error


def identify(source: Source, classes: list[str], growing: bool) -> tuple[list[str], torch.Tensor]:
    """Finds the class id that each label of a source means.

    Args:
        source: The images; a class without images is passed over.
        classes: The names of the memory's classes, by id.
        growing: Whether there may be further classes. A new name gets the next id; a name that is a number, such as
            "7" and not "07", gets that number, unless it is of a class with another name.

    Returns:
        The names including the new ones, and the id of each label, ``(K,)``.

    Raises:
        InputError: If a class is not one of the memory's, or two labels mean the same one.
    """
    names, ids = list(classes), torch.full((source.pool.num_classes,), -1)
    for label in source.pool.counts.nonzero().flatten().tolist():
        one = source.meanings[label]
        if isinstance(one, str) and one in names:
            one = names.index(one)
        elif isinstance(one, str) and growing and one.isdecimal() and str(int(one)) == one:
            one = _id_by_name(one, names)
        elif isinstance(one, str) and growing:
            names.append(one)
            one = len(names) - 1
        if isinstance(one, int) and growing and one < MOST_CLASSES:
            names += number_names(one + 1)[len(names) :]
        if isinstance(one, str) or not 0 <= one < len(names):
            raise InputError(
                f"`classes` must be among the memory's classes ({', '.join(names[:12])}), got '{one}'. Say with "
                f"`classes` which of them the labels are."
            )
        if one in ids:
            raise InputError(
                f"`classes` must be another class for each label, got '{names[one]}' for two of them. Give each label "
                f"a class of its own."
            )
        ids[label] = one
    return names, ids


def _id_by_name(name: str, names: Sequence[str]) -> int:
    """Returns the id that a new class's name is, such as 7 for '7'.

    Raises:
        InputError: If the class of this id has another name.
    """
    number = int(name)
    if number < len(names) and names[number] != name:
        raise InputError(
            f"`classes` must have a number for a name only where it is the id of that class, got '{name}' where class "
            f"{number} is '{names[number]}'. Give other names or ids of the labels as `classes`."
        )
    return number


def check_names(classes: Sequence[str]) -> None:
    """Checks that classes have different names.

    Raises:
        InputError: If two have the same.
    """
    if len(set(classes)) < len(classes):
        raise InputError(
            f"`classes` must be different names, got {', '.join(classes[:12])}, with one name twice. Name each class "
            f"differently."
        )


def check_new_classes(new: Sequence[int], known: Collection[int], names: Sequence[str], task: str) -> None:
    """Checks that the classes of a task are not in the memory yet.

    Args:
        new: The class ids of the task.
        known: The class ids of the images in the memory.
        names: The names of the classes, by id.
        task: The name of the task.

    Raises:
        InputError: If one is in it.
    """
    if twice := [one for one in new if one in known]:
        raise InputError(
            f"`classes` must be new to the memory, got '{names[twice[0]]}' of '{task}', which is in it already. Say "
            f"with `classes` what the labels are, or give `domain=True` if these are more images of the same class."
        )
