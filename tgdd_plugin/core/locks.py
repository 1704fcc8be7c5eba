"""One writer at a time: a lock on a file or folder that somebody works on, which the kernel lets go when they die."""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tgdd_plugin.core.errors import InputError

WAIT = 5.0
"""Seconds that a second process waits if nothing else is said: what a killed one's own processes take to notice."""

_PAUSE = 0.05  # seconds between two tries
_HOLDER = re.compile(r"process \d+ on [\w.-]{1,255}")


@dataclass
class _Lock:
    """A lock that this process holds, ``count`` times over; no ``handle`` where the file system has no locks."""

    handle: int | None
    count: int = 1


_held: dict[Path, _Lock] = {}
_guard = threading.RLock()


@contextmanager
def locked(path: Path, *, wait: float | None = None) -> Iterator[None]:
    """Keeps other processes from working on ``path``, a file or a folder that need not exist yet, during the block.

    The lock is ``fcntl.flock`` on the hidden file ``.<name>.lock`` beside it, which says who holds it and is removed at
    the end. The lock ends with its process, however that dies: a file that is left over binds nobody. It is the
    process's: blocks within blocks, and threads, never wait for each other, and forked children do not hold it.

    On NFS it also holds between machines (Linux turns it into a lock of the server since 2.6.12), unless the folder is
    mounted with ``local_lock=flock`` or ``all``, or the server has no locks: then processes of one machine see each
    other and no others. Where there can be no lock at all, as on some network file systems, the block runs without.

    Args:
        path: What is worked on.
        wait: Seconds to wait for another process to end. Default: ``None``, which is :data:`WAIT`.

    Raises:
        InputError: If another process still works on it.
    """
    file = path.parent.resolve() / f".{path.name}.lock"
    lock = _acquire(file, path, WAIT if wait is None else wait)
    try:
        yield
    finally:
        _release(file, lock)


def is_at(path: Path, handle: int) -> bool:
    """Returns whether an open file or folder still is the one at ``path``."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _acquire(file: Path, path: Path, wait: float) -> _Lock:
    deadline = time.monotonic() + wait
    while True:
        with _guard:
            if lock := _held.get(file):
                lock.count += 1
                return lock
            if lock := _try(file):
                _held[file] = lock
                return lock
        if time.monotonic() >= deadline:
            raise InputError(
                f"'{path}' is in use: {_holder(file)} is working here. Wait until it has ended, or choose another path."
            )
        time.sleep(_PAUSE)


def _try(file: Path) -> _Lock | None:
    """Returns the lock, or ``None`` if another process holds it."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = _open(file)
        except OSError:  # nothing can be written there, which is not for a lock to say
            return _Lock(None)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # a file system without locks
            with suppress(OSError):
                file.unlink()
            os.close(handle)
            return _Lock(None)
        if is_at(file, handle):  # the holder before may have removed it since it was opened
            break
        os.close(handle)
    with suppress(OSError):  # a full disk, or another user's file: the lock holds without the text
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return _Lock(handle)


def _open(file: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(file, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's; a lock needs no more than to read it
        return os.open(file, flags | os.O_RDONLY | os.O_NONBLOCK)


def _holder(file: Path) -> str:
    """Returns who holds a lock, in words, as far as the file says it."""
    try:
        with open(file, "rb") as opened:
            text = opened.read(300).decode("ascii", "replace").strip()
    except OSError:
        text = ""
    return text if _HOLDER.fullmatch(text) else "another process"


def _release(file: Path, lock: _Lock) -> None:
    with _guard:
        lock.count -= 1
        if lock.count > 0 or _held.get(file) is not lock:  # not ours in a forked child
            return
        del _held[file]
        _let_go(file, lock)


def _let_go(file: Path, lock: _Lock) -> None:
    """Removes the file while the lock still holds, so that nobody's lock is on a file that is gone."""
    if lock.handle is None:
        return
    with suppress(OSError):
        if is_at(file, lock.handle):
            file.unlink()
    os.close(lock.handle)


def _let_all_go() -> None:
    """At the end of the process: what is held until then, as by a recording that was never finished."""
    with _guard:
        while _held:
            _let_go(*_held.popitem())


def _forget() -> None:
    """In a forked child, such as a worker of a data loader, which must not keep a lock alive longer than its parent."""
    global _guard
    _guard = threading.RLock()
    for lock in _held.values():
        if lock.handle is not None:
            os.close(lock.handle)  # the parent's own handle, and the lock, stay
    _held.clear()


atexit.register(_let_all_go)
os.register_at_fork(after_in_child=_forget)
