"""Networks trained at once end with the weights that each gets alone; and the comparison of the two ways only looks."""

import copy
import itertools
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.common import tiny_network
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.evaluation.scorer import Row, Scorer
from tgdd_plugin.networks import convnet
from tgdd_plugin.networks.factory import OWN
from tgdd_plugin.training import train as training
from tgdd_plugin.training import vectorized as population
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import train_each, train_network
from tgdd_plugin.training.vectorized import Population, PopulationLoader, vectorizing_is_faster

pytestmark = pytest.mark.numerical

K, N, BATCH = 3, 20, 8  # so that the last of three batches is smaller
SEEDS = [3, 4, 7]
SETTINGS = TrainSettings(3, BATCH, 0.1, momentum=0.8, weight_decay=0.05, augmentation="none", cutmix=0.0)


def in_double(network):
    """In double precision, as is its input, whatever it is given.

    Two ways to the same weights round differently, and a training makes more of it: a ReLU that is on in one of them
    and off in the other changes a weight by 1e-3 within four epochs of float32. In double precision no image is that
    close to a kink, and the ways agree to the last digits on any CPU.
    """
    network.double().register_forward_pre_hook(_to_double)
    return network


def _to_double(network, images):
    return tuple(each.double() for each in images)


def make(kind, seed):
    if kind == "batch norm":
        return in_double(tiny_network(seed, norm=True))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return in_double(convnet(K, 1, 8, depth=1, width=4))


def loaders(soft=False, seeds=SEEDS):
    """Other images for every seed; the second loader is an epoch ahead of the others."""
    made = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (N, 1, 8, 8), dtype=torch.uint8, generator=generator)
        # In eighths: their mixtures, by 64ths of an image, are exact in float32, which Composer turns labels into.
        some = torch.randint(1, 4, (N, K - 1), generator=generator) / 8
        labels = torch.cat([some, 1 - some.sum(1, keepdim=True)], 1) if soft else torch.arange(N) % K
        made.append(DeviceLoader(images, labels, Normalization([0.5], [0.3]), batch_size=BATCH, seed=seed))
    list(made[1])
    return made


def weights(network):
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def assert_close(networks, wanted, **tolerance):
    for network, one in zip(networks, wanted, strict=True):
        torch.testing.assert_close(weights(network), weights(one), **{"rtol": 1e-8, "atol": 1e-10, **tolerance})


@pytest.mark.parametrize(
    ("kind", "augmentation", "cutmix", "soft"),
    [
        ("instance norm", "none", 0.0, False),
        ("instance norm", "color_crop_flip", 0.5, False),
        ("instance norm", "none", 0.5, True),
        ("instance norm", "color_crop_flip", 1.0, True),
        ("batch norm", "none", 0.5, False),
        ("batch norm", "color_crop_flip", 0.0, True),
        ("batch norm", "color_crop_flip", 0.5, True),
        ("batch norm", "none", 1.0, False),
    ],
)
def test_each_ends_as_it_does_alone(kind, augmentation, cutmix, soft):
    settings = TrainSettings(4, BATCH, 0.1, weight_decay=0.01, augmentation=augmentation, cutmix=cutmix)
    networks, wanted = ([make(kind, seed) for seed in SEEDS] for _ in range(2))
    objects = [list(network.parameters()) for network in networks]
    for network, loader, seed in zip(wanted, loaders(soft), SEEDS, strict=True):
        train_network(network, loader, K, settings, seed=seed, device="cpu")
    train_each(networks, loaders(soft), K, settings, seeds=SEEDS, at_once=True, device="cpu")
    assert_close(networks, wanted)
    # The same objects as before, trained, and each differently.
    for network, own, seed in zip(networks, objects, SEEDS, strict=True):
        assert all(now is before for now, before in zip(network.parameters(), own, strict=True))
        assert not any(torch.equal(p, q) for p, q in zip(own, make(kind, seed).parameters(), strict=True))
        assert all(p.requires_grad and p.device.type == "cpu" for p in own)
    assert not torch.allclose(objects[0][0], objects[1][0], atol=1e-2)
    if kind == "batch norm":
        assert [int(network.features[1].num_batches_tracked) for network in networks] == [12] * 3


