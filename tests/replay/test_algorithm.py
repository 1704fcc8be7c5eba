"""DistilledReplay beside loops over single images: its loss and gradient, and what other algorithms see of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composer import Callback, Logger, State
from composer.algorithms import EMA, SAM, CutMix, LabelSmoothing, MixUp
from composer.core import Algorithm, DataSpec, Event
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torch.utils.data import DataLoader

from tests.common import CLASSES, Crash, Pictures, Probe, assert_same, differ, fit, manifest, statistics, tiny_network
from tests.distributed.launching import fork_ranks, outcome, run_file
from tests.replay.filled import memory
from tgdd_plugin import TGDDCallback
from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.replay.algorithm import DistilledReplay
from tgdd_plugin.replay.functional import replay_batch, replay_factors, replay_loss
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.trajectory.tensor_files import read_exemplars

pytestmark = pytest.mark.numerical


def drawn(
    made: ReplayMemory, count: int, batch: int, seed: int = 0, rank: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch is to get, as floats in [0, 1]."""
    images, labels = made.sample(count, keyed_generator(seed, rank, batch, 2, len(made.tasks)))
    return images.float() / 255, labels


class Watch(Callback):
    """Notes each batch's microbatches, as the network gets them and as the loss does, and what comes of them."""

    def __init__(self, network: nn.Module, replay: DistilledReplay | None) -> None:
        self.network, self.replay = network, replay
        self.batches: list[SimpleNamespace] = []

    def batch_start(self, state: State, logger: Logger) -> None:
        weights = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        self.batches.append(SimpleNamespace(weights=weights, parts=[]))

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self.batches[-1].parts = []

    def before_forward(self, state: State, logger: Logger) -> None:
        images = state.batch[0].clone()
        ours = None if self.replay is None else self.replay.is_memory
        memory = torch.zeros(len(images), dtype=torch.bool) if ours is None else ours
        self.batches[-1].parts.append(SimpleNamespace(images=images, memory=memory, targets=torch.empty(0)))

    def before_loss(self, state: State, logger: Logger) -> None:
        self.batches[-1].parts[-1].targets = state.batch[1].clone()

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self.batches[-1].grads = {name: p.grad.clone() for name, p in self.network.named_parameters()}

    def batch_end(self, state: State, logger: Logger) -> None:
        self.batches[-1].loss = state.total_loss_dict["loss/train/total"]


def run(algorithms: list[Algorithm], **options: Any) -> list[SimpleNamespace]:
    """Trains on :class:`Pictures` in their order; what happened, batch by batch."""
    network = options.pop("network", None) or tiny_network()
    replay = next((one for one in algorithms if isinstance(one, DistilledReplay)), None)
    watch = Watch(network.module if isinstance(network, ComposerClassifier) else network, replay)
    loader = options.pop("train_dataloader", None) or DataLoader(Pictures(), batch_size=8)
    callbacks = [watch, *options.pop("callbacks", [])]
    fit(network, algorithms=algorithms, callbacks=callbacks, train_dataloader=loader, **options)
    return watch.batches


def by_hand(
    batch: SimpleNamespace, shares: list[torch.Tensor], weight: float | None
) -> tuple[float, dict[str, torch.Tensor]]:
    """A batch's loss and gradient as documented, one image after another.

    Args:
        shares: Targets of each microbatch's images, as shares of the classes.
    """
    network = tiny_network()
    network.load_state_dict(batch.weights)
    losses: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for part, targets in zip(batch.parts, shares, strict=True):
        for image, ours, share in zip(part.images, part.memory.tolist(), targets, strict=True):
            losses[ours].append(-(share * network(image[None])[0].log_softmax(0)).sum())
    new, old = (torch.stack(losses[ours]) for ours in (False, True))
    loss = torch.cat([new, old]).mean() if weight is None else (1 - weight) * new.mean() + weight * old.mean()
    loss.backward()
    return float(loss), {name: p.grad for name, p in network.named_parameters()}  # type: ignore[misc]


def agree(batch: SimpleNamespace, shares: list[torch.Tensor], weight: float | None) -> None:
    loss, grads = by_hand(batch, shares, weight)
    assert batch.loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(batch.grads, grads, rtol=1e-4, atol=1e-6)


