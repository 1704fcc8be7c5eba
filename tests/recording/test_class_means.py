"""Class means beside a loop written from the formula, in float64, over what a run really passed to its head."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Logger, State
from composer.algorithms import EMA, SAM, CutMix, LabelSmoothing, MixUp
from composer.core import Algorithm
from composer.models import ComposerClassifier, ComposerModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from tests.common import CLASSES, Pictures, TinyNetwork, make_trainer, manifest, statistics, tiny_network
from tgdd_plugin import TGDDCallback, Trajectory, TrajectoryRecorder, describe_run
from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.data.targets import are_class_targets, single_class_targets
from tgdd_plugin.recording.class_means import ClassMeans
from tgdd_plugin.recording.head_input import HeadInput

pytestmark = pytest.mark.numerical

EPOCH = 4  # batches


class Watch(Callback):
    """Notes what the network's ``fc`` got in each microbatch, in float64, with its hard labels and whether it counts.

    Args:
        network: The bare network.
        counts: Whether the microbatch counts, asked at the loss.
    """

    def __init__(self, network: nn.Module, counts: Callable[[State], bool] = lambda state: True) -> None:
        self.counts = counts
        self.batches: dict[int, list[tuple[torch.Tensor, torch.Tensor, bool]]] = {}
        self.now = torch.zeros(0)
        self.labels = torch.zeros(0)
        original = network.fc.forward

        def forward(features: torch.Tensor) -> torch.Tensor:
            if network.training:
                self.now = features.detach().double().clone()
            return original(features)

        network.fc.forward = forward  # type: ignore[method-assign, union-attr]

    def before_forward(self, state: State, logger: Logger) -> None:
        self.labels = state.batch[1].clone()

    def before_loss(self, state: State, logger: Logger) -> None:
        batch = self.batches.setdefault(state.timestamp.batch.value + 1, [])
        batch.append((self.now, self.labels, self.counts(state)))

    def wanted(self, last: int, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and counts of the batches ``last + 1`` to ``stage``: batch i of t with weight (i/t)^2."""
        sums, counts = torch.zeros(CLASSES, 16, dtype=torch.float64), torch.zeros(CLASSES, dtype=torch.float64)
        for batch in range(last + 1, stage + 1):
            weight = ((batch - last) / (stage - last)) ** 2
            for features, labels, counted in self.batches[batch]:
                for row, label in zip(features, labels.tolist(), strict=True):
                    if counted:
                        sums[label] += weight * row
                        counts[label] += weight
        return sums / counts.where(counts > 0, 1)[:, None], counts


def fit(
    folder: Path,
    network: nn.Module | None = None,
    counts: Callable[[State], bool] = lambda state: True,
    tgdd: dict[str, Any] | None = None,
    **options: Any,
) -> Watch:
    network = network if network is not None else tiny_network()
    watch = Watch(network.module if isinstance(network, ComposerClassifier) else network, counts)
    recorder = TGDDCallback(str(folder), **(tgdd or {}))
    trainer = make_trainer(network, callbacks=[watch, *options.pop("callbacks", []), recorder], **options)
    trainer.fit()
    trainer.close()
    return watch


def check(folder: Path, watch: Watch, *batches: int) -> None:
    found = statistics(folder / "run")
    assert list(found) == list(batches)
    assert found[0] == {}, "nothing was seen before the initial weights"
    for last, stage in zip(batches, batches[1:], strict=False):
        means, counts = watch.wanted(last, stage)
        assert set(found[stage]) == {"means", "counts"}
        assert all(tensor.dtype == torch.float32 for tensor in found[stage].values())
        torch.testing.assert_close(found[stage]["means"].double(), means, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[stage]["counts"].double(), counts, rtol=1e-5, atol=0)


# In a Trainer.


@pytest.mark.parametrize(
    ("interval", "batches"), [("1ep", [0, 4, 8, 12]), ("5ba", [0, 5, 10, 12]), ("1ba", [*range(13)]), ("3ep", [0, 12])]
)
def test_formula(tmp_path: Path, interval: str, batches: list[int]) -> None:
    check(tmp_path, fit(tmp_path, tgdd={"interval": interval}), *batches)


