"""What files tell of a mistake in a job without being read in full: what is missing, empty, or something else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tgdd_plugin.beton.card import card_path, read_card
from tgdd_plugin.core.errors import InputError, shown
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.pipeline.step_table import BETON, TRAJECTORY
from tgdd_plugin.trajectory.folders import run_folders

PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The suffixes of files that torchvision's ``ImageFolder`` takes for images."""


def check_kind(step: str, path: str, wanted: str) -> None:
    """Checks that a file or folder that stands in place of a recipe is not another kind of thing.

    Args:
        step: The name of the step.
        path: What was given.
        wanted: What may be given in place of a recipe, in words; empty if nothing may.

    Raises:
        InputError: If it is a ``.beton`` or a folder, and the step takes none.
    """
    remedy = f"Give {wanted + ' or ' if wanted else ''}a recipe (YAML)."
    if path.endswith(".beton") and wanted != BETON:
        steps = "tgdd retrain, evaluate and nas take one"
        raise InputError(f"tgdd {step} takes no .beton, got '{shown(path)}'. {remedy} ({steps}.)")
    if Path(path).is_dir() and wanted != TRAJECTORY:
        recorded = _has_runs(Path(path))
        what = "trajectory folder" if recorded else "folder"
        hint = " tgdd distill takes one." if recorded else ""
        raise InputError(f"tgdd {step} takes no {what}, got '{shown(path)}'. {remedy}{hint}")


def check_data(data: DataSettings) -> None:
    """Checks that the files are there which the images are read from.

    Raises:
        InputError: If a folder of ``image_folder`` is missing or has no images, or a ``.beton`` is missing.
    """
    if data.name == "image_folder":
        for folder in data.image_folders():
            _check_images(folder)
    elif data.name == "beton":
        for file in (data.train, data.test):
            if file and not Path(file).is_file():
                raise InputError(f"There is no file '{file}'. Name .beton files in data.train and data.test.")


def check_fit(data: DataSettings, beton: Path) -> None:
    """Checks the size of the images of a ``.beton`` against what is known of the data by its name, and its
    normalization, with which networks are trained on it, against a given one.

    Raises:
        InputError: If one of them is another one, or the card cannot be used.
    """
    card = read_card(beton)
    if data.known is not None and card.shape[1:] != [data.known.side, data.known.side]:
        raise InputError(
            f"`data.name` must be the data that '{beton}' was made from, whose images are of {card.shape}, got "
            f"{data.name}, of {data.known.side} pixels a side. Name that data set in data.name."
        )
    given = Normalization.of(data.mean, data.std)
    if given is not None and not given.of_channels(card.shape[0]).is_close(card.normalization):
        raise InputError(
            f"`data.mean` and `data.std` must be those of '{beton}', {card.normalization}, with which its images are "
            f"used, got {given}. Leave them out."
        )


def find_sets(path: Path) -> list[Path]:
    """The files of which a report tells: ``.beton`` files, or one to be where a job was cut off before it was there.

    Raises:
        InputError: If there is neither, or a file has no card.
    """
    if path.is_file():
        read_card(path)
        return [path]
    if path.is_dir():
        betons = [file for file in sorted(path.glob("*.beton")) if not file.name.startswith(".")]
        if found := [file for file in betons if card_path(file).is_file()]:
            return found
        if (path / "scores.json").is_file():
            raise InputError(
                f"tgdd report takes no folder of a replay, got '{path}'. Its scores are in scores.json, its losses in "
                f"replay-log.csv."
            )
        names = [log.name.removesuffix("-log.csv") for log in sorted(path.glob("*-log.csv"))]
        if distilling := [name for name in names if not name.endswith(("-retrain", "-evaluation"))]:
            return [path / f"{name}.beton" for name in distilling]
        if _has_runs(path / "trajectory"):
            return [path / f"{path.resolve().name}.beton"]
    what = "folder with a .beton and its card, or a recording," if path.is_dir() else ".beton or folder"
    raise InputError(f"There is no {what} '{path}'. Name what tgdd run or tgdd distill wrote.")


def check_ending(option: str, path: str, endings: Sequence[str]) -> None:
    """Checks that a file to be written has the ending of its kind: a set's own name, given again, would be replaced.

    Args:
        option: The option of the command line.
        path: What was given.
        endings: The endings that it may have.

    Raises:
        InputError: If it has another one. What is said of a folder is left to whatever writes the file.
    """
    if Path(path).suffix.lower() not in endings and not Path(path).is_dir():
        wanted, example = " or ".join(endings), f"{Path(path).stem}{endings[0]}"
        raise InputError(f"`{option}` must end in {wanted}, got '{path}'. Give a name such as '{example}'.")


def _has_runs(folder: Path) -> bool:
    try:
        return bool(run_folders(folder))
    except InputError:
        return False


def _check_images(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(
            f"There is no folder '{folder}'. Set `data.root` to a folder with train/<class>/ and val/<class>/ in it."
        )
    classes = [entry.path for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name)]
    if not classes:
        raise InputError(
            f"'{folder}' must have a folder for each class, got none. Put the images at <class>/<image> in it."
        )
    for path in sorted(classes):
        if not _has_image(path):
            raise InputError(
                f"The class folder '{path}' must have images ({', '.join(PICTURES)}), got none. Put some there, or "
                f"delete the folder."
            )
    if len(classes) == 1:
        raise InputError(
            f"'{folder}' must have folders of at least 2 classes, got '{Path(classes[0]).name}' alone. Put the images "
            f"at <class>/<image> in it."
        )


def _has_image(folder: str) -> bool:
    """Whether a folder, or one in it, has a file whose name is that of an image."""
    return any(path.lower().endswith(PICTURES) for path in visible_files(folder))


def is_hidden(name: str) -> bool:
    """Whether a folder of that name is passed over, as ``.ipynb_checkpoints``, which Jupyter makes."""
    return name.startswith(".")


def visible_files(folder: str | Path) -> Iterator[str]:
    """Yields the paths of the files in a folder and in those in it, but for hidden ones."""
    for path, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not is_hidden(name)]
        yield from (os.path.join(path, name) for name in names)
