"""One writer at a time, tried with real processes: who waits, who is refused, and what a killed one leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tgdd_plugin import InputError
from tgdd_plugin.core.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from tgdd_plugin.core.locks import locked
with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that holds the lock of ``path`` until it is told to let go, or is killed."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout and self.process.stdout.readline() == "holding\n"

    def let_go(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def script(code: str, path: Path) -> list[str]:
    """The command that runs some lines of Python with a path as their argument."""
    return [sys.executable, "-c", textwrap.dedent(code), str(path)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_told_who_works_here(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "out.beton")
    wanted = (
        f"'{tmp_path}/out.beton' is in use: process {holder.process.pid} on {socket.gethostname()} is working here. "
        f"Wait until it has ended, or choose another path."
    )
    with pytest.raises(InputError, match=f"^{re.escape(wanted)}$"):
        with locked(tmp_path / "out.beton", wait=0):
            pass
    with locked(tmp_path / "another.beton", wait=0):
        pass
    holder.let_go()
    assert names(tmp_path) == []
    with locked(tmp_path / "out.beton", wait=0):
        assert names(tmp_path) == [".out.beton.lock"]
    assert names(tmp_path) == []


def test_a_second_process_waits_for_one_that_ends_soon(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "new" / "folder")
    threading.Timer(0.2, holder.let_go).start()
    with locked(tmp_path / "new" / "folder", wait=60):
        pass
    assert names(tmp_path / "new") == []


def test_a_killed_holder_binds_nobody(tmp_path: Path) -> None:
    Holder(tmp_path / "out").kill()
    assert names(tmp_path) == [".out.lock"]
    with locked(tmp_path / "out", wait=0):
        pass
    assert names(tmp_path) == []


def test_a_process_never_waits_for_itself(tmp_path: Path) -> None:
    with locked(tmp_path / "a", wait=0), locked(tmp_path / ".." / tmp_path.name / "a", wait=0):
        with locked(tmp_path / "a", wait=0):
            pass
        assert names(tmp_path) == [".a.lock"]
    assert names(tmp_path) == []


def test_a_forked_child_neither_holds_nor_breaks_the_lock(tmp_path: Path) -> None:
    """As a worker of a data loader, whose parent is killed while it goes on."""
    code = """
        import os, sys, time
        from pathlib import Path
        from tgdd_plugin.core.locks import locked
        with locked(Path(sys.argv[1])):
            if (child := os.fork()) == 0:
                print(os.getpid(), flush=True)
                time.sleep(600)
            time.sleep(600)
    """
    with subprocess.Popen(script(code, tmp_path / "a"), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        with pytest.raises(InputError, match=f"process {parent.pid} on"):
            with locked(tmp_path / "a", wait=0):
                pass
        parent.kill()
        parent.wait()
        try:
            with locked(tmp_path / "a", wait=0):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_what_a_process_holds_until_its_end_leaves_no_file_and_its_forked_child_removes_none(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from tgdd_plugin.core.locks import locked
        held = locked(Path(sys.argv[1]))
        held.__enter__()
        if (child := os.fork()) == 0:
            sys.exit()  # with all that a process does at its end
        os.waitpid(child, 0)
        print(Path(sys.argv[1]).with_name(".a.lock").exists())
    """
    done = subprocess.run(script(code, tmp_path / "a"), stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "True\n" and names(tmp_path) == []


def test_many_processes_at_once_are_never_two_in_a_block(tmp_path: Path) -> None:
    """Also while each removes the lock's file when it is done."""
    code = """
        import os, sys
        from pathlib import Path
        from tgdd_plugin.core.locks import locked
        path = Path(sys.argv[1])
        for _ in range(60):
            with locked(path, wait=100):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))  # fails if another is inside
                os.unlink(path)
    """
    processes = [subprocess.Popen(script(code, tmp_path / "a")) for _ in range(4)]
    assert [process.wait(timeout=300) for process in processes] == [0] * 4
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_worked_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a", wait=0):
        assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_not_for_a_lock_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with locked(tmp_path / "file" / "a", wait=0):
        pass
    (tmp_path / ".b.lock").symlink_to(tmp_path / "file")  # and no file that somebody points it at is written
    with locked(tmp_path / "b", wait=0):
        pass
    assert (tmp_path / "file").read_bytes() == b""


def test_what_a_lock_file_says_is_not_believed(tmp_path: Path) -> None:
    with open(tmp_path / ".a.lock", "w") as other:
        other.write("\x1b[31mprocess 1 on earth; now run rm\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(InputError, match="is in use: another process is working here"):
            with locked(tmp_path / "a", wait=0.1):
                pass
        assert time.monotonic() - began >= 0.1