@pytest.mark.parametrize("microbatch", [1, 3, 4])
def test_microbatches(tmp_path: Path, microbatch: int) -> None:
    watch = fit(tmp_path / "parts", device_train_microbatch_size=microbatch, tgdd={"interval": "5ba"})
    check(tmp_path / "parts", watch, 0, 5, 10, 12)
    fit(tmp_path / "whole", tgdd={"interval": "5ba"})
    parts, whole = statistics(tmp_path / "parts/run"), statistics(tmp_path / "whole/run")
    for batch in (5, 10, 12):
        torch.testing.assert_close(parts[batch], whole[batch], rtol=1e-4, atol=1e-5)


def test_recent_batches_count_more() -> None:
    means = ClassMeans()
    means.prepare(2, 3, "cpu")
    features = torch.rand(6, 4, 3)
    for rows in features:
        means.begin_pass()
        means.add(rows, torch.tensor([0, 1, 1, 0]))
        means.end_pass()
        means.commit()
    weights = (torch.arange(1, 7) / 6) ** 2
    taken = means.take()
    assert taken is not None
    wanted = (features[:, [0, 3]].mean(1) * weights[:, None]).sum(0) / weights.sum()
    torch.testing.assert_close(taken[0][0], wanted)
    torch.testing.assert_close(taken[1], torch.full((2,), 2 * float(weights.sum())))
    assert means.take() is None


@pytest.mark.parametrize("algorithms", [[LabelSmoothing(0.1)], [EMA(half_life="2ba")], [SiameseAugmentation()]])
def test_algorithms_that_mix_nothing(tmp_path: Path, algorithms: list[Algorithm]) -> None:
    check(tmp_path, fit(tmp_path, algorithms=algorithms), 0, 4, 8, 12)


def test_smoothed_labels_of_two_classes_count(tmp_path: Path) -> None:
    pictures = Pictures()
    pictures.labels = torch.arange(32) % 2
    for name, algorithms in (("plain", []), ("smoothed", [LabelSmoothing(0.1)])):
        model = ComposerClassifier(tiny_network(num_classes=2), num_classes=2)
        callbacks = [TGDDCallback(str(tmp_path / name))]
        trainer = make_trainer(model, pictures, algorithms=algorithms, callbacks=callbacks, max_duration="1ba")
        trainer.fit()
        trainer.close()
    plain, smoothed = (statistics(tmp_path / name / "run") for name in ("plain", "smoothed"))
    assert plain[1] is not None
    torch.testing.assert_close(smoothed, plain, rtol=0, atol=0)


def test_labels_of_any_whole_number_type_count() -> None:
    means = ClassMeans()
    means.prepare(3, 2, "cpu")
    means.begin_pass()
    means.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 2], dtype=torch.uint16))
    means.end_pass()
    means.commit()
    assert means.highest_label == 2
    taken = means.take()
    assert taken is not None and taken[0].tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]


def test_evaluation_between_does_not_count(tmp_path: Path) -> None:
    loader = DataLoader(Pictures(), batch_size=8)
    watch = fit(tmp_path, tiny_network(norm=True), eval_dataloader=loader, eval_interval="1ba")
    check(tmp_path, watch, 0, 4, 8, 12)


@pytest.mark.parametrize("together", [[], [LabelSmoothing(0.1)], [SiameseAugmentation()]])
def test_random_cutmix_leaves_out_what_it_mixed(tmp_path: Path, together: list[Algorithm]) -> None:
    cutmix = RandomCutMix(0.5)
    watch = fit(
        tmp_path,
        counts=lambda state: not cutmix.mixing,
        algorithms=[*together, cutmix],
        max_duration="6ep",
        device_train_microbatch_size=4,
        tgdd={"interval": "12ba"},
    )
    mixed = [counted for parts in watch.batches.values() for *_, counted in parts]
    assert 8 < sum(mixed) < 40
    check(tmp_path, watch, 0, 12, 24)


