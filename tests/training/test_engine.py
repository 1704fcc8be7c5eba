"""How forward passes are computed: each way gives what its formula gives, and the fastest is found while training."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Logger, State, Trainer
from composer.models import ComposerClassifier
from composer.optim import MultiStepScheduler
from safetensors.torch import load_file
from torch import nn

from tests.common import manifest, tiny_network
from tgdd_plugin import TGDDCallback
from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet
from tgdd_plugin.training import engine as engines
from tgdd_plugin.training import forward_passes
from tgdd_plugin.training import train as training
from tgdd_plugin.training.engine import Engine, ways_to_try
from tgdd_plugin.training.forward_passes import EAGER, Way
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import check_network, train_each, train_network

K, N = 3, 20
WHOLE = 16  # batches are of one size, for which there is less to compile
PLAIN = TrainSettings(epochs=2, batch_size=8, learning_rate=0.05, augmentation="crop_flip")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    engines._chosen.clear()
    yield
    engines._chosen.clear()


def loader(seed: int = 0, count: int = N) -> DeviceLoader:
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=drawn).to(torch.uint8)
    labels = torch.randint(K, (count,), generator=drawn)
    return DeviceLoader(images, labels, Normalization([0.5], [0.3]), batch_size=8, seed=seed)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return convnet(K, 1, 8, depth=1, width=4)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in net.state_dict().values()])


def trained(settings: TrainSettings, net: nn.Module | None = None, count: int = N, **options: Any) -> torch.Tensor:
    return weights(train_network(net or network(), loader(count=count), K, settings, device="cpu", **options))


class Autocast(ComposerClassifier):
    """A user's own classifier in bf16, as the CPU lets none have by the Trainer."""

    def forward(self, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: torch.Tensor = self.module(batch[0])
        assert logits.dtype == torch.bfloat16
        return logits.float()


def by_composer(model: ComposerClassifier) -> torch.Tensor:
    """What PLAIN says, written for Composer."""
    Trainer(
        model=model,
        train_dataloader=loader(),
        max_duration="2ep",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        schedulers=MultiStepScheduler(["0.666667dur", "0.833333dur"], gamma=0.2),
        algorithms=[SiameseAugmentation("crop_flip"), RandomCutMix(0.5)],
        seed=0,
        device="cpu",
        progress_bar=False,
    ).fit()
    return weights(model.module)


def test_trainings_are_those_of_composers_own_classifier() -> None:
    plain, bf16 = (
        by_composer(ComposerClassifier(network(), num_classes=K)),
        by_composer(Autocast(network(), num_classes=K)),
    )
    assert not torch.equal(plain, bf16)
    assert torch.equal(trained(replace(PLAIN, precision="fp32", compile=False)), plain)
    assert torch.equal(trained(PLAIN), plain)  # too short for anything else
    assert torch.equal(trained(replace(PLAIN, precision="bf16", compile=False)), bf16)


@pytest.mark.parametrize(
    ("precision", "compile", "place", "wanted"),
    [
        ("auto", "auto", "cpu with bf16", ["fp32, eager", "bf16, compiled"]),
        ("auto", "auto", "cpu", ["fp32, eager", "fp32, compiled"]),
        ("auto", "auto", "cuda", ["fp32, eager", "bf16, eager", "bf16, compiled"]),
        ("auto", False, "cpu with bf16", ["fp32, eager"]),  # autocast alone is slower there
        ("auto", False, "cuda", ["fp32, eager", "bf16, eager"]),
        ("auto", True, "cpu with bf16", ["fp32, compiled", "bf16, compiled"]),
        ("auto", True, "cpu", ["fp32, compiled"]),
        ("fp32", "auto", "cuda", ["fp32, eager", "fp32, compiled"]),
        ("bf16", "auto", "cpu", ["bf16, eager", "bf16, compiled"]),
        ("bf16", False, "cpu", ["bf16, eager"]),
        ("bf16", True, "cuda", ["bf16, compiled"]),
    ],
)
def test_ways_that_settings_allow(
    precision: Any, compile: Any, place: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "has_bf16", lambda device: place != "cpu")
    device = torch.device(place.split()[0])
    assert [str(way) for way in ways_to_try(precision, compile, device)] == wanted


class Clock:
    """Takes the place of time and of the computation: each way takes what is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[Way, float], problem: str | None = None) -> None:
        self.now, self.used, self.compiled = 0.0, [], 0
        self.seconds, self.problem = seconds, problem
        monkeypatch.setattr(engines, "now", lambda device: self.now)
        monkeypatch.setattr(engines, "compute", self._compute)
        monkeypatch.setattr(engines, "compile_problem", self._compile)
        monkeypatch.setattr(engines, "has_bf16", lambda device: True)

    def _compute(self, way: Way, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
        self.used.append((len(images), way))
        self.now += self.seconds[way] * len(images) / 8
        return images

    def _compile(self, *_: Any) -> str | None:
        self.compiled += 1
        self.now += 20.0
        return self.problem


BF16 = Way("bf16", True)


def run(engine: Engine, count: int, sizes: tuple[int, ...] = (8,), net: nn.Module | None = None) -> None:
    for _ in range(count):
        for size in sizes:
            engine(net or network(), torch.zeros(size, 1, 8, 8))


@pytest.mark.parametrize(("seconds", "best"), [(0.5, BF16), (1.5, EAGER)])
def test_fastest_way_is_found_while_training(seconds: float, best: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(monkeypatch, {EAGER: 1.0, BF16: seconds}), []
    engine = Engine("auto", "auto", {8: 100, 4: 200}, told.append)
    run(engine, 40, (8, 4))  # sizes take turns, as where an epoch is one batch and a rest
    each = engines.STEPS + 1
    for size in (8, 4):
        used = [way for found, way in clock.used if found == size]
        assert used == [EAGER] * each + ([BF16] * (each if best == EAGER else 40 - each)) + [best] * (
            40 - 2 * each if best == EAGER else 0
        )
    assert clock.compiled == 2 and str(engine) == str(best)
    faster = "bf16, compiled, 2.0 times as fast as in float32, not compiled"
    assert told == ([f"batches of {size} are computed in {faster}" for size in (8, 4)] if best == BF16 else [])
    clock.used.clear()
    again = Engine("auto", "auto", {8: 10}, told.append)  # what was found is known from now on
    run(again, 10, net=network(1))
    assert clock.used == [(8, best)] * 10 and clock.compiled == 2
    run(Engine("auto", "auto", {8: 10}), 10, net=convnet(K, 1, 8, depth=1, width=8))  # another architecture
    assert clock.used[10:] == [(8, EAGER)] * 10


def test_short_trainings_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {EAGER: 1.0, BF16: 0.1})
    run(Engine("auto", "auto", {8: 60}), 60)
    assert not clock.compiled and {way for _, way in clock.used} == {EAGER}
    run(Engine("auto", "auto", {8: 200}), 60)  # it is not taken for the fastest of a longer one
    assert clock.compiled == 1 and clock.used[-1] == (8, BF16)


def test_what_does_not_compile_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for compile in ("auto", True):
        clock = Clock(monkeypatch, {EAGER: 1.0, BF16: 0.1}, "RuntimeError: no compiler")
        with pytest.warns(
            UserWarning, match=r"not compiled for training, which goes on without \(RuntimeError: no comp"
        ):
            engine = Engine("auto", compile, {8: 200})  # type: ignore[arg-type]
            run(engine, 30)
        assert str(engine) == "fp32, eager" and {way for _, way in clock.used} == {EAGER}


def test_the_attempt_to_compile_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither running statistics nor random numbers, also if it breaks off after a pass."""

    def breaks(net: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
        net(images)
        raise RuntimeError("no code\nfor this")

    def make() -> nn.Module:
        return tiny_network(0, norm=True, dropout=0.5)

    monkeypatch.setattr(forward_passes, "_compiled_forward", lambda: breaks)
    with pytest.warns(UserWarning, match=r"goes on without \(RuntimeError: no code\)"):
        tried = trained(replace(PLAIN, precision="fp32", compile=True), make())
    assert torch.equal(tried, trained(replace(PLAIN, compile=False), make()))


class Double(nn.Module):
    """A network in float64, as some have buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_network(0, norm=True).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(images.double())
        return logits


def test_compiled_trainings_are_those_of_eager_ones_and_share_their_code() -> None:
    """In float32 and bf16, of a network with running statistics, and of one in float64; in float32 of two sizes."""
    for precision, count, atol in (("fp32", N, 1e-5), ("bf16", WHOLE, 2e-2)):
        settings = replace(PLAIN, precision=precision, compile=False)
        plain = [trained(settings, tiny_network(seed, norm=True), count) for seed in range(2)]
        built = [trained(replace(settings, compile=True), tiny_network(0, norm=True), count)]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        built.append(trained(replace(settings, compile=True), tiny_network(1, norm=True), count))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
        torch.testing.assert_close(built, plain, rtol=0, atol=atol)
    settings = replace(PLAIN, precision="fp32")
    double = [trained(replace(settings, compile=compile), Double(), WHOLE) for compile in (False, True)]
    assert double[0].dtype == torch.float64
    torch.testing.assert_close(*double, rtol=0, atol=1e-9)


def test_networks_trained_at_once_are_compiled_and_in_bf16_too() -> None:
    def all_of(**how: Any) -> list[torch.Tensor]:
        nets = [network(seed) for seed in range(3)]
        settings = replace(PLAIN, **how)
        loaders = [loader(seed, WHOLE) for seed in range(3)]
        done = train_each(nets, loaders, K, settings, seeds=range(3), at_once=True, device="cpu")
        assert {each.computed for each in done} == {str(Way(how["precision"], how["compile"]))}
        return [weights(net) for net in nets]

    plain = all_of(precision="fp32", compile=False)
    torch.testing.assert_close(all_of(precision="fp32", compile=True), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(all_of(precision="bf16", compile=False), plain, rtol=0, atol=5e-2)


def test_a_compiled_training_is_recorded_as_an_eager_one(tmp_path: Path) -> None:
    found = {}
    for name, compile in (("plain", False), ("built", True)):
        callback = TGDDCallback(str(tmp_path / name), mean=[0.5], std=[0.3], on_error="raise")
        settings = replace(PLAIN, precision="fp32", compile=compile, cutmix=0.0)
        trained(settings, count=WHOLE, callbacks=[callback], run_name="run")
        folder = tmp_path / name / "run"
        found[name] = [load_file(folder / stage["file"]) for stage in manifest(folder)["stages"]]
    for plain, built in zip(found["plain"], found["built"], strict=True):
        assert list(plain) == list(built)
        torch.testing.assert_close(list(built.values()), list(plain.values()), rtol=1e-4, atol=1e-4)
    assert any("class_means" in name or "means" in name for name in found["built"][-1])


class Overflow(nn.Module):
    """Gives infinite outputs under autocast from some forward pass on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.inner, self.after, self.passes = network(), after, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        logits: torch.Tensor = self.inner(images)
        bad = torch.is_autocast_enabled("cpu") and self.passes > self.after
        return logits * torch.inf if bad else logits


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        self.seen.append(float(state.total_loss_dict["loss/train/total"]))


def test_outputs_that_are_not_finite_in_bf16_are_computed_again_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tgdd_plugin.training.classifier.KEPT_EVERY", 2)
    settings, losses = replace(PLAIN, precision="bf16", compile=False, cutmix=0.0), Losses()
    whole = Losses()
    trained(replace(settings, precision="fp32"), callbacks=[whole])
    with pytest.warns(UserWarning, match="at batch 3 .* not finite: training goes on in float32 with .* of batch 2"):
        end = trained(settings, Overflow(3), callbacks=[losses])
    assert len(losses.seen) == 6 and end.isfinite().all()
    assert losses.seen[:3] == pytest.approx(whole.seen[:3], rel=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(replace(settings, precision="fp32"), Overflow(3))


class Momenta(Callback):
    """The momentum of the optimizer after each batch, and before each step."""

    def __init__(self) -> None:
        self.after_batch: dict[int, torch.Tensor] = {}
        self.before_step: dict[int, torch.Tensor] = {}

    def after_loss(self, state: State, logger: Logger) -> None:
        if states := state.optimizers[0].state.values():
            self.before_step[state.timestamp.batch.value] = torch.cat([s["momentum_buffer"].flatten() for s in states])

    def batch_end(self, state: State, logger: Logger) -> None:
        states = state.optimizers[0].state.values()
        self.after_batch[state.timestamp.batch.value] = torch.cat([s["momentum_buffer"].flatten() for s in states])


def test_training_in_float32_goes_on_with_the_momentum_that_belongs_to_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tgdd_plugin.training.classifier.KEPT_EVERY", 2)
    noted = Momenta()
    with pytest.warns(UserWarning, match="at batch 3 .* with the weights of batch 2"):
        trained(replace(PLAIN, precision="bf16", compile=False), Overflow(3), callbacks=[noted])
    assert torch.equal(noted.before_step[3], noted.after_batch[2])
    assert not torch.equal(noted.after_batch[3], noted.after_batch[2])


def test_several_ranks_and_the_users_own_precision_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(training, "fit", lambda model, engine, *_, **__: found.append(engine) or 0.0)
    trained(PLAIN, precision="amp_bf16")
    trained(PLAIN)
    monkeypatch.setattr(training.dist, "get_world_size", lambda: 2)
    trained(PLAIN)
    trained(replace(PLAIN, precision="bf16", compile=True))
    ways = [(each.precision, each.compile) for each in found]
    assert ways == [("fp32", False), ("auto", "auto"), ("fp32", False), ("bf16", True)]
    assert found[1].steps == {8: 4, 4: 2}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 20])
def test_batch_sizes_are_those_that_come(count: int) -> None:
    own = DeviceLoader(torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.zeros(count).long(), Normalization([0.5], [0.3]), batch_size=8)  # fmt: skip  # noqa: E501
    sizes = [len(labels) for _, labels in own]
    assert own.batch_sizes() == {size: sizes.count(size) for size in sizes}


def test_a_training_that_is_over_keeps_neither_its_images_nor_its_classifier() -> None:
    """Composer's engines register their State for the end of the process."""
    normalization = Normalization([0.5], [0.25])
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    loader = DeviceLoader(images, torch.arange(4) % 2, normalization, batch_size=4, device="cpu")
    seen: list[weakref.ref[Any]] = [weakref.ref(loader)]

    class Look(Callback):
        def fit_end(self, state: State, logger: Logger) -> None:
            seen.extend(weakref.ref(each) for each in (state.model, state.optimizers[0], self))

    network = convnet(2, 1, 8, depth=1, width=4)
    train_network(network, loader, 2, TrainSettings(epochs=1, cutmix=0.0), device="cpu", callbacks=[Look()])
    del loader
    gc.collect()
    assert len(seen) == 4 and [each() for each in seen] == [None] * 4


def test_a_network_that_answers_with_something_else_than_logits_is_named() -> None:
    class Scores(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": images.flatten(1)[:, :3]}

    with pytest.raises(
        InputError, match=r"logits of shape \(2, 3\) .*, got a dict from Scores. Return the logits alone"
    ):
        check_network(Scores, (1, 8, 8), 3)
