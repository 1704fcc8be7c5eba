"""What TGDDCallback writes, beside weights copied out of the network by other means at the same moments."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, State, Time, Trainer
from composer.algorithms import EMA, SWA, CutMix, CutOut, LabelSmoothing, MixUp, RandAugment
from composer.callbacks import CheckpointSaver, EarlyStopper
from composer.core import Algorithm, Event
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.transforms import v2

from tests.common import (
    CLASSES,
    At,
    Crash,
    OwnModel,
    Pictures,
    Probe,
    TinyNetwork,
    assert_same,
    differ,
    fit,
    make_trainer,
    manifest,
    recorded,
    refusal,
    snapshot,
    tiny_network,
)
from tgdd_plugin import DistillSettings, TGDDCallback, Trajectory, distill
from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.augmentation.strategy import OPERATIONS
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet
from tgdd_plugin.recording.data_introspection import find_augmentation, find_classes, find_normalization

EPOCH = 4  # batches, see make_trainer


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(images.flatten(1)).relu()))


def record(
    folder: Path, network: nn.Module | None = None, options: dict[str, Any] | None = None, /, **tgdd: Any
) -> Probe:
    """Trains under a probe and a TGDDCallback that records into ``folder/run``."""
    network = network if network is not None else tiny_network()
    probe = Probe(network.module if isinstance(network, ComposerClassifier) else network)
    options = dict(options or {})
    callbacks = [*options.pop("callbacks", []), probe, TGDDCallback(str(folder), **tgdd)]
    fit(network, callbacks=callbacks, **options)
    return probe


def at(probe: Probe, *batches: int) -> dict[int, dict[str, torch.Tensor]]:
    return {batch: probe.weights[batch] for batch in batches}


# The weights are those of the network in training.


def test_default_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = tiny_network()
    probe = Probe(network)
    fit(network, callbacks=[TGDDCallback(), probe], run_name="my-run")
    folder = Path("my-run/trajectory/my-run")
    assert_same(recorded(folder), at(probe, 0, 4, 8, 12))
    epochs = [(stage["epoch"], stage["batch"], stage["sample"]) for stage in manifest(folder)["stages"]]
    assert epochs == [(0, 0, 0), (1, 4, 32), (2, 8, 64), (3, 12, 96)]
    # Training is left as it is.
    alone = tiny_network()
    fit(alone)
    assert not differ(alone.state_dict(), network.state_dict())


@pytest.mark.parametrize("microbatch", [1, 3, 8])
def test_microbatches(tmp_path: Path, microbatch: int) -> None:
    probe = record(tmp_path, None, {"device_train_microbatch_size": microbatch})
    assert_same(recorded(tmp_path / "run"), at(probe, 0, 4, 8, 12))


def test_buffers_are_recorded(tmp_path: Path) -> None:
    probe = record(tmp_path, tiny_network(norm=True))
    stages = recorded(tmp_path / "run")
    assert_same(stages, at(probe, 0, 4, 8, 12))
    assert [int(w["features.1.num_batches_tracked"]) for w in stages.values()] == [0, 4, 8, 12]
    assert differ(*({"var": stages[batch]["features.1.running_var"]} for batch in (4, 8)))


def test_tied_weights(tmp_path: Path) -> None:
    probe = record(tmp_path, Tied())
    assert_same(recorded(tmp_path / "run"), at(probe, 0, 4, 8, 12))
    assert manifest(tmp_path / "run")["network"]["parameters"] == 64 * 64 + 64 + 64 + 64 * CLASSES + CLASSES


def test_own_composer_model(tmp_path: Path) -> None:
    network = convnet(CLASSES, 1, 8, depth=1, width=4)
    probe = record(tmp_path, OwnModel(network))
    stages = recorded(tmp_path / "run")
    assert_same(stages, at(probe, 0, 4, 8, 12))
    assert set(stages[0]) == {f"net.{name}" for name in network.state_dict()}
    noted = manifest(tmp_path / "run")
    assert noted["head"] == "net.classifier"
    assert noted["network"]["factory"] == "tgdd_plugin.networks:convnet"
    assert noted["network"]["arguments"]["width"] == 4


def test_mixed_precision(tmp_path: Path) -> None:
    """Composer has it on GPUs only, so the model does here what Composer does there: the forward pass in bfloat16."""

    class Mixed(OwnModel):
        def forward(self, batch: Any) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = super().forward(batch)
            assert logits.dtype == torch.bfloat16
            return logits

    probe = record(tmp_path, Mixed(tiny_network()))
    assert_same(recorded(tmp_path / "run"), at(probe, 0, 4, 8, 12))
    assert {tensor.dtype for tensor in recorded(tmp_path / "run")[12].values()} == {torch.float32}


@pytest.mark.parametrize("how", ["by the Trainer", "by the user", "a part", "the whole model"])
def test_compiled(tmp_path: Path, how: str) -> None:
    network = tiny_network()
    probe = Probe(network)
    names = set(network.state_dict())
    options: dict[str, Any] = {"compile_config": {"backend": "eager"}} if how == "by the Trainer" else {}
    given: nn.Module = network
    if how == "by the user":
        given = torch.compile(network, backend="eager")  # type: ignore[assignment]
    elif how == "the whole model":
        given = torch.compile(ComposerClassifier(network, num_classes=CLASSES), backend="eager")  # type: ignore
    elif how == "a part":
        # The probe's own names carry the wrapper from here on; take it off them.
        network.features = torch.compile(network.features, backend="eager")  # type: ignore[assignment]
    model = given if how == "the whole model" else ComposerClassifier(given, num_classes=CLASSES)
    trainer = Trainer(
        model=model,  # type: ignore[arg-type]
        train_dataloader=DataLoader(Pictures(), batch_size=8),
        optimizers=torch.optim.SGD(network.parameters(), lr=0.1),
        max_duration="2ep",
        device="cpu",
        progress_bar=False,
        run_name="run",
        callbacks=[probe, TGDDCallback(str(tmp_path), head="fc")],
        **options,
    )
    trainer.fit()
    trainer.close()
    wanted = {
        batch: {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}
        for batch, weights in at(probe, 0, 4, 8).items()
    }
    assert set(wanted[0]) == names
    assert_same(recorded(tmp_path / "run"), wanted)
    noted = manifest(tmp_path / "run")
    assert noted["head"] == "fc"
    assert noted["network"]["class"] == f"{TinyNetwork.__module__}:TinyNetwork"
    assert noted["network"]["parameters"] == sum(p.numel() for p in TinyNetwork().parameters())


@pytest.mark.parametrize("save", ["1ep", "2ba"])
@pytest.mark.parametrize("interval", ["1ep", "2ba"])
def test_training_weights_under_ema(tmp_path: Path, save: str, interval: str) -> None:
    """EMA swaps its weights in for each checkpoint; with save='2ba' they still stand there at EPOCH_END."""
    saver = CheckpointSaver(str(tmp_path / "checkpoints"), save_interval=save)
    ema = EMA(half_life="3ba")
    trap = Probe(network := tiny_network())
    probe = record(tmp_path, network, {"algorithms": [ema], "callbacks": [trap, saver]}, interval=interval)
    assert differ(trap.weights[4], network.state_dict())
    if save == "2ba":
        assert differ(trap.at_epoch_end[4], trap.weights[4]), "EMA's weights were expected at EPOCH_END"
    batches = (0, 4, 8, 12) if interval == "1ep" else (0, 2, 4, 6, 8, 10, 12)
    assert_same(recorded(tmp_path / "run"), at(probe, *batches))
    # EMA leaves training as it is, so a run without it passes through the same weights.
    without = record(tmp_path / "without", interval=interval)
    assert_same(recorded(tmp_path / "run"), at(without, *batches))


def test_ema_is_left_as_it_was(tmp_path: Path) -> None:
    """What the Trainer ends with and saves is the same with the callback and without."""
    ends = []
    for callbacks in ([], [TGDDCallback(str(tmp_path), interval="1ep")]):
        network = tiny_network()
        saver = CheckpointSaver(str(tmp_path / f"checkpoints{len(ends)}"), save_interval="2ba")
        fit(network, algorithms=[EMA(half_life="3ba")], callbacks=[*callbacks, saver])
        ends.append(network.state_dict())
    assert not differ(*ends)


def test_swa(tmp_path: Path) -> None:
    """After its end the stage is the average, by hand, of the weights it averaged; before, those in training."""
    swa = SWA(swa_start="1ep", swa_end="3ep", update_interval="1ep", schedule_swa_lr=False)
    probe = record(tmp_path, None, {"algorithms": [swa], "max_duration": "4ep"})
    stages = recorded(tmp_path / "run")
    averaged = stages.pop(12)
    assert differ(averaged, probe.weights[12])
    for name, tensor in averaged.items():
        by_hand = torch.stack([probe.weights[batch][name] for batch in (4, 8, 12)]).mean(0)
        torch.testing.assert_close(tensor, by_hand)
    assert_same(stages, at(probe, 0, 4, 8, 16))
    assert manifest(tmp_path / "run")["network"]["algorithms"] == ["SWA"]


@pytest.mark.parametrize(("interval", "duration"), [("4ba", "3ep"), ("1ba", "3ep"), ("0.1dur", "3ep"), ("1ep", "12ba")])
def test_swa_that_ends_with_the_training(tmp_path: Path, interval: str, duration: str) -> None:
    """The last stage is the averaged network that ``fit()`` leaves, also where its batch is due for itself."""
    start, end = ("1ep", "3ep") if duration == "3ep" else ("0.3dur", "0.97dur")
    swa = SWA(swa_start=start, swa_end=end, update_interval="1ep", schedule_swa_lr=False)
    network = tiny_network()
    probe = record(tmp_path, network, {"algorithms": [swa], "max_duration": duration}, interval=interval)
    stages = recorded(tmp_path / "run")
    assert list(stages)[-1] == 12 and len(stages) == {"1ba": 13, "0.1dur": 7}.get(interval, 4)
    assert not differ(stages[12], network.state_dict()) and differ(stages[12], probe.weights[12])


# When a stage is due.


@pytest.mark.parametrize(
    ("interval", "duration", "batches"),
    [
        ("1ep", "3ep", [0, 4, 8, 12]),
        (2, "3ep", [0, 8, 12]),
        (Time.from_timestring("2ep"), "4ep", [0, 8, 16]),
        ("3ba", "2ep", [0, 3, 6, 8]),
        ("4ba", "2ep", [0, 4, 8]),
        ("16sp", "1ep", [0, 2, 4]),
        ("0.25dur", "3ep", [0, 3, 6, 9, 12]),
        ("0.5dur", "6ba", [0, 3, 6]),
        ("1ep", "10ba", [0, 4, 8, 10]),
        ("1ep", "8ba", [0, 4, 8]),
        ("5ep", "1ep", [0, 4]),
        (lambda state, event: state.timestamp.batch.value % 3 == 0, "10ba", [0, 3, 6, 9, 10]),
        (lambda state, event: event == Event.EPOCH_END, "2ep", [0, 4, 8]),
        (lambda state, event: False, "1ep", [0, 4]),
    ],
)
def test_interval(tmp_path: Path, interval: Any, duration: str, batches: list[int]) -> None:
    probe = record(tmp_path, None, {"max_duration": duration}, interval=interval)
    assert_same(recorded(tmp_path / "run"), at(probe, *batches))
    assert [stage["index"] for stage in manifest(tmp_path / "run")["stages"]] == list(range(len(batches)))


def test_a_share_of_training_needs_a_loader_with_a_length(tmp_path: Path) -> None:
    """Composer would end the training by an error after its first batch."""

    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(Pictures())

    options = {"train_dataloader": DataLoader(Stream(), batch_size=8), "max_duration": "8ba"}
    with pytest.raises(InputError, match="`interval` must not be in dur where .* no length, got '0.5dur'. Write it"):
        record(tmp_path, None, dict(options), interval="0.5dur")
    record(tmp_path, None, options, interval="4ba")
    assert list(recorded(tmp_path / "run")) == [0, 4, 8]


@pytest.mark.parametrize(("stop_at", "batches"), [(6, [0, 6]), (4, [0, 4]), (8, [0, 8])])
@pytest.mark.parametrize("order", ["stops before", "stops after"])
def test_last_moment_of_a_stopped_run(tmp_path: Path, stop_at: int, batches: list[int], order: str) -> None:
    network = tiny_network()
    probe, stop = Probe(network), At(stop_at, State.stop_training)
    tgdd = TGDDCallback(str(tmp_path), interval="3ep")
    fit(network, callbacks=[probe, stop, tgdd] if order == "stops before" else [probe, tgdd, stop])
    assert_same(recorded(tmp_path / "run"), at(probe, *batches))
    assert manifest(tmp_path / "run")["complete"]


def test_stopped_by_an_evaluation_under_ema(tmp_path: Path) -> None:
    """The last stage can be taken at FIT_END only, where EMA's weights stand in the model."""
    network = tiny_network()
    probe = Probe(network)
    stopper = EarlyStopper("MulticlassAccuracy", "eval", patience="1ba", min_delta=2.0)
    fit(
        network,
        algorithms=[EMA(half_life="3ba")],
        eval_dataloader=DataLoader(Pictures(), batch_size=8),
        eval_interval="2ba",
        max_duration="3ep",
        callbacks=[probe, TGDDCallback(str(tmp_path), interval="2ep"), stopper],
        save_folder=str(tmp_path / "checkpoints"),
        save_interval="1ba",
    )
    last = max(probe.weights)
    assert last < 12, "the run was expected to stop early"
    assert differ(probe.weights[last], network.state_dict()), "EMA's weights were expected in the model"
    assert_same(recorded(tmp_path / "run"), at(probe, 0, last))