@pytest.mark.parametrize("algorithm", [CutMix(), MixUp(), CutMix(interpolate_loss=True), MixUp(interpolate_loss=True)])
def test_always_mixed(tmp_path: Path, algorithm: Algorithm) -> None:
    with pytest.warns(
        UserWarning, match="no class statistics in the stage at batch 4 .no image of a single cl"
    ) as seen:
        fit(tmp_path, algorithms=[algorithm])
    assert sum("no class statistics" in str(warning.message) for warning in seen) == 1
    assert all(found == {} for found in statistics(tmp_path / "run").values())


def test_mixed_by_the_loader(tmp_path: Path) -> None:
    """Labels that are shares: two images in a row mixed, the rest one-hot or smoothed."""
    rows = torch.eye(CLASSES)
    dataset = [
        (image, rows[label] * 0.5 + rows[(label + 1) % CLASSES] * 0.5 if i % 2 else rows[label] * 0.9 + 0.1 / CLASSES)
        for i, (image, label) in enumerate(Pictures())
    ]
    hard = [label for i, (_, label) in enumerate(Pictures()) if not i % 2]
    fit(tmp_path, train_dataloader=DataLoader(dataset, batch_size=32), tgdd={"interval": "1ba"}, max_duration="1ba")  # type: ignore
    counts = statistics(tmp_path / "run")[1]["counts"]
    assert counts.tolist() == torch.bincount(torch.tensor(hard)).tolist()


def test_first_pass_of_sam_counts(tmp_path: Path) -> None:
    watch = fit(tmp_path, algorithms=[SAM()], max_duration="1ep")
    assert [len(parts) for parts in watch.batches.values()] == [2] * EPOCH
    watch.batches = {batch: parts[:1] for batch, parts in watch.batches.items()}
    check(tmp_path, watch, 0, 4)


def test_batch_that_is_run_again_counts_once() -> None:
    means = ClassMeans()
    means.prepare(1, 1, "cpu")
    one = torch.ones(1, 1)
    label = torch.zeros(1, dtype=torch.long)
    means.begin_pass()
    means.add(100 * one, label)  # broken off: out of memory
    means.begin_pass()
    means.add(one, label)
    means.add(3 * one, label)
    means.end_pass()
    means.commit()
    taken = means.take()
    assert taken is not None and (taken[0].item(), taken[1].item()) == (2.0, 2.0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(tmp_path: Path, reentrant: bool) -> None:
    class Checkpointed(TinyNetwork):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, images.requires_grad_(), use_reentrant=reentrant)  # type: ignore

    torch.manual_seed(0)
    check(tmp_path, fit(tmp_path, Checkpointed(), max_duration="2ep"), 0, 4, 8)


def test_half_precision_features(tmp_path: Path) -> None:
    class Mixed(TinyNetwork):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = super().forward(images)
            assert logits.dtype == torch.bfloat16
            return logits.float()

    torch.manual_seed(0)
    check(tmp_path, fit(tmp_path, Mixed()), 0, 4, 8, 12)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled(tmp_path: Path, fullgraph: bool) -> None:
    """The same as without; also in a second fit()."""
    for folder, config in (("plain", None), ("compiled", {"backend": "eager", "fullgraph": fullgraph})):
        network: Any = tiny_network(norm=True)
        if config and fullgraph:  # Composer's own part of the model has graph breaks
            network, config = torch.compile(network, **config), None
        trainer = make_trainer(
            ComposerClassifier(network, num_classes=CLASSES),
            max_duration="1ep",
            compile_config=config,
            eval_dataloader=DataLoader(Pictures(), batch_size=8),
            callbacks=[TGDDCallback(str(tmp_path / folder), head="fc")],
        )
        trainer.fit()
        trainer.fit(duration="1ep")
        trainer.close()
    plain, compiled = statistics(tmp_path / "plain/run"), statistics(tmp_path / "compiled/run")
    assert plain[4] and plain[8]
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)


