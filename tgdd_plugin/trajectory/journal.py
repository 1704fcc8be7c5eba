"""The journal of a run that is being recorded: the stages that its manifest does not have yet, one line for each.

A manifest that were rewritten at every stage would cost more with each. So while a run goes on, its manifest names a
journal beside it, to which each stage adds a line::

    {"stage": {"file": ..., "index": ..., ...}, "drop": [files that were thinned away]}

Whatever else changes rewrites the manifest whole, which then names a new and empty journal; a finished run has none.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tgdd_plugin.core.atomic_files import make_folder, sync
from tgdd_plugin.core.bounded_reading import JSON_SIZE, parse_json, read_bounded
from tgdd_plugin.core.differences import for_json

_NAME = re.compile(r"stages-(\d{1,9})\.jsonl")


class Journal:
    """A new and empty journal, on the disk before any manifest names it.

    Args:
        folder: The run's folder, which is made if it is not there.
        about: What the manifest says beside its stages.
        count: The number of stages in the manifest.
    """

    def __init__(self, folder: Path, about: str, count: int) -> None:
        make_folder(folder)
        numbers = [int(name[1]) for path in folder.iterdir() if (name := _NAME.fullmatch(path.name))]
        self.path = folder / f"stages-{max(numbers, default=0) + 1}.jsonl"
        self.about = about
        self.count = count
        self.lines = 0
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        sync(folder)

    def append(self, stage: dict[str, Any], dropped: list[str]) -> None:
        """Adds the line of a stage, and waits until it is on the disk.

        After an error the journal may end with half a line, so it must not be appended to again.

        Raises:
            OSError: If it cannot be written, or is gone.
        """
        line = json.dumps({"stage": stage, "drop": dropped}, default=for_json) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)  # never made anew: lines would be lost
        with os.fdopen(handle, "wb") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(handle)
        self.count += 1 - len(dropped)
        self.lines += 1

    @property
    def is_long(self) -> bool:
        """Whether most of its lines are of stages that are thinned away by now, so that it is to be begun anew.

        Seldom enough that the cost of a stage does not depend on it, and soon enough that it is read in no time.
        """
        return self.lines > 2 * self.count + 100


def with_journal(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Returns the parsed content of a manifest with the stages of the journal that it names; nothing is checked yet.

    Half a line at the end, of a stage that is being written or was never written to its end, is left out.

    Raises:
        FileNotFoundError: If the journal is gone, as when the manifest was rewritten meanwhile.
        OSError: If it cannot be read.
        InputError: If it is not a regular file, or too large.
        ValueError: If manifest or journal are not such; the message is one line.
    """
    name = content.get("journal")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"journal must be the name of a journal in this folder, got {name!r:.60}")
    stages = content.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError("stages must be a list of mappings")
    found = {str(stage.get("file")): stage for stage in stages}
    lines = read_bounded(folder / name, JSON_SIZE, "journal").split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line)
            stage = entry["stage"]
            if found.setdefault(str(stage["file"]), stage) is not stage:
                raise ValueError("it stands there already")
            for file in entry["drop"]:
                del found[file]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"line {number} of its journal '{name}' is damaged") from None
    return {**content, "stages": list(found.values())}


def remove_journals(folder: Path, keep: Journal | None = None) -> None:
    """Removes the journals that no manifest names any more; what is left over is removed the next time."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name) and (keep is None or path != keep.path):
                path.unlink(missing_ok=True)
