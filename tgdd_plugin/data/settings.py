"""Which images: every setting and its default."""

from __future__ import annotations

from dataclasses import dataclass

from tgdd_plugin.core.errors import InputError

TORCHVISION = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn")
NAMES = ("digits", *TORCHVISION, "image_folder", "beton")


@dataclass(frozen=True)
class DataSettings:
    """Which images.

    Args:
        name: One of :data:`NAMES`, or ``module:function`` of a function that returns two map-style data sets of
            (image, int) pairs, train and test. Default: ``'digits'``, scikit-learn's, which come with the package.
        root: Folder of torchvision's data sets, or for ``image_folder`` the folder that has ``train`` and ``val`` or
            ``test``. What is missing is downloaded where torchvision can. Default: ``'data'``.
        train, test: Files (``beton``) or folders (``image_folder``). Default: found in ``root``.
        image_size: Side in pixels that images are resized (shorter side) and centre-cropped to. Default: as they are.
        grey: Whether to turn an image folder grey. Default: ``False``.
        per_class: Use only so many training images of each class, drawn with seed 0. Default: ``None``, all.
        mean, std: Per-channel normalisation for pixels in [0, 1]. Default: what the trajectory says; for recording, the
            training images' own.
        holdout: Share of the training images to hold out and score on in place of the test images: for choosing
            settings without a look at the test set. Default: ``0.0``.
    """

    name: str = "digits"
    root: str = "data"
    train: str | None = None
    test: str | None = None
    image_size: int | None = None
    grey: bool = False
    per_class: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise InputError(f"holdout is {self.holdout}; wanted a share of the training images from 0 to below 1")
        if self.name not in NAMES and ":" not in self.name:
            raise InputError(f"name '{self.name}' is unknown; wanted one of {', '.join(NAMES)}, or module:function")
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise InputError(f"mean is {self.mean} and std {self.std}; wanted both or neither, one value per channel")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise InputError(f"std is {self.std}; wanted values above 0")
        for name in ("image_size", "per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; wanted at least 1")
        # What would be passed over in silence is refused.
        folders, files = ("image_folder",), ("image_folder", "beton")
        for name, takers in (
            ("grey", folders),
            ("train", files),
            ("test", files),
            ("image_size", (*TORCHVISION, *folders)),
        ):
            if getattr(self, name) and self.name not in takers:
                raise InputError(f"{name} has no effect on data '{self.name}'; leave it out (for {', '.join(takers)})")
