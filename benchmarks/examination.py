"""Whether what a reader makes of one damaged file is a finding, see :mod:`benchmarks.fuzz`."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.readers import Reader
from tgdd_plugin.core.errors import InputError

HARMLESS = ("/dev/null", "/dev/shm/pym-", tempfile.gettempdir())
"""Where files are opened for writing for good reason: multiprocessing's shared memory, and temporary files."""
SECONDS, MEMORY = 5.0, 512
"""What no input may exceed: seconds of the processor, as the machine may be busy, and MiB of memory."""
HANGS = 60.0
"""Seconds by the clock after which an input counts as one that waits for ever."""


class Canary:
    """Notes what a file must not cause.

    Args:
        work: The folder that may be written to.
    """

    def __init__(self, work: Path) -> None:
        self.work = str(work)
        self.armed = self.may_import = False
        self.seen: list[str] = []
        self.loaded = {name.partition(".")[0] for name in sys.modules} | {"encodings"}
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "pickle.find_class" and re.search(r"/numba/|/ffcv/writer", _callers()):
            return  # as FFCV compiles its functions, and hands numbers to its own workers
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class"):
            self.seen.append(f"{event} {args[:2]!r:.100}")
        elif event == "socket.connect":
            self.seen.append(event)
        elif event == "import" and not self.may_import and args[0].partition(".")[0] not in self.loaded:
            self.seen.append(f"import {args[0]}")
        elif event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if not os.path.abspath(args[0]).startswith(self.work) and not args[0].startswith(HARMLESS):
                self.seen.append(f"open for writing {args[0]!r:.100}")


def _callers() -> str:
    """The files of the last 20 functions that called, joined."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 20:
        found.append(frame.f_code.co_filename)
        frame = frame.f_back  # type: ignore[assignment]
    return " ".join(found)


def examine(own: Reader, data: bytes, canary: Canary) -> tuple[bool, str, str]:
    """Gives one input to a reader.

    Returns:
        Whether it was accepted, what is wrong (empty if nothing), and the traceback of an exception.
    """
    canary.seen.clear()
    canary.may_import, canary.armed = own.may_import, True
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted, problem, trace = False, "", ""
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        text = own.read(data)
        accepted = True
        if text and any(ord(c) < 32 and c not in "\n" or 127 <= ord(c) < 160 for c in text):
            problem = "control characters in the description"
    except InputError as error:
        message = str(error)
        if "\n" in message or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in message):
            problem, trace = f"message: {message!r:.300}", traceback.format_exc()
        elif len(message) > 5000:
            problem, trace = f"long message, {len(message)} characters", traceback.format_exc()
    except TimeoutError:
        problem, trace = "too slow", traceback.format_exc()
    except BaseException as error:  # every other one is a finding
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.name}"
        problem, trace = (
            f"{type(error).__name__} in {place}: {str(error).splitlines()[:1]!r:.200}",
            traceback.format_exc(),
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        canary.armed = False
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if canary.seen:
        problem = f"code: {canary.seen[0]}"
    elif seconds > SECONDS:
        problem = problem or f"too slow: {seconds:.1f} s"
    elif grown > MEMORY:
        problem = problem or f"too much memory: {grown:.0f} MiB"
    return accepted, problem, trace


def too_late(*_: Any) -> None:
    """Ends what waits for ever, as the handler of SIGALRM."""
    raise TimeoutError
