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
import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from tgdd_plugin.errors import InputError
from tgdd_plugin.files import sha256, write_whole

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """One recorded moment of a run.

    Args:
        file: Name of the safetensors file in the run's folder.
        index: How many stages had been due before it (0 = the initial weights); thinning leaves gaps.
        epoch: Epochs completed.
        batch: Batches (optimizer steps) completed.
        sample: Samples seen.
        sha256: Checksum of the file.
        metrics: Training metrics of the moment, by name.
    """

    file: str
    index: int
    epoch: int
    batch: int
    sample: int
    sha256: str
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """One training run: the content of its ``manifest.json``.

    Args:
        name: The Trainer's ``run_name``.
        network: ``class`` of the network, number of ``parameters``, and, where it is known how to build it again,
            ``factory`` (``module:function``) and ``arguments``; names of ``algorithms`` that may have changed it.
        head: Name of the linear layer whose input is φ(x) and whose output is h(x).
        num_classes: K.
        classes: Names of the classes, if known.
        mean: Per-channel mean that the run's inputs were normalised with, if known, for pixels in [0, 1].
        std: The same for the standard deviation.
        input: ``shape`` (C, H, W) and per-channel ``mean`` and ``std`` of the first batch, as the network got it.
        interval: How often a stage was due, as given to the callback.
        complete: Whether ``fit()`` came to its end.
        stages: The stages, in the order of training.
        versions: Of the packages that recorded it.
    """

    name: str
    network: dict[str, Any]
    head: str
    num_classes: int
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    input: dict[str, list[float]] | None = None
    interval: str = "1ep"
    complete: bool = False
    stages: list[Stage] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes ``folder/manifest.json``, whole."""
        write_whole(folder / MANIFEST, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Reads ``folder/manifest.json``.

        Raises:
            InputError: If it is missing, not JSON, of a later format, or lacks a field.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise InputError(f"'{path}' has another format than {FORMAT}; it needs another version of tgdd_plugin")
            known = {f.name for f in fields(cls)}
            content = {key: value for key, value in content.items() if key in known}
            content["stages"] = [Stage(**stage) for stage in content["stages"]]
            return cls(**content)
        except FileNotFoundError:
            raise InputError(f"'{folder}' holds no {MANIFEST}; record it with TGDDCallback(folder=...)") from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise InputError(f"'{path}' is damaged ({error}); record the run again") from error


def thin(stages: list[Stage], max_stages: int | None) -> list[Stage]:
    """The stages to keep: the first, the last, and between them every 2^m-th with the smallest m that fits.

    The answer depends on the stages' indices only, and a later, longer list keeps a subset of what a shorter one kept.
    So a run may be thinned while it goes on, on bounded disk, and a resumed run ends with the stages of an
    uninterrupted one. Between ``max_stages / 2`` and ``max_stages`` stages remain.
    """
    if max_stages is None or len(stages) <= max_stages:
        return stages
    stride = 1
    while len(kept := [s for s in stages if s.index % stride == 0 or s is stages[-1]]) > max_stages:
        stride *= 2
    return kept


def add_stage(folder: Path, run: Run, state: dict[str, torch.Tensor], max_stages: int | None, **when: Any) -> None:
    """Writes a stage file, then the manifest that names it, then removes the files that thinning dropped.

    Args:
        folder: The run's folder.
        run: Its manifest, which gets the stage.
        state: The weights by name, on any device.
        max_stages: As in :func:`thin`.
        when: ``epoch``, ``batch``, ``sample`` and ``metrics`` of the stage.
    """
    # Cloned: safetensors refuses tensors that share memory (tied weights); each name then has its own copy.
    content = safetensors.torch.save({name: t.detach().cpu().clone().contiguous() for name, t in state.items()})
    name = f"stage-ep{when['epoch']}-ba{when['batch']}.safetensors"
    write_whole(folder / name, content)
    index = run.stages[-1].index + 1 if run.stages else 0
    run.stages.append(Stage(file=name, index=index, sha256=hashlib.sha256(content).hexdigest(), **when))
    kept = thin(run.stages, max_stages)
    dropped = {stage.file for stage in run.stages} - {stage.file for stage in kept}
    run.stages = kept
    run.write(folder)
    for file in dropped:
        (folder / file).unlink(missing_ok=True)


def drop_stages_after(folder: Path, run: Run, batch: int) -> None:
    """Forgets the stages later than ``batch``: they come from the future of a crashed run, which will remake them."""
    late = [stage for stage in run.stages if stage.batch > batch]
    if late:
        run.stages = [stage for stage in run.stages if stage.batch <= batch]
        run.write(folder)
        for stage in late:
            (folder / stage.file).unlink(missing_ok=True)


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
            for name in ("head", "num_classes", "classes", "mean", "std"):
                if getattr(run, name) != getattr(self.run, name):
                    raise InputError(
                        f"the runs in '{self.folder}' are not alike: {name} is {getattr(self.run, name)} in "
                        f"'{self.run.name}' and {getattr(run, name)} in '{run.name}'; keep unlike runs in folders of "
                        f"their own"
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


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the named distributions, and of this package and torch."""
    found = {}
    for package in ("tgdd_plugin", "torch", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
