"""This process' operations on files below a folder, each told to a function just before, within and just after it."""

from __future__ import annotations

import builtins
import io
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

At = Callable[[str], None]
"""Is told a moment, such as ``'before replace'``; it may end the process, or raise in place of the operation."""


def watch_operations(folder: Path, at: At, calls: Sequence[str]) -> None:
    """Has ``at`` called for this process' operations on files below a folder, until it ends.

    Each of ``calls`` is told before and after, and so is ``open()``, as ``'before open'`` for writing and
    ``'before reading'``. Of what is written to a file, the moment is told when half of it is written. What a library
    does in C++ or Rust is not seen.

    Args:
        folder: The folder, absolute.
        at: What is called.
        calls: Names of functions of ``os`` and, beside them, ``'rmtree'`` of ``shutil``.
    """

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not _is_below(folder, args[0] if args else None, kwargs.get("dir_fd")):
                return function(*args, **kwargs)
            at(f"before {name}")
            result = function(*args, **kwargs)
            at(f"after {name}")
            return result

        return call

    for name in calls:
        owner = shutil if name == "rmtree" else os
        setattr(owner, name, watched(name, getattr(owner, name)))
    plain = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        inside, writes = _is_below(folder, file), bool(set(mode) & set("wax+"))
        if inside and not isinstance(file, int):
            at("before open" if writes else "before reading")
        stream = plain(file, mode, *args, **kwargs)
        if inside and writes:
            stream.write = _in_halves(stream, stream.write, at)
        return stream

    io.open = builtins.open = opened  # type: ignore[assignment]


def _is_below(folder: Path, path: Any, inside: int | None = None) -> bool:
    """Whether a path, or an open file, is below a folder; ``inside`` is an open folder that the path is relative to."""
    with suppress(TypeError, OSError):
        if inside is not None or isinstance(path, int):
            found = os.readlink(f"/proc/self/fd/{path if inside is None else inside}")
        else:
            found = os.path.abspath(os.fsdecode(path))
        return found == str(folder) or found.startswith(f"{folder}/")
    return False


def _in_halves(stream: Any, write: Callable[[Any], int], at: At) -> Callable[[Any], int]:
    def call(data: Any) -> int:
        half = len(data) // 2
        written = write(data[:half])
        stream.flush()
        at("half of a write")
        return written + write(data[half:])

    return call
