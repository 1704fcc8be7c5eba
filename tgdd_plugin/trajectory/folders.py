"""Where the runs of a trajectory lie."""

from __future__ import annotations

from pathlib import Path

from tgdd_plugin.core.errors import InputError, shown
from tgdd_plugin.trajectory.manifest import MANIFEST


def run_folders(folder: Path) -> list[Path]:
    """The folders of the runs in a trajectory folder, which may be that of a single run.

    Raises:
        InputError: If there is no such folder, or no recorded run in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no trajectory folder '{folder}'. Record one with TGDDCallback(folder=...).")
    if (folder / MANIFEST).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not found:
        inner = folder / "trajectory"
        remedy = f"Train with TGDDCallback(folder='{folder}') first."
        if any(inner.glob(f"*/{MANIFEST}")):  # what was given is the folder of a job
            remedy = f"Give '{inner}', which has one."
        elif sets := sorted(path.name for path in folder.glob("*.beton") if not path.name.startswith(".")):
            remedy = (
                f"Name one of its .beton files ({shown(', '.join(sets), 200)}), which tgdd show and tgdd retrain take, "
                f"or a folder with a recording."
            )
        raise InputError(f"The folder '{folder}' has no recorded run (no */{MANIFEST}). {remedy}")
    return found


def job_name(folder: Path) -> str:
    """The name of a trajectory folder's job: the folder's own, or that of the folder it lies in as ``trajectory``."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "trajectory" else folder.name
