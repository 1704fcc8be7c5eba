"""Starts a test file on several ranks of gloo, by itself or by Composer's launcher, and waits for them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from composer.utils import collect_env

LIMIT = 100  # seconds; a pair of processes needs 15


def launch(script: str, what: str, root: Path) -> tuple[int, list[str]]:
    """Runs a file with the arguments ``what`` and ``root`` on two ranks, by Composer's launcher.

    Returns:
        The launcher's status and what each rank wrote to stderr.
    """
    command = [
        *(sys.executable, "-m", "composer.cli.launcher", "-n", "2"),
        *("--stdout", str(root / f"{what}-{{rank}}.out"), "--stderr", str(root / f"{what}-{{rank}}.err")),
        *(script, what, str(root)),
    ]
    with (root / f"{what}-0.err").open("w") as errors:  # the launcher passes the first rank's on as its own
        launcher = subprocess.Popen(command, cwd=root, env=_environment(), stderr=errors, start_new_session=True)
        try:
            status = launcher.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, signal.SIGKILL)  # the ranks too
            launcher.wait()  # or a later test fails, of the warning that it was not
            pytest.fail(f"two ranks still hang after {LIMIT} s")
    return status, [(root / f"{what}-{rank}.err").read_text() for rank in (0, 1)]


def run_file(script: str, root: Path, *what: str) -> None:
    """Runs a file with the arguments ``what`` and ``root``, which calls :func:`fork_ranks` once all is imported."""
    subprocess.run([sys.executable, script, *what, str(root)], cwd=root, env=_environment(), check=True)


def fork_ranks(function: Callable[[Path], Any], root: Path, ranks: int = 2) -> None:
    """Calls ``function(root)`` on some ranks, forked off this process, and waits for them; nothing else watches them.

    So a rank that dies is noticed by the others alone. What came of it is for :func:`outcome` to tell.
    """
    collect_env.get_cpu_model()  # for which Composer starts a Python, once a process: each rank would do it anew
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [_fork(function, root, number, ranks, port) for number in range(ranks)]
    began, ended = time.monotonic(), {}
    while len(ended) < ranks:
        for number, process in enumerate(processes):
            if number not in ended and (found := os.waitpid(process, os.WNOHANG))[0]:
                ended[number] = (os.waitstatus_to_exitcode(found[1]), time.monotonic() - began)
        if time.monotonic() - began > LIMIT:
            for number in set(range(ranks)) - set(ended):
                os.kill(processes[number], signal.SIGABRT)
                print(f"{function.__name__}: rank {number} still hangs after {LIMIT} s", file=sys.stderr)
                os.waitpid(processes[number], 0)
                ended[number] = (-signal.SIGABRT, LIMIT)
        time.sleep(0.01)
    (root / f"{function.__name__}.json").write_text(json.dumps([ended[number] for number in range(ranks)]))


def outcome(root: Path, name: str) -> list[tuple[int, float, str]]:
    """Of each rank of ``fork_ranks()``'s function ``name`` the exit status, after how many seconds, and its stderr."""
    ended = json.loads((root / f"{name}.json").read_text())
    return [(*one, (root / f"{name}-{number}.err").read_text()) for number, one in enumerate(ended)]


def _fork(function: Callable[[Path], Any], root: Path, rank: int, ranks: int, port: int) -> int:
    if process := os.fork():
        return process
    status = 1
    try:
        for stream, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(root / f"{function.__name__}-{rank}.{kind}", os.O_WRONLY | os.O_CREAT), stream)
        # As Composer's launcher sets them.
        about = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        about |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in about.items()})
        function(root)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)  # nothing of the parent's runs twice


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    # Composer leaves the names of a process's rank in its environment, as other tests do here.
    own = {name: value for name, value in os.environ.items() if "RANK" not in name and "WORLD_SIZE" not in name}
    return {**own, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}
