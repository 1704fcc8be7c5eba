"""The data sets that a recipe can name; nothing else in the package knows the name of a data set."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets as tv
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Grayscale, Resize

from tgdd_plugin.beton.card import card_path, read_card
from tgdd_plugin.beton.compatibility import by_names
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.class_names import named_classes, number_names
from tgdd_plugin.core.errors import InputError, printable
from tgdd_plugin.core.import_string import import_function
from tgdd_plugin.data.conversion import check_depth
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.pipeline.file_checks import check_data, is_hidden, visible_files

_KNOWN: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "cifar10": (tv.CIFAR10, {"train": True}, {"train": False}),
    "cifar100": (tv.CIFAR100, {"train": True}, {"train": False}),
    "mnist": (tv.MNIST, {"train": True}, {"train": False}),
    "fashion_mnist": (tv.FashionMNIST, {"train": True}, {"train": False}),
    "svhn": (tv.SVHN, {"split": "train"}, {"split": "test"}),
}


def load_data(settings: DataSettings, *, progress: bool = False) -> tuple[ImagePool, ImagePool]:
    """Returns the train and test images of a recipe.

    Args:
        settings: The recipe's ``data`` section.
        progress: Whether to show a progress bar while images are read. Default: ``False``.

    Raises:
        InputError: If they cannot be found or used.
    """
    check_data(settings)
    train, test = _read(settings, progress)
    if settings.per_class is not None:
        generator = torch.Generator().manual_seed(0)
        index = train.draw(torch.arange(train.num_classes), settings.per_class, generator, "data.per_class")
        train = train.subset(index.flatten())
    if settings.holdout:
        train, test = train.split(settings.holdout, torch.Generator().manual_seed(1))
    return train, test


def _read(settings: DataSettings, progress: bool) -> tuple[ImagePool, ImagePool]:
    if settings.name == "digits":
        return _digits()
    if settings.name == "beton":
        if not settings.train or not settings.test:
            raise InputError(
                f"`data.train` and `data.test` must be .beton files for data 'beton', got '{settings.train or ''}' and "
                f"'{settings.test or ''}'. Give data.train=... and data.test=..."
            )
        train, test = _from_beton(settings.train), _from_beton(settings.test)
    else:
        sets = _image_folders(settings) if settings.name == "image_folder" else _datasets(settings)
        train, test = (ImagePool.from_dataset(dataset, progress=progress) for dataset in sets)
    test = by_names(test, train.classes)
    # Numbered classes are counted from the labels, and the last ones may lack test images.
    if test.num_classes < train.num_classes and test.classes == number_names(test.num_classes):
        test.name_classes(train.classes)
    return train, test


def _digits() -> tuple[ImagePool, ImagePool]:
    """Returns scikit-learn's 1,797 digits, 8×8 gray levels 0..16: 1,257 for training, 540 for testing, by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    index = train_test_split(torch.arange(len(labels)).numpy(), test_size=540, stratify=digits.target, random_state=0)
    train, test = (ImagePool(images[i], labels[i], number_names(10)) for i in index)
    return train, test


def _from_beton(path: str) -> ImagePool:
    images, labels = read_beton(path)
    return ImagePool(images, labels, read_card(path).classes if card_path(path).is_file() else None)


def _image_folders(settings: DataSettings) -> tuple[Any, Any]:
    train, test = settings.image_folders()
    steps: list[Any] = [Grayscale()] if settings.grayscale else []
    if settings.image_size:
        steps += [Resize(settings.image_size), CenterCrop(settings.image_size)]
    try:
        transform = Compose(steps) if steps else None
        sets = [_VisibleFolder(str(folder), transform, loader=_read_image) for folder in (train, test)]
    except FileNotFoundError as error:
        raise InputError(
            f"{str(error).splitlines()[0].rstrip('.')}. Put the images at <class>/<image>, in '{train}' and '{test}'."
        ) from error
    for folder in (train, test):
        _tell_ignored(folder)
    if sets[0].classes != sets[1].classes:
        raise _different_classes(train, test, *(set(each.classes) for each in sets))
    return sets[0], sets[1]


