"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tgdd_plugin.core.bounded_reading import open_regular
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.locks import is_at, locked

_TEMPORARY = re.compile(r"\..+\.([a-z0-9_]+\.tmp|lock)")  # as tempfile names them, and as locks are named


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a regular file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path, *, swept: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which replaces ``path`` at the end of the block.

    It is on the disk by then, and so is its name, also should the power fail. An exception inside the block, or an
    error in writing, leaves ``path`` as it was and removes the temporary file.

    Args:
        path: The file.
        swept: Whether what killed writers left of it was removed before; it takes a look at every name in the folder.
    """
    make_folder(path.parent)
    if not swept:
        sweep(path.parent, f".{path.name}.")
    temporary, handle = _temporary(path, folder=False)
    try:
        yield temporary
        # mkstemp makes files only their owner can read; a result should follow the user's umask.
        temporary.chmod(0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``folder``, which becomes ``folder`` at the end of the block.

    Raises:
        InputError: If ``folder`` has content, or is a file, or another process writes it, or the folder that it is to
            stand in can be neither made nor written to.
    """
    folder = folder.resolve()
    _check_place(folder)
    with locked(folder), _whole_folder(folder) as temporary:
        yield temporary


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "has content" if folder.is_dir() else "is a file"
        raise InputError(f"'{folder}' {what}. Name a folder that is new or empty.")
    sweep(folder.parent, f".{folder.name}.")
    temporary, handle = _temporary(folder, folder=True)
    try:
        yield temporary
        # mkdtemp makes folders only their owner can read; a result should follow the user's umask.
        temporary.chmod(0o777 & ~_umask())
        for inside, _, files in os.walk(temporary):
            for path in (*files, ""):
                sync(Path(inside) / path)
        os.rename(temporary, folder)  # onto an empty folder, too
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def write_whole(path: Path, content: bytes | str, *, swept: bool = False) -> None:
    """Writes ``content`` to ``path`` in one step (``os.replace``), and to the disk; as :func:`whole_file`."""
    with whole_file(path, swept=swept) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(path: Path) -> Path:
    """Returns ``path`` if a file can be written there. Call it before long work, whose result would be lost otherwise.

    What killed writers left of it, and of files beside it that share its stem, is removed.

    Raises:
        InputError: If ``path`` is a folder, or its folder can be neither made nor written to.
    """
    if path.is_dir():
        raise InputError(f"'{path}' is a folder. Name a file in it.")
    _check_place(path)
    sweep(path.parent, f".{path.stem}.")
    return path


def _check_place(path: Path) -> None:
    """Checks that the folder of ``path``, which is made where it is missing, can be written to."""
    try:
        make_folder(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        file = next((parent for parent in path.parents if parent.is_file()), None)
        reason = f"'{file}' is a file, not a folder" if file else error.strerror or error
        raise InputError(
            f"Cannot write '{path}': {reason}. Choose an output path in a folder that you may write to."
        ) from error


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, on the disk: a synced file in a folder that is lost would be lost."""
    if folder.is_dir():
        return
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync(place.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a folder with the names in it, is on the disk (``fsync``).

    Raises:
        OSError: If it cannot be written there; a full disk may say so only now.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs no folders
            raise
    finally:
        os.close(handle)


def sweep(folder: Path, prefix: str = ".") -> None:
    """Removes temporary files, folders and lock files of killed writers; those of living ones, which hold a lock, stay.

    Where the file system has no locks nothing is removed. See :func:`tgdd_plugin.core.locks.locked` for NFS.

    Args:
        folder: Where to look.
        prefix: How the names of the temporaries begin. Default: ``'.'``, all of them.
    """
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.name.startswith(prefix) and _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    _remove_stale(path)


def _remove_stale(path: Path) -> None:
    is_folder = path.is_dir() and not path.is_symlink()
    handle = os.open(path, os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_RDONLY if is_folder else os.O_RDWR))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)


def _temporary(path: Path, *, folder: bool) -> tuple[Path, int]:
    """Makes a temporary file or folder beside ``path``; it is not swept until the handle is closed or its owner dies.

    Returns:
        Its path and the handle, which holds the lock.
    """
    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
            try:
                handle = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # swept before it could be locked
        else:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            temporary = Path(name)
        with suppress(OSError):  # a file system without locks: nobody sweeps there
            fcntl.flock(handle, fcntl.LOCK_EX)
        if is_at(temporary, handle):
            return temporary, handle
        os.close(handle)


def _umask() -> int:
    # Linux tells it. To set it for a moment is seen by the process's other threads.
    with suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
