"""Retraining: the figures are what was measured, of every seed, and nothing is chosen on the test images."""

import errno
import functools
import json
import math
import os
import re
import statistics
from dataclasses import replace

import pytest
import torch
import yaml
from composer import Callback
from composer.core import Precision
from composer.loggers import InMemoryLogger
from torch import nn

from tgdd_plugin.beton import format as beton_format
from tgdd_plugin.beton.card import Card, accuracy_cells, card_path, read_card
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.evaluation import scorer
from tgdd_plugin.evaluation.comparison import retrain
from tgdd_plugin.evaluation.scorer import Row
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.evaluation.tables import retrain_table
from tgdd_plugin.networks import convnet
from tgdd_plugin.training import resuming
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import Trained, accuracy, check_network, train_each

K, IPC, FACTOR = 3, 2, 2


def pool(count, seed, channels=1, side=8):
    """Class 0 is dark, 1 is grey, 2 is bright, with noise that makes every image another one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % K
    noise = torch.randint(0, 80, (count, channels, side, side), generator=generator)
    return ImagePool((noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels, ["dark", "grey", "bright"])


REAL, TEST = pool(60, 1), pool(50, 2)
ARGUMENTS = {"depth": 1, "width": 4}
QUICK = RetrainSettings(
    protocol="paper", epochs=2, seeds=3, full_epochs=1, batch_size=16, augmentation="crop", cutmix=0.5
)


def make_file(folder, factor=FACTOR, network=None):
    compact = pool(K * IPC * factor**2, 3)
    network = {"factory": "tgdd_plugin.networks:convnet", "arguments": ARGUMENTS} if network is None else network
    mean, std = REAL.statistics()
    card = Card(REAL.classes, 0, IPC, [], mean, std, factor=factor, network=network)
    return write_beton(folder / "set.beton", compact.images, compact.labels, card)


NOT_TRAINED = Trained(0.0, "")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("original"))


@pytest.fixture
def file(original, tmp_path):
    for path in (original, card_path(original)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / original.name


@pytest.fixture
def trained(monkeypatch):
    """Trainings are noted, not made: (images, labels, settings, seed, network's first weights) of each."""
    calls = []

    def note(networks, loaders, num_classes, settings, *, seeds, **_):
        for network, loader, seed in zip(networks, loaders, seeds, strict=True):
            weights = torch.cat([p.detach().flatten() for p in network.parameters()])
            calls.append((loader.images, loader.labels, settings, seed, weights, loader.seed))
        return [NOT_TRAINED] * len(networks)

    monkeypatch.setattr(scorer, "train_each", note)
    return calls


def test_rows_table_results_and_card_agree(file, tmp_path):
    results = tmp_path / "results.json"
    rows = retrain(file, TEST, QUICK, real=REAL, seed=4, results=results, progress_bar=False)
    assert [(row.name, row.images, row.epochs, row.passes) for row in rows] == [
        ("distilled", 24, 2, 48),
        ("random", 6, 2, 12),
        ("random, decoded number", 24, 2, 48),
        ("full data, equal passes", 60, 1, 48),
        ("full data", 60, 1, 60),
    ]
    content = json.loads(results.read_text())
    assert (content["file"], content["sha256"]) == ("set.beton", read_card(file).sha256)
    (entry,) = read_card(file).accuracy
    assert {key: content[key] for key in entry} == entry
    assert (entry["seeds"], entry["test_images"], entry["network"]) == ([4, 5, 6], 50, "ConvNet")
    assert entry["architecture"]["arguments"]["width"] == ARGUMENTS["width"]
    assert entry["parameters"] == sum(p.numel() for p in convnet(K, 1, 8, **ARGUMENTS).parameters())
    assert entry["settings"]["augmentation"] == "crop" and "last epoch" in entry["protocol"]
    printed = retrain_table(rows).splitlines()
    full = 100 * statistics.mean(rows[-1].accuracies)
    for row, noted, line in zip(rows, entry["rows"], printed[2:], strict=True):
        assert noted["accuracies"] == row.accuracies and len(row.accuracies) == len(row.seconds) == 3
        assert all(round(a * 50) == pytest.approx(a * 50) for a in row.accuracies)  # shares of 50 images
        mean, std = 100 * statistics.mean(row.accuracies), 100 * statistics.stdev(row.accuracies)
        assert (row.mean, row.std) == (pytest.approx(mean), pytest.approx(std))
        assert (noted["mean_percent"], noted["std_points"]) == (round(mean, 4), round(std, 4))
        assert line.startswith(row.name) and f"{mean:.1f} ± {std:.1f}" in line
        assert (f"{mean - full:+.1f}" in line) == (row.name != "full data")
    # The same call gives the same figures, which the card has already, if not in the same time.
    again = retrain(file, TEST, QUICK, real=REAL, seed=4, progress_bar=False)
    assert [row.accuracies for row in again] == [row.accuracies for row in rows]
    assert [e["rows"][0]["accuracies"] for e in read_card(file).accuracy] == [rows[0].accuracies]
    assert read_beton(file)[0].shape == (24, 1, 8, 8)  # and the card still belongs to the file


def test_a_row_of_the_set_and_real_images_has_its_share_of_both(file, tmp_path, trained):
    """It comes beside what is there, and another share is another row."""
    results = tmp_path / "results.json"

    def names(**mix):
        trained.clear()
        rows = retrain(file, TEST, replace(QUICK, **mix), real=REAL, results=results, progress_bar=False)
        return [row.name for row in rows], [row for row in rows if "rest real" in row.name]

    plain, none = names()
    assert not none
    with_it, (row,) = names(mix=0.25)
    assert with_it == [*plain[:4], "25% distilled, rest real", "full data"] and len(trained) == 3
    assert (row.images, row.epochs, row.passes) == (48, 1, 48)
    own = {image.numpy().tobytes() for image in read_beton(file)[0]}
    for images, _, settings, *_ in trained:
        assert sum(image.numpy().tobytes() in own for image in images.cpu()) == 12 and settings.passes == 48
    assert "50% distilled, rest real" in names(mix=0.5)[0] and len(trained) == 3
    _, (row,) = names(mix=0.75)  # 36 passes on the set's 24 images
    assert [len({image.numpy().tobytes() for image in call[0].cpu()}) for call in trained] == [row.images] * 3
    assert (row.images, row.epochs, row.passes) == (36, 1, 48)
    for share, name in ((0.046, "4.6%"), (0.054, "5.4%")):  # both are about 5 %
        assert f"{name} distilled, rest real" in names(mix=share)[0] and len(trained) == 3
    assert names()[0] == plain and not trained


def test_finished_rows_are_kept_by_name_and_another_comparison_is_refused(file, tmp_path, trained):
    results = tmp_path / "set-retrain.json"

    def again(settings=QUICK, **options):
        trained.clear()
        options = {"real": REAL, "seed": 4, "progress_bar": False, **options}
        return [row.name for row in retrain(file, TEST, settings, results=results, **options)], len(trained)

    every = ["distilled", "random", "random, decoded number", "full data, equal passes", "full data"]
    assert again() == (every, 5 * 3)
    before = results.read_bytes(), card_path(file).read_bytes()
    assert again() == (every, 0)
    assert again(replace(QUICK, at_once=False)) == (every, 0), "how networks are trained together changes no result"
    assert (results.read_bytes(), card_path(file).read_bytes()) == before
    for changed, words in (
        ({"settings": replace(QUICK, epochs=3)}, "retrain.epochs was 2 and is now 3"),
        (
            {"settings": replace(QUICK, epochs=3, seeds=2), "seed": 1},
            r"retrain.epochs was 2 and is now 3; retrain.seeds was 3 and is now 2; "
            r"seeds was \[4, 5, 6\] and is now \[1, 2\]",
        ),
        ({"seed": 0}, r"seeds was \[4, 5, 6\] and is now \[0, 1, 2\]"),
        ({"real": REAL.subset(torch.arange(30))}, "real_fingerprint was '.{8}[.]{3}' and is now '.{8}[.]{3}'"),
    ):
        with pytest.raises(InputError, match=f"is of another evaluation \\({words}\\)"):
            again(**changed)
        assert not trained and (results.read_bytes(), card_path(file).read_bytes()) == before
    # As a call leaves it that was killed after two rows.
    content = json.loads(results.read_text())
    results.write_text(json.dumps({**content, "rows": content["rows"][:2]}))
    assert again() == (every, 3 * 3)
    assert json.loads(results.read_text())["rows"] == content["rows"] and len(read_card(file).accuracy) == 1
    assert again(replace(QUICK, epochs=3), overwrite=True) == (every, 5 * 3)
    results.write_text("damaged")
    with pytest.raises(InputError, match="is damaged"):
        again()
    assert again(overwrite=True) == (every, 5 * 3)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_training_that_was_cut_short_goes_on(file, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(resuming, "SAVED_EVERY", 0.0)
    trainings, cut = [], []

    class Cut(Callback):
        """Notes where each training begins, and ends the second row's within its second epoch."""

        def fit_start(self, state, logger):
            trainings.append(state.timestamp.batch.value)

        def after_forward(self, state, logger):
            if len(trainings) == (2 if at_once else 5) and state.timestamp.batch.value == 1 and cut:
                raise KeyboardInterrupt

    def run(name, **options):
        how = {"real": REAL, "progress_bar": False, "trainer_options": {"callbacks": Cut()}, **options}
        return retrain(file, TEST, replace(QUICK, at_once=at_once), results=tmp_path / name, **how)

    whole = run("whole.json")
    trainings.clear()
    cut.append(True)
    with pytest.raises(KeyboardInterrupt):
        run("cut.json")
    assert (tmp_path / ".cut-checkpoints").is_dir()
    trainings.clear()
    cut.clear()
    rows = run("cut.json")
    # The first row is done and, one after another, so is the first of the second row's networks.
    assert trainings == ([1, 0, 0, 0] if at_once else [1, 0, *[0] * 9])
    assert [row.accuracies for row in rows] == [row.accuracies for row in whole]
    assert all(row.computed == "fp32, eager" and min(row.seconds) > 0 for row in rows)
    assert not list(tmp_path.glob(".*-checkpoints"))


def test_standard_deviation_is_of_a_sample():
    row = Row("x", 1, 1, [0.5, 0.7, 0.9], [1, 1, 1])
    assert (row.mean, row.std) == (pytest.approx(70), pytest.approx(20))
    assert math.isnan(Row("x", 1, 1, [0.5], [1]).std)
    assert "70.0 ± 20.0" in retrain_table([row]) and "±" not in retrain_table([Row("x", 1, 1, [0.5], [1])])


def test_a_figure_is_the_same_wherever_it_is_printed():
    """On average 1.0494 %, of which 1.05 would be printed as 1.1."""
    row = Row("distilled", 10, 5, [6 / 540, 6 / 540, 5 / 540])
    ((*_, printed),) = accuracy_cells({"rows": [row.summary()]}, str)
    assert printed == row.spread == "1.0 ± 0.1"


def test_rows_that_an_earlier_version_noted_are_not_noted_again(file, trained):
    """It rounded their figures to two digits, and noted no architecture."""
    retrain(file, TEST, QUICK, real=REAL, progress_bar=False)
    card = read_card(file)
    for row in card.accuracy[0]["rows"]:
        row["mean_percent"], row["std_points"] = round(row["mean_percent"], 2), round(row["std_points"], 2)
    del card.accuracy[0]["architecture"], card.accuracy[0]["parameters"]
    card.write(file)
    retrain(file, TEST, QUICK, real=REAL, progress_bar=False)
    assert read_card(file).accuracy == card.accuracy


def test_one_seed_has_no_spread_and_the_json_is_strict(file, tmp_path, trained):
    rows = retrain(
        file, TEST, RetrainSettings(protocol="paper", seeds=1), results=tmp_path / "r.json", progress_bar=False
    )
    assert [row.name for row in rows] == ["distilled"]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert content["rows"][0]["std_points"] is None
    assert "nan" not in card_path(file).read_text().lower()


def test_what_each_row_is_trained_on(file, trained):
    rows = retrain(file, TEST, QUICK, real=REAL, seed=7, progress_bar=False)
    assert len(trained) == 5 * 3 and [call[3] for call in trained] == [7, 8, 9] * 5
    shipped, labels = read_beton(file)
    positions = {image.numpy().tobytes(): i for i, image in enumerate(REAL.images)}
    chosen = {name: [] for name in ("random", "random, decoded number", "full data, equal passes", "full data")}
    for number, (images, own, settings, _, _, _) in enumerate(trained):
        name = rows[number // 3].name
        assert len(images) == rows[number // 3].images
        wanted = TrainSettings(1 if name == "full data" else 2, 16, augmentation="crop", cutmix=0.5)
        if name == "full data, equal passes":
            wanted = replace(wanted, passes=2 * 24)
        assert settings == wanted
        if name == "distilled":
            assert torch.equal(images.cpu(), shipped) and torch.equal(own.cpu(), labels)
            continue
        places = [positions[image.numpy().tobytes()] for image in images.cpu()]  # real training images, no other
        assert own.tolist() == [int(REAL.labels[i]) for i in places]
        assert len(set(places)) == len(places) and torch.bincount(own).tolist() == [len(places) // K] * K
        chosen[name].append(set(places))
    assert set.union(*chosen["full data"]) == set(range(60))
    for name in ("random", "random, decoded number"):
        first, second, third = chosen[name]
        assert first != second and second != third and first != third  # other images for every seed
    firsts = [call[4] for call in trained[:3]]
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[1], firsts[2])
    # Every row starts from the same initial weights and orders, seed by seed.
    assert all(torch.equal(trained[i][4], trained[i % 3][4]) for i in range(15))
    assert [call[5] for call in trained] == [7, 8, 9] * 5
    before = [call[0] for call in trained]
    trained.clear()
    retrain(file, TEST, QUICK, real=REAL, seed=7, progress_bar=False)
    assert all(torch.equal(a, call[0]) for a, call in zip(before, trained, strict=True))


def test_no_factor_and_no_full_data_leave_rows_out(tmp_path, trained):
    rows = retrain(
        make_file(tmp_path, factor=1),
        TEST,
        RetrainSettings(protocol="paper", full_epochs=0),
        real=REAL,
        progress_bar=False,
    )
    assert [(row.name, row.images) for row in rows] == [
        ("distilled", 6),
        ("random", 6),
        ("full data, equal passes", 60),
    ]
    assert "to full data" in retrain_table(rows).splitlines()[0]


@pytest.mark.parametrize("wanted", [[4, 1, 2], [3, 0, 2]])
def test_beside_unequal_classes_are_as_many_real_images_of_each(tmp_path, trained, wanted):
    """Such as those of a memory, one without a class among them."""
    compact = pool(30, 3)
    kept = compact.subset(torch.cat([(compact.labels == k).nonzero()[:n, 0] for k, n in enumerate(wanted)]))
    mean, std = REAL.statistics()
    network = {"factory": "tgdd_plugin.networks:convnet", "arguments": ARGUMENTS}
    card = Card(REAL.classes, 0, max(wanted), [], mean, std, network=network, method={"name": "memory"})
    file = write_beton(tmp_path / "set.beton", kept.images, kept.labels, card)
    rows = retrain(file, TEST, QUICK, real=REAL, progress_bar=False)
    assert [row.name for row in rows] == ["distilled", "random", "full data, equal passes", "full data"]
    assert all(torch.bincount(call[1], minlength=K).tolist() == wanted for call in trained[:6])


def test_soft_labels_of_the_file_are_a_row_of_their_own(tmp_path, trained):
    """As those of imported sets; what an earlier version wrote may be no probabilities."""
    file = make_file(tmp_path, factor=1)
    images, labels = read_beton(file)
    soft = torch.eye(K)[labels] * 0.7 + 0.1
    write_beton(file, images, labels, read_card(file), soft)
    rows = retrain(file, TEST, QUICK, real=REAL, results=tmp_path / "results.json", progress_bar=False)
    row = rows[-1]
    assert (row.name, row.labels, row.images) == ("distilled, soft labels of the file", "soft", K * IPC)
    for hard, call in zip(trained[: QUICK.seeds], trained[-QUICK.seeds :], strict=True):
        assert torch.equal(call[0].cpu(), images) and torch.equal(call[1].cpu(), soft)
        assert call[2] == hard[2] and call[3] == hard[3] and torch.equal(call[4], hard[4]), (
            "all else is as for hard ones"
        )
    assert accuracy_cells(read_card(file).accuracy[-1], str)[-1][0] == row.name
    trained.clear()
    assert retrain(file, TEST, QUICK, real=REAL, results=tmp_path / "results.json", progress_bar=False) == rows
    assert not trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton_format, "are_probabilities", lambda soft: True)
        write_beton(file, images, labels, read_card(file), soft.log())
    with pytest.warns(UserWarning, match="are no probabilities, and no row is trained on them"):
        rows = retrain(file, TEST, QUICK, real=REAL, progress_bar=False)
    assert {row.labels for row in rows} == {"hard"}


def test_soft_labels_of_the_file_teach(tmp_path):
    """Where the class ids say nothing, those trained on the soft labels are right."""
    file = make_file(tmp_path, factor=1)
    images, labels = read_beton(file)
    write_beton(file, images, torch.zeros_like(labels), read_card(file), torch.eye(K)[labels])
    settings = RetrainSettings(protocol="fast", epochs=60, seeds=1, augmentation="none")
    hard, soft = retrain(file, TEST, settings, progress_bar=False)
    assert hard.mean < 50 < 80 < soft.mean


class Constant(nn.Module):
    """Says one class, whatever it sees and however it is trained."""

    def __init__(self, label):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.label = label

    def forward(self, images):
        logits = torch.zeros(len(images), K, device=images.device)
        logits[:, self.label] = 9
        return logits + 0 * self.weight


class Oracle(nn.Module):
    """Knows the brightness of the classes, if its images are normalised as the card says."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        mean, std = REAL.statistics()
        brightness = (images * std[0] + mean[0]).mean((1, 2, 3)) * 255
        centres = torch.tensor([40.0, 120.0, 200.0], device=images.device)
        return -(brightness[:, None] - centres).abs() + 0 * self.weight


@pytest.mark.parametrize("label", range(K))
def test_a_constant_network_gets_the_share_of_its_class(file, label):
    uneven = TEST.subset(torch.cat([TEST.labels.eq(c).nonzero()[: 3 + 4 * c, 0] for c in range(K)]))
    settings = RetrainSettings(protocol="paper", epochs=1, seeds=2, augmentation="none", cutmix=0.0)
    (row,) = retrain(file, uneven, settings, network=lambda: Constant(label), progress_bar=False)
    assert row.accuracies == [(3 + 4 * label) / 21] * 2 and row.std == 0


def test_a_network_that_knows_gets_all_right(file):
    settings = RetrainSettings(protocol="paper", epochs=1, seeds=1, augmentation="none", cutmix=0.0)
    (row,) = retrain(file, TEST, settings, network=Oracle, progress_bar=False)
    assert row.accuracies == [1.0]
    wrong = ImagePool(TEST.images, (TEST.labels + 1) % K, TEST.classes)
    (row,) = retrain(file, wrong, settings, network=Oracle, progress_bar=False)
    assert row.accuracies == [0.0]


def test_training_learns(file):
    settings = RetrainSettings(
        protocol="paper", epochs=60, seeds=1, augmentation="none", cutmix=0.0, learning_rate=0.05
    )
    (row,) = retrain(
        file, TEST, settings, network=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, K)), progress_bar=False
    )
    assert row.accuracies[0] > 0.9


def test_accuracy_is_of_every_image_in_evaluation_mode():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, K)).train()
    many = pool(1100, 5)  # more than two batches
    normalization = Normalization([0.3], [0.2])
    with torch.no_grad():
        weight, bias = network[2].weight.double(), network[2].bias.double()
        logits = ((many.images.double().flatten(1) / 255 - 0.3) / 0.2) @ weight.T + bias
    assert accuracy(network, many, normalization) == pytest.approx(
        float((logits.argmax(1) == many.labels).double().mean())
    )


@pytest.mark.parametrize(("side", "most"), [(8, 512), (32, 512), (64, 128), (160, 20)])
def test_few_large_images_are_scored_at_once(side, most):
    """Activations take memory in proportion to the pixels: 512 images of 128 pixels took 10 GB under a ConvNet."""
    seen = []
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, K))
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    images = torch.zeros(most + 3, 1, side, side, dtype=torch.uint8)
    labels = torch.zeros(len(images), dtype=torch.int64)
    accuracy(network, ImagePool(images, labels), Normalization([0.3], [0.2]))
    assert seen == [most, 3]


def test_nothing_is_chosen_on_the_test_images(file, monkeypatch):
    """Each network is scored once, after its training; other test images change no weight of any network."""
    events, weights = [], []

    def noted_train(*arguments, **options):
        events.append("train")
        return train_each(*arguments, **options)

    def noted_accuracy(network, *arguments):
        events.append("score")
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        return accuracy(network, *arguments)

    monkeypatch.setattr(scorer, "train_each", noted_train)
    monkeypatch.setattr(scorer, "accuracy", noted_accuracy)
    for test in (TEST, ImagePool(255 - TEST.images, TEST.labels.flip(0), TEST.classes)):
        retrain(file, test, QUICK, real=REAL, progress_bar=False)
    assert events == ["train", "score", "score", "score"] * 10
    assert all(torch.equal(a, b) for a, b in zip(weights[:15], weights[15:], strict=True))


def test_results_and_seeds_leave_the_global_stream_alone(file, trained):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    retrain(file, TEST, QUICK, real=REAL, progress_bar=False)
    assert torch.equal(torch.get_rng_state(), state)


# Refused before any training.


def refused(trained, pattern, file, test=TEST, settings=QUICK, **options):
    before = card_path(file).read_bytes()
    with pytest.raises(InputError, match=pattern) as caught:
        retrain(file, test, settings, progress_bar=False, **options)
    assert "\n" not in str(caught.value)
    assert not trained and card_path(file).read_bytes() == before


def test_images_of_another_shape_are_refused(file, trained):
    pattern = (
        r"The {} images must be of at most 3 classes and shape \[1, 8, 8\], as in '.*', got 3 classes of \[{}\]. Give"
    )
    for name in ("test", "real"):
        for other, shape in ((pool(9, 0, channels=3), "3, 8, 8"), (pool(9, 0, side=6), "1, 6, 6")):
            refused(trained, pattern.format(name, shape), file, **{"real": REAL, "test": TEST, name: other})
    fewer = ImagePool(TEST.images, TEST.labels.clamp(max=1), ["dark", "other"])
    refused(trained, r"must be those of '.*', dark, .*, got dark, other", file, fewer)
    more = ImagePool(TEST.images, TEST.labels + 1)
    refused(trained, r"The test images must be .* got 4 classes of", file, more)


def test_one_network_for_all_seeds_is_refused(file, trained):
    network = convnet(K, 1, 8, **ARGUMENTS)
    for given, came in ((network, "a ConvNet"), (lambda: network, "at each call the same ConvNet")):
        refusal = f"`network` must be a function that builds a fresh one for each seed, got {came}"
        with pytest.raises(InputError, match=refusal):
            retrain(file, TEST, QUICK, network=given, progress_bar=False)


def test_a_network_of_which_nothing_is_trained_is_refused(file, trained):
    builders = {
        "ConvNet": lambda: convnet(K, 1, 8, **ARGUMENTS).requires_grad_(False),
        "Sequential": lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(K)),
    }
    for name, build in builders.items():
        pattern = f"`network` must have parameters that require a gradient, got none in {name}. Build"
        with pytest.raises(InputError, match=pattern):
            retrain(file, TEST, QUICK, network=build, progress_bar=False)
    assert not trained


def test_networks_may_share_a_frozen_part():
    frozen = nn.Linear(64, 16).requires_grad_(False)
    assert check_network(lambda: nn.Sequential(nn.Flatten(), frozen, nn.Linear(16, K)), (1, 8, 8), K) == "Sequential"


def test_too_few_real_images_are_refused(file, trained):
    few = REAL.subset(torch.arange(3))
    refused(trained, r"Class 0 \('dark'\) has 1 real images, 2 were asked for the random ones", file, real=few)


def test_with_fewer_real_images_than_are_decoded_that_row_is_left_out(file, trained):
    few = REAL.subset(torch.arange(3 * 5))
    with pytest.warns(UserWarning, match="no class has 8 real images .5 at most.: no row 'random, decoded number'"):
        rows = retrain(file, TEST, QUICK, real=few, progress_bar=False)
    assert [row.name for row in rows if row.is_random] == ["random"]


def test_an_unknown_network_is_refused(tmp_path, trained):
    file = make_file(tmp_path, network={})
    refused(trained, "must be given where none is recorded.*Pass network=.* on the command line network.name=con", file)
    file = make_file(tmp_path, network={"class": "my.module:Net", "factory": "my.module:make"})
    refused(trained, r"is not one of this package's .*Pass network=.* on the command line network.name=mod", file)
    assert retrain(file, TEST, QUICK, network=lambda: convnet(K, 1, 8, **ARGUMENTS), progress_bar=False)


def test_a_network_that_does_not_fit_is_refused(file, trained):
    pattern = r"logits of shape \(2, 3\) for 2 images of \[1, 8, 8\], got .* from ConvNet"
    refused(trained, pattern, file, network=lambda: convnet(K + 1, 1, 8, **ARGUMENTS))
    refused(trained, pattern, file, network=lambda: convnet(K, 3, 8, **ARGUMENTS))
    refused(trained, pattern, file, network=lambda: convnet(K, 1, 16, **ARGUMENTS))


def test_results_that_cannot_be_written_are_refused(file, tmp_path, trained):
    (tmp_path / "plain").write_text("a file")
    refused(trained, "Cannot write", file, results=tmp_path / "plain/results.json")
    refused(trained, "is a folder", file, results=tmp_path)


def test_a_file_without_its_card_is_refused(file, trained):
    card_path(file).unlink()
    with pytest.raises(InputError, match="has no card"):
        retrain(file, TEST, QUICK)


def test_rows_that_came_meanwhile_stay_and_a_replaced_file_gets_none(file, tmp_path, monkeypatch):
    other = {"seeds": [0], "test_images": 9, "rows": []}

    def meanwhile(*_, **__):
        card = read_card(file)
        card.accuracy = [*card.accuracy, {**other, "network": "another call's"}]
        card.write(file)
        return [NOT_TRAINED]

    monkeypatch.setattr(scorer, "train_each", meanwhile)
    one = RetrainSettings(protocol="paper", seeds=1)
    retrain(file, TEST, one, progress_bar=False)
    assert [len(entry["rows"]) > 0 for entry in read_card(file).accuracy] == [False, True]

    def replaced(*_, **__):
        write_beton(file, TEST.images, TEST.labels, Card(TEST.classes, 0, 1, [], [0.5], [0.5]))
        return [NOT_TRAINED]

    monkeypatch.setattr(scorer, "train_each", replaced)
    (tmp_path / "results.json").write_text("earlier")
    untouched = f"the card '{card_path(file)}' did not get the accuracies: '{file}' was replaced during training"
    with pytest.warns(UserWarning, match=re.escape(untouched)):
        retrain(file, TEST, one, results=tmp_path / "results.json", progress_bar=False, overwrite=True)
    assert read_card(file).accuracy == []


@pytest.mark.parametrize("lost", ["card", "file", "damaged"])
def test_rows_outlast_a_card_that_is_gone_or_damaged_meanwhile(file, monkeypatch, lost):
    """As where somebody moves them; without a results file nobody else has the rows."""

    def meanwhile(*_, **__):
        if lost == "damaged":
            card_path(file).write_text("{")
        else:
            (card_path(file) if lost == "card" else file).unlink()
        return [NOT_TRAINED]

    monkeypatch.setattr(scorer, "train_each", meanwhile)
    reason = {"card": "has no card", "file": "There is no file", "damaged": "is damaged"}[lost]
    with pytest.warns(UserWarning, match=f"did not get the accuracies: .*{reason}"):
        rows = retrain(file, TEST, RetrainSettings(protocol="paper", seeds=1), progress_bar=False)
    assert [row.name for row in rows] == ["distilled"]


def test_rows_outlast_a_card_that_cannot_be_written(file, tmp_path, trained, monkeypatch):
    """As in a folder that may only be read, or on a full disk; the results file has them."""
    card, results = card_path(file), tmp_path / "results.json"
    before = card.read_bytes()

    def refuse(self, beton):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(beton.with_name(".x.tmp")))

    with monkeypatch.context() as patch:
        patch.setattr(Card, "write", refuse)
        with pytest.warns(UserWarning, match="did not get the accuracies") as told:
            rows = retrain(file, TEST, QUICK, real=REAL, results=results, progress_bar=False)
    assert [str(each.message) for each in told] == [f"the card '{card}' did not get the accuracies: Permission denied"]
    assert told[0].filename == __file__ and card.read_bytes() == before
    assert [row["name"] for row in json.loads(results.read_text())["rows"]] == [row.name for row in rows]
    trained.clear()
    again = retrain(file, TEST, QUICK, real=REAL, results=results, progress_bar=False)
    assert not trained and again == rows and len(read_card(file).accuracy) == 1, "once it can, nothing is trained again"


@pytest.mark.parametrize("option", [{"seeds": 0}, {"full_epochs": -1}, {"epochs": 0}, {"cutmix": 1.5}])
def test_settings_out_of_range(option):
    with pytest.raises(InputError, match=f"`{next(iter(option))}` must be a .*, got {next(iter(option.values()))}"):
        RetrainSettings(**option)


def test_the_card_is_still_plain_yaml(file, trained):
    retrain(file, TEST, QUICK, real=REAL, progress_bar=False)
    assert yaml.safe_load(card_path(file).read_text())["accuracy"][0]["rows"][0]["name"] == "distilled"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_logger_given_as_a_trainer_option_sees_the_training(file, at_once):
    settings = replace(QUICK, at_once=at_once)
    plain = retrain(file, TEST, settings, real=REAL, progress_bar=False)
    logger, watcher = InMemoryLogger(), Watcher()
    options = {"loggers": logger, "callbacks": watcher}
    rows = retrain(file, TEST, settings, real=REAL, progress_bar=False, trainer_options=options)
    assert "loss/train/total" in logger.data
    assert watcher.precisions == [Precision.FP32] * (5 if at_once else 15)  # once for each Trainer
    assert [row.accuracies for row in rows] == [row.accuracies for row in plain]


def test_trainer_options_override_those_of_the_package(file):
    watcher = Watcher()
    options = {"precision": "fp32", "algorithms": [], "callbacks": [watcher]}
    retrain(file, TEST, replace(QUICK, seeds=1), progress_bar=False, trainer_options=options)
    assert watcher.precisions == [Precision.FP32] and watcher.algorithms == []


class Watcher(Callback):
    """Notes the precision of every training that it sees, and the algorithms of the last."""

    def __init__(self):
        self.precisions = []

    def fit_start(self, state, logger):
        self.precisions.append(state.precision)
        self.algorithms = state.algorithms


def test_the_card_gets_no_accuracies_on_held_out_training_images(file, tmp_path, trained):
    kept, held = REAL.split(0.2, torch.Generator().manual_seed(1))
    made_of(file, kept)
    before, results = card_path(file).read_bytes(), tmp_path / "held.json"
    rows = retrain(file, held, QUICK, real=kept, held_out=True, results=results, progress_bar=False)
    content = json.loads(results.read_text())
    assert (content["scored_on"], content["test_images"]) == ("held-out training images", 12)
    assert len(content["rows"]) == len(rows) == 5 and card_path(file).read_bytes() == before
    named = r"\(scored_on was 'held-out training images' and is now 'test images'"
    with pytest.raises(InputError, match=named + r"; test_images was 12 and is now 50\)"):
        retrain(file, TEST, QUICK, real=REAL, results=results, progress_bar=False)
    # An earlier version did not write what it scored on.
    results.write_text(json.dumps({key: value for key, value in content.items() if key != "scored_on"}))
    trained.clear()
    retrain(file, held, QUICK, real=kept, held_out=True, results=results, progress_bar=False)
    assert not trained and card_path(file).read_bytes() == before
    retrain(file, TEST, QUICK, real=REAL, progress_bar=False)
    assert [entry["test_images"] for entry in read_card(file).accuracy] == [50]


def made_of(file, real):
    replace(read_card(file), real={"images": len(real), "fingerprint": real.fingerprint()}).write(file)


def test_a_set_that_may_have_seen_the_held_out_images_is_told(file, trained, recwarn):
    kept, held = REAL.split(0.2, torch.Generator().manual_seed(1))
    score = functools.partial(retrain, file, held, QUICK, held_out=True, progress_bar=False)
    made_of(file, kept)
    score(real=kept)
    assert not recwarn
    made_of(file, REAL)  # all of them, and below a set of which nothing is known
    with pytest.warns(UserWarning, match="set.beton' may have been made from images that are held out now.* other 48;"):
        score(real=kept)
    replace(read_card(file), real={}).write(file)
    with pytest.warns(UserWarning, match="may have been made from images that are held out now"):
        score(real=kept)
