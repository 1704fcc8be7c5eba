"""The trajectory folder: a training run's weights, stage by stage, in files that are safe to open.

::

    trajectory/
      <run name>/                     one training run; several runs in one folder are several trajectories
        manifest.json                 what was trained, on what, and its stages with their checksums
        stages-1.jsonl                the latest of those stages, while the run is being recorded
        stage-ep0-ba0.safetensors     the weights at one moment, buffers included
        stage-ep1-ba782.safetensors   the same, with the class means of the features since the stage before
        ...
        exemplars.safetensors         a few real images of each class

Stages are safetensors and the manifest is JSON, so nothing in the folder is ever unpickled. A stage is on the disk
before the manifest names it, and the manifest no longer names it when it is removed. So a crash leaves at most a file
that no manifest names, and a run can be opened while it is recorded and thinned.
Importing this module does not import torch, so that ``tgdd show`` answers at once.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgdd_plugin.core.errors import InputError, shown
from tgdd_plugin.trajectory.checking import with_checked_files
from tgdd_plugin.trajectory.folders import run_folders
from tgdd_plugin.trajectory.manifest import EXEMPLARS, Run, Stage
from tgdd_plugin.trajectory.tensor_files import are_class_means, load_tensors, opened, read_exemplars

if TYPE_CHECKING:
    import torch

    from tgdd_plugin.data.image_pool import ImagePool

# Names in a stage's file that are not weights.
CLASS_MEANS, CLASS_COUNTS = "tgdd/class_means", "tgdd/class_counts"


class Trajectory:
    """One or more recorded runs of a network, or of several: the input of distillation.

    Args:
        folder: The folder it was opened from.
        runs: The runs by folder, R of them, in the order of their names.
    """

    def __init__(self, folder: Path, runs: dict[Path, Run]) -> None:
        self.folder = folder
        self.runs = runs

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = True, least: int = 2) -> Trajectory:
        """Opens a trajectory folder, or the folder of a single run in it, also while runs are recorded into it.

        Args:
            folder: The folder that the callback recorded into, for example ``my-run/trajectory``.
            check: Whether to read every stage, and the exemplars, and compare their checksums. Default: ``True``.
            least: The fewest stages of a run. Default: ``2``, which a distillation needs.

        Raises:
            InputError: If the folder is missing or empty, a run has fewer stages, a file is missing or
                differs from its checksum, or the runs are not of the same classes and normalization.
        """
        folder = Path(folder)
        trajectory = cls(folder, {path: Run.read(path) for path in run_folders(folder)})
        trajectory._check_runs(least)
        if check:
            trajectory._check_files(least)
        return trajectory

    @property
    def run(self) -> Run:
        """The first run; what all runs share (classes, normalization) is read from it."""
        return next(iter(self.runs.values()))

    @property
    def architectures(self) -> dict[Path, int]:
        """The number of each run's network with its head, by folder; the first run's is 0. Matching needs each
        network's own features only, so the runs of a trajectory may be of several networks."""
        numbers: dict[str, int] = {}
        found = {}
        for folder, run in self.runs.items():
            # The algorithms that it was trained with do not make it another network; where factory and arguments tell
            # how it was built, nor does the module that its class lies in, which may have moved since.
            name = run.network["class"].rpartition(":")[2] if run.network.get("factory") else run.network["class"]
            key = json.dumps([{**run.network, "algorithms": None, "class": name}, run.head], sort_keys=True)
            found[folder] = numbers.setdefault(key, len(numbers))
        return found

    @property
    def representative_runs(self) -> dict[Path, Run]:
        """The first run of each architecture, by folder, in the order of their numbers."""
        first: dict[int, Path] = {}
        for folder, number in self.architectures.items():
            first.setdefault(number, folder)
        return {folder: self.runs[folder] for folder in first.values()}

    @property
    def checksums(self) -> list[str]:
        """The SHA-256 of every stage, run after run."""
        return [stage.sha256 for run in self.runs.values() for stage in run.stages]

    @property
    def finite_stages(self) -> list[tuple[Path, Stage]]:
        """Every stage that is not noted to have weights that are not finite, with the folder of its run."""
        return [(folder, stage) for folder, run in self.runs.items() for stage in run.stages if stage.finite]

    def __repr__(self) -> str:
        networks = ", ".join(
            shown(run.network.get("factory") or run.network["class"]) for run in self.representative_runs.values()
        )
        stages = sum(len(run.stages) for run in self.runs.values())
        what = f"{len(self.runs)} run(s) of {networks}, {self.run.num_classes} classes, {stages} stages"
        return f"Trajectory('{shown(self.folder, 300)}': {what})"

    def load(self, run_folder: Path, stage: Stage) -> dict[str, torch.Tensor]:
        """Loads the weights of one stage by name, on the CPU.

        Raises:
            InputError: If the file cannot be read.
        """
        weights = load_tensors("stage", run_folder / stage.file)
        return {name: tensor for name, tensor in weights.items() if name not in (CLASS_MEANS, CLASS_COUNTS)}

    def has_class_means(self, run_folder: Path, stage: Stage) -> bool:
        """Returns whether a stage has class means, by the header of its file.

        Raises:
            InputError: If the file cannot be read.
        """
        with opened("stage", run_folder / stage.file, "numpy") as file:
            return CLASS_MEANS in file.keys()

    def class_means(self, run_folder: Path, stage: Stage) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Loads the class means of φ(x) in training since the stage before; the stage's weights are not read.

        Returns:
            Means ``(K, D)`` and the sums ``(K,)`` of the images' weights they are of, float32 on the CPU. A class with
            count 0 has mean 0: no image of it was seen. ``None`` if the stage has none, as the first of a run.

        Raises:
            InputError: If the file cannot be read, or these are not of that shape and finite.
        """
        path = run_folder / stage.file
        with opened("stage", path, "pt") as file:
            found = [file.get_tensor(name) for name in (CLASS_MEANS, CLASS_COUNTS) if name in file.keys()]
        if not found:
            return None
        classes = self.runs[run_folder].num_classes
        if not are_class_means(found, classes):
            held = " and ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in found)
            raise InputError(
                f"The stage file '{path}' is damaged: its class means and counts must be finite float32 ({classes}, "
                f"features) and ({classes},), got {held}. Copy the folder again, or record the run again."
            )
        return found[0], found[1]

    def exemplar_count(self, run_folder: Path) -> int:
        """Returns the number of real images that a run kept, by the header of their file; 0 if it kept none.

        Raises:
            InputError: If the file cannot be read.
        """
        if self.runs[run_folder].exemplars is None:
            return 0
        with opened("exemplars", run_folder / EXEMPLARS, "numpy") as file:
            return math.prod(file.get_slice("labels").get_shape())

    def exemplar_counts(self) -> list[int]:
        """Returns how many real images of each of the K classes the runs kept in all, without loading torch.

        Raises:
            InputError: If a file cannot be read.
        """
        found: Counter[int] = Counter()
        for folder in self._exemplar_folders():
            with opened("exemplars", folder / EXEMPLARS, "numpy") as file:
                found.update(file.get_tensor("labels").ravel().tolist() if "labels" in file.keys() else [])
        return [found[label] for label in range(self.run.num_classes)]

    def _exemplar_folders(self) -> list[Path]:
        """The folders with real images; runs of several networks may have seen the same ones first, in one order."""
        return [*{run.exemplars: path for path, run in self.runs.items() if run.exemplars}.values()]

    def exemplars(self) -> ImagePool | None:
        """Loads the real images that the runs kept, of all runs together; ``None`` if they kept none.

        Raises:
            InputError: If a file cannot be read, or does not hold such images of one size.
        """
        import torch  # here, so that a trajectory can be opened and shown without it

        from tgdd_plugin.data.image_pool import ImagePool

        kept = [read_exemplars(path, self.run.num_classes) for path in self._exemplar_folders()]
        if not kept:
            return None
        if len(shapes := {tuple(images.shape[1:]) for images, _ in kept}) > 1:
            raise InputError(
                f"The exemplars of the runs in '{self.folder}' must be of one shape, got {sorted(shapes)}. Keep runs "
                f"on images of different sizes in folders of their own."
            )
        images, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return ImagePool(images, labels, self.run.class_names)

    def _check_runs(self, least: int) -> None:
        for folder, run in self.runs.items():
            if len(run.stages) < least:
                remedy = "Train longer" if run.complete else "Its training has not ended: go on with it, train longer"
                raise InputError(
                    f"The run in '{folder}' has {len(run.stages)} stage(s); TGDD needs at least 2. {remedy} or "
                    f"lower the callback's interval (it was '{run.interval}')."
                )
            shared = _shared(self.run)
            for name, value in _shared(run).items():
                if value != shared[name]:
                    raise InputError(
                        f"The runs in '{self.folder}' are not alike: {name} is {shared[name]} in '{self.run.name}' and "
                        f"{value} in '{run.name}'. Keep runs that are not alike in folders of their own."
                    )

    def _check_files(self, least: int) -> None:
        self.runs = {folder: with_checked_files(folder, run) for folder, run in self.runs.items()}
        self._check_runs(least)
        for folder, run in self.runs.items():
            if run.stages:
                _check_head(folder, run)


def _check_head(folder: Path, run: Run) -> None:
    """Compares the number of classes with the head, by the header of the first stage, which is never thinned away."""
    name = f"{run.head}.weight"
    with opened("stage", folder / run.stages[0].file, "numpy") as file:
        shape = file.get_slice(name).get_shape() if name in file.keys() else [run.num_classes]
    if shape[:1] != [run.num_classes]:
        raise InputError(
            f"The run in '{folder}' contradicts itself: its manifest says {run.num_classes} classes, and its head "
            f"'{run.head}' has weights of shape {shape}. Copy the folder again, or record the run again."
        )


def _shared(run: Run) -> dict[str, Any]:
    """Returns what the runs of one trajectory must have in common."""
    return {"num_classes": run.num_classes, "classes": run.classes, "mean": run.mean, "std": run.std}
