"""Reading files that may come from elsewhere: regular files only, no more than a limit, and JSON that stays small.

A named pipe waits for ever, ``/dev/zero`` never ends, and a small file can ask for much memory or time. What is read
here does neither: reading ends at once with one clear line. YAML is in :mod:`tgdd_plugin.core.bounded_yaml`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tgdd_plugin.core.errors import InputError

MIB = 2**20

RECIPE_SIZE = 1 * MIB
"""Most bytes of a recipe; recipes/own_data.yaml, with every key there is, has 12 KiB."""

CARD_SIZE = 8 * MIB
"""Most bytes of a card. It has a line for each stage: 60,000 of them are 4 MiB."""

JSON_SIZE = 32 * MIB
"""Most bytes of a manifest, or a file of results. 3,000 stages are 1 MiB of a manifest."""

HEADER_SIZE = 16 * MIB
"""Most bytes of the header of a safetensors file, which has about 100 for each tensor."""

MOST_VALUES = 2_000_000
"""Most values of a JSON file: each takes up to 72 bytes of memory, and as few as 2 of the file."""

MOST_LEVELS = 32
"""Most lists and mappings within each other. A card has six."""

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: str | Path) -> None:
    """Raises an InputError if a path is there and is not that of a regular file, whose reading might never end.

    Raises:
        OSError: If it is not there, or may not be looked at.
    """
    _check_mode(path, os.stat(path).st_mode)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading bytes.

    Raises:
        InputError: If it is anything else: a folder, a named pipe, a device or a socket.
        OSError: If it cannot be opened.
    """
    check_regular(path)  # before it is opened, which some devices take for a command
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(path, os.fstat(handle).st_mode)  # of what was opened
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_mode(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise InputError(f"'{path}' must be a regular file, got {kind}. Name a file.")


def read_bounded(path: str | Path, most: int, what: str) -> bytes:
    """Reads a regular file whole.

    Args:
        path: The file.
        most: The most bytes it may have.
        what: What it is, for the error: ``'recipe'``.

    Raises:
        InputError: If it is not a regular file, or larger.
        OSError: If it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, most) + 1)
        if len(content) > size:  # it grows, or is one of /proc, which have no size
            content += file.read(most + 1)
    if len(content) > most:
        raise InputError(
            f"The {what} '{path}' must have at most {most / MIB:g} MiB, got more. Name a {what}, or copy it again."
        )
    return content


def check_tensor_file(path: str | Path) -> None:
    """Checks that a path is that of a regular file, whose safetensors header is not too large.

    What the header says of shapes and places, the safetensors library checks against the size of the file.

    Raises:
        InputError: If it is not a regular file.
        OSError: If it cannot be read, or its header is larger than :data:`HEADER_SIZE`.
    """
    with open_regular(path) as file:
        if int.from_bytes(file.read(8), "little") > HEADER_SIZE:
            raise OSError(f"its header is larger than {HEADER_SIZE // MIB} MiB")


def decode(content: bytes) -> str:
    """UTF-8 as text, without a byte order mark.

    Raises:
        ValueError: If it is not UTF-8; the message says so in one line.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None


def parse_json(content: bytes | str) -> Any:
    """Parses JSON of at most :data:`MOST_VALUES` values and :data:`MOST_LEVELS` levels, each key of a mapping once.

    Raises:
        ValueError: If it is anything else; the message is one line.
    """
    text = decode(content) if isinstance(content, bytes) else content
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    too_deep = f"it has more than {MOST_LEVELS} lists and mappings within each other"
    try:
        parsed = json.loads(text, object_pairs_hook=_mapping)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [parsed]
    for _ in range(MOST_LEVELS + 1):
        nested = [value for value in level if isinstance(value, list | dict)]
        if not nested:
            return parsed
        level = [inner for value in nested for inner in (value.values() if isinstance(value, dict) else value)]
    raise ValueError(too_deep)


def _mapping(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {keys[repeated(keys)]!r:.60} stands twice")
    return found


def repeated(keys: Sequence[Hashable]) -> int:
    """Returns the position of the first key that stood before, in time that grows with their number; 0 for none."""
    seen: set[Hashable] = set()
    for place, key in enumerate(keys):
        if key in seen:
            return place
        seen.add(key)
    return 0