@pytest.mark.parametrize("options", [{}, {"device_train_microbatch_size": 4}], ids=["as it is", "batches in parts"])
def test_more_networks_than_a_batch_has_images(options):
    """Composer splits what comes by its first dimension, which is the networks' here, and not the images'."""
    seeds = list(range(BATCH + 1))
    networks, wanted = ([make("instance norm", seed) for seed in seeds] for _ in range(2))
    train_each(wanted, loaders(seeds=seeds), K, SETTINGS, seeds=seeds, at_once=False, device="cpu")
    train_each(networks, loaders(seeds=seeds), K, SETTINGS, seeds=seeds, at_once=True, device="cpu", **options)
    assert_close(networks, wanted)


def test_batches_in_parts_are_trained_in_turn(monkeypatch):
    """Whoever asks for them has no memory to spare."""
    monkeypatch.setattr(training, "vectorizing_is_faster", lambda *given: pytest.fail("measured"))
    how = {"seeds": SEEDS, "device": "cpu", "device_train_microbatch_size": 4}
    train_each([make("instance norm", seed) for seed in SEEDS], loaders(), K, replace(SETTINGS, epochs=40), **how)


def test_the_whole_training_is_the_formulas():
    """SGD with momentum and weight decay; its rate falls to a fifth after the steps that 2/3 and 5/6 fall into."""
    networks = [make("instance norm", seed) for seed in SEEDS]
    wanted = []
    for seed, loader in zip(SEEDS, loaders(), strict=True):
        network = make("instance norm", seed)
        velocity = [torch.zeros_like(p) for p in network.parameters()]
        for step, (images, labels) in enumerate(itertools.chain(*(loader for _ in range(7)))):
            logits = network(images)
            loss = -sum((row - row.logsumexp(0))[c] for row, c in zip(logits, labels, strict=True)) / len(labels)
            rate = 0.1 * (1 if step <= 14 else 0.2 if step <= 17 else 0.04)
            with torch.no_grad():
                for p, v, g in zip(
                    network.parameters(), velocity, torch.autograd.grad(loss, network.parameters()), strict=True
                ):
                    v.mul_(0.8).add_(g + 0.05 * p)
                    p.sub_(rate * v)
        assert step == 20
        wanted.append(network)
    settings = replace(SETTINGS, epochs=7)
    train_each(networks, loaders(), K, settings, seeds=SEEDS, at_once=True, device="cpu")
    assert_close(networks, wanted)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", OWN)
def test_the_packages_networks_in_double_precision(name):
    """Logits, gradients and buffers of one step, to the last digits."""
    narrow = {"densenet121": {"growth_rate": 2}, "vit": {"width": 12, "depth": 1}}.get(name, {"width": 4})
    networks = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            networks.append(OWN[name](K, 3, 16, **narrow).double().train())
            for p in networks[-1].parameters():  # the transformer's head starts as zero
                p.data += 0.1 * torch.randn_like(p)
    images = torch.randn(2, 6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = images, torch.arange(12).view(2, 6) % K
    model = Population(networks).train()
    logits = model(batch)
    model.loss(logits, batch).backward()
    exact = {"rtol": 1e-6, "atol": 1e-9}
    for number, network in enumerate(networks):
        alone = copy.deepcopy(network)
        own = alone(images[number])
        torch.testing.assert_close(logits[number], own, **exact)
        nn.functional.cross_entropy(own, batch[1][number]).backward()
        for stacked, parameter in zip(model.module.stacked, alone.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[number], parameter.grad, **exact)
        networks[number] = alone
    before = [weights(network) for network in model.module.networks]
    model.module.release()
    for network, alone, old in zip(model.module.networks, networks, before, strict=True):
        assert list(weights(network)) == list(old)
        torch.testing.assert_close(weights(network), weights(alone), **exact)


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_sum_of_the_members_means(soft):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, K, generator=generator)
    shares = torch.rand(4, 5, K, generator=generator).softmax(2)
    labels = shares if soft else torch.randint(K, (4, 5), generator=generator)
    wanted = 0.0
    for e, n in itertools.product(range(4), range(5)):
        logs = (logits[e, n].double().exp() / logits[e, n].double().exp().sum()).log()
        target = labels[e, n].double() if soft else torch.eye(K, dtype=torch.float64)[labels[e, n]]
        wanted -= float((target * logs).sum()) / 5
    model = Population([make("instance norm", seed) for seed in range(4)])
    assert float(model.loss(logits, (torch.empty(0), labels))) == pytest.approx(wanted, rel=1e-5)