class TwoHeads(TinyNetwork):
    """An output that is made beside the network's answer, by a layer that is listed last."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.features(images)
        self.made = self.beside(features)
        return self.fc(features)


def test_a_head_that_could_not_be_seen_is_told(tmp_path: Path) -> None:
    """torch.compile goes on with the graph of an earlier, unrecorded training of that class, which calls no hook."""

    def go(*callbacks: Callback) -> None:
        trainer = make_trainer(TwoHeads(), max_duration="2ep", compile_config={"backend": "eager"}, callbacks=callbacks)
        trainer.fit()
        trainer.close()

    torch._dynamo.reset()
    go()
    with pytest.warns(UserWarning) as told:
        go(TGDDCallback(str(tmp_path / "unseen")))
    texts = [str(one.message) for one in told]
    assert sum("which of the layers fc, beside is the network's head could not be seen" in one for one in texts) == 1
    torch._dynamo.reset()
    go(TGDDCallback(str(tmp_path / "seen")))
    assert [manifest(tmp_path / name / "run")["head"] for name in ("unseen", "seen")] == ["beside", "fc"]


def test_several_fits(tmp_path: Path) -> None:
    """The network is left without a hook between them."""
    network = tiny_network()
    watch = Watch(network)
    trainer = make_trainer(
        network, max_duration="3ba", callbacks=[watch, TGDDCallback(str(tmp_path), interval=lambda *_: False)]
    )
    trainer.fit()
    assert not network.fc._forward_pre_hooks
    trainer.fit(duration="4ba")
    trainer.close()
    check(tmp_path, watch, 0, 3, 7)


def test_no_hook_after_an_error(tmp_path: Path) -> None:
    class Crash(Callback):
        def after_forward(self, state: State, logger: Logger) -> None:
            raise RuntimeError("crash")

    network = tiny_network()
    trainer = make_trainer(network, callbacks=[TGDDCallback(str(tmp_path)), Crash()])
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit()
    trainer.close()
    assert not network.fc._forward_pre_hooks
    pickle.dumps(network)


def test_a_recording_that_broke_off_leaves_no_hook_beside_the_next_ones(tmp_path: Path) -> None:
    """As of a notebook's cell that was interrupted and is run again."""
    network, kept = tiny_network(), []
    for name in ("first", "second"):
        recorder = TrajectoryRecorder(tmp_path)
        recorder.start(describe_run(name, network, CLASSES, mean=[0.0], std=[1.0]), network)
        network(Pictures().images)
        kept.append(recorder)
    assert len(network.fc._forward_pre_hooks) == 1
    kept[1].batch(Pictures().images, Pictures().labels)
    kept[1].finish(epoch=1)
    kept[0].detach()
    assert not network.fc._forward_pre_hooks and statistics(tmp_path / "second")[1]["counts"].sum() == 32


def test_training_is_left_as_it_is(tmp_path: Path) -> None:
    ends = []
    for tgdd in ({"statistics": True}, {"statistics": False, "exemplars": 0}):
        network = tiny_network(dropout=0.5)
        fit(tmp_path / str(len(ends)), network, algorithms=[RandomCutMix(0.5)], tgdd=tgdd)
        ends.append(network.state_dict())
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert all(found == {} for found in statistics(tmp_path / "1/run").values())


# What does not fit never stops training.


class FromMapping(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_network()

    def forward(self, batch: Any) -> torch.Tensor:
        return self.net(batch["x"])

    def loss(self, outputs: torch.Tensor, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, batch["y"])


class Twice(TinyNetwork):
    """Calls its head for half of the images at a time."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.fc(self.features(half)) for half in images.chunk(2)])


class Unused(TinyNetwork):
    """A functional call of the head, which no hook sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.features(images), self.fc.weight, self.fc.bias)


