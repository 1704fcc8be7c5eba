"""The trajectory folder: a training run's weights, stage by stage, in files that are safe to open.

::

    trajectory/
      <run name>/                     one training run; several runs in one folder are several trajectories
        manifest.json                 what was trained, on what, and its stages with their checksums
        stage-ep0-ba0.safetensors     the weights at one moment, buffers included
        ...

Stages are safetensors and the manifest is JSON, so nothing in the folder is ever unpickled. Both are written whole
(``os.replace``), the stage before the manifest that names it: a crash leaves at most a file that no manifest names.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from tgdd_plugin.errors import InputError
from tgdd_plugin.files import sha256, write_whole
from tgdd_plugin.manifest import MANIFEST, Run, Stage


def thin(stages: list[Stage], max_stages: int | None) -> list[Stage]:
    """The stages to keep: the first, the last, and between them every 2^m-th with the smallest m that fits.

    Which those are follows from the last stage's index alone, and of a longer list only stages are kept that a shorter
    one kept too. So a run may be thinned while it goes on, on bounded disk, and a resumed run ends with the stages of
    an uninterrupted one. More than half of ``max_stages`` remain.
    """
    if max_stages is None or not stages:
        return stages
    last = stages[-1].index
    stride = 1
    while math.ceil(last / stride) + 1 > max_stages:
        stride *= 2
    return [stage for stage in stages if stage.index % stride == 0 or stage.index == last]


def add_stage(
    folder: Path,
    run: Run,
    state: dict[str, torch.Tensor],
    max_stages: int | None,
    *,
    index: int | None = None,
    **when: Any,
) -> None:
    """Writes a stage file, then the manifest that names it, then removes the files that thinning dropped.

    Args:
        folder: The run's folder.
        run: Its manifest, which gets the stage.
        state: The weights by name, on any device.
        max_stages: As in :func:`thin`.
        index: See :class:`Stage`. Default: one more than the last stage's.
        when: ``epoch``, ``batch``, ``sample`` and ``metrics`` of the stage.
    """
    # Cloned: safetensors refuses tensors that share memory (tied weights); each name then has its own copy.
    content = safetensors.torch.save({name: t.detach().cpu().clone().contiguous() for name, t in state.items()})
    name = f"stage-ep{when['epoch']}-ba{when['batch']}.safetensors"
    write_whole(folder / name, content)
    if index is None:
        index = run.stages[-1].index + 1 if run.stages else 0
    run.stages.append(Stage(file=name, index=index, sha256=hashlib.sha256(content).hexdigest(), **when))
    kept = thin(run.stages, max_stages)
    dropped = {stage.file for stage in run.stages} - {stage.file for stage in kept}
    run.stages = kept
    run.write(folder)
    for file in dropped:
        (folder / file).unlink(missing_ok=True)


def begin(folder: Path, run: Run) -> None:
    """Writes the manifest of a run that starts or goes on, and removes every stage file that it does not name.

    Those come from the future of a crashed run, which will make them again, or from a crash while writing.
    """
    run.write(folder)
    named = {stage.file for stage in run.stages}
    for path in [*folder.glob("stage-*.safetensors"), *folder.glob(".*.tmp")]:
        if path.name not in named:
            path.unlink(missing_ok=True)


class Trajectory:
    """One or more recorded runs of one network: the input of distillation.

    Args:
        folder: The folder it was opened from.
        runs: The runs by folder, R of them, in the order of their names.
    """

    def __init__(self, folder: Path, runs: dict[Path, Run]) -> None:
        self.folder = folder
        self.runs = runs

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = True) -> Trajectory:
        """Opens a trajectory folder, or the folder of a single run in it.

        Args:
            folder: What the callback's ``folder`` came to, for example ``my-run/trajectory``.
            check: Whether to read every stage and compare its checksum. Default: ``True``.

        Raises:
            InputError: If the folder is missing or empty, a run has fewer than two stages, a stage is missing or
                differs from its checksum, or the runs are not of one network.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"there is no trajectory folder '{folder}'; record one with TGDDCallback(folder=...)")
        if (folder / MANIFEST).is_file():
            run_folders = [folder]
        else:
            run_folders = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
        if not run_folders:
            raise InputError(
                f"'{folder}' holds no recorded run (no */{MANIFEST}); train with TGDDCallback(folder='{folder}') first"
            )
        trajectory = cls(folder, {path: Run.read(path) for path in run_folders})
        trajectory._check_runs()
        if check:
            trajectory._check_files()
        return trajectory

    @property
    def run(self) -> Run:
        """The first run; what the runs share (network, head, classes, normalisation) is read from it."""
        return next(iter(self.runs.values()))

    @property
    def checksums(self) -> list[str]:
        """SHA-256 of every stage, run after run."""
        return [stage.sha256 for run in self.runs.values() for stage in run.stages]

    def load(self, run_folder: Path, stage: Stage) -> dict[str, torch.Tensor]:
        """The weights of one stage by name, on the CPU.

        Raises:
            InputError: If the file cannot be read.
        """
        try:
            return safetensors.torch.load_file(run_folder / stage.file)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"stage '{run_folder / stage.file}' cannot be read: {error}") from error

    def _check_runs(self) -> None:
        for folder, run in self.runs.items():
            if len(run.stages) < 2:
                raise InputError(
                    f"'{folder}' holds {len(run.stages)} stage(s); TGDD needs at least 2. Train longer or lower the "
                    f"callback's interval (it was '{run.interval}')"
                )
            wanted = _shared(self.run)
            for name, value in _shared(run).items():
                if value != wanted[name]:
                    raise InputError(
                        f"the runs in '{self.folder}' are not alike: {name} is {wanted[name]} in '{self.run.name}' and "
                        f"{value} in '{run.name}'; keep unlike runs in folders of their own"
                    )

    def _check_files(self) -> None:
        for folder, run in self.runs.items():
            for stage in run.stages:
                path = folder / stage.file
                if not path.is_file():
                    raise InputError(f"stage '{path}' is missing; copy the whole folder or record the run again")
                if sha256(path) != stage.sha256:
                    raise InputError(
                        f"stage '{path}' is damaged: its checksum differs from the manifest's; copy the folder again "
                        f"or record the run again"
                    )


def _shared(run: Run) -> dict[str, Any]:
    """What the runs of one trajectory must have in common."""
    return {
        "the number of parameters": run.network["parameters"],
        "head": run.head,
        "num_classes": run.num_classes,
        "classes": run.classes,
        "mean": run.mean,
        "std": run.std,
    }
