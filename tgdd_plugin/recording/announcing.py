"""What TGDDCallback tells its user: what a recording will take, and in the end what there is and what to do next."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from composer.core import State, Time, TimeUnit
from tqdm.auto import tqdm

from tgdd_plugin.core.errors import printable
from tgdd_plugin.core.ranks import rank
from tgdd_plugin.networks.factory import is_own
from tgdd_plugin.recording.data_introspection import find_augmentation
from tgdd_plugin.recording.recorder import TrajectoryRecorder
from tgdd_plugin.trajectory.manifest import Run

VISIBLE = {"cutout", "rotate"}
"""The operations of an augmentation that leave erased squares or corners in an image."""


def tell(line: str) -> None:
    """Writes a line to standard error, beside a progress bar that may be there. A log would hide it by default."""
    tqdm.write(printable(line), file=sys.stderr)


def announce_start(recorder: TrajectoryRecorder, interval: Time | None, state: State, *, quiet: bool) -> None:
    """Says on rank 0 what a recording will take, once the initial weights are recorded; warns if that is not there.

    Args:
        recorder: The recorder, which has begun.
        interval: How often a stage is recorded; ``None`` if a function decides.
        state: The Trainer's state.
        quiet: Whether there are no lines, but warnings.
    """
    run, folder = recorder.run, recorder.run_folder
    if rank() != 0 or run is None or not run.stages:
        return
    stage = _size(folder / run.stages[0].file)
    count = _stages(interval, state)
    most = recorder.options.max_stages
    if count is not None:
        count = min(count, most or count)
    elif most is not None:
        count = most
    each = f"{in_bytes(stage)} each"
    needed = stage * (count or 2)
    how = f"{count} stages of {each}, about {in_bytes(needed)} in all" if count else f"stages of {each}"
    if not quiet:
        kept = recorder.images.per_class if _can_be_distilled(run) else 0
        beside = f", and {kept} images of each class" if kept else ""
        tell(f"TGDDCallback records into '{folder}': {how}{beside}")
    left = stage * (count or 2) - sum(_size(folder / stage.file) for stage in run.stages)
    if (free := shutil.disk_usage(folder).free) < left:
        warnings.warn(
            f"the recording in '{folder}' will take about {in_bytes(needed)}, and {in_bytes(free)} are free there; "
            f"record less often (interval), fewer stages (max_stages), or smaller ones (dtype='float16')",
            stacklevel=2,
        )


def announce_end(recorder: TrajectoryRecorder, loader: Any, *, quiet: bool) -> None:
    """Says on rank 0 what was recorded, and how to go on.

    Args:
        recorder: The recorder, which has finished.
        loader: The loader that the recorded images came from.
        quiet: Whether there are no lines.
    """
    run, folder = recorder.run, recorder.run_folder
    if quiet or rank() != 0 or run is None or not run.complete:
        return
    size = sum(_size(path) for path in folder.iterdir())
    command = f"tgdd distill {shlex.quote(str(recorder.folder))}"
    if not is_own(run.network):
        command += " network.name=module:function, a function of yours that builds the network"
    what_next = f"; next: {command}" if _can_be_distilled(run) else ""
    tell(f"TGDDCallback recorded {len(run.stages)} stages, {in_bytes(size)}, in '{folder}'{what_next}")
    kept = VISIBLE.intersection((find_augmentation(loader, []) or "none").split("_"))
    if kept and run.exemplars:
        tell(
            f"The images that it kept have {' and '.join(sorted(kept))} of the data set's transforms in them, and so "
            f"would the distilled ones: name the data as well (data.name=...), which is then read clean"
        )


def _can_be_distilled(run: Run) -> bool:
    """Whether the inputs have 1 or 3 channels, as images in a ``.beton`` have; before the first batch the normalization
    tells."""
    seen = int(run.input["shape"][0]) if run.input else len(run.mean or [0])
    return seen in (1, 3)


def in_bytes(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} GiB" if size < 1000 else f"{size:,.0f} GiB"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # deleted meanwhile, which the recorder itself will tell
        return 0


def _stages(interval: Time | None, state: State) -> int | None:
    """How many stages there will be, the initial one included, as far as that can be known."""
    duration = state.max_duration
    if interval is None or duration is None:
        return None
    if interval.unit is TimeUnit.DURATION:
        return 1 + math.ceil(1 / interval.value)
    if interval.unit is duration.unit:
        return 1 + math.ceil(duration.value / interval.value)
    whole, part = _batches(duration, state), _batches(interval, state)
    return 1 + math.ceil(whole / part) if whole and part else None


def _batches(time: Time, state: State) -> int | None:
    """A time of epochs or batches in batches, if that is known."""
    if time.unit is TimeUnit.EPOCH and state.dataloader_len is not None:
        return int(time.value * state.dataloader_len.value)
    return int(time.value) if time.unit is TimeUnit.BATCH else None