def test_evaluation_mode_uses_running_statistics_and_changes_none():
    networks = [make("batch norm", seed) for seed in SEEDS]
    for network in networks:
        network.features[1].running_mean.uniform_(generator=torch.Generator().manual_seed(1))
    model = Population(networks).eval()
    images = torch.randn(3, 5, 1, 8, 8)
    before = weights(model)
    logits = model((images, torch.zeros(3, 5, dtype=torch.int64)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    for network, own, wanted in zip(networks, images, logits, strict=True):
        torch.testing.assert_close(network.eval()(own), wanted)


def test_dropout_is_drawn_for_each_network_and_step_and_follows_the_seed():
    same = [tiny_network(0, dropout=0.5) for _ in range(2)]
    model = Population(same).train()
    image = torch.randn(1, 1, 1, 8, 8).expand(2, 64, 1, 8, 8)
    first, second = (model((image, torch.zeros(2, 64, dtype=torch.int64))) for _ in range(2))
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first, second)

    def trained(seeds):
        networks = [tiny_network(0, dropout=0.5) for _ in SEEDS]
        train_each(networks, loaders(seeds=SEEDS[:1] * 3), K, SETTINGS, seeds=seeds, at_once=True, device="cpu")
        return [network.fc.weight for network in networks]

    one, again, other = trained([0, 1, 2]), trained([0, 1, 2]), trained([5, 6, 7])
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.allclose(one[0], other[0]) and not torch.allclose(one[0], one[2])


class Tied(nn.Module):
    """Two names for one weight, a frozen layer, a parameter without use, and a buffer that is not saved."""

    def __init__(self, seed):
        super().__init__()
        self.first = tiny_network(seed)
        self.again = self.first.fc
        self.first.features[0].requires_grad_(False)
        self.spare = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, images):
        self.calls += 1
        features = self.first.features(images)
        return self.first.fc(features) + self.again(features)


def test_tied_frozen_and_unused_weights():
    networks, wanted = ([in_double(Tied(seed)) for seed in SEEDS] for _ in range(2))
    for network, loader, seed in zip(wanted, loaders(), SEEDS, strict=True):
        train_network(network, loader, K, SETTINGS, seed=seed, device="cpu")
    train_each(networks, loaders(), K, SETTINGS, seeds=SEEDS, at_once=True, device="cpu")
    assert_close(networks, wanted)
    for network, seed in zip(networks, SEEDS, strict=True):
        assert torch.equal(network.first.features[0].weight, tiny_network(seed).double().features[0].weight)
        assert network.again is network.first.fc and torch.equal(network.spare, torch.ones(2).double())
        assert int(network.calls) == 9


def test_the_loader_gives_each_loaders_own_batches():
    together, own = PopulationLoader(loaders(soft=True)), loaders(soft=True)
    assert len(together) == 3 and together.batch_size == len(SEEDS), "which are the first dimension"
    for _ in range(2):  # epochs
        sizes = []
        for (images, labels), *parts in zip(together, *own, strict=True):
            sizes.append(images.shape[1])
            for number, (own_images, own_labels) in enumerate(parts):
                assert torch.equal(images[number], own_images) and torch.equal(labels[number], own_labels)
        assert sizes == [8, 8, 4]


# Which way is taken.


class Awkward(nn.Module):
    """What vmap cannot do, or what it would get wrong in silence."""

    def __init__(self, what, seed=0):
        super().__init__()
        self.network, self.what = tiny_network(seed), what
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        logits = self.network(images)
        if self.what == "item":
            logits = logits * (1 + 0.1 * logits.max().item())
        elif self.what == "control flow" and logits.sum() > 0:
            logits = 2 * logits
        elif self.what == "shapes that depend on data":
            logits = logits + images[images > 0].mean()
        elif self.what == "buffers assigned anew":
            self.calls = self.calls + 1
        elif self.what == "random numbers":
            logits = nn.functional.dropout(logits, 0.5, self.training)
        return logits


AWKWARD = ["item", "control flow", "shapes that depend on data", "buffers assigned anew", "random numbers"]


@pytest.fixture
def long(monkeypatch):
    """Every training is long enough to measure."""
    monkeypatch.setattr(training, "TRIALS", 0)


