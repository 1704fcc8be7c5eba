"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tgdd_plugin.core.errors import InputError


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which replaces ``path`` at the end of the block.

    An exception inside the block leaves ``path`` as it was and removes the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files only their owner can read; a result should follow the user's umask.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``folder``, which becomes ``folder`` at the end of the block.

    Raises:
        InputError: If ``folder`` has content, or is a file.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "has content" if folder.is_dir() else "is a file"
        raise InputError(f"'{folder}' {what}. Name a folder that is new or empty.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
        # mkdtemp makes folders only their owner can read; a result should follow the user's umask.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        os.rename(temporary, folder)  # onto an empty folder, too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes ``content`` to ``path`` in one step (``os.replace``)."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(path: Path) -> Path:
    """Returns ``path`` if a file can be written there. Call it before long work, whose result would be lost otherwise.

    Raises:
        InputError: If ``path`` is a folder, or its folder can be neither made nor written to.
    """
    if path.is_dir():
        raise InputError(f"'{path}' is a folder. Name a file in it, for example {path / 'distilled.beton'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        file = next((parent for parent in path.parents if parent.is_file()), None)
        reason = f"'{file}' is a file, not a folder" if file else error.strerror or error
        raise InputError(
            f"Cannot write '{path}': {reason}. Choose an output path in a folder that you may write to."
        ) from error
    return path
