"""The stages of a trajectory on the device, and the drawing of (early, late) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.networks.feature_network import fit_names
from tgdd_plugin.trajectory.manifest import Stage
from tgdd_plugin.trajectory.store import Trajectory


@dataclass(frozen=True)
class StagePair:
    """Positions in the bank: the ``early`` network matches features, the ``late`` one keeps the classes apart."""

    early: int
    late: int


class StageBank:
    """Every stage of every run, as one stacked tensor per parameter and buffer of a network, resident on one device.

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
        InputError: If a network does not fit a stage, or a run has no stage to match under.
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
        self.sizes = [len(run.stages) for run in trajectory.runs.values()]
        self.names = [
            f"run '{run.name}', epoch {stage.epoch}, batch {stage.batch}"
            for run in trajectory.runs.values()
            for stage in run.stages
        ]
        stages = [(folder, stage) for folder, run in trajectory.runs.items() for stage in run.stages]
        numbers = trajectory.architectures
        self.runs = list(numbers.values())
        self.architecture = [numbers[folder] for folder, _ in stages]
        self._index = [self.architecture[:position].count(n) for position, n in enumerate(self.architecture)]
        self.stacked = [
            {
                name: torch.empty((self.architecture.count(n), *tensor.shape), dtype=tensor.dtype, device=device)
                for name, tensor in network.state_dict().items()
            }
            for n, network in enumerate(networks)
        ]
        for position, (folder, stage) in enumerate(stages):
            weights = trajectory.load(folder, stage)
            recorded_names = fit_names(weights, networks[numbers[folder]], f"stage '{folder / stage.file}'")
            for name, bank in self.stacked[numbers[folder]].items():
                bank[self._index[position]] = weights[recorded_names[name]]
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
                raise InputError(
                    f"The run in '{folder}' has no stage with means of all "
                    f"{len(classes or range(trajectory.run.num_classes))} classes. TGDDCallback records them, unless "
                    f"statistics=False, from images of one class each (mixed ones do not count). Give the real images "
                    f"(source 'sampled'), or record again, with longer intervals for rare classes."
                )

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
