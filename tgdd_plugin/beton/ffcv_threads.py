"""Keeping the thread numbers of torch and numba, which FFCV changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Sets torch's and numba's thread numbers back afterwards.

    FFCV sets them for the whole process, when imported and by its Loader.
    """
    import numba

    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)
