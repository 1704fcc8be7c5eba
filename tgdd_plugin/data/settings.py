"""Which images: every setting and its default."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import Count, Flag, Holdout, Number, settings_class
from tgdd_plugin.data.normalization import Normalization

TORCHVISION = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn")
NAMES = ("digits", *TORCHVISION, "image_folder", "beton")


class Known(NamedTuple):
    """What is known of a data set by its name."""

    side: int
    """The side of its images in pixels."""
    classes: int
    """The number of its classes."""
    per_class: int
    """The training images of its largest class."""


_KNOWN = {
    "digits": Known(8, 10, 128),
    "cifar10": Known(32, 10, 5000),
    "cifar100": Known(32, 100, 500),
    "mnist": Known(28, 10, 6742),
    "fashion_mnist": Known(28, 10, 6000),
    "svhn": Known(32, 10, 13_861),
}

# Which data sets take a key; for others it would be passed over in silence, and so it is refused.
_TAKERS = {
    "grayscale": ("image_folder",),
    "train": ("image_folder", "beton"),
    "test": ("image_folder", "beton"),
    "image_size": (*TORCHVISION, "image_folder"),
}


@settings_class
class DataSettings:
    """Which images, for training and for testing.

    Raises:
        InputError: For an unknown key, a value of the wrong type or out of range, or a key that has no effect on the
            named data.
    """

    name: str = "digits"
    """The data set: digits (scikit-learn's, which come with the package), cifar10, cifar100, mnist, fashion_mnist,
    svhn, image_folder, beton, or module:function of a function that returns two map-style data sets of (image, int)
    pairs, train and test."""
    root: str = "data"
    """Folder of torchvision's data sets, or for image_folder the folder that has train/<class>/ and val/<class>/ or
    test/<class>/. What is missing is downloaded where torchvision can."""
    train: str | None = None
    """The training file of beton, or another training folder of image_folder. null: found in root."""
    test: str | None = None
    """The same for testing."""
    image_size: Count | None = None
    """Side in pixels that images are resized (shorter side) and centre-cropped to. null: as they are."""
    grayscale: Flag = False
    """Turn the images of an image folder into grayscale."""
    per_class: Count | None = None
    """Use only so many training images of each class, drawn with seed 0. null: all."""
    mean: list[Number] | None = None
    """Per-channel mean for normalization, for pixels in [0, 1]. null: as the trajectory says; for recording, the
    training images' own. What takes a .beton has its card's, and refuses another."""
    std: list[Number] | None = None
    """Per-channel standard deviation for normalization; given together with mean."""
    holdout: Holdout = 0.0
    """Share of the training images to hold out and score on in place of the test images, for choosing settings without
    a look at the test set."""

    def image_folders(self) -> tuple[Path, Path]:
        """The folders of ``image_folder``, for training and for testing, named or found in root."""
        root = Path(self.root)
        found = next((path for path in (root / "val", root / "test") if path.is_dir()), root / "val")
        return Path(self.train) if self.train else root / "train", Path(self.test) if self.test else found

    @property
    def known(self) -> Known | None:
        """What is known of the images before they are read; ``None`` for a data set of the user's own."""
        known = _KNOWN.get(self.name)
        if known is None:
            return None
        # The share that is held out is rounded when the images are split.
        return Known(
            self.image_size or known.side, known.classes, min(self.per_class or known.per_class, known.per_class)
        )

    def __post_init__(self) -> None:
        if self.name not in NAMES and ":" not in self.name:
            raise InputError(
                f"`name` must be one of {', '.join(NAMES)}, or module:function, got '{self.name}'. Choose one, "
                f"or name a function of your own that returns two data sets, train and test."
            )
        Normalization.of(self.mean, self.std)
        for key, takers in _TAKERS.items():
            if getattr(self, key) and self.name not in takers:
                raise InputError(
                    f"`{key}` must be left out for data '{self.name}', where it has no effect, got "
                    f"{getattr(self, key)!r}. It is for {', '.join(takers)}."
                )
