"""The stages of a trajectory on the device, and the drawing of (early, late) pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tgdd_plugin.network import fit_names
from tgdd_plugin.trajectory import Trajectory


@dataclass(frozen=True)
class StagePair:
    """Positions in the bank: the ``early`` network matches features, the ``late`` one keeps the classes apart."""

    early: int
    late: int


class StageBank:
    """Every stage of every run, as one stacked tensor per parameter and buffer, resident on one device.

    No network is rebuilt and no file opened while distillation runs: a stage is a dictionary of views.

    Args:
        trajectory: The runs, R of them with S_r stages each.
        network: The bare network that the weights belong to.
        device: Where to keep them.

    Raises:
        InputError: If the network does not fit a stage.
    """

    def __init__(self, trajectory: Trajectory, network: nn.Module, device: torch.device | str = "cpu") -> None:
        self.sizes = [len(run.stages) for run in trajectory.runs.values()]
        self.names = [
            f"run '{run.name}', epoch {stage.epoch}, batch {stage.batch}"
            for run in trajectory.runs.values()
            for stage in run.stages
        ]
        wanted = network.state_dict()
        self.stacked = {
            name: torch.empty((sum(self.sizes), *tensor.shape), dtype=tensor.dtype, device=device)
            for name, tensor in wanted.items()
        }
        position = 0
        for folder, run in trajectory.runs.items():
            for stage in run.stages:
                recorded = trajectory.load(folder, stage)
                spelt = fit_names(recorded, network, f"stage '{folder / stage.file}'")
                for name, bank in self.stacked.items():
                    bank[position] = recorded[spelt[name]]
                position += 1

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        """The weights of one stage by name, as views."""
        return {name: bank[position] for name, bank in self.stacked.items()}

    def draw(self, max_gap: int, generator: torch.Generator) -> StagePair:
        """Draws r ~ U{runs}, j ~ U{0..S-1} and k ~ U{j..min(j+L-1, S-1)} (TGDD, section "method").

        Args:
            max_gap: L, the number of stages the late one is drawn from, the early one included.
            generator: On the CPU.
        """

        def uniform(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        run = uniform(len(self.sizes))
        early = uniform(self.sizes[run])
        late = early + uniform(min(max_gap, self.sizes[run] - early))
        start = sum(self.sizes[:run])
        return StagePair(start + early, start + late)