def dense(targets: torch.Tensor) -> torch.Tensor:
    return targets if targets.is_floating_point() else torch.eye(CLASSES)[targets]


# The functional form.


def test_a_batch_with_images_of_a_memory() -> None:
    images, old = torch.rand(4, 1, 2, 2, dtype=torch.float64), torch.rand(3, 1, 2, 2)
    ids, shares = torch.tensor([2, 0, 1, 1]), torch.rand(4, 3).softmax(1)
    mixed, targets = replay_batch(images, ids, old, torch.tensor([0, 2, 2]))
    assert torch.equal(mixed, torch.cat([images, old.double()])) and targets.tolist() == [2, 0, 1, 1, 0, 2, 2]
    dense = torch.eye(3)[[0, 2, 2]]
    assert torch.equal(replay_batch(images, shares, old, torch.tensor([0, 2, 2]))[1], torch.cat([shares, dense]))
    assert torch.equal(replay_batch(images, ids, old, dense)[1], torch.cat([torch.eye(3)[ids], dense]))
    assert torch.equal(replay_batch(images, shares, old, dense)[1], torch.cat([shares, dense]))
    column = replay_batch(images, ids[:, None].int(), old, torch.tensor([0, 2, 2]))[1]
    assert column.dtype == torch.int32 and column.tolist() == [[2], [0], [1], [1], [0], [2], [2]]


@pytest.mark.parametrize("weight", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("drawn", [1, 5, 16])
def test_microbatches_add_up_to_the_weighted_means(weight: float | None, drawn: int) -> None:
    """Composer adds up the microbatches' losses, each times its share of the batch."""
    generator = torch.Generator().manual_seed(drawn)
    new = torch.rand(8, generator=generator, dtype=torch.float64)
    old = torch.rand(drawn, generator=generator, dtype=torch.float64)
    even = weight is None
    total = torch.cat([new, old]).mean() if even else (1 - weight) * new.mean() + weight * old.mean()  # type: ignore
    for sizes in ([8], [3, 3, 2], [1] * 8, [7, 1]):
        found, start = 0.0, 0
        for size in sizes:
            part = old[start * drawn // 8 : (start + size) * drawn // 8]
            both = torch.cat([new[start : start + size], part])
            factors = replay_factors(size, len(part), 8, drawn, weight)
            loss = replay_loss(lambda outputs, batch: outputs.mean(), both, (both, both), size, factors)
            found += size / 8 * float(loss)
            start += size
        assert found == pytest.approx(float(total), rel=1e-12)


def test_losses_in_a_dict_or_tuple() -> None:
    values = torch.tensor([1.0, 3.0, 10.0, 20.0])
    batch = (values, values)

    def losses(outputs: torch.Tensor, batch: Any) -> Any:
        assert torch.equal(outputs, batch[0])
        return {"total": outputs, "more": (outputs.sum(), 2 * outputs.mean())}

    found = replay_loss(losses, values, batch, 2, (0.25, 0.5))
    assert found == {"total": 0.25 * 2 + 0.5 * 15, "more": (0.25 * 4 + 0.5 * 30, 0.25 * 4 + 0.5 * 30)}


# In a Trainer.


@pytest.mark.parametrize("microbatch", [None, 3, 1])
@pytest.mark.parametrize("weight", [None, 0.75])
@pytest.mark.parametrize("count", [None, 5])
def test_gradient_and_loss_are_those_of_a_loop(microbatch: int | None, weight: float | None, count: int | None) -> None:
    made, pictures = memory(), Pictures()
    replay = DistilledReplay(made, count=count, weight=weight, augmentation="none")
    options = {"device_train_microbatch_size": microbatch} if microbatch else {}
    batches = run([replay], max_duration="3ba", **options)
    assert len(batches) == 3
    for number, batch in enumerate(batches):
        images, labels = drawn(made, count or 8, number)
        own = slice(8 * number, 8 * number + 8)
        ours = torch.cat([part.memory for part in batch.parts])
        given, targets = (torch.cat([getattr(part, name) for part in batch.parts]) for name in ("images", "targets"))
        assert torch.equal(given[ours], images) and torch.equal(targets[ours], labels)
        assert torch.equal(given[~ours], pictures.images[own]) and torch.equal(targets[~ours], pictures.labels[own])
        for part in batch.parts:  # each has its share
            new, old = int((~part.memory).sum()), int(part.memory.sum())
            assert abs(old - new * (count or 8) / 8) < 1
            assert part.memory.tolist() == [False] * new + [True] * old
        agree(batch, [dense(part.targets) for part in batch.parts], weight)
    assert replay.is_memory is None and replay.own_images is None


def test_an_incomplete_batch_gets_its_ratio() -> None:
    batches = run([DistilledReplay(memory(), ratio=0.5)], train_dataloader=DataLoader(Pictures(26), batch_size=8))
    assert [int(batch.parts[0].memory.sum()) for batch in batches[:4]] == [4, 4, 4, 1]
    batches = run([DistilledReplay(memory(), ratio=0.01)], max_duration="1ba")
    assert int(batches[0].parts[0].memory.sum()) == 1


def test_classes_take_turns_or_not() -> None:
    made = ReplayMemory(total_images=12, mean=[0.0], std=[1.0])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 1, 8, 8), generator=generator).to(torch.uint8)
    made.budget = made.budget.of(images_per_class=10)
    made.add((images, torch.tensor([0] * 10 + [1, 2])))
    for balanced, wanted in ((True, [40, 40, 40]), (False, [100, 10, 10])):
        batches = run([DistilledReplay(made, count=12, balanced=balanced)], max_duration="10ba")
        labels = torch.cat([batch.parts[0].targets[batch.parts[0].memory] for batch in batches])
        assert torch.bincount(labels).tolist() == wanted