@pytest.mark.parametrize("max_stages", [2, 3, 4, 5, 7])
def test_thinning_while_training(tmp_path: Path, max_stages: int) -> None:
    probe = record(tmp_path, interval="1ba", max_stages=max_stages)
    stride = next(2**m for m in range(9) if len({*range(0, 12, 2**m), 12}) <= max_stages)
    wanted = sorted({*range(0, 12, stride), 12})
    assert_same(recorded(tmp_path / "run"), at(probe, *wanted))
    files = {stage["file"] for stage in manifest(tmp_path / "run")["stages"]}
    assert {path.name for path in (tmp_path / "run").iterdir()} == files | {"manifest.json", "exemplars.safetensors"}


# What is written.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    probe = record(tmp_path, tiny_network(norm=True), dtype=str(dtype).removeprefix("torch."))
    wanted = {
        batch: {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        for batch, weights in at(probe, 0, 4, 8, 12).items()
    }
    assert_same(recorded(tmp_path / "run"), wanted)
    assert wanted[4]["features.1.num_batches_tracked"].dtype == torch.int64


def test_what_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    network = tiny_network(norm=True)
    network.features[1].running_var.fill_(1e6)  # type: ignore[union-attr, operator]
    probe = record(tmp_path, network, dtype="float16")
    first = recorded(tmp_path / "run")[0]
    assert torch.equal(first["features.1.running_var"], probe.weights[0]["features.1.running_var"])
    assert first["features.1.running_mean"].dtype == torch.float16


def test_metrics(tmp_path: Path) -> None:
    """The means of the Trainer's own numbers over the batches since the stage before."""
    batches: list[dict[str, float]] = []
    seen = {}

    class Losses(Callback):
        def batch_end(self, state: State, logger: Any) -> None:
            accuracy = float(state.train_metrics["MulticlassAccuracy"].compute())
            loss = state.total_loss_dict["loss/train/total"]
            batches.append({"loss/train/total": loss, "MulticlassAccuracy": accuracy})

        def epoch_end(self, state: State, logger: Any) -> None:
            means = {name: sum(batch[name] for batch in batches) / len(batches) for name in batches[0]}
            seen[state.timestamp.batch.value] = pytest.approx(means)
            batches.clear()

    record(tmp_path, None, {"callbacks": [Losses()]})
    stages = {stage["batch"]: stage["metrics"] for stage in manifest(tmp_path / "run")["stages"]}
    assert stages.pop(0) == {}
    assert stages == seen
    assert len({tuple(metrics.values()) for metrics in stages.values()}) == 3


def test_odd_metrics_do_not_stop_training(tmp_path: Path) -> None:
    def spoil(state: State) -> None:
        state.train_metric_values |= {
            "table": {"a": 1},
            "vector": torch.ones(2),
            "nan": math.nan,
            "name": "x",
            "one": 1,
        }

    record(tmp_path, None, {"callbacks": [At(2, spoil)]}, interval="2ba")
    metrics = manifest(tmp_path / "run")["stages"][1]["metrics"]
    assert metrics["one"] == 1
    assert not {"table", "vector", "nan", "name"} & set(metrics)


MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]


