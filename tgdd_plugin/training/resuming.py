"""Where a training that takes long keeps its checkpoints, and goes on from after it was cut short."""

from __future__ import annotations

import datetime
import errno
import glob
import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, Logger
from composer.core import Event, State
from composer.utils import dist, save_checkpoint
from torch import nn
from torch.torch_version import TorchVersion

from tgdd_plugin.core.atomic_files import whole_file
from tgdd_plugin.core.differences import as_plain
from tgdd_plugin.core.errors import InputError, reason_of
from tgdd_plugin.core.ranks import on_all_ranks
from tgdd_plugin.core.weights import weights_content
from tgdd_plugin.data.device_loader import DeviceLoader

SAVED_EVERY = 60.0
"""Seconds of training between two checkpoints; a training that takes less has none."""
LATEST = "latest-rank0.pt"
"""The file of the last checkpoint, named as Composer's ``CheckpointSaver`` names it."""
PLAIN: list[Any] = [
    *(datetime.timedelta, TorchVersion, np.ndarray, np.dtype, type(np.dtype(np.uint32))),
    np.empty(0).__reduce__()[0],  # a function of numpy's whose module differs between its versions
]
"""What Composer's checkpoints hold beside tensors and plain values: none of it runs code when it is read."""
DAMAGE = (None, errno.EINVAL, errno.EISDIR, errno.ENOENT)
"""The numbers of an OSError that tell of a damaged file, as in seeking what it lacks; others may pass."""


class DueEveryMinute:
    """Tells when to save: after each minute of training, and at its end if it took as long.

    Args:
        recorded: Whether it is recorded. Then it is saved neither in its first epoch, as the images that are kept of
            that would be others, nor at its end, after which the last stage is still to be recorded.
    """

    def __init__(self, *, recorded: bool) -> None:
        self.recorded = recorded
        self._saved: float | None = None

    def __call__(self, state: State, event: Event) -> bool:
        seconds = state.timestamp.total_wct.total_seconds()  # rank 0's, on every rank
        if self._saved is None:
            self._saved = seconds - state.timestamp.batch_wct.total_seconds()  # what a checkpoint had
        over = state.max_duration is not None and state.timestamp >= state.max_duration
        if over:
            due = seconds >= SAVED_EVERY and not self.recorded
        elif event == Event.BATCH_CHECKPOINT and state.timestamp.batch_in_epoch == state.dataloader_len:
            due = False  # its epoch's end comes next; a run that resumed before that would warn of an empty epoch
        else:
            due = seconds - self._saved >= SAVED_EVERY
        due = due and not (self.recorded and state.timestamp.epoch == 0)
        if due:
            self._saved = seconds
        return due


def checkpoint_folder(
    parent: Path, name: str, networks: Sequence[nn.Module], loaders: Sequence[DeviceLoader], depends: Any
) -> Path:
    """The hidden folder of a training's checkpoints, named by all that the training depends on.

    Args:
        parent: The folder that it lies in.
        name: What its name begins with.
        networks: The networks with their initial weights.
        loaders: Their batches.
        depends: Whatever else the training depends on, as plain values.
    """
    digest = hashlib.sha256(json.dumps([as_plain(depends), dist.get_world_size()]).encode())
    for network, loader in zip(networks, loaders, strict=True):
        digest.update(type(network).__qualname__.encode())
        digest.update(weights_content(network.state_dict()))
        digest.update(loader.fingerprint().encode())
    return parent / f".{name}-{digest.hexdigest()[:12]}"


def remove_checkpoints(parent: Path, name: str) -> None:
    """Removes the checkpoints of all trainings of a name, see :func:`checkpoint_folder`."""
    if dist.get_global_rank() == 0:
        for folder in parent.glob(f".{glob.escape(name)}-{'[0-9a-f]' * 12}"):
            shutil.rmtree(folder, ignore_errors=True)


