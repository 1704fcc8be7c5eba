"""The stages of a trajectory on the device, and the drawing of (early, late) pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tgdd_plugin.core.class_names import named_classes
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import are_finite, only_tensors
from tgdd_plugin.networks.feature_network import fit_names
from tgdd_plugin.trajectory.manifest import Stage
from tgdd_plugin.trajectory.shortcomings import check_left, warn_of_diverged
from tgdd_plugin.trajectory.store import Trajectory


@dataclass(frozen=True)
class StagePair:
    """Positions in the bank: the ``early`` network matches features, the ``late`` one keeps the classes apart."""

    early: int
    late: int


class StageBank:
    """Every stage of every run, as one stacked tensor per parameter and buffer of a network, resident on one device.

    Stages whose weights are not finite are left out, with one warning.

    No network is rebuilt and no file opened while distillation runs: a stage is a dictionary of views.

    Args:
        trajectory: The runs, R of them with S_r stages each.
        networks: The bare networks that the weights belong to, one for each of the trajectory's ``architectures``.
        device: The device to keep them on.
        matched: The stages that features are matched under: ``'all'``, or the ``'first'`` or ``'last'`` of each run.
        recorded: Whether only stages with recorded class means are matched, and the means are kept as well.
        classes: The ids of the classes that must have means. Default: ``None``, all.

    Attributes:
        architecture: The number of each stage's network.
        runs: The number of each run's network.
        means: The recorded class means of φ of each stage, ``(K, D)``; ``None`` where there are none, and unless
            ``recorded``.

    Raises:
        InputError: If a network does not fit a stage, or a run has no stage to match under, or fewer than two that are
            finite.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        networks: Sequence[nn.Module],
        device: torch.device | str = "cpu",
        *,
        matched: str = "all",
        recorded: bool = False,
        classes: Sequence[int] | None = None,
    ) -> None:
        stages = self._load(trajectory, networks, device)
        self.sizes = [sum(folder == own for own, _ in stages) for folder in trajectory.runs]
        self.names = [
            f"run '{trajectory.runs[folder].name}', epoch {stage.epoch}, batch {stage.batch}"
            for folder, stage in stages
        ]
        self.runs = list(trajectory.architectures.values())
        self.means: list[torch.Tensor | None] = [None] * len(stages)
        usable = self._take_means(trajectory, stages, classes, device) if recorded else list(range(len(stages)))
        early = {"all": slice(None), "first": slice(1), "last": slice(-1, None)}[matched]
        # Positions that may be the early stage, run by run, and where each run ends.
        self._early: list[list[int]] = []
        self._ends: list[int] = []
        for folder, size in zip(trajectory.runs, self.sizes, strict=True):
            start = self._ends[-1] if self._ends else 0
            self._ends.append(start + size)
            self._early.append([position for position in usable if start <= position < start + size][early])
            if not self._early[-1]:
                raise _no_means(trajectory, folder, classes)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """Returns the weights of one stage by name, as views."""
        index = self._index[position]
        return {name: bank[index] for name, bank in self.stacked[self.architecture[position]].items()}

    @property
    def last(self) -> dict[str, torch.Tensor]:
        """The weights of the first run's last stage by name, as views."""
        return self[self._ends[0] - 1]

    def _load(
        self, trajectory: Trajectory, networks: Sequence[nn.Module], device: torch.device | str
    ) -> list[tuple[Path, Stage]]:
        """Fills ``stacked`` with the stages that are finite, and returns those."""
        numbers = trajectory.architectures
        noted = trajectory.finite_stages
        room = Counter(numbers[folder] for folder, _ in noted)
        self.stacked = [
            {
                name: torch.empty((room[n], *tensor.shape), dtype=tensor.dtype, device=device)
                for name, tensor in only_tensors(network.state_dict()).items()
            }
            for n, network in enumerate(networks)
        ]
        stages, used = [], [0] * len(networks)
        self.architecture: list[int] = []
        self._index: list[int] = []
        for folder, stage in noted:
            n = numbers[folder]
            weights = trajectory.load(folder, stage)
            if not are_finite(weights):  # as recorded by a version that did not look
                continue
            recorded_names = fit_names(weights, networks[n], f"stage '{folder / stage.file}'")
            for name, bank in self.stacked[n].items():
                bank[used[n]] = weights[recorded_names[name]]
            self.architecture.append(n)
            self._index.append(used[n])
            used[n] += 1
            stages.append((folder, stage))
        found, kept = [], {(folder, stage.file) for folder, stage in stages}
        for folder, run in trajectory.runs.items():
            if lost := [stage for stage in run.stages if (folder, stage.file) not in kept]:
                check_left(run, lost)
                found.append((run, lost))
        warn_of_diverged(found)
        return stages

    def _take_means(
        self,
        trajectory: Trajectory,
        stages: list[tuple[Path, Stage]],
        classes: Sequence[int] | None,
        device: torch.device | str,
    ) -> list[int]:
        """Fills ``means`` and returns the positions of the stages that have one for each of ``classes``."""
        usable = []
        needed = slice(None) if classes is None else list(classes)
        for position, (folder, stage) in enumerate(stages):
            found = trajectory.class_means(folder, stage)
            if found is None or not bool((found[1][needed] > 0).all()):
                continue
            self.means[position] = found[0].to(device)
            usable.append(position)
        return usable

    def draw(self, max_gap: int, generator: torch.Generator) -> StagePair:
        """Draws r ~ U{runs}, j ~ U{0..S-1} and k ~ U{j..min(j+L-1, S-1)} (TGDD, section "method").

        Args:
            max_gap: L, the number of stages that the late one is drawn from, the early one included.
            generator: The source of randomness, on the CPU.
        """

        def uniform(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        run = uniform(len(self._early))
        early = self._early[run][uniform(len(self._early[run]))]
        return StagePair(early, early + uniform(min(max_gap, self._ends[run] - early)))


def _no_means(trajectory: Trajectory, folder: Path, classes: Sequence[int] | None) -> InputError:
    """Returns the error of a run that has no stage with means of all classes that are distilled."""
    run = trajectory.runs[folder]
    wanted = list(range(run.num_classes)) if classes is None else list(classes)
    found = [means for stage in run.stages if (means := trajectory.class_means(folder, stage)) is not None]
    seen = [label for label in wanted if any(counts[label] > 0 for _, counts in found)]
    if not seen or len(seen) == len(wanted):
        have = trajectory.exemplar_counts()
        kept = "match the images that were kept (source 'exemplars'), " * all(have[label] for label in wanted)
        return InputError(
            f"The run in '{folder}' has no stage with means of all {len(wanted)} classes. TGDDCallback records them, "
            f"unless statistics=False, from images of one class each (mixed ones do not count). Give the real images "
            f"(source 'sampled'), {kept}or record again, with longer intervals for rare classes."
        )
    names = run.class_names
    missing = [names[label] for label in wanted if label not in seen]
    return InputError(
        f"The {named_classes(missing)} must have recorded means to be distilled, got none in the run in '{folder}', "
        f"which trained on no image of such a class alone. Leave it out (`classes`, in a recipe distill.classes), "
        f"record again with images of it, or give the real images (source 'sampled')."
    )