class Wrapped(Dataset):
    """The usual way of giving one part of a data set transforms of its own."""

    def __init__(self, dataset: Dataset, transform: Any) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        image, label = self.dataset[index]
        return self.transform(image), label


def coloured(transform: Any = None, *, classes: Any = ("cat", "dog", "owl")) -> Pictures:
    pictures = Pictures(shape=(3, 8, 8), transform=transform)
    pictures.classes = classes  # type: ignore[attr-defined]
    return pictures


V1 = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize(MEAN, STD)])
V2 = v2.Compose([v2.Identity(), v2.Compose([v2.Normalize(mean=MEAN, std=STD)])])
SCRIPTED = nn.Sequential(nn.Identity(), transforms.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
BYTES = transforms.Compose(
    [lambda image: image * 255, transforms.Normalize([m * 255 for m in MEAN], [s * 255 for s in STD])]
)


@pytest.mark.parametrize(
    "dataset",
    [
        coloured(V1),
        coloured(V2),
        coloured(SCRIPTED),
        coloured(BYTES),
        Subset(coloured(V1), range(24)),
        Subset(Subset(coloured(V2), range(28)), range(24)),
        Wrapped(Subset(coloured(), range(24)), V1),
        ConcatDataset([Subset(coloured(V1), range(12)), Wrapped(coloured(), V2)]),
        Wrapped(ConcatDataset([coloured(), coloured()]), V1),
    ],
    ids=["v1", "v2", "scripted", "bytes", "subset", "subset of subset", "wrapped", "joined", "wrapped and joined"],
)
def test_normalisation_and_classes_are_found(tmp_path: Path, dataset: Dataset) -> None:
    record(tmp_path, tiny_network(channels=3), {"dataset": dataset, "max_duration": "1ba"})
    noted = manifest(tmp_path / "run")
    assert noted["mean"] == pytest.approx(MEAN, rel=1e-6)
    assert noted["std"] == pytest.approx(STD, rel=1e-6)
    assert noted["classes"] == ["cat", "dog", "owl"]
    assert noted["input"]["shape"] == [3, 8, 8]
    assert min(noted["input"]["mean"]) < 0.1 and min(noted["input"]["std"]) > 0.5  # as the network got it: normalised


@pytest.mark.parametrize(
    ("given", "noted"),
    [((0.45, 0.25), ([0.45], [0.25])), (((0.45,), (0.25,)), ([0.45], [0.25]))],
    ids=["numbers", "one"],
)
def test_one_value_for_all_channels_is_enough(tmp_path: Path, given: Any, noted: Any) -> None:
    """torchvision takes numbers and lists of one, and so does distilling, with and without the data."""
    normalize = transforms.Normalize(*given)
    record(tmp_path, tiny_network(channels=3), {"dataset": coloured(normalize), "max_duration": "1ep"}, exemplars=12)
    trajectory = Trajectory.open(tmp_path / "run")
    assert (trajectory.run.mean, trajectory.run.std) == noted and trajectory.exemplar_counts() == [11, 11, 10]
    settings = DistillSettings(images_per_class=1, factor=1, steps=1)
    how: dict[str, Any] = {"network": tiny_network(channels=3), "device": "cpu", "progress_bar": False}
    for name, real in (("kept", None), ("data", coloured())):
        made = distill(trajectory, real, tmp_path / f"{name}.beton", settings, **how)
        assert (made.card.mean, made.card.std) == ([0.45] * 3, [0.25] * 3)
    again = distill(trajectory, coloured(), tmp_path / "given.beton", settings, mean=[0.45], std=[0.25], **how)
    assert again.card.mean == [0.45] * 3
    with pytest.raises(InputError, match="must be those that the trajectory was recorded with"):
        distill(trajectory, coloured(), tmp_path / "other.beton", settings, mean=[0.5], std=[0.25], **how)


def test_what_the_parts_of_joined_data_do_not_agree_on_is_not_noted() -> None:
    """A guess would be of one part alone."""
    other, several = transforms.Normalize([0.5] * 3, [0.5] * 3), ("owl", "cat", "dog")
    for parts in ([coloured(V1), coloured(other)], [coloured(V1), coloured()], [coloured(), coloured(V1)]):
        loader = DataLoader(Subset(ConcatDataset(parts), range(9)))
        assert find_normalization(loader) is find_normalization(loader, other) is None
        assert find_classes(loader, 3) == ["cat", "dog", "owl"]
    for other_names in (several, several[:2], None):
        loader = DataLoader(ConcatDataset([coloured(V1), coloured(V1, classes=other_names)]))
        assert find_classes(loader, 3) is None and find_normalization(loader) == Normalization(MEAN, STD)
    plain = DataLoader(ConcatDataset([coloured(), coloured()]))
    assert find_normalization(plain) is None and find_normalization(plain, other) == Normalization([0.5] * 3, [0.5] * 3)


def test_bytes_that_are_only_divided() -> None:
    assert find_normalization(DataLoader(coloured(transforms.Normalize([0, 0, 0], [255, 255, 255])))) == Normalization(
        [0, 0, 0], [1, 1, 1]
    )


def test_a_normalization_of_fewer_channels_than_the_inputs_is_not_noted(tmp_path: Path) -> None:
    """As of colours beside depth; what is written can be read, and the run is resumed."""

    class WithDepth(Pictures):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image, label = super().__getitem__(index)
            return torch.cat([image, image[:1]]), label

    data = WithDepth(shape=(3, 8, 8), transform=transforms.Normalize(MEAN, STD))
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ep", "autoresume": True}
    options: dict[str, Any] = {"train_dataloader": DataLoader(data, batch_size=8), **saving}
    told = pytest.warns(UserWarning, match="normalization is of 3 channels, the inputs have 4: it is not noted")
    with told, pytest.warns(UserWarning, match="inputs have 4 channels"), pytest.raises(RuntimeError, match="crash"):
        record(tmp_path / "t", tiny_network(channels=4), {**options, "callbacks": [Crash(6)]}, exemplars=100)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the inputs have 4 channels")
        record(tmp_path / "t", tiny_network(channels=4), options)
    run = Trajectory.open(tmp_path / "t").run
    assert run.mean is None and run.input is not None and run.input["shape"] == [4, 8, 8]
    assert [stage.epoch for stage in run.stages] == [0, 1, 2, 3]


def test_as_many_metrics_as_a_class_has_are_kept_up_to_a_number(tmp_path: Path) -> None:
    many = {f"accuracy of class {number}": torch.tensor(1.0) for number in range(1200)}
    record(tmp_path, None, {"callbacks": [At(2, lambda state: state.train_metric_values.update(many))]}, interval="2ba")
    assert len(Trajectory.open(tmp_path).run.stages[1].metrics) == 1000


def test_plain_inputs_have_mean_0_and_std_1(tmp_path: Path) -> None:
    record(tmp_path, None, {"batch_size": 32, "max_duration": "1ep"})
    noted = manifest(tmp_path / "run")
    assert (noted["mean"], noted["std"], noted["classes"]) == ([0.0], [1.0], None)
    images = Pictures().images  # one batch is the whole set
    assert noted["input"]["mean"] == pytest.approx([float(images.mean())], rel=1e-5)
    assert noted["input"]["std"] == pytest.approx([float(images.std())], rel=1e-5)


@pytest.mark.parametrize("transform", [lambda image: image - 0.3, lambda image: image * 0.1, lambda image: image * 4])
def test_unknown_normalisation(tmp_path: Path, transform: Any) -> None:
    with pytest.warns(UserWarning, match="fewer than exemplars=100 .*normalization is not known"):
        record(tmp_path, None, {"dataset": Pictures(transform=transform), "max_duration": "1ep"})
    noted = manifest(tmp_path / "run")
    assert (noted["mean"], noted["std"]) == (None, None)
    assert noted["input"] is not None


@pytest.mark.parametrize("classes", [3, {"cat": 0, "dog": 1, "owl": 2}, ["cat", "dog"], "abc"])
def test_what_are_no_class_names(tmp_path: Path, classes: Any) -> None:
    record(tmp_path, tiny_network(channels=3), {"dataset": coloured(classes=classes), "max_duration": "1ep"})
    assert manifest(tmp_path / "run")["classes"] is None


@pytest.mark.parametrize("attribute", ["classes", "transform", "transforms"])
def test_a_data_set_whose_attributes_raise_is_trained_on(tmp_path: Path, attribute: str) -> None:
    """As a property does that reads a file which is gone. What else there is to find is found."""

    class Broken(Pictures):
        def __getattribute__(self, name: str) -> Any:
            if name == attribute:
                raise RuntimeError("its index is gone")
            return super().__getattribute__(name)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.images[index], int(self.labels[index])

    broken = Broken(16, (3, 8, 8))
    broken.__dict__["classes"] = ["cat", "dog", "owl"]
    goes_on = "training goes on: looking for the .* of the training data failed.*is gone"
    with pytest.warns(UserWarning, match="is not whole"), pytest.warns(UserWarning, match=goes_on):
        probe = record(tmp_path, tiny_network(channels=3), {"dataset": broken, "max_duration": "2ep"})
    noted = manifest(tmp_path / "run")
    assert len(noted["stages"]) == 3 and len(probe.weights) > 2 and noted["complete"]
    assert noted["classes"] == (None if attribute == "classes" else ["cat", "dog", "owl"])
    assert all("its index is gone" in gap["reason"] for gap in noted["gaps"]) and noted["gaps"]
    with pytest.raises(RuntimeError, match="its index is gone"):
        record(tmp_path / "raise", tiny_network(channels=3), {"dataset": broken}, on_error="raise")


def test_given_names_and_normalisation_come_first(tmp_path: Path) -> None:
    given: dict[str, Any] = {"classes": ["a", "b", "c"], "mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.25]}
    record(tmp_path, tiny_network(channels=3), {"dataset": coloured(V1), "max_duration": "1ep"}, **given)
    noted = manifest(tmp_path / "run")
    assert (noted["classes"], noted["mean"], noted["std"]) == (["a", "b", "c"], [0.1, 0.2, 0.3], [0.1, 0.2, 0.25])


def test_images_that_are_no_tensor_batch(tmp_path: Path) -> None:
    """A batch that is a mapping of other names tells nothing about the input; recording goes on."""

    class FromMapping(OwnModel):
        def forward(self, batch: Any) -> torch.Tensor:
            return self.net(batch["x"])

        def loss(self, outputs: torch.Tensor, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            return self.not_a_tensor(outputs, batch["y"])

    loader = DataLoader([{"x": image, "y": label} for image, label in Pictures()], batch_size=8)
    with (
        pytest.warns(UserWarning, match="no class statistics in the stage"),
        pytest.warns(UserWarning, match="exemplars"),
    ):
        record(tmp_path, FromMapping(tiny_network()), {"train_dataloader": loader})
    assert manifest(tmp_path / "run")["input"] is None
    assert list(recorded(tmp_path / "run")) == [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        (None, "none"),
        (transforms.Compose([transforms.ToTensor(), transforms.Resize(8), transforms.Normalize([0], [1])]), "none"),
        (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.CenterCrop(8)]), "none"),
        (transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomCrop(8, 1)]), "crop_flip"),
        (v2.Compose([v2.RandomResizedCrop(8), v2.RandomErasing()]), "crop_cutout_scale"),
        (nn.Sequential(transforms.RandomRotation(5), transforms.ColorJitter(0.1)), "color_rotate"),
        (v2.RandomApply([v2.ColorJitter(0.1), v2.RandomHorizontalFlip()]), "color_flip"),
        (transforms.RandomAffine(0, translate=(0.1, 0.1)), "crop"),
        (v2.RandomAffine(5, scale=(0.8, 1.2)), "scale_rotate"),
        (transforms.RandomAffine(5, shear=3), None),
        (transforms.RandomGrayscale(), None),
        (transforms.Lambda(lambda image: image), None),
        (transforms.Compose([transforms.RandomHorizontalFlip(), lambda image: image]), None),
        (lambda image: image, None),
    ],
)
@pytest.mark.parametrize(
    "wrap",
    [lambda data: data, lambda data: Subset(data, range(4)), lambda data: ConcatDataset([Pictures(), data])],
    ids=["alone", "subset", "concatenated"],
)
def test_augmentation_in_the_data_set(transform: Any, wrap: Any, wanted: str | None) -> None:
    loader = DataLoader(wrap(Pictures(transform=transform)))
    assert find_augmentation(loader, []) == wanted