def mapping() -> dict[str, Any]:
    data = [{"x": image, "y": label} for image, label in Pictures()]
    return {"network": FromMapping(), "train_dataloader": DataLoader(data, batch_size=8)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (mapping, "the batches are not .images, one label for each"),
        (lambda: {"network": Twice()}, "the head got 4 images last, and there are 8 labels"),
        (lambda: {"network": Unused()}, "the head was not seen once for each batch"),
    ],
)
@pytest.mark.filterwarnings("ignore:fewer than exemplars")
def test_what_does_not_fit(tmp_path: Path, made: Callable[[], dict[str, Any]], reason: str) -> None:
    options = made()
    network = options.pop("network")
    with pytest.warns(UserWarning, match=f"no class statistics in the stage at batch 4 .{reason}"):
        trainer = make_trainer(network, callbacks=[TGDDCallback(str(tmp_path))], **options)
        trainer.fit()
        trainer.close()
    assert list(statistics(tmp_path / "run").values()) == [{}] * 4


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    class Spoilt(TinyNetwork):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            Spoilt.calls += self.training
            logits = super().forward(images)
            if Spoilt.calls == 6:
                with torch.no_grad():
                    self.fc(torch.full((len(images), 16), math.inf))
            return logits

    with pytest.warns(UserWarning, match="no class statistics in the stage at batch 8 .the features are not finite"):
        watch = fit(tmp_path, Spoilt())
    found = statistics(tmp_path / "run")
    assert found[8] == {}
    for last, stage in ((0, 4), (8, 12)):
        torch.testing.assert_close(found[stage]["means"].double(), watch.wanted(last, stage)[0], rtol=1e-5, atol=1e-6)


def test_a_class_without_images(tmp_path: Path) -> None:
    network = tiny_network(num_classes=CLASSES + 1)
    model = ComposerClassifier(network, num_classes=CLASSES + 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*class statistics")
        trainer = make_trainer(model, callbacks=[TGDDCallback(str(tmp_path))])
        trainer.fit()
        trainer.close()
    found = statistics(tmp_path / "run")[4]
    assert found["counts"][CLASSES] == 0 and not found["means"][CLASSES].any()
    assert (found["counts"][:CLASSES] > 0).all() and found["means"][:CLASSES].any()


@pytest.mark.parametrize(
    "features", [None, torch.zeros(()), torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 2, 3), torch.zeros(5, 3)]
)
def test_features_that_do_not_fit(features: Any) -> None:
    means = ClassMeans()
    means.prepare(2, 3, "cpu")
    means.begin_pass()
    means.add(features, torch.zeros(4, dtype=torch.long))
    means.end_pass()
    means.commit()
    assert means.take() is None and means.problem


# Resumed.


@pytest.mark.parametrize("microbatch", [None, 3])
def test_resumed_within_an_interval(tmp_path: Path, microbatch: int | None) -> None:
    """Bit for bit those of an uninterrupted run: checkpoints every 3 batches, stages every 7, a crash at 6."""

    class Crash(Callback):
        def after_forward(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch.value == 6:
                raise RuntimeError("crash")

    def train(folder: Path, *callbacks: Callback) -> None:
        trainer = make_trainer(
            tiny_network(norm=True, dropout=0.5),
            algorithms=[SiameseAugmentation(), RandomCutMix(0.3)],
            callbacks=[TGDDCallback(str(folder / "trajectory"), "7ba"), *callbacks],
            save_folder=str(folder / "checkpoints"),
            save_interval="3ba",
            autoresume=True,
            device_train_microbatch_size=microbatch,
            max_duration="4ep",
        )
        try:
            trainer.fit()
        finally:
            trainer.close()

    train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path / "crashed", Crash())
    train(tmp_path / "crashed")
    saved = torch.load(tmp_path / "crashed/checkpoints/ep1-ba6-rank0.pt", weights_only=False)
    assert saved["state"]["callbacks"]["TGDDCallback"]["class_means"]["batches"] == 6
    whole, crashed = (statistics(tmp_path / name / "trajectory/run") for name in ("whole", "crashed"))
    assert whole[7] and whole[14]
    torch.testing.assert_close(crashed, whole, rtol=0, atol=0)


def test_state_is_numbers_and_tensors(tmp_path: Path) -> None:
    means = ClassMeans()
    means.prepare(2, 3, "cpu")
    assert means.state_dict() == {"batches": 0}
    for labels in ([0, 1], [1, 1]):
        means.begin_pass()
        means.add(torch.rand(2, 3), torch.tensor(labels))
        means.end_pass()
        means.commit()
    torch.save(means.state_dict(), tmp_path / "state.pt")
    again = ClassMeans()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again.prepare(2, 3, "cpu")
    torch.testing.assert_close(again.take(), means.take(), rtol=0, atol=0)
    other = ClassMeans()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other.prepare(2, 4, "cpu")  # another head
    assert other.batches == 0 and other.take() is None


