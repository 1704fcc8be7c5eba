"""Tries of a harness, each in a child forked from a process that has imported everything once.

Importing torch, Composer and FFCV takes seven seconds and most tries take one. The parent must only import: what it
would compute, the children would inherit, and torch's threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.utils import collect_env

LIMIT = 120.0
"""Seconds after which a child counts as one that hangs."""

PATIENCE = 5.0
"""Seconds in which the processes that a child leaves behind must end by themselves."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        how: ``'done'``, ``'killed'``, ``'failed'`` (an exception, or another signal) or ``'hung'``.
        seconds: How long it ran.
        output: The end of what it printed.
        orphans: Whether it left processes behind.
    """

    how: str
    seconds: float
    output: str = ""
    orphans: bool = False


def run_forked(
    work: Callable[[], Any], folder: Path, log: Path, *, kill_after: float | None = None, limit: float = LIMIT
) -> Ended:
    """Calls ``work`` in a forked child with ``folder`` as its current one.

    Args:
        work: What the child does.
        folder: Its current folder.
        log: A file for what it prints, replaced.
        kill_after: Seconds after which it is killed by SIGKILL. Default: ``None``, it is not.
        limit: Seconds after which it counts as one that hangs.
    """
    collect_env.get_cpu_model()  # for which Composer starts a Python, once a process: each child would do it anew
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_child(work, folder, log)
    handle = os.pidfd_open(child)
    try:
        ended = select.select([handle], [], [], limit if kill_after is None else kill_after)[0]
        if not ended:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(handle)
    seconds = time.monotonic() - start
    orphans = not _is_empty(child)
    if orphans:
        os.killpg(child, signal.SIGKILL)
    output = log.read_text(errors="replace")[-4000:] if log.is_file() else ""
    if not ended and kill_after is None:
        return Ended("hung", seconds, output, orphans)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Ended("killed", seconds, output, orphans)
    return Ended("done" if status == 0 else "failed", seconds, output, orphans)


def _is_empty(group: int) -> bool:
    """Whether a group of processes comes to an end by itself, as multiprocessing's helpers do."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def _be_the_child(work: Callable[[], Any], folder: Path, log: Path) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder)
        work()
        status = 0
    except BaseException:
        with suppress(BaseException):
            os.write(2, traceback.format_exc().encode())
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def keep_failure(place: Path, kept: Path, log: Path) -> None:
    """Keeps the folder of a try that failed, and what its last child printed."""
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(place, kept, symlinks=True)
    shutil.copy(log, kept / "log.txt")


class Tries:
    """The tries of a harness in a JSON lines file, so that a harness that was broken off goes on.

    Args:
        path: The file; a last line that is torn is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text().splitlines():
                with suppress(ValueError):
                    self.rows.append(json.loads(line))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a try."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def missing(self, key: str, values: list[Any]) -> Iterator[Any]:
        """The values of a key that no try has yet."""
        done = {json.dumps(row.get(key)) for row in self.rows}
        return (value for value in values if json.dumps(value) not in done)
