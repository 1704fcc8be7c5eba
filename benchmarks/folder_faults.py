"""What can go wrong with a folder while files are written to it, brought about at one operation on its files."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tgdd_plugin.recording.safeguard import drop_lost_files
from tgdd_plugin.trajectory.manifest import Run

CALLS = ("open", "fsync", "replace", "rename", "unlink", "remove", "mkdir", "stat", "write")
ERRORS = {
    "ENOSPC (disk full)": errno.ENOSPC,
    "EDQUOT (quota)": errno.EDQUOT,
    "EROFS (read-only)": errno.EROFS,
    "EIO": errno.EIO,
    "ESTALE (NFS)": errno.ESTALE,
    "EACCES": errno.EACCES,
}
"""Errors that take the place of an operation."""
DELETED = ("the folder", "a stage", "the manifest", "the newest file")
FAULTS = (
    *ERRORS,
    "MemoryError",
    "file size limit",
    "slow disk",
    *(f"{what} deleted" for what in DELETED),
    "mounted read-only",
    "mounted, full",
)
MOUNTED = tuple(fault for fault in FAULTS if fault.startswith("mounted"))
SPANS = {"one operation": 1, "five operations": 5, "to the end": 10**9}


class Fault:
    """Breaks a folder at one operation on its files, counted from the first batch on.

    Args:
        fault: One of :data:`FAULTS`.
        number: At which operation.
        span: For how many of them.
        folder: The trajectory folder.
    """

    def __init__(self, fault: str, number: int, span: int, folder: Path) -> None:
        self.fault, self.number, self.span, self.folder = fault, number, span, folder
        self.armed = self.busy = False
        self.count = 0
        self.deleted_at, self.looked_at = -1, 0  # by the clock, in nanoseconds

    def at(self, moment: str) -> None:
        """Is told every operation."""
        if not self.armed or self.busy or moment.startswith("after"):
            return
        place, self.count = self.count, self.count + 1
        self.busy = True
        try:
            if place == self.number:
                self._begin()
            if place == self.number + self.span:
                self._end()
            if self.number <= place < self.number + self.span:
                self._disturb()
        finally:
            self.busy = False

    def _begin(self) -> None:
        if self.fault == "file size limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        elif self.fault == "mounted read-only":
            _mount_again(self.folder, "remount,ro")
        elif self.fault == "mounted, full":
            with suppress(OSError), open(self.folder / "filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        elif self.fault.endswith("deleted"):
            self._delete()

    def _end(self) -> None:
        if self.fault == "file size limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        elif self.fault == "mounted read-only":
            _mount_again(self.folder, "remount,rw")
        elif self.fault == "mounted, full":
            (self.folder / "filler").unlink(missing_ok=True)

    def _disturb(self) -> None:
        if self.fault in ERRORS:
            raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]))
        if self.fault == "MemoryError":
            raise MemoryError
        if self.fault == "slow disk":
            time.sleep(0.02)

    def look(self, folder: Path, run: Run) -> list[str]:
        """Takes the place of the recording's own look for what is gone, and notes when it was."""
        self.looked_at = time.monotonic_ns()  # what is deleted meanwhile may have been looked at before
        return drop_lost_files(folder, run)

    def _delete(self) -> None:
        self.deleted_at = time.monotonic_ns()
        run = self.folder / "run"
        stages = sorted(run.glob("stage-*.safetensors"))
        if self.fault.startswith("the folder"):
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self.fault.startswith("a stage"):
            stages[len(stages) // 2].unlink()
        elif self.fault.startswith("the manifest"):
            (run / "manifest.json").unlink()
        else:
            with suppress(ValueError, OSError):  # one may be renamed just now
                max(run.iterdir(), key=lambda path: path.stat().st_mtime_ns).unlink()


def _mount_again(folder: Path, options: str) -> None:
    """By the system call: a child process would be one more thing that can fail."""
    flags = 32 | (1 if options.endswith("ro") else 0)  # MS_REMOUNT, MS_RDONLY
    # A file that is open for writing keeps a mount writable; the fault then comes a little later, or never.
    ctypes.CDLL(None).mount(b"none", os.fsencode(folder), b"tmpfs", flags, None)


def mount(folder: Path) -> None:
    """Mounts a file system of 1 MiB on a folder; an error if this process may not."""
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    subprocess.run(options, check=True, stderr=subprocess.DEVNULL)