class OwnAlgorithm(Algorithm):
    def match(self, event: Event, state: State) -> bool:
        return False

    def apply(self, event: Event, state: State, logger: Any) -> None: ...


@pytest.mark.parametrize(
    ("algorithms", "wanted"),
    [
        ([], "none"),
        ([EMA(half_life="3ba"), LabelSmoothing(), MixUp(), CutMix(), RandomCutMix()], "none"),
        ([SiameseAugmentation("flip_crop_color")], "color_crop_flip"),
        ([SiameseAugmentation("rotate"), CutOut()], "cutout_rotate"),
        ([RandAugment()], None),
        ([OwnAlgorithm()], None),
    ],
)
def test_augmentation_by_algorithms(algorithms: list[Algorithm], wanted: str | None) -> None:
    device_loader = DeviceLoader(
        torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4), Normalization([0], [1]), batch_size=2
    )
    for loader in (device_loader, DataLoader(Pictures())):
        assert find_augmentation(loader, algorithms) == wanted
    flipped = DataLoader(Wrapped(Pictures(), transforms.RandomHorizontalFlip()))
    both = "_".join(name for name in OPERATIONS if name in {*(wanted or "").split("_"), "flip"})
    assert find_augmentation(flipped, algorithms) == (both if wanted else None)