MIXERS: dict[str, Callable[[], Algorithm]] = {
    "cutmix": lambda: CutMix(),
    "cutmix, loss": lambda: CutMix(interpolate_loss=True),
    "mixup": lambda: MixUp(alpha=0.4),
    "mixup, loss": lambda: MixUp(alpha=0.4, interpolate_loss=True),
    "our cutmix": lambda: RandomCutMix(1.0),
    "smoothing": lambda: LabelSmoothing(0.3),
}


@pytest.mark.parametrize("soft", [False, True], ids=["ids", "shares"])
@pytest.mark.parametrize("first", [False, True], ids=["after it", "before it"])
@pytest.mark.parametrize("microbatch", [None, 3])
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=list(MIXERS))
def test_with_algorithms_that_mix(
    mixer: Callable[[], Algorithm], microbatch: int | None, first: bool, soft: bool
) -> None:
    """Those listed before it mix new images, those after it all of them; the rest is as ever."""
    algorithm, made = mixer(), memory()
    replay = DistilledReplay(made, count=6, weight=0.6, augmentation="none")
    noted: list[Any] = []

    class Note(Callback):
        """How the algorithm mixed each microbatch."""

        def before_loss(self, state: State, logger: Logger) -> None:
            if isinstance(algorithm, RandomCutMix):
                noted.append((algorithm._share, algorithm._others))
            elif isinstance(algorithm, CutMix):
                noted.append((algorithm._adjusted_lambda, algorithm._permuted_target))
            elif isinstance(algorithm, MixUp):
                noted.append((1 - algorithm.mixing, algorithm.permuted_target))
            else:
                noted.append((0.7, None))

    options = {"device_train_microbatch_size": microbatch} if microbatch else {}
    pictures = Pictures()
    if soft:
        pictures.labels = torch.rand(32, CLASSES, generator=torch.Generator().manual_seed(2)).softmax(1)
        options["train_dataloader"] = [(pictures.images[i : i + 8], pictures.labels[i : i + 8]) for i in (0, 8, 16)]
        options["train_dataloader"] = DataSpec(options["train_dataloader"], num_samples=24)
        options.setdefault("device_train_microbatch_size", 8)
    order = [algorithm, replay] if first else [replay, algorithm]
    batches = run(order, max_duration="2ba", callbacks=[Note()], **options)
    for number, batch in enumerate(batches):
        images, labels = drawn(made, 6, number)
        news, olds = 8 * number, 0
        shares = []
        for part in batch.parts:
            new, old = int((~part.memory).sum()), int(part.memory.sum())
            plain = torch.cat([dense(pictures.labels[news : news + new]), dense(labels[olds : olds + old])])
            share, others = noted.pop(0)
            count = new if first else new + old  # as many were mixed
            assert others is None or len(others) == count
            other = torch.full((count, CLASSES), 1 / CLASSES) if others is None else dense(others)
            shares.append(torch.cat([share * plain[:count] + (1 - share) * other, plain[count:]]))
            if first:
                assert torch.equal(part.images[part.memory], images[olds : olds + old])
            news, olds = news + new, olds + old
        agree(batch, shares, 0.6)


