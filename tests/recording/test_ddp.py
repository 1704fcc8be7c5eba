"""Two processes on gloo, first started by Composer's own launcher. This file is also the script that they run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import composer.core.state
import pytest
import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.common import Probe, Weights, assert_same, fit, manifest, recorded, statistics, tiny_network
from tests.distributed.launching import fork_ranks, launch, outcome, run_file
from tgdd_plugin import TGDDCallback
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.recording.class_means import ClassMeans

# The pair of processes.


def train(root: Path, name: str, **options: Any) -> Probe:
    network = tiny_network(norm=True, dropout=0.5)
    probe = Probe(network)
    tgdd = TGDDCallback(str(root / "trajectory"), interval="2ba", max_stages=5, on_error="raise")
    options = {
        "save_folder": str(root / f"checkpoints-{name}"),
        "save_interval": "1ep",
        "autoresume": True,
        "run_name": name,
        "max_duration": "4ep",
        "batch_size": 4,
        **options,
    }
    fit(network, callbacks=[probe, tgdd], **options)  # 16 batches of 2 x 4 images
    return probe


class WholeWeights(Callback):
    """What FSDP's own gathering of all parameters gives, at each epoch's end."""

    def __init__(self) -> None:
        self.weights: dict[int, Weights] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        self.epoch_end(state, logger)

    def epoch_end(self, state: State, logger: Logger) -> None:
        with FullyShardedDataParallel.summon_full_params(state.model.module, writeback=False):
            self.weights[state.timestamp.batch.value] = {
                name.replace("_fsdp_wrapped_module.", ""): parameter.detach().clone()
                for name, parameter in state.model.module.named_parameters()
            }


def train_fsdp(root: Path, state_dict_type: str) -> WholeWeights:
    # Composer means FSDP for GPUs: it names their number as the device, and gathers weights "off" it to the CPU, which
    # torch answers with a crash if they are there already. So changed, it shards on the CPU.
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
    composer.core.state.StateDictOptions = lambda full_state_dict, cpu_offload: StateDictOptions(  # type: ignore
        full_state_dict=full_state_dict
    )
    network = tiny_network()
    network.fsdp_wrap_fn = lambda module: module is network.fc  # type: ignore[assignment]
    probe = WholeWeights()
    fit(
        network,
        callbacks=[probe, TGDDCallback(str(root / "trajectory"))],
        run_name=f"fsdp-{state_dict_type}",
        max_duration="2ep",
        parallelism_config={"fsdp": {"state_dict_type": state_dict_type}},
    )
    return probe


def train_statistics(root: Path, batch_size: int, **options: Any) -> None:
    """9 batches of the same 8 images on any number of ranks; the second, resumed part begins within an interval."""
    fit(
        tiny_network(),
        callbacks=[TGDDCallback(str(root / "trajectory"), interval="4ba")],
        save_folder=str(root / f"checkpoints-statistics-{batch_size}"),
        save_interval="3ba",
        save_overwrite=True,
        run_name=f"statistics-{batch_size}",
        max_duration="9ba",
        batch_size=batch_size,
        **options,
    )


def lone_rank() -> Weights:
    """Class means to which rank 1 adds nothing, saved and loaded once between."""
    means = ClassMeans()
    for labels in ([0, 1], [1, 1]):
        state, means = means.state_dict(), ClassMeans()
        means.load_state_dict(state)
        means.prepare(2, 3, "cpu")
        means.begin_pass()
        if dist.get_global_rank() == 0:
            means.add(torch.arange(6.0).view(2, 3), torch.tensor(labels))
        means.end_pass()
        means.commit()
    taken = means.take()
    assert taken is not None
    return {"means": taken[0], "counts": taken[1]}


def keep(root: Path, name: str, weights: dict[int, Weights]) -> None:
    torch.save(weights, root / f"{name}-rank{dist.get_global_rank()}.pt")


def first_launch(root: Path) -> None:
    """A whole run, FSDP, and a run in which rank 0 alone fails: its disk is full at batch 10."""
    dist.initialize_dist("cpu")
    keep(root, "whole", train(root, "whole").weights)
    train_statistics(root, 4)
    keep(root, "statistics", statistics(run(root, "statistics-4")))
    train_statistics(root, 4, load_path=str(root / "checkpoints-statistics-4/ep1-ba6-rank0.pt"))
    keep(root, "lone", {0: lone_rank()})
    keep(root, "fsdp", train_fsdp(root, "full").weights)
    try:
        train_fsdp(root, "sharded")
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if "ba10" in str(target) and "trajectory" in str(target):
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    os.replace = full
    train(root, "crashed")


def second_launch(root: Path) -> None:
    """The failed run is resumed; then a run that is already recorded is begun anew."""
    train(root, "crashed")
    train(root, "whole", autoresume=False, save_overwrite=True)


# The tests.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def first(root: Path) -> tuple[int, list[str]]:
    return launch(__file__, "first_launch", root)


@pytest.fixture(scope="module")
def second(root: Path, first: tuple[int, list[str]]) -> tuple[int, list[str]]:
    run_file(__file__, root, "second_launch")
    ended = outcome(root, "second_launch")
    return max(status for status, *_ in ended), [text for *_, text in ended]


def run(root: Path, name: str) -> Path:
    return root / "trajectory" / name


def test_stages_are_those_of_both_ranks(root: Path, first: tuple[int, list[str]]) -> None:
    stages = recorded(run(root, "whole"))
    assert list(stages) == [0, 4, 8, 12, 16]
    for rank in (0, 1):
        probe = torch.load(root / f"whole-rank{rank}.pt")
        for batch, weights in stages.items():
            for name, tensor in weights.items():
                # DDP averages gradients, so the ranks' parameters agree; running statistics are each rank's own.
                if rank == 0 or "running" not in name:
                    assert torch.equal(tensor, probe[batch][name]), f"{name} at batch {batch} on rank {rank}"
    assert set(stages[0]) == set(tiny_network(norm=True).state_dict())
    noted = manifest(run(root, "whole"))
    assert noted["head"] == "fc" and noted["complete"]
    assert [stage["sample"] for stage in noted["stages"]] == [0, 32, 64, 96, 128]


def test_stages_under_fsdp(root: Path, first: tuple[int, list[str]]) -> None:
    """As FSDP gathers them itself; names, head, class and size are the bare network's."""
    stages = recorded(run(root, "fsdp-full"))
    assert_same(stages, torch.load(root / "fsdp-rank0.pt"))
    noted = manifest(run(root, "fsdp-full"))
    assert set(stages[0]) == set(tiny_network().state_dict())
    assert noted["head"] == "fc"
    assert noted["network"]["class"] == "tests.common:TinyNetwork"
    assert noted["network"]["parameters"] == sum(p.numel() for p in tiny_network().parameters())