class Checkpoints(Callback):
    """Keeps the state of a Trainer in one file, which is whole at any time, also after a power failure.

    Composer's ``CheckpointSaver`` writes in place, and ends the training where the disk is full or a callback's state
    cannot be pickled. Here such an error costs the checkpoint, with one warning; so does a state of a user's own
    callback that :func:`remove_if_unusable` would not let be read.

    Args:
        folder: The folder of the file, :data:`LATEST`.
        due: Whether a moment is one to save at, as Composer's ``save_interval``.
    """

    def __init__(self, folder: Path, due: Callable[[State, Event], bool]) -> None:
        self.folder, self.due = folder, due
        self._last: int | None = None
        self._told = False
        self._readable: bool | None = None

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self._save_if_due(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        self._save_if_due(state, Event.EPOCH_CHECKPOINT)

    def _save_if_due(self, state: State, event: Event) -> None:
        batch = state.timestamp.batch.value
        if self._readable is False or not self.due(state, event) or batch == self._last:
            return
        self._last = batch
        try:
            self._save(state)
        except Exception as error:  # of any kind: the training does not need it
            if not self._told and dist.get_global_rank() == 0:
                again = "" if self._readable is False else ". It is tried again"
                warnings.warn(
                    f"no checkpoint could be saved in '{self.folder}', and work goes on without: "
                    f"{reason_of(error)}{again}",
                    stacklevel=2,
                )
            self._told = True

    def _save(self, state: State) -> None:
        """Saves a checkpoint on rank 0; all ranks take part."""
        with ExitStack() as held:
            path, first = self.folder / LATEST, dist.get_global_rank() == 0
            file = on_all_ranks(lambda: held.enter_context(whole_file(path)) if first else path)
            try:
                save_checkpoint(state, str(file))
            except Exception:
                dist.barrier()  # where the other ranks wait: it is the last that they do there
                raise
            if self._readable is None:  # told by the first, as later ones hold the same kinds of values
                problem = [on_all_ranks(lambda: _unreadable(file) if first else None)]
                dist.broadcast_object_list(problem, src=0)
                self._readable = problem[0] is None
                if problem[0]:
                    raise InputError(problem[0])


def last_checkpoint(folder: Path) -> str | None:
    """The path of the last checkpoint, on every rank alike; ``None`` if rank 0 has none."""
    found = [str(folder / LATEST) if (folder / LATEST).exists() else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def remove_if_unusable(folder: Path, *, only_plain: bool = False) -> None:
    """Removes, on rank 0 and with a warning, a checkpoint that is damaged, as after a power failure.

    Args:
        folder: The folder of the checkpoint.
        only_plain: Whether one that holds anything but :data:`PLAIN`, which might run code when it is read, is removed,
            too. Default: ``False``, as a user's own callbacks may keep what they like.

    Raises:
        InputError: On every rank, if it cannot be read at the moment, as from a network drive that is away.
    """
    first = dist.get_global_rank() == 0
    if problem := on_all_ranks(lambda: _unusable(folder / LATEST, only_plain) if first else None):
        shutil.rmtree(folder, ignore_errors=True)
        warnings.warn(f"the checkpoint in '{folder}' cannot be used, and work begins anew: {problem}", stacklevel=2)


def _unusable(path: Path, only_plain: bool) -> str | None:
    """Why a checkpoint can never be used; ``None`` if it can be, or there is none."""
    if not os.path.lexists(path):
        return None
    try:
        with zipfile.ZipFile(path) as content:
            if damaged := content.testzip():
                return f"'{damaged}' in it is damaged"
        return _unreadable(path) if only_plain else None
    except Exception as error:  # what is wrong with a file shows in many ways
        if isinstance(error, OSError) and error.errno not in DAMAGE:
            raise InputError(
                f"The checkpoint in '{path.parent}' cannot be read ({error.strerror}). Give the same command once it "
                f"can be, or delete that folder to begin anew."
            ) from None
        return reason_of(error)


def _unreadable(path: Path) -> str | None:
    """Why a checkpoint cannot be read without running code that it names: it holds more than :data:`PLAIN` values."""
    # Those that the user allowed already stay so: leaving the block would take them back.
    allowed = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals([kind for kind in PLAIN if kind not in allowed]):
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class|function) (\S+)", str(error))
        return (
            f"`state_dict()` of a callback must hold plain values and tensors alone, got "
            f"{named[1] if named else 'an object'}. Keep it as numbers, text or a list."
        )
    return None