def test_who_sees_what() -> None:
    """Batch and outputs have one length at every event, for each algorithm and callback the documented one."""
    seen: dict[str, list[Any]] = {"first": [], "last": [], "callback": []}
    replay = DistilledReplay(memory(), count=5)

    def note(who: str, event: Event, state: State) -> None:
        outputs = state.outputs if event not in (Event.BEFORE_FORWARD, Event.BATCH_START) else state.batch[0]
        assert len(outputs) == len(state.batch[0]) == len(state.batch[1])
        ours = replay.is_memory
        if len(outputs) > 8:
            assert ours is not None and ours.tolist() == [False] * 8 + [True] * 5
        seen[who].append((event.name, len(outputs)))

    class Look(Algorithm):
        def __init__(self, who: str) -> None:
            self.who = who

        def match(self, event: Event, state: State) -> bool:
            return event.name.partition("_")[2] in ("FORWARD", "LOSS", "BACKWARD") or event == Event.BATCH_START

        def apply(self, event: Event, state: State, logger: Logger) -> None:
            note(self.who, event, state)

    class LookOn(Callback):
        def run_event(self, event: Event, state: State, logger: Logger) -> None:
            if Look("").match(event, state):
                note("callback", event, state)
            if event == Event.BATCH_END:
                self.accuracy = float(state.train_metric_values["MulticlassAccuracy"])

    watch = LookOn()
    batches = run([Look("first"), replay, Look("last")], callbacks=[watch], max_duration="1ba")
    events = [f"{when}_{what}" for what in ("FORWARD", "LOSS", "BACKWARD") for when in ("BEFORE", "AFTER")]
    assert seen["first"] == [("BATCH_START", 8), *((event, 8) for event in events)]
    assert seen["last"] == [("BATCH_START", 8), *((event, 13) for event in events)]
    assert seen["callback"] == [("BATCH_START", 8), *((e, 13 if e.startswith("BEFORE") else 8) for e in events)]
    # Training accuracy is of the batch's own images.
    net = tiny_network()
    net.load_state_dict(batches[0].weights)
    right = (net(Pictures().images[:8]).argmax(1) == Pictures().labels[:8]).float().mean()
    assert watch.accuracy == pytest.approx(float(right))


def test_memory_images_are_normalised_and_augmented() -> None:
    made = memory(shape=(3, 8, 8), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25])
    options = {"train_dataloader": DataLoader(Pictures(shape=(3, 8, 8)), batch_size=8), "max_duration": "2ba"}
    whole, split, other = (
        run(
            [DistilledReplay(made, augmentation="color_crop_flip", seed=seed)],
            network=tiny_network(channels=3),
            device_train_microbatch_size=size,
            **options,
        )
        for size, seed in ((8, 0), (3, 0), (8, 1))
    )
    plain = run([DistilledReplay(made, augmentation="none")], network=tiny_network(channels=3), **options)
    for number in range(2):
        ours = [torch.cat([p.images[p.memory] for p in batches[number].parts]) for batches in (whole, split, plain)]
        assert torch.equal(ours[0], ours[1])  # microbatches change no draw
        shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (made.mean, made.std))
        torch.testing.assert_close(ours[2], (drawn(made, 8, number)[0] - shift) / scale)
        assert not any(torch.allclose(a, b) for a, b in zip(ours[0], ours[2], strict=True))
        assert not torch.equal(other[number].parts[0].images, whole[number].parts[0].images)
        assert torch.equal(split[number].parts[0].images[:3], Pictures(shape=(3, 8, 8)).images[8 * number :][:3])