def test_statistics_are_those_of_both_ranks(root: Path, first: tuple[int, list[str]]) -> None:
    """As one process adds them up over the same images; also when resumed within an interval."""
    train_statistics(root, 8)
    alone, resumed = statistics(run(root, "statistics-8")), statistics(run(root, "statistics-4"))
    assert list(alone) == [0, 4, 8, 9] and all(alone[batch] for batch in (4, 8, 9))
    for found in (torch.load(root / "statistics-rank0.pt"), resumed):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert manifest(run(root, "statistics-4"))["exemplars"]


def test_statistics_of_one_rank_alone(root: Path, first: tuple[int, list[str]]) -> None:
    """Batch 1 of 2 has weight 1/4."""
    rows = torch.arange(6.0).view(2, 3)
    for rank in (0, 1):
        found = torch.load(root / f"lone-rank{rank}.pt")[0]
        torch.testing.assert_close(found["counts"], torch.tensor([0.25, 2.25]))
        torch.testing.assert_close(found["means"], torch.stack([rows[0], (rows.sum(0) + rows[1] / 4) / 2.25]))


def test_statistics_under_fsdp(root: Path, first: tuple[int, list[str]]) -> None:
    fit(tiny_network(), callbacks=[TGDDCallback(str(root / "alone"))], max_duration="2ep", batch_size=16)
    found, alone = statistics(run(root, "fsdp-full")), statistics(root / "alone/run")
    assert alone[2] and alone[4]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_sharded_state_is_refused(root: Path, first: tuple[int, list[str]]) -> None:
    for text in first[1]:
        assert "refused: `parallelism_config['fsdp']['state_dict_type']` must be 'full', got 'sharded'" in text
    assert not run(root, "fsdp-sharded").exists()


def test_failure_of_one_rank_ends_both(root: Path, first: tuple[int, list[str]]) -> None:
    status, texts = first
    assert status != 0
    for text in texts:
        lines = [line for line in text.splitlines() if "InputError: Cannot record in '" in line]
        assert len(lines) == 1 and "(No space left on device). Make room, or record into a folder" in lines[0]


def test_crash_and_autoresume(root: Path, second: tuple[int, list[str]]) -> None:
    whole, crashed = (
        {path.name: path.read_bytes() for path in run(root, name).iterdir() if path.suffix == ".safetensors"}
        for name in ("whole", "crashed")
    )
    assert crashed == whole
    noted = manifest(run(root, "crashed"))
    assert noted["complete"]
    assert {**noted, "name": "whole"} == manifest(run(root, "whole"))


def test_refusal_ends_both_ranks_with_one_line(root: Path, second: tuple[int, list[str]]) -> None:
    status, texts = second
    assert status != 0
    for text in texts:
        lines = [line for line in text.splitlines() if "InputError: Run 'whole' is already recorded in " in line]
        assert len(lines) == 1 and lines[0].endswith("overwrite=True.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    function, folder = globals()[sys.argv[1]], Path(sys.argv[2])
    if "RANK" in os.environ:  # one of the launcher's two
        function(folder)
    else:
        fork_ranks(function, folder)