@pytest.mark.parametrize("what", AWKWARD)
def test_what_cannot_be_stacked_is_trained_in_turn(what, long, monkeypatch):
    monkeypatch.setattr(population, "_step_seconds", timed([10.0, 0.0]))  # it is not for the time
    networks, wanted = ([Awkward(what, seed) for seed in SEEDS] for _ in range(2))
    assert not vectorizing_is_faster(networks, PopulationLoader(loaders()))
    for network, loader, seed in zip(wanted, loaders(), SEEDS, strict=True):
        train_network(network, loader, K, SETTINGS, seed=seed, device="cpu")
    train_each(networks, loaders(), K, SETTINGS, seeds=SEEDS, device="cpu")
    assert_close(networks, wanted, rtol=0, atol=0)


def test_unlike_networks_do_not_pay():
    assert not vectorizing_is_faster(
        [make("batch norm", 0), make("instance norm", 0)], PopulationLoader(loaders(seeds=SEEDS[:2]))
    )


def timed(seconds):
    """The steps are made, and take so many seconds."""
    left, steps = iter(seconds), population._step_seconds
    return lambda *arguments: (steps(*arguments), next(left))[1]


@pytest.mark.parametrize(("every", "answer"), [(2.9, True), (3.0, False), (3.1, False)])
def test_it_pays_where_all_take_less_than_one_after_another(every, answer, monkeypatch):
    monkeypatch.setattr(population, "_step_seconds", timed([1.0, every]))
    assert vectorizing_is_faster([make("batch norm", seed) for seed in SEEDS], PopulationLoader(loaders())) is answer


@pytest.mark.parametrize(("dropout", "answer"), [(0.0, True), (0.5, False)])
def test_only_layers_that_draw_are_trained_in_turn(dropout, answer, monkeypatch):
    monkeypatch.setattr(population, "_step_seconds", timed([1.0, 0.1]))
    networks = [tiny_network(seed, dropout=dropout) for seed in SEEDS]
    assert vectorizing_is_faster(networks, PopulationLoader(loaders())) is answer


@pytest.mark.parametrize("training_mode", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_comparing_leaves_everything_as_it_was(training_mode, soft):
    networks = [tiny_network(seed, norm=True).train(training_mode) for seed in SEEDS]
    made = loaders(soft)
    before, epochs = copy.deepcopy(networks), [loader.epoch for loader in made]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    vectorizing_is_faster(networks, PopulationLoader(made))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert [loader.epoch for loader in made] == epochs == [0, 1, 0]
    for network, old in zip(networks, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(network).values(), weights(old).values(), strict=True))
        assert [module.training for module in network.modules()] == [training_mode] * len(list(network.modules()))
        assert all(p.grad is None for p in network.parameters())
    Population(networks)  # and they can be stacked still


def test_as_long_as_ten_steps_or_half_a_second(monkeypatch):
    """With a clock that says how long each step takes."""
    model, loss = make("batch norm", 0), []

    def steps(length):
        now = iter(range(100))
        monkeypatch.setattr(population, "now", lambda device: next(now) * length)
        loss.clear()
        seconds = population._step_seconds(model, compute, torch.device("cpu"))
        assert seconds == pytest.approx(length)
        return len(loss)

    def compute():
        loss.append(model(torch.zeros(2, 1, 8, 8)).sum())
        return loss[-1]

    before = weights(model)
    assert [steps(length) for length in (0.01, 0.1, 0.2, 3.0)] == [10, 5, 3, 2]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())  # a rate of 0


@pytest.mark.parametrize("answer", [True, False])
def test_what_pays_is_what_is_done(answer, long, monkeypatch):
    asked, ways = [], []
    monkeypatch.setattr(training, "vectorizing_is_faster", lambda *arguments: asked.append(arguments) or answer)
    monkeypatch.setattr(training, "fit", lambda model, *_, **__: ways.append(type(model).__name__) or 0.0)
    networks = [make("instance norm", seed) for seed in SEEDS]
    train_each(networks, loaders(), K, SETTINGS, seeds=SEEDS)
    assert ways == (["Population"] if answer else ["EngineClassifier"] * 3)
    assert len(asked) == 1 and asked[0][0] is networks
    for at_once in (True, False):  # the user's word counts
        ways.clear()
        train_each(networks, loaders(), K, SETTINGS, seeds=SEEDS, at_once=at_once)
        assert len(ways) == (1 if at_once else 3) and len(asked) == 1