def test_other_tasks_other_draws() -> None:
    one, two = memory(), memory()
    two.add((torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0])), domain=True)
    two.images, two.labels, two.decoded, two.decoded_labels = one.images, one.labels, one.decoded, one.decoded_labels
    seen = [run([DistilledReplay(made)], max_duration="1ba")[0].parts[0].images for made in (one, one, two)]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_an_empty_memory_changes_nothing() -> None:
    def weights(algorithms: list[Algorithm]) -> dict[int, Any]:
        network = tiny_network(dropout=0.5, norm=True)
        probe = Probe(network)
        fit(network, algorithms=algorithms, callbacks=[probe])
        return probe.weights

    empty = DistilledReplay(ReplayMemory(images_per_class=1))
    assert_same(weights([empty, RandomCutMix()]), weights([RandomCutMix()]))
    assert differ(weights([DistilledReplay(memory())])[12], weights([])[12])


@pytest.mark.parametrize("beside", [lambda: SAM(), lambda: EMA(half_life="2ba")], ids=["SAM", "EMA"])
def test_beside_sam_and_ema(beside: Callable[[], Algorithm]) -> None:
    """SAM goes through a batch twice: with the same images, and the model has its own loss back in the end."""
    network = ComposerClassifier(tiny_network(), CLASSES)
    seen: list[torch.Tensor] = []

    class Look(Callback):
        def before_forward(self, state: State, logger: Logger) -> None:
            seen.append(state.batch[0].clone())

    replay = DistilledReplay(memory(), weight=0.5)
    options = {"device_train_microbatch_size": 3, "max_duration": "2ba"}
    fit(network, algorithms=[replay, beside()], callbacks=[Look()], **options)  # type: ignore[arg-type]
    assert len(seen) in (6, 12)
    if len(seen) == 12:
        for batch in (0, 6):
            for one, other in zip(seen[batch : batch + 3], seen[batch + 3 : batch + 6], strict=True):
                assert torch.equal(one, other)
    assert "loss" not in vars(network)


@pytest.mark.parametrize("how", ["amp", "compiled"])
def test_in_other_trainers(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"compile_config": {"backend": "eager"}} if how == "compiled" else {}
    if how == "amp":  # which Composer has for GPUs alone

        def half(*_: Any, **__: Any) -> Any:
            return torch.autocast("cpu", torch.bfloat16)

        monkeypatch.setattr("composer.trainer.trainer.get_precision_context", half)
    batches = run([DistilledReplay(memory(), weight=0.5, augmentation="none")], max_duration="2ba", **options)
    for batch in batches:
        loss, grads = by_hand(batch, [dense(part.targets) for part in batch.parts], 0.5)
        assert batch.loss == pytest.approx(loss, rel=1e-2 if how == "amp" else 1e-6)
        assert how != "amp" or batch.loss != pytest.approx(loss, rel=1e-6)
        for name, grad in grads.items():
            assert F.cosine_similarity(batch.grads[name].flatten(), grad.flatten(), 0) > 0.99


