"""Importing FFCV, and keeping the thread numbers of torch and numba, which it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Imports FFCV, and sets torch's and numba's thread numbers back afterwards.

    FFCV sets them for the whole process, when imported and by its Loader.
    """
    import numba

    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    try:
        _import_ffcv()
        yield
    finally:
        torch.set_num_threads(torch_threads)
        numba.set_num_threads(numba_threads)


def _import_ffcv() -> None:
    """Imports FFCV, which keeps its two image modes in a dictionary of Numba's, though it reads them from Python alone.

    Numba compiles that for seconds, in each process anew; Python's own serves as well.
    """
    import numba.typed

    with mock.patch.object(numba.typed, "Dict", dict):
        import ffcv  # noqa: F401