class OwnData(Dataset):
    """A data set of a user's own, which augments in its own way."""

    def __init__(self) -> None:
        self.pictures, self.tfms = Pictures(), transforms.RandomHorizontalFlip()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        image, label = self.pictures[index]
        return self.tfms(image), label


def test_augmentation_that_cannot_be_told() -> None:
    assert find_augmentation(DataLoader(OwnData()), []) is None
    assert find_augmentation(DataLoader(Subset(OwnData(), range(4))), []) is None
    assert find_augmentation(DataLoader(TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4))), []) == "none"
    assert find_augmentation([(torch.zeros(1, 1, 8, 8), torch.zeros(1))], []) is None
    assert find_augmentation(DataLoader(Pictures(), collate_fn=lambda items: items), []) is None


def test_augmentation_is_noted(tmp_path: Path) -> None:
    record(tmp_path, None, {"algorithms": [SiameseAugmentation("flip_color")], "max_duration": "1ba"})
    assert manifest(tmp_path / "run")["augmentation"] == "color_flip"


def test_arguments_that_json_lacks(tmp_path: Path) -> None:
    network = tiny_network()
    network.tgdd_network = {"factory": "my:net", "arguments": {"norm": nn.BatchNorm2d, "of": {(1, 2): 3, "a": 1}}}  # type: ignore[assignment]
    record(tmp_path, network)
    assert manifest(tmp_path / "run")["network"]["arguments"]["of"] == {"a": 1}
    assert "BatchNorm2d" in manifest(tmp_path / "run")["network"]["arguments"]["norm"]