def test_a_loss_of_the_users_own() -> None:
    """Several losses in a dict, set on the model itself: each is weighted, and the model keeps it."""
    network = ComposerClassifier(tiny_network(), CLASSES)

    def loss(outputs: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        entropy, size = F.cross_entropy(outputs, batch[1]), outputs.square().mean() * batch[0].mean()
        return {"entropy": entropy, "size": size, "total": entropy + size}

    class Look(Callback):
        def before_loss(self, state: State, logger: Logger) -> None:
            new, old = (
                loss(state.outputs[p], (state.batch[0][p], state.batch[1][p])) for p in (slice(8), slice(8, 16))
            )
            self.wanted = {name: float(0.8 * new[name] + 0.2 * old[name]) for name in new}

        def after_loss(self, state: State, logger: Logger) -> None:
            assert isinstance(state.loss, dict)
            assert {name: float(value) for name, value in state.loss.items()} == pytest.approx(self.wanted)

    network.loss = loss  # type: ignore[method-assign, assignment]
    fit(network, algorithms=[DistilledReplay(memory(), weight=0.2)], callbacks=[Look()], max_duration="2ba")
    assert vars(network)["loss"] is loss


def test_a_batch_that_failed_leaves_nothing_behind() -> None:
    network = ComposerClassifier(tiny_network(), CLASSES)
    made = memory()
    with pytest.raises(RuntimeError, match="crash"):
        fit(network, algorithms=[DistilledReplay(made)], callbacks=[Crash(1)])
    network.module.load_state_dict(tiny_network().state_dict())
    probes = []
    for model in (network, ComposerClassifier(tiny_network(), CLASSES)):
        probes.append(Probe(model.module))
        fit(model, algorithms=[DistilledReplay(made)], callbacks=[probes[-1]])
    assert_same(probes[0].weights, probes[1].weights)
    network.module.load_state_dict(tiny_network().state_dict())
    with pytest.raises(RuntimeError, match="crash"):
        fit(network, algorithms=[DistilledReplay(made)], callbacks=[Crash(1)])
    network.module.load_state_dict(tiny_network().state_dict())
    probes = [Probe(network.module), Probe(plain := tiny_network())]
    fit(network, callbacks=[probes[0]])
    fit(plain, callbacks=[probes[1]])
    assert_same(probes[0].weights, probes[1].weights)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def train(crash: int | None = None, **options: Any) -> Probe:
        network = tiny_network(norm=True, dropout=0.5)
        probe = Probe(network)
        algorithms = [DistilledReplay(memory(), weight=0.3, seed=2), SiameseAugmentation("crop"), RandomCutMix()]
        fit(
            network,
            algorithms=algorithms,
            callbacks=[probe, *([Crash(crash)] if crash else [])],
            device_train_microbatch_size=3,
            **options,
        )
        return probe

    whole = train()
    options = {"save_folder": str(tmp_path), "save_interval": "2ba", "autoresume": True}
    with pytest.raises(RuntimeError, match="crash"):
        train(7, **options)
    resumed = train(**options)
    assert list(resumed.weights) == list(range(6, 13))
    assert_same(resumed.weights, {batch: whole.weights[batch] for batch in range(6, 13)})


# Beside TGDDCallback.


@pytest.mark.parametrize("microbatch", [8, 3])
@pytest.mark.parametrize("around", [[], [SiameseAugmentation("color")]], ids=["alone", "augmented"])
def test_recorded_means_are_those_of_the_loaders_images(
    tmp_path: Path, microbatch: int, around: list[Algorithm]
) -> None:
    """Class means of the head's input, and exemplars: no image of the memory is in them."""
    made = memory(6)
    recorder = TGDDCallback(str(tmp_path), interval="3ba", exemplars=40)
    batches = run(
        [*around, DistilledReplay(made, ratio=2.0)],
        callbacks=[recorder],
        max_duration="3ba",
        device_train_microbatch_size=microbatch,
    )
    found = statistics(tmp_path / "run")[3]
    sums, counts = torch.zeros(CLASSES, 16), torch.zeros(CLASSES)
    for number, batch in enumerate(batches, 1):
        network = tiny_network()
        network.load_state_dict(batch.weights)
        for part in batch.parts:
            new = ~part.memory
            for row, label in zip(network.features(part.images[new]), part.targets[new].tolist(), strict=True):
                sums[label] += (number / 3) ** 2 * row.detach()
                counts[label] += (number / 3) ** 2
    torch.testing.assert_close(found["counts"], counts)
    torch.testing.assert_close(found["means"], sums / counts[:, None], rtol=1e-4, atol=1e-5)
    images, labels = read_exemplars(tmp_path / "run", CLASSES)
    own = (Pictures().images[:24] * 255).round().to(torch.uint8)
    assert len(images) == 24 and sorted(i.flatten().tolist() for i in images) == sorted(
        i.flatten().tolist() for i in own
    )
    assert manifest(tmp_path / "run")["input"]["mean"] == pytest.approx([float(Pictures().images[:8].mean())], rel=1e-5)


def test_the_recording_of_the_first_task_is_untouched(tmp_path: Path) -> None:
    for name, algorithms in (("with", [DistilledReplay(ReplayMemory(images_per_class=1))]), ("without", [])):
        run(algorithms, callbacks=[TGDDCallback(str(tmp_path / name))])  # type: ignore[arg-type]
    for stage in (4, 8, 12):
        one, other = (statistics(tmp_path / name / "run")[stage] for name in ("with", "without"))
        assert torch.equal(one["means"], other["means"]) and torch.equal(one["counts"], other["counts"])


# Bad input.


def test_a_path_in_place_of_the_memory_is_refused() -> None:
    with pytest.raises(InputError, match=r"`memory` must be a ReplayMemory, got a str[.] ReplayMemory.load"):
        DistilledReplay("memory.beton")  # type: ignore[arg-type]


def test_a_count_may_be_a_number_of_numpy() -> None:
    assert DistilledReplay(memory(), count=np.int64(3)).count == 3  # type: ignore[arg-type]


def test_unusable_arguments() -> None:
    for arguments, pattern in (
        (
            {"ratio": 1.0, "count": 3},
            "`ratio` must be left out where `count` says .*, got ratio 1.0 and count 3. Give one",
        ),
        ({"ratio": 0.0}, "`ratio` must be a finite number above 0, got 0.0. Leave"),
        ({"ratio": float("nan")}, "`ratio` must be a finite number above 0, got nan"),
        ({"ratio": "1"}, "`ratio` must be a finite number above 0, got '1'. Leave"),
        ({"weight": "0.5"}, "`weight` must be a share of the loss from 0 to 1, got '0.5'. Leave"),
        ({"count": np.float64(3)}, "`count` must be a whole number of at least 1, got"),
        ({"count": True}, "`count` must be a whole number of at least 1, got True"),
        ({"count": 0}, "`count` must be a whole number of at least 1, got 0. Leave"),
        ({"count": 2.5}, "`count` must be a whole number of at least 1, got 2.5"),
        ({"weight": 1.1}, "`weight` must be a share of the loss from 0 to 1, got 1.1. Leave"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1. Give"),
        ({"augmentation": "blur"}, "`augmentation` must be operations of .*, got 'blur'"),
    ):
        with pytest.raises(InputError, match=pattern):
            DistilledReplay(memory(), **arguments)  # type: ignore[arg-type]


def test_a_memory_that_does_not_fit_the_training() -> None:
    def device_loader(mean: float = 0.0) -> DeviceLoader:
        pictures = Pictures()
        return DeviceLoader((pictures.images * 255).byte(), pictures.labels, Normalization([mean], [1.0]), batch_size=8)

    class Named(Pictures):
        classes = ["cat", "dog", "ship"]

    def named(*names: str) -> ReplayMemory:
        made = ReplayMemory(names, images_per_class=1, mean=[0.0], std=[1.0])
        made.add((torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0])), classes=[names[1]])
        return made

    class Folders(Pictures):
        classes = ["0", "2", "1"]  # in an order that is not that of the numbers

    growing = ReplayMemory(images_per_class=1, mean=[0.0], std=[1.0])
    growing.add(ImagePool(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0]), ["2"]))
    many = memory()
    many.add((torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([3])))
    unknown = ReplayMemory(images_per_class=1)
    unknown.add((torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0])))
    bytes_ = DataLoader([(torch.zeros(1, 8, 8, dtype=torch.uint8), 0)] * 8, batch_size=8)
    three = DataLoader([(torch.zeros(1, 8, 8), 0, 0)] * 8, batch_size=8)
    for made, options, pattern in (
        (
            memory(shape=(1, 6, 8)),
            {},
            r"images of \[1, 6, 8\] \(channels, height, width\) like the memory, got .* images of \[1, 8, 8\]",
        ),
        (
            memory(),
            {"train_dataloader": bytes_},
            "The batch must have normalized images .*, got torch.uint8 images .*. Give a loader of such images",
        ),
        (memory(), {"train_dataloader": three}, r"a pair of tensors \(images, labels\), or .* got a list"),
        (
            memory(),
            {"train_dataloader": device_loader(0.5)},
            r"normalizes with mean \[0.5\] .* the memory with mean \[0.0\]",
        ),
        (
            many,
            {},
            "an output for each class of the memory, whose last one is 3, got 3 outputs. Build it for 4 classes",
        ),
        (unknown, {}, "`mean` and `std` must be known to the memory, got neither. Give ReplayMemory those"),
        (named("dog", "cat", "ship"), {"dataset": Named()}, "Class 1 is 'dog' for the loader and 'cat' for the memory"),
        (
            growing,
            {"dataset": Folders()},
            "Class 2 is '1' for the loader and '2' for the memory. Give ReplayMemory the",
        ),
    ):
        with pytest.raises(InputError, match=pattern):
            fit(algorithms=[DistilledReplay(made)], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`algorithms` must have one DistilledReplay, got two"):
        fit(algorithms=[DistilledReplay(memory()), DistilledReplay(memory())])
    fit(algorithms=[DistilledReplay(memory())], train_dataloader=device_loader(0.005), max_duration="1ba")
    for made in (named("cat", "dog", "ship"), memory()):  # by the loader's names, and by ids alone
        fit(algorithms=[DistilledReplay(made)], dataset=Named(), max_duration="1ba")


# Two processes on gloo. This file is also the script that they run.


def two_ranks(root: Path) -> None:
    """2 batches of 2 x 4 images, as they come, with 6 from the memory on each rank."""
    dist.initialize_dist("cpu")
    pictures, rank = Pictures(16), dist.get_global_rank()
    sampler = dist.get_sampler(pictures, shuffle=False)
    replay = DistilledReplay(memory(), count=6, weight=0.3, augmentation="none")
    loader = DataLoader(pictures, batch_size=4, sampler=sampler)
    network = tiny_network()
    watch = Watch(network, replay)
    recorder = TGDDCallback(str(root / "trajectory"), interval="2ba")
    options = {"device_train_microbatch_size": 3, "max_duration": "2ba", "run_name": "run"}
    fit(network, algorithms=[replay], callbacks=[watch, recorder], train_dataloader=loader, **options)
    torch.save(
        [vars(batch) | {"parts": [vars(p) for p in batch.parts]} for batch in watch.batches], root / f"{rank}.pt"
    )


@pytest.mark.once
def test_two_ranks(tmp_path: Path) -> None:
    """Each draws its own images; the gradient is the mean of both, and class means are of both ranks' own images."""
    run_file(__file__, tmp_path, "two_ranks")
    for status, _, text in outcome(tmp_path, "two_ranks"):
        assert status == 0, text
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    made, sums, counts = memory(), torch.zeros(CLASSES, 16), torch.zeros(CLASSES)
    for number in range(2):
        losses, grads = [], []
        for rank, batches in enumerate(ranks):
            batch = SimpleNamespace(
                **{**batches[number], "parts": [SimpleNamespace(**p) for p in batches[number]["parts"]]}
            )
            images, labels = drawn(made, 6, number, rank=rank)
            assert torch.equal(torch.cat([p.images[p.memory] for p in batch.parts]), images)
            assert torch.equal(torch.cat([p.targets[p.memory] for p in batch.parts]), labels)
            loss, grad = by_hand(batch, [dense(part.targets) for part in batch.parts], 0.3)
            losses.append(loss)
            grads.append(grad)
            network = tiny_network()
            network.load_state_dict(batch.weights)
            for part in batch.parts:
                own = ~part.memory
                rows = network.features(part.images[own]).detach()
                sums.index_add_(0, part.targets[own], rows * ((number + 1) / 2) ** 2)
                counts += torch.bincount(part.targets[own], minlength=CLASSES) * ((number + 1) / 2) ** 2
        for rank in (0, 1):
            assert ranks[rank][number]["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
            mean = {name: (grads[0][name] + grads[1][name]) / 2 for name in grads[0]}
            torch.testing.assert_close(ranks[rank][number]["grads"], mean, rtol=1e-4, atol=1e-6)
    found = statistics(tmp_path / "trajectory/run")[2]
    torch.testing.assert_close(found["counts"], counts)
    torch.testing.assert_close(found["means"], sums / counts[:, None], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork_ranks(globals()[sys.argv[1]], Path(sys.argv[2]))