def test_short_trainings_single_networks_and_several_ranks_do_not_measure(monkeypatch):
    asked = []
    monkeypatch.setattr(training, "vectorizing_is_faster", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(training, "fit", lambda *_, **__: 0.0)
    networks = [make("instance norm", seed) for seed in SEEDS]
    longest = 10 * population.TRIALS // 3  # epochs of three batches

    def run(epochs, count=3):
        settings = TrainSettings(epochs, BATCH)
        train_each(networks[:count], loaders()[:count], K, settings, seeds=SEEDS[:count])
        return len(asked)

    assert run(longest) == 0 and run(longest + 1, count=1) == 0 and run(longest + 1) == 1
    monkeypatch.setattr(training.dist, "get_world_size", lambda: 2)
    assert run(1000) == 1  # each rank would find out for itself


def test_seconds_are_those_of_each_or_equal_shares(monkeypatch):
    now = iter([10.0, 16.0, 20.0, 21.0, 30.0, 32.0, 40.0, 44.0])
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    monkeypatch.setattr(training, "fit", lambda *_, **__: 0.0)
    networks = [make("instance norm", seed) for seed in SEEDS]
    for at_once, wanted in ((True, [2.0, 2.0, 2.0]), (False, [1.0, 2.0, 4.0])):
        trained = train_each(networks, loaders(), K, SETTINGS, seeds=SEEDS, at_once=at_once)
        assert [each.seconds for each in trained] == wanted


def test_operations_made_one_network_at_a_time_are_no_warning():
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        networks.append(OWN["vit"](K, 1, 8, width=12, depth=1))
    made = loaders(seeds=SEEDS[:2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectorizing_is_faster(networks, PopulationLoader(made))
        train_each(networks, made, K, SETTINGS, seeds=[0, 1], at_once=True, device="cpu")
    assert not [w for w in caught if "vmap" in str(w.message) or "batching rule" in str(w.message)]


# Rows of networks.


def test_a_row_is_the_same_either_way_and_of_fresh_networks():
    generator = torch.Generator().manual_seed(0)
    test = ImagePool(torch.randint(0, 256, (40, 1, 8, 8), generator=generator).to(torch.uint8), torch.arange(40) % K)
    sets = {seed: (loader.images, loader.labels) for seed, loader in zip(SEEDS, loaders(), strict=True)}
    rows, networks = [], []
    torch.manual_seed(9)
    state = torch.get_rng_state()
    for at_once in (False, True):
        rows.append(Row("x", network="y"))
        scorer = Scorer(test, Normalization([0.5], [0.3]), SEEDS, K, "cpu", at_once, progress_bar=False)
        torch.set_rng_state(state)
        build = lambda: in_double(convnet(K, 1, 8, depth=1, width=4))  # noqa: E731
        networks.append(scorer.score(rows[-1], build, sets.__getitem__, SETTINGS))
    assert_close(*networks)
    wanted = []
    for seed, network in zip(SEEDS, networks[0], strict=True):
        alone = make("instance norm", seed)
        loader = DeviceLoader(*sets[seed], Normalization([0.5], [0.3]), batch_size=BATCH, seed=seed)
        assert_close([train_network(alone, loader, K, SETTINGS, seed=seed, device="cpu")], [network])
        right = alone.eval()((test.images / 255 - 0.5) / 0.3).argmax(1) == test.labels
        wanted.append(float(right.double().mean()))
    for row in rows:
        assert (row.images, row.epochs, row.learning_rate) == (N, 3, 0.1) and len(row.seconds) == 3
        assert row.accuracies == pytest.approx(wanted, abs=0.026)  # rounding may turn one image of 40
    summary = rows[0].summary()
    assert (summary["name"], summary["network"], summary["labels"]) == ("x", "y", "hard")
    assert Row("x", accuracies=[0.5]).summary()["std_points"] is None and Row("x", accuracies=[0.5]).spread == "50.0"


def test_a_pool_too_large_for_the_device_stays_in_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(ImagePool, "to", lambda pool, device: asked.append((pool.images, device)) or pool)
    monkeypatch.setattr("tgdd_plugin.evaluation.scorer.train_each", lambda *_, **__: [training.Trained(0.0, "")])
    (loader,) = loaders()[:1]
    test = ImagePool(loader.images, loader.labels)
    scorer = Scorer(test, Normalization([0.5], [0.3]), [0], K, "cpu")
    scorer.score(Row("x"), lambda: make("instance norm", 0), lambda seed: (loader.images, loader.labels), SETTINGS)
    assert len(asked) == 1 and asked[0][0] is loader.images