# Several recordings.


def test_complete_means_that_fit_came_to_its_end(tmp_path: Path) -> None:
    seen = []
    look = At(5, lambda state: seen.append(manifest(tmp_path / "run")["complete"]))
    record(tmp_path, None, {"callbacks": [look]})
    assert seen == [False]
    assert manifest(tmp_path / "run")["complete"]


def test_second_run_of_the_same_name(tmp_path: Path) -> None:
    record(tmp_path)
    before = snapshot(tmp_path / "run")
    with pytest.raises(InputError, match="Run 'run' is already recorded in .* Give the run another name .run_name."):
        record(tmp_path, tiny_network(1))
    assert snapshot(tmp_path / "run") == before
    probe = record(tmp_path, tiny_network(1), interval="2ep", overwrite=True)
    assert_same(recorded(tmp_path / "run"), at(probe, 0, 8, 12))
    assert len(snapshot(tmp_path / "run")) == 5


@pytest.mark.parametrize("content", ["{", '{"format": 1, "name": 3}', "[]", '{"format": 99}'])
def test_damaged_manifest(tmp_path: Path, content: str) -> None:
    record(tmp_path)
    (tmp_path / "run/manifest.json").write_text(content)
    with pytest.raises(InputError, match="manifest.json"):
        record(tmp_path)
    probe = record(tmp_path, interval="3ep", overwrite=True)
    assert_same(recorded(tmp_path / "run"), at(probe, 0, 12))
    assert len(snapshot(tmp_path / "run")) == 4


