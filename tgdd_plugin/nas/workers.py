"""The processes of an architecture search."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.context import SpawnProcess

import torch
from tqdm.auto import tqdm

from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.nas.search_job import SearchJob
from tgdd_plugin.nas.trial_queue import POLL, Queue

STOPPING, AGAIN = 30, 2
"""Seconds that workers have to give their candidates back before they are killed, and between their interrupts."""


def run_workers(job: SearchJob, queue: Queue, bar: tqdm) -> None:
    """Starts ``nas.workers`` processes that train candidates, and waits for them.

    Args:
        job: The search.
        queue: Its study.
        bar: The progress bar to keep up to date.

    Raises:
        InputError: If all processes ended before the search was over.
    """
    context = multiprocessing.get_context("spawn")
    processes, begun = [], queue.begun()
    try:
        for number in range(job.settings.workers):
            with _environment(job, number):
                process = context.Process(target=_take_part, args=(job,), daemon=True)
                process.start()
            processes.append(process)
        while any(process.is_alive() for process in processes):
            show_progress(bar, queue)
            time.sleep(POLL)
    finally:
        _stop(processes)
    tried = len(queue.tried())
    if left := len(queue.slots()) - tried:
        remedy = "Give the same command to go on, with fewer workers (`nas.workers`) if they had too little memory."
        if queue.begun() == begun:
            remedy = (
                "None of them began one, for the reason that they printed. A script must call search() under "
                '`if __name__ == "__main__":`, as each worker imports it.'
            )
        raise InputError(f"All {len(processes)} workers ended, and {left} candidates are left. {remedy}")


def _stop(processes: Sequence[SpawnProcess]) -> None:
    """Interrupts processes until they have ended, and kills those that have not after :data:`STOPPING` seconds.

    One interrupt is not enough: Python drops what it raises in a callback of C code, such as Numba's compiler, or while
    it frees an object, and a process that has only just begun takes no notice.
    """
    patience = time.monotonic() + STOPPING
    while (left := [process for process in processes if process.is_alive()]) and time.monotonic() < patience:
        for pid in (process.pid for process in left if process.pid):
            os.kill(pid, signal.SIGINT)
        again = time.monotonic() + AGAIN
        for process in left:
            process.join(max(0, again - time.monotonic()))
    for process in processes:
        process.kill()


@contextlib.contextmanager
def _environment(job: SearchJob, number: int) -> Iterator[None]:
    """Sets what a process inherits: a GPU of its own if there are several, a share of the CPU's threads, no Ctrl-C."""
    added = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // job.settings.workers))}
    added["PYTHONSAFEPATH"] = "1"  # a new Python looks for its own modules in the current folder first, otherwise
    if torch_device(job.device).type == "cuda":
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
        added["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _take_part(job: SearchJob) -> None:
    """Is all that a worker process does."""
    os.setpgid(0, 0)  # Ctrl-C is for the process that waits, which passes it on
    os.dup2(2, 1)  # standard output is for the result
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parent = os.getppid()

    def end_if_orphaned() -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        job.work(job.queue(), end_if_orphaned)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt


def show_progress(bar: tqdm, queue: Queue) -> None:
    """Brings a progress bar up to date, with the best accuracy so far."""
    tried, bar.total = queue.tried(), len(queue.slots())
    best = max((trial.value for trial in tried if trial.value is not None), default=None)
    if best is not None:
        bar.set_postfix(best=f"{best:.1f} %", refresh=False)
    bar.update(len(tried) - bar.n)