class _VisibleFolder(tv.ImageFolder):
    """torchvision's image folder without what lies in hidden folders, which it takes for classes and images."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = [name for name in super().find_classes(directory)[0] if not is_hidden(name)]
        return names, {name: number for number, name in enumerate(names)}

    @staticmethod
    def make_dataset(directory: Any, *arguments: Any, **options: Any) -> list[tuple[str, int]]:
        found = tv.ImageFolder.make_dataset(directory, *arguments, **options)
        return [each for each in found if not any(map(is_hidden, Path(each[0]).relative_to(directory).parts[:-1]))]


def _read_image(path: str) -> Image.Image:
    """An image as torchvision's own loader reads it, but for one of 16 bits, which that makes white without a word."""
    with Image.open(path) as image:
        check_depth(image, f"'{path}'")
        return image.convert("RGB")


def _different_classes(train: Path, test: Path, trained: set[str], tested: set[str]) -> InputError:
    """The error of two folders with different class folders, which names those that only one of them has."""
    only = [sorted(trained - tested), sorted(tested - trained)]
    composed = [{unicodedata.normalize("NFC", name) for name in names} for names in only]
    if composed[0] & composed[1]:  # such as those that macOS wrote, which look alike
        only = [[ascii(name)[1:-1] for name in names] for names in only]
    where = [f"{named_classes(names)} only in '{folder}'" for names, folder in zip(only, (train, test), strict=True)]
    found = ", ".join(each for each, names in zip(where, only, strict=True) if names)
    return InputError(f"'{train}' and '{test}' have different class folders. Give both the same names: {found}.")


def _tell_ignored(folder: Path) -> None:
    """Warns of files in the class folders that are not read, counted by suffix: their images would be missed."""
    inside = (inner for inner in folder.iterdir() if inner.is_dir() and not is_hidden(inner.name))
    files = (Path(file).name for inner in inside for file in visible_files(inner))
    ignored = Counter(
        Path(name).suffix.lower() or "no suffix"
        for name in files
        if not name.startswith(".") and not tv.folder.has_file_allowed_extension(name, tv.folder.IMG_EXTENSIONS)
    )
    if ignored:
        ordered = sorted(ignored.items(), key=lambda each: (-each[1], each[0]))[:10]
        counts = ", ".join(f"{count} of {printable(suffix)}" for suffix, count in ordered)
        warnings.warn(
            f"{ignored.total()} file(s) in '{folder}' are not read ({counts}). Convert images among them to one of "
            f"{', '.join(tv.folder.IMG_EXTENSIONS)}",
            stacklevel=2,
        )


def _datasets(settings: DataSettings) -> tuple[Any, Any]:
    transform = None
    if settings.image_size:
        transform = Compose([Resize(settings.image_size), CenterCrop(settings.image_size)])
    if settings.name in _KNOWN:
        make, *splits = _KNOWN[settings.name]
        found = [_found_or_downloaded(make, settings, transform=transform, **split) for split in splits]
        return found[0], found[1]
    pair = import_function("data", settings.name)()  # should it fail, its own traceback is what helps
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(
            f"`data.name` must be a function that returns two data sets, train and test, got {type(pair).__name__} "
            f"from '{settings.name}'. Return both as a pair."
        )
    return pair[0], pair[1]


def _found_or_downloaded(make: Callable[..., Any], settings: DataSettings, **options: Any) -> Any:
    try:
        return make(settings.root, download=False, **options)
    except Exception as error:  # not all of torchvision's data sets have checksums
        if not (isinstance(error, RuntimeError) and "Dataset not found" in str(error)):
            raise InputError(
                f"{settings.name} under '{settings.root}' is damaged ({type(error).__name__}: {error}). Delete it "
                f"there, and put or download it again."
            ) from error
    try:
        return make(settings.root, download=True, **options)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{settings.name} is not under '{settings.root}' and cannot be downloaded ({reason}). Put it there in "
            f"torchvision's layout, or set `data.root`."
        ) from error