# What is read.


def test_read_back(tmp_path: Path) -> None:
    watch = fit(tmp_path)
    trajectory = Trajectory.open(tmp_path)
    (folder, run), *_ = trajectory.runs.items()
    assert trajectory.class_means(folder, run.stages[0]) is None
    found = trajectory.class_means(folder, run.stages[2])
    assert found is not None
    torch.testing.assert_close(found[0].double(), watch.wanted(4, 8)[0], rtol=1e-5, atol=1e-6)
    assert set(trajectory.load(folder, run.stages[2])) == set(tiny_network().state_dict())
    assert manifest(tmp_path / "run")["complete"]


# Labels.


@pytest.mark.parametrize(
    ("targets", "classes", "alone"),
    [
        ([0, 2, -100, 3], [0, 2, 0, 2], [1, 1, 0, 0]),
        ([[1], [2]], [1, 2], [1, 1]),
        (
            [[0.0, 1, 0], [0.05, 0.05, 0.9], [0.3, 0.7, 0], [0.1, 0.7, 0.2], [1, 1, 0], [1 / 3] * 3],
            None,
            [1, 1, 0, 0, 0, 0],
        ),
        ([[float("nan")] * 3, [0.0, 0, 0]], None, [0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_class(targets: Any, classes: list[int] | None, alone: list[int], dtype: torch.dtype) -> None:
    tensor = torch.tensor(targets)
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    assert are_class_targets(tensor, len(alone), 3)
    labels, counted = single_class_targets(tensor, 3)
    assert counted.int().tolist() == alone
    for row, label in zip(targets, labels.tolist(), strict=True):
        assert 0 <= label < 3
        if tensor.is_floating_point() and sum(row) == 1:
            assert row[label] == max(row)
    assert classes is None or labels.tolist() == classes


def test_of_two_classes_a_smoothed_label_may_be_a_mixed_one() -> None:
    labels, alone = single_class_targets(torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1], [0.5, 0.5]]), 2)
    assert labels[:2].tolist() == [0, 1] and alone.tolist() == [True, True, False, False]


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_one_hot_labels_in_whole_numbers(num_classes: int, dtype: torch.dtype) -> None:
    """Count as their class ids do; one of two classes, or of none, does not."""
    ids, features = torch.tensor([1, 0, 1, 1]), torch.rand(6, 4)
    several = torch.tensor([[1] * 2 + [0] * (num_classes - 2), [0] * num_classes])
    hot = torch.cat([torch.nn.functional.one_hot(ids, num_classes), several]).to(dtype)
    found = []
    for rows, labels in ((features[:4], ids), (features, hot)):
        means = ClassMeans()
        means.prepare(num_classes, 4, "cpu")
        means.begin_pass()
        means.add(rows, labels)
        means.end_pass()
        means.commit()
        found.append(means.take())
    assert means.problem is None and means.highest_label == -1
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "targets", [None, 3, "x", torch.zeros(4, dtype=torch.long), torch.zeros(5, 2), torch.zeros(5), torch.zeros(5, 3, 2)]
)
def test_labels_that_do_not_fit(targets: Any) -> None:
    assert not are_class_targets(targets, 5, 3)


def test_one_output_has_class_ids_only() -> None:
    assert are_class_targets(torch.zeros(5, dtype=torch.long), 5, 1) and not are_class_targets(torch.zeros(5, 1), 5, 1)


def test_head_input_is_kept_in_training_only() -> None:
    network, slot = tiny_network(), HeadInput()
    slot.attach({"fc": network.fc})
    images = Pictures().images[:5]
    network(images)
    features = slot.take("fc")
    assert features is not None and not features.requires_grad
    torch.testing.assert_close(features, network.features(images))
    assert slot.take("fc") is None
    network.eval()(images)
    assert slot.take("fc") is None
    slot.detach()
    network.train()(images)
    assert slot.take("fc") is None
