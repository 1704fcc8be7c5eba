"""Comparing the files of a run with its manifest, also while the run is being recorded and thinned."""

from __future__ import annotations

from pathlib import Path

from tgdd_plugin.core.atomic_files import sha256
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.trajectory.manifest import EXEMPLARS, Run

_READINGS = 1000  # of a manifest whose stages are thinned away faster than they are read


def with_checked_files(folder: Path, run: Run) -> Run:
    """Compares a run's files with their checksums, and returns the run: as it is by then, if it is being recorded.

    A file that is missing, or another, because its stage was thinned away or its run begun anew meanwhile, is one that
    the manifest does not name any more when it is read again.

    Raises:
        InputError: If a file that the manifest names is missing or differs from its checksum.
    """
    checked: set[tuple[str, str]] = set()
    for reading in range(_READINGS):
        try:
            for stage in run.stages:
                if (stage.file, stage.sha256) not in checked:
                    _check_file("stage", folder / stage.file, stage.sha256)
                    checked.add((stage.file, stage.sha256))
            if run.exemplars is not None:
                _check_file("exemplars", folder / EXEMPLARS, run.exemplars)
            break
        except InputError:
            earlier, run = run, Run.read(folder)
            if run == earlier or reading == _READINGS - 1:
                raise
    return run


def was_dropped(path: Path) -> bool:
    """Returns whether the manifest beside a stage's file does not name it, as it was thinned away."""
    try:
        return path.name not in {stage.file for stage in Run.read(path.parent).stages}
    except InputError:
        return False


def _check_file(what: str, path: Path, checksum: str) -> None:
    try:
        found = sha256(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"The {what} file '{path}' is missing. Copy the whole folder or record the run again."
        ) from None
    if found != checksum:
        raise InputError(
            f"The {what} file '{path}' is damaged: its checksum differs from the manifest's. Copy the folder again or "
            f"record the run again."
        )
