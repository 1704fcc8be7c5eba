"""The stage bank: what it holds and what it draws."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tgdd_plugin.distillation.stage_bank import StageBank


def bank_of(*sizes: int) -> tuple[StageBank, list[nn.Module]]:
    """A bank of runs with so many stages each, every stage a layer of its own."""
    torch.manual_seed(0)
    networks = [nn.BatchNorm1d(3) for _ in range(sum(sizes))]
    for network in networks:
        nn.init.normal_(network.weight)
        network.running_mean.normal_()
    runs, position = {}, 0
    for number, size in enumerate(sizes):
        stages = [SimpleNamespace(epoch=i, batch=i, file=str(position + i), finite=True) for i in range(size)]
        runs[Path(f"run{number}")] = SimpleNamespace(name=f"run{number}", stages=stages)
        position += size
    trajectory = SimpleNamespace(
        runs=runs,
        architectures=dict.fromkeys(runs, 0),
        finite_stages=[(folder, stage) for folder, run in runs.items() for stage in run.stages],
        load=lambda folder, stage: networks[int(stage.file)].half().state_dict(),
    )

    return StageBank(trajectory, [nn.BatchNorm1d(3)]), networks


def test_holds_every_stage_of_every_run_in_the_networks_own_precision():
    bank, networks = bank_of(2, 3)
    assert len(bank) == 5
    for position, network in enumerate(networks):
        for name, tensor in network.state_dict().items():
            held = bank[position][name]
            torch.testing.assert_close(held, tensor.to(held.dtype), rtol=0, atol=0)
            assert held.dtype == nn.BatchNorm1d(3).state_dict()[name].dtype


def test_a_stage_is_a_view_not_a_copy():
    bank, _ = bank_of(2)
    assert bank[1]["weight"].untyped_storage().data_ptr() == bank.stacked[0]["weight"].untyped_storage().data_ptr()


@pytest.mark.parametrize("gap", [1, 2, 7])
def test_pairs_are_drawn_as_the_paper_says(gap):
    """r ~ U{runs}, j ~ U{0..S-1}, k ~ U{j..min(j+L-1, S-1)}, against the probabilities counted out."""
    sizes = (4, 2)
    bank, _ = bank_of(*sizes)
    generator = torch.Generator().manual_seed(1)
    draws = 20_000
    counts = Counter()
    for _ in range(draws):
        pair = bank.draw(gap, generator)
        counts[pair.early, pair.late] += 1
    wanted = {}
    for run, size in enumerate(sizes):
        start = sum(sizes[:run])
        for early in range(size):
            latest = range(early, min(early + gap - 1, size - 1) + 1)
            for late in latest:
                wanted[start + early, start + late] = 1 / len(sizes) / size / len(latest)
    assert set(counts) == set(wanted)
    for pair, probability in wanted.items():
        assert counts[pair] / draws == pytest.approx(probability, abs=5 * (probability / draws) ** 0.5)
