"""What a trajectory was recorded of, for the names of files where a recipe names no data."""

from __future__ import annotations

from pathlib import Path

from tgdd_plugin.core.bounded_reading import MIB, parse_json, read_bounded
from tgdd_plugin.pipeline.file_names import safe_name
from tgdd_plugin.trajectory.folders import job_name
from tgdd_plugin.trajectory.manifest import JOB, MANIFEST

JOB_SIZE = 1 * MIB
"""Most bytes of a ``job.json``, which has the settings of a recording."""


def recorded_name(trajectory: Path) -> str | None:
    """Returns what a trajectory is of: the data that its ``job.json`` names, or else its own folder's name.

    Args:
        trajectory: A trajectory folder, or the folder of a run in it.

    Returns:
        The name, safe for files; ``None`` if there is no such folder, or its name has nothing to name a file after.
    """
    if not trajectory.is_dir():
        return None
    folder = trajectory.resolve()
    if (folder / MANIFEST).is_file():
        folder = folder.parent
    return safe_name(_data_of(folder / JOB).rpartition(":")[2]) or safe_name(job_name(folder)) or None


def _data_of(job: Path) -> str:
    """The name of the data in a ``job.json``; nothing if it has none."""
    try:
        name = parse_json(read_bounded(job, JOB_SIZE, "file"))["data"]["name"]
    except (OSError, ValueError, KeyError, TypeError):  # an InputError is a ValueError
        return ""
    return name if isinstance(name, str) else ""