def test_the_folder_may_be_a_path(tmp_path: Path) -> None:
    fit(callbacks=[TGDDCallback(tmp_path / "{run_name}" / "trajectory")], run_name="own", max_duration="1ep")
    assert [stage["epoch"] for stage in manifest(tmp_path / "own" / "trajectory" / "own")["stages"]] == [0, 1]


def test_several_runs_in_one_folder(tmp_path: Path) -> None:
    probes = {name: record(tmp_path, tiny_network(seed), {"run_name": name}) for seed, name in enumerate(["a", "b"])}
    for name, probe in probes.items():
        assert_same(recorded(tmp_path / name), at(probe, 0, 4, 8, 12))
    assert differ(recorded(tmp_path / "a")[0], recorded(tmp_path / "b")[0])


def test_slash_in_the_name(tmp_path: Path) -> None:
    record(tmp_path, None, {"run_name": "sweep/lr-0.1"})
    assert list(recorded(tmp_path / "sweep-lr-0.1")) == [0, 4, 8, 12]


def test_one_callback_for_several_trainers(tmp_path: Path) -> None:
    tgdd = TGDDCallback(str(tmp_path), interval="2ep")
    for name in ("a", "b"):
        probe = Probe(network := tiny_network(len(name)))
        fit(network, callbacks=[probe, tgdd], run_name=name)
        assert_same(recorded(tmp_path / name), at(probe, 0, 8, 12))


