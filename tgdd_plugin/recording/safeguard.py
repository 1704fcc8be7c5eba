"""Errors of the recording, kept away from the training that it watches."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tgdd_plugin.core.errors import reason_of, shown
from tgdd_plugin.core.ranks import LostRankError, gather_over_ranks, rank
from tgdd_plugin.recording.exemplars import Exemplars
from tgdd_plugin.recording.head_statistics import HeadStatistics
from tgdd_plugin.recording.run_folder import on_rank_0
from tgdd_plugin.recording.settings import OnError
from tgdd_plugin.trajectory.manifest import EXEMPLARS, MANIFEST, Run
from tgdd_plugin.trajectory.shortcomings import diverged

PAUSES = (0.05, 0.25)
"""Seconds before a write that failed is tried again, the first and the second time."""

LONGEST = 1000
"""The characters of a reason: other libraries' can be as long as the values that they quote."""


class Safeguard:
    """Decides what an error of the recording does: a warning, after which training goes on, or the end of training.

    Args:
        on_error: ``'warn'`` or ``'raise'``.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.failures: list[str] = []
        """What failed so far, in words, each once."""
        self.shared = 0
        """How many of the failures every rank knows of."""
        self._told, self._withheld = False, False
        self._warned: set[str] = set()
        self.lost = False
        """Whether files that were recorded are gone."""
        self._modified: int | None = None
        """When the run's folder was modified last, right after it was last written to."""

    def warn_once(self, about: str, message: str) -> None:
        """Warns on rank 0, without counting it as a failure. Only the first message about one thing is shown."""
        if about not in self._warned and rank() == 0:
            self._warned.add(about)
            warnings.warn(message, stacklevel=4)

    def handle(self, what: str, error: Exception) -> None:
        """Raises the error again with ``'raise'``, or if a rank is lost; else notes it, and warns of the first one."""
        if self.on_error == "raise" or isinstance(error, LostRankError):
            raise error
        self.note(f"{what} failed: {shown(reason_of(error), LONGEST).rstrip('.')}")

    @contextmanager
    def covers(self, what: str) -> Iterator[None]:
        """Handles an error of the block, after which this rank goes on as the others do."""
        try:
            yield
        except Exception as error:
            self.handle(what, error)

    @contextmanager
    def stage(self, run: Run, epoch: int, batch: int) -> Iterator[None]:
        """Covers a stage, and notes in the manifest what failed since the one before, on any rank. Collective."""
        known, self._withheld = self.shared, True
        self.share()
        with self.covers(f"the stage at epoch {epoch}, batch {batch}"):
            yield
        run.gaps += [{"epoch": epoch, "batch": batch, "reason": reason} for reason in self.failures[known:]]
        self.shared = len(self.failures)  # of what fails within a stage, every rank is told
        self._withheld = False
        self._tell()

    def tell_of_stage(self, run: Run, batch: int, features: HeadStatistics) -> None:
        """Warns of a stage just recorded that is not finite, or else has no class means, and of a head in doubt."""
        if len(run.stages) > 1 and features.doubt:
            self.warn_once("head", features.doubt)
        if run.stages and not run.stages[-1].finite:  # on rank 0, which has the manifest
            self.warn_once(
                "finite", f"{diverged(run)}. Distilling leaves them out; train again at a lower learning rate"
            )
        elif features.problem:
            told = f"no class statistics in the stage at batch {batch} ({features.problem})"
            self.warn_once("statistics", f"{told}; distillation needs the real images there")

    def share(self) -> None:
        """Tells every rank what failed on the others since the last call. Collective."""
        for number, failures in enumerate(gather_over_ranks(self.failures[self.shared :])):
            for failure in failures if number != rank() else ():
                self.note(f"{failure} (rank {number})")
        self.shared = len(self.failures)

    def note(self, failure: str) -> None:
        """Notes a failure, and warns of the first one."""
        if failure in self.failures:  # as when each batch fails
            return
        self.failures.append(failure)
        self._tell()

    def _tell(self) -> None:
        # Not while the other ranks wait: where warnings are errors, it is the last that this one does.
        if self.failures and not self._told and not self._withheld and rank() == 0:
            self._told = True
            warnings.warn(
                f"RECORDING FAILED, training goes on: {self.failures[0]}. Later stages are tried again, and the "
                f"manifest notes what is missing",
                stacklevel=3,
            )

    def write(self, folder: Path, run: Run, exemplars: Exemplars, write: Callable[[], None]) -> None:
        """Writes into a run's folder on rank 0: exemplars that are whole first, then what ``write`` writes.

        With ``'warn'``, a write that fails is tried again after a short pause. Recorded files that are gone are told.

        Raises:
            InputError: On every rank, if the folder cannot be written.
        """
        self._note_lost(folder, on_rank_0(folder, lambda: self._drop_lost_files(folder, run)))
        with self.covers("keeping the exemplars"):  # they are no reason to lose a stage
            on_rank_0(folder, lambda: self._retry(lambda: exemplars.write_if_done(folder, run)))
        on_rank_0(folder, lambda: self._retry(write))
        self._modified = _modified(folder)

    def write_end(self, folder: Path, run: Run, exemplars: Exemplars) -> None:
        """Notes that a run is complete, unless recorded files are gone, and says once more what is missing.

        Raises:
            InputError: On every rank, with ``'raise'``, if the folder cannot be written.
        """

        def write() -> None:
            run.complete = not self.lost
            run.write(folder)
            if lost := drop_lost_files(folder, run):  # while the manifest was written
                self._note_lost(folder, lost)
                run.complete = False
                run.write(folder)

        self._modified, self._withheld = None, True
        with self.covers("the end of the recording"):
            self.share()
            self.write(folder, run, exemplars, write)
        self._withheld = False
        self._tell()
        if self.failures and rank() == 0:
            warnings.warn(
                f"the recording of run '{run.name}' is not whole: {len(self.failures)} part(s) of it failed while "
                f"training went on, the first of them: {self.failures[0]}",
                stacklevel=3,
            )

    def _note_lost(self, folder: Path, lost: list[str]) -> None:
        if lost:
            self.lost = True
            self.note(f"recorded files are gone from '{folder}' ({', '.join(lost[:3])})")

    def _drop_lost_files(self, folder: Path, run: Run) -> list[str]:
        # To look at every file at every stage would cost more with each. Nothing can go without the folder's changing.
        if self._modified is not None and self._modified == _modified(folder):
            return []
        return drop_lost_files(folder, run)

    def _retry(self, work: Callable[[], None]) -> None:
        for pause in PAUSES if self.on_error == "warn" else ():
            try:
                return work()
            except OSError:
                time.sleep(pause)
        work()


def drop_lost_files(folder: Path, run: Run) -> list[str]:
    """Takes out of a manifest what it names and is no longer there, as when somebody deleted it while training.

    Returns:
        The names of the lost files.
    """
    lost = [stage.file for stage in run.stages if not (folder / stage.file).is_file()]
    if lost:
        run.stages = [stage for stage in run.stages if stage.file not in lost]
    if run.exemplars is not None and not (folder / EXEMPLARS).is_file():
        run.exemplars = None
        lost.append(EXEMPLARS)
    needed = [folder / MANIFEST] if run.stages else []
    needed += [run.journal.path] if run.journal else []
    lost += [path.name for path in needed if not path.is_file()]
    if lost:
        run.journal = None  # the manifest is to be written whole
    return lost


def _modified(folder: Path) -> int | None:
    """When a name in a folder came, went or changed last, in nanoseconds; ``None`` if that cannot be told."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
