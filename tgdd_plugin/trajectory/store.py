"""The trajectory folder: a training run's weights, stage by stage, in files that are safe to open.

::

    trajectory/
      <run name>/                     one training run; several runs in one folder are several trajectories
        manifest.json                 what was trained, on what, and its stages with their checksums
        stage-ep0-ba0.safetensors     the weights at one moment, buffers included
        stage-ep1-ba782.safetensors   the same, with the class means of the features since the stage before
        ...
        exemplars.safetensors         a few real images of each class

Stages are safetensors and the manifest is JSON, so nothing in the folder is ever unpickled. Both are written whole
(``os.replace``), the stage before the manifest that names it: a crash leaves at most a file that no manifest names.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from tgdd_plugin.core.atomic_files import sha256, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import weights_content
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.trajectory.manifest import MANIFEST, Run, Stage

# Names in a stage's file that are no weights.
CLASS_MEANS, CLASS_COUNTS = "tgdd/class_means", "tgdd/class_counts"


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
    class_means: tuple[torch.Tensor, torch.Tensor] | None = None,
    index: int | None = None,
    **when: Any,
) -> None:
    """Writes a stage file, then the manifest that names it, then removes the files that thinning dropped.

    Args:
        folder: The run's folder.
        run: Its manifest, which gets the stage.
        state: The weights by name, on any device.
        max_stages: As in :func:`thin`.
        class_means: Means ``(K, D)`` of φ(x) and counts ``(K,)`` by class, float32, since the stage before. Default:
            ``None``, the stage has none.
        index: See :class:`Stage`. Default: one more than the last stage's.
        when: ``epoch``, ``batch``, ``sample`` and ``metrics`` of the stage.
    """
    if class_means is not None:
        state = {**state, CLASS_MEANS: class_means[0], CLASS_COUNTS: class_means[1]}
    content = weights_content(state)
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
    """Writes the manifest of a run that starts or goes on, and removes every file of a recording it does not name.

    Those come from the future of a crashed run, which will make them again, or from a crash while writing.
    """
    run.write(folder)
    named = {stage.file for stage in run.stages} | ({EXEMPLARS} if run.exemplars else set())
    for path in [*folder.glob("stage-*.safetensors"), folder / EXEMPLARS, *folder.glob(".*.tmp")]:
        if path.name not in named:
            path.unlink(missing_ok=True)


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
    def open(cls, folder: str | Path, *, check: bool = True) -> Trajectory:
        """Opens a trajectory folder, or the folder of a single run in it.

        Args:
            folder: What the callback's ``folder`` came to, for example ``my-run/trajectory``.
            check: Whether to read every stage, and the exemplars, and compare their checksums. Default: ``True``.

        Raises:
            InputError: If the folder is missing or empty, a run has fewer than two stages, a file is missing or
                differs from its checksum, or the runs are not of the same classes, equally normalised.
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
        """The first run; what all runs share (classes, normalisation) is read from it."""
        return next(iter(self.runs.values()))

    @property
    def architectures(self) -> dict[Path, int]:
        """By folder, the number of each run's network with its head, 0 that of the first run. Matching needs each
        network's own features only, so the runs of a trajectory may be of several."""
        numbers: dict[str, int] = {}
        found = {}
        for folder, run in self.runs.items():
            # What it was trained with is not what it is.
            key = json.dumps([{**run.network, "algorithms": None}, run.head], sort_keys=True)
            found[folder] = numbers.setdefault(key, len(numbers))
        return found

    @property
    def kinds(self) -> dict[Path, Run]:
        """The first run of each architecture, by folder, in the order of their numbers."""
        first: dict[int, Path] = {}
        for folder, number in self.architectures.items():
            first.setdefault(number, folder)
        return {folder: self.runs[folder] for folder in first.values()}

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
            content = safetensors.torch.load_file(run_folder / stage.file)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"stage '{run_folder / stage.file}' cannot be read: {error}") from error
        return {name: tensor for name, tensor in content.items() if name not in (CLASS_MEANS, CLASS_COUNTS)}

    def class_means(self, run_folder: Path, stage: Stage) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Class means of φ(x) in training since the stage before; the stage's weights are not read.

        Returns:
            Means ``(K, D)`` and the sums ``(K,)`` of the images' weights they are of, float32 on the CPU. A class with
            count 0 has mean 0: no image of it was seen. ``None`` if the stage has none, as the first of a run.

        Raises:
            InputError: If the file cannot be read, or these are not of that shape and finite.
        """
        path = run_folder / stage.file
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                found = [file.get_tensor(name) for name in (CLASS_MEANS, CLASS_COUNTS) if name in file.keys()]
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"stage '{path}' cannot be read: {error}") from error
        if not found:
            return None
        classes = self.runs[run_folder].num_classes
        if (
            len(found) != 2
            or found[0].ndim != 2
            or len(found[0]) != classes
            or found[1].shape != (classes,)
            or not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in found)
            or found[1].min() < 0
        ):
            held = " and ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in found)
            raise InputError(
                f"stage '{path}' has class means and counts of {held}; wanted finite float32 ({classes}, features) and "
                f"({classes},). Copy the folder again, or record the run again"
            )
        return found[0], found[1]

    def exemplars(self) -> ImagePool | None:
        """The real images that the runs kept, all runs' together, or ``None`` if they kept none.

        Raises:
            InputError: If a file cannot be read, or holds no such images of one size.
        """
        # Runs of several networks may have seen the same images first, in the same order.
        folders = {run.exemplars: path for path, run in self.runs.items() if run.exemplars}
        kept = [read_exemplars(path, self.run.num_classes) for path in folders.values()]
        if not kept:
            return None
        if len(shapes := {tuple(images.shape[1:]) for images, _ in kept}) > 1:
            raise InputError(
                f"the exemplars of the runs in '{self.folder}' are of shapes {sorted(shapes)}; keep runs on images of "
                f"unlike sizes in folders of their own"
            )
        classes = self.run.classes or [str(number) for number in range(self.run.num_classes)]
        return ImagePool(torch.cat([images for images, _ in kept]), torch.cat([labels for _, labels in kept]), classes)

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
                _check_file("stage", folder / stage.file, stage.sha256)
            if run.exemplars is not None:
                _check_file("exemplars", folder / EXEMPLARS, run.exemplars)


def _check_file(what: str, path: Path, checksum: str) -> None:
    if not path.is_file():
        raise InputError(f"{what} '{path}' is missing; copy the whole folder or record the run again")
    if sha256(path) != checksum:
        raise InputError(
            f"{what} '{path}' is damaged: its checksum differs from the manifest's; copy the folder again or record "
            f"the run again"
        )


def _shared(run: Run) -> dict[str, Any]:
    """What the runs of one trajectory must have in common."""
    return {
        "num_classes": run.num_classes,
        "classes": run.classes,
        "mean": run.mean,
        "std": run.std,
    }


EXEMPLARS = "exemplars.safetensors"


def read_exemplars(folder: Path, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of a run's folder.

    Returns:
        uint8 images ``(M, C, H, W)``, C 1 or 3, and int64 labels ``(M,)`` in 0..K-1.

    Raises:
        InputError: If the file cannot be read or holds anything else.
    """
    path = folder / EXEMPLARS
    try:
        content = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"exemplars '{path}' cannot be read: {error}") from error
    images, labels = content.get("images"), content.get("labels")
    if (
        images is None
        or labels is None
        or not (images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] in (1, 3) and images.numel())
        or not (labels.dtype == torch.int64 and labels.shape == images.shape[:1])
        or not (0 <= int(labels.min()) and int(labels.max()) < num_classes)
    ):
        held = ", ".join(f"{name} {t.dtype} {tuple(t.shape)}" for name, t in content.items())
        raise InputError(
            f"exemplars '{path}' hold {held or 'nothing'}; wanted images uint8 (M, C, H, W) with 1 or 3 channels, and "
            f"labels int64 (M,) below {num_classes}. Copy the folder again, or record the run again"
        )
    return images, labels