@pytest.mark.parametrize("algorithms", [[], [EMA(half_life="3ba")]], ids=["plain", "ema"])
def test_two_fits_are_one_run(tmp_path: Path, algorithms: list[Any]) -> None:
    network = tiny_network()
    probe = Probe(network)
    trainer = make_trainer(
        network,
        max_duration="1ep",
        algorithms=algorithms,
        callbacks=[probe, TGDDCallback(str(tmp_path), interval="3ba")],
        save_folder=str(tmp_path / "checkpoints"),
        save_interval="1ep",
        save_overwrite=True,
    )
    trainer.fit()
    trainer.fit(duration="1ep")
    trainer.fit(duration="3ba")
    wanted = at(probe, 0, 3, 4, 6, 8, 9, 11)
    with pytest.warns(UserWarning, match="counts from batch 0 again, and run 'run' of the one before is complete in"):
        trainer.fit(duration="1ep", reset_time=True)
    assert trainer.state.timestamp.batch == 4  # it was trained, and is not recorded
    trainer.close()
    assert_same(recorded(tmp_path / "run"), wanted)
    assert [stage["index"] for stage in manifest(tmp_path / "run")["stages"]] == list(range(7))
    assert manifest(tmp_path / "run")["complete"]


@pytest.mark.parametrize("order", [("features", "fc"), ("fc", "features")], ids=["head last", "head first"])
@pytest.mark.parametrize("others", [5, 2], ids=["more outputs", "fewer outputs"])
def test_a_head_that_is_listed_before_another_layer_loses_nothing(
    tmp_path: Path, order: tuple[str, str], others: int
) -> None:
    """Which of the layers is the head, and so how many classes there are, shows in the first forward pass alone."""

    class Two(OwnModel):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            layers = {"features": nn.Linear(64, others), "fc": nn.Linear(others, CLASSES)}
            for name in order:
                setattr(self, name, layers[name])

        def forward(self, batch: Any) -> torch.Tensor:
            return self.fc(self.features(batch[0].flatten(1)).relu())

    pictures = Pictures(24)
    pictures.classes = ["cat", "dog", "cow"]  # type: ignore[attr-defined]
    fit(Two(), pictures, callbacks=[TGDDCallback(tmp_path, mean=[0.0], std=[1.0])])
    trajectory = Trajectory.open(tmp_path)
    assert (trajectory.run.head, trajectory.run.classes) == ("fc", ["cat", "dog", "cow"])
    assert trajectory.exemplar_counts() == [8, 8, 8]


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float8"}, "`dtype` must be one of float32, float16, bfloat16, got 'float8'"),
        ({"max_stages": 1}, "`max_stages` must be a whole number of at least 2, or null, got 1"),
        ({"max_stages": "8"}, "`max_stages` must be a whole number of at least 2, .*, got '8'"),
        ({"mean": [0.5]}, r"`mean` and `std` must be given together, got mean \[0.5\] and std None"),
        ({"mean": [0.5], "std": [0.1, 0.1]}, r"must be equally many .*, got mean \[0.5\] and std \[0.1, 0.1\]"),
        ({"mean": [0.5], "std": [0.0]}, r"each std above 0, got mean \[0.5\] and std \[0.0\]"),
        ({"exemplars": -1}, "`exemplars` must be a whole number of at least 0, got -1"),
        ({"exemplars": True}, "`exemplars` must be a whole number .*, got True"),
        ({"exemplars": 2.5}, "`exemplars` must be a whole number .*, got 2.5"),
        ({"interval": "often"}, "`interval` must be a Composer time above zero, got 'often'. Write it like '1ep'"),
        ({"interval": "0ep"}, "`interval` must be a Composer time above zero, got '0ep'"),
        ({"interval": -1}, "`interval` must be a Composer time above zero, got -1"),
        ({"interval": "1iter"}, "`interval` must be a Composer time above zero, got '1iter'"),
        ({"interval": None}, "`interval` must be a Composer time above zero, got None"),
    ],
)
def test_unusable_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        TGDDCallback(**arguments)
    assert "\n" not in str(error.value)


def test_second_callback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`callbacks` must hold one TGDDCallback, got two. .*leave the other out"):
        make_trainer(callbacks=[TGDDCallback(str(tmp_path)), TGDDCallback(str(tmp_path / "other"))])
    assert not list(tmp_path.iterdir())


def test_no_head(tmp_path: Path) -> None:
    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, CLASSES, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images).flatten(1)

    assert "Headless has no linear layer with 3 outputs" in refusal(record, tmp_path, Headless())
    assert (
        "`head` must be the name of an nn.Linear of the network, got 'nose'. Name one of its linear layers, ['fc']"
        in refusal(record, tmp_path, head="nose")
    )


def test_too_few_class_names(tmp_path: Path) -> None:
    message = refusal(record, tmp_path, classes=["cat", "dog"])
    assert message == "`classes` must be 3 names, one for each output of the head 'fc', got 2. Name each class once."


@pytest.mark.parametrize("folder", ["runs/{", "{run_name.x}"])
def test_braces_that_hold_no_name(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InputError, match=r"`folder` must be a path .*got '.*'\. Double a brace that is part"):
        make_trainer(callbacks=[TGDDCallback(tmp_path / folder)])


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"File name too long\)\. Give the run a shorter name \(run_name\)"):
        fit(callbacks=[TGDDCallback(tmp_path)], run_name=300 * "x")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "or record into a folder you may write to" in refusal(record, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
