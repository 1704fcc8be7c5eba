"""Evaluation: every row is of what it says, done once, and nothing is chosen on the test images."""

import copy
import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from composer.loggers import InMemoryLogger
from safetensors.torch import load_file
from torch import nn

from tests.common import TinyNetwork, manifest, snapshot
from tests.nas.shades import pool
from tests.patterned import herding_by_hand, k_center_by_hand
from tgdd_plugin import cli
from tgdd_plugin.beton.card import Card, card_path, read_card
from tgdd_plugin.beton.format import read_beton, write_beton
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.evaluation import comparison, distribution_matching, scorer
from tgdd_plugin.evaluation.baselines import Baselines
from tgdd_plugin.evaluation.compact_set import CompactSet
from tgdd_plugin.evaluation.comparison import _tells_apart, evaluate, retrain
from tgdd_plugin.evaluation.metrics import hard_label_recovery, improvement_over_random, worth_in_random_images
from tgdd_plugin.evaluation.scorer import EQUAL_PASSES, Row
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.evaluation.tables import evaluate_table
from tgdd_plugin.networks import convnet
from tgdd_plugin.pipeline.show import describe_beton
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import Trained, accuracy, train_each
from tgdd_plugin.trajectory.store import Trajectory

K, IPC, FACTOR, SEED = 3, 2, 2, 4
OTHER = "tests.common:TinyNetwork"
ARGUMENTS = {"depth": 1, "width": 4}
METHOD = {"name": "TGDD", "source": "recorded", "steps": 3, "augmentation": "crop", "factor": FACTOR, "alpha": 2.5}
NAMES = {
    ("ConvNet", "distilled", "hard"): 24,
    ("ConvNet", "random", "hard"): 6,
    ("ConvNet", "random, decoded number", "hard"): 24,
    ("ConvNet", "full data, equal passes", "hard"): 60,
    ("ConvNet", "full data", "hard"): 60,
    ("ConvNet", "herding", "hard"): 6,
    ("ConvNet", "k-center", "hard"): 6,
    ("ConvNet", "confidence", "hard"): 6,
    ("ConvNet", "distribution matching", "hard"): 6,
    ("ConvNet", "distilled", "soft"): 24,
    ("ConvNet", "random", "soft"): 6,
    (OTHER, "distilled", "hard"): 24,
    (OTHER, "random", "hard"): 6,
}


REAL, TEST = pool(60, 1), pool(50, 2)
FLIPPED = ImagePool(255 - TEST.images, TEST.labels.flip(0), TEST.classes)
MEAN, STD = REAL.statistics()
ALL = EvaluateSettings(networks=[OTHER], worth=False)
TRAINING = RetrainSettings(
    protocol="paper", epochs=2, seeds=2, full_epochs=1, batch_size=16, augmentation="crop", cutmix=0.5
)


def build():
    return convnet(K, 1, 8, **ARGUMENTS)


def make_file(folder, factor=FACTOR, **about):
    compact = pool(K * IPC * factor**2, 3)
    network = {"factory": "tgdd_plugin.networks:convnet", "arguments": ARGUMENTS}
    options = {"factor": factor, "network": network, "method": {**METHOD, "factor": factor}, **about}
    card = Card(REAL.classes, 0, IPC, [], MEAN, STD, **options)
    return write_beton(folder / "set.beton", compact.images, compact.labels, card)


def run(file, test=TEST, real=REAL, settings=ALL, training=TRAINING, **options):
    options = {"device": "cpu", "seed": SEED, "progress_bar": False, **options}
    return evaluate(file, test, real, settings, training, **options)


@pytest.fixture(scope="module", autouse=True)
def few():
    """Fresh networks for distribution matching."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution_matching, "NETWORKS", 3)
        yield


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    """Two runs of the set's own network."""
    folder = tmp_path_factory.mktemp("recorded") / "trajectory"
    settings = RecordSettings(2, 16, 0.05, augmentation="crop", runs=2)
    return record(folder, REAL, build, settings, seed=20, device="cpu", progress_bar=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory, trajectory):
    """The folder of a whole evaluation, and its rows."""
    folder = tmp_path_factory.mktemp("done")
    return folder, run(make_file(folder), trajectory=trajectory)


@pytest.fixture
def file(done, tmp_path):
    """The set before any evaluation."""
    shutil.copy(done[0] / "set.beton", tmp_path)
    card = read_card(done[0] / "set.beton")
    card.accuracy = []
    card.write(tmp_path / "set.beton")
    return tmp_path / "set.beton"


@pytest.fixture
def finished(done, tmp_path):
    """The set after its whole evaluation."""
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "set.beton"


class Stopped(Exception):
    """In place of a training."""


@pytest.fixture
def trained(monkeypatch):
    """Trainings are noted, and made, unless they are to be ``fake``; none after the first ``stop_after``."""
    calls = []

    def noted(networks, loaders, num_classes, settings, **options):
        if len(calls) == noted.stop_after:
            raise Stopped
        first = torch.cat([p.detach().flatten() for p in networks[0].parameters()])
        calls.append(([(loader.images, loader.labels) for loader in loaders], settings, options, first))
        if noted.fake:
            return [Trained(0.5, "")] * len(networks)
        return train_each(networks, loaders, num_classes, settings, **options)

    noted.calls, noted.stop_after, noted.fake = calls, None, False
    monkeypatch.setattr(scorer, "train_each", noted)
    return noted


def keys(rows):
    return [(row.network, row.name, row.labels) for row in rows]


def essence(rows):
    """All but the seconds."""
    return [replace(row, seconds=[]) for row in rows]


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# A whole evaluation.


@pytest.mark.parametrize("call", [retrain, evaluate])
def test_ranks_know_their_number_before_anything_is_told(tmp_path, monkeypatch, call):
    """Each of them would print it, as all are rank 0 before."""

    class Ranks(Exception):
        pass

    def asked(device):
        raise Ranks

    monkeypatch.setattr(comparison.dist, "initialize_dist", asked)
    with pytest.raises(Ranks):
        call(tmp_path / "none.beton", None, {"unknown": 1})


def test_rows_results_table_and_card_agree(done):
    folder, rows = done
    assert dict(zip(keys(rows), [row.images for row in rows], strict=True)) == NAMES and keys(rows) == list(NAMES)
    for row in rows:
        assert row.epochs == (1 if row.name.startswith("full data") else 2) and row.learning_rate == 0.01
        assert row.passes == (48 if row.name == "full data, equal passes" else row.epochs * row.images)
        assert len(row.accuracies) == len(row.seconds) == 2
        assert all(round(50 * a) == pytest.approx(50 * a) for a in row.accuracies)
    assert sorted(path.name for path in folder.iterdir()) == [
        "set-evaluation",
        "set-evaluation-log.csv",
        "set-evaluation.json",
        "set-evaluation.md",
        "set.beton",
        "set.beton.yaml",
    ]
    content = strict(folder / "set-evaluation.json")
    card = read_card(folder / "set.beton")
    assert (content["file"], content["sha256"], content["seeds"]) == ("set.beton", card.sha256, [4, 5])
    assert (content["test_images"], content["network"]) == (50, "ConvNet")
    assert "last epoch" in content["protocol"] and content["settings"]["augmentation"] == "crop"
    for noted, row in zip(content["rows"], rows, strict=True):
        assert noted == row.summary() and noted["mean_percent"] == round(50 * sum(row.accuracies), 4)
    (entry,) = card.accuracy  # the rows of its own architecture
    assert entry["rows"] == content["rows"][:11]
    assert all(entry[key] == content[key] for key in ("protocol", "network", "test_images", "seeds", "settings"))
    assert "k-center" in describe_beton(folder / "set.beton", card)
    assert (folder / "set-evaluation.md").read_text() == evaluate_table(rows) + "\n"


def test_what_each_row_is_trained_on(file, trained, trajectory):
    trained.fake = True
    rows = run(file, trajectory=trajectory)
    given = dict(zip(keys(rows), trained.calls, strict=True))
    assert list(given) == list(NAMES)
    shipped, labels = read_beton(file)
    positions = {image.numpy().tobytes(): i for i, image in enumerate(REAL.images)}
    folder = file.with_name("set-evaluation")
    for (network, name, kind), (sets, settings, options, first) in given.items():
        epochs = 1 if name == "full data" else 2
        passes = 48 if name == "full data, equal passes" else None
        assert settings == TrainSettings(epochs, 16, augmentation="crop", cutmix=0.5, passes=passes)
        assert list(options["seeds"]) == [4, 5] and options["device"] == "cpu"
        torch.manual_seed(SEED)
        fresh = build() if network == "ConvNet" else TinyNetwork()
        assert torch.equal(first, torch.cat([p.detach().flatten() for p in fresh.parameters()]))
        for number, (images, own) in enumerate(sets):
            if name == "distilled":
                assert torch.equal(images, shipped)
            elif name == "distribution matching":
                assert torch.equal(images, read_beton(folder / "distribution-matching.beton")[0])
            else:
                places = [positions[image.numpy().tobytes()] for image in images]
                assert len(set(places)) == len(places)
                if name in ("herding", "k-center"):
                    assert places == by_brute_force(name, folder / f"full-data-{SEED + number}.safetensors")
                if name == "confidence":
                    assert places == most_varied_by_hand(trajectory.folder)
                if kind == "hard":
                    assert own.tolist() == [int(REAL.labels[i]) for i in places]
            if kind == "hard":
                assert torch.bincount(own).tolist() == [len(images) // K] * K
            else:
                torch.testing.assert_close(own, taught(images, trajectory.folder), rtol=1e-4, atol=1e-6)
    for name in ("random", "random, decoded number"):
        one, other = given["ConvNet", name, "hard"][0]
        assert not torch.equal(one[0], other[0])
    for other in (("ConvNet", "random", "soft"), (OTHER, "random", "hard")):  # the same images, other labels or network
        for one, own in zip(given[other][0], given["ConvNet", "random", "hard"][0], strict=True):
            assert torch.equal(one[0], own[0])
    assert torch.equal(given["ConvNet", "distilled", "hard"][0][0][1], labels)
    card = read_card(folder / "distribution-matching.beton")
    assert (card.factor, card.images_per_class, card.method["alpha"], card.method["steps"]) == (1, 2, 0.0, 3)
    assert card.method["real_per_class"] == 20 and card.method["augmentation"] == "crop"  # no class has 128
    assert sorted(path.name for path in folder.iterdir()) == [
        "distribution-matching.beton",
        "distribution-matching.beton.yaml",
        "full-data-4.safetensors",
        "full-data-5.safetensors",
    ]


def test_beside_unequal_classes_as_many_are_chosen_of_each(tmp_path):
    """The first ones that are chosen, as the selection of fewer images is."""
    compact = CompactSet.open(make_file(tmp_path, factor=1))
    few = CompactSet(compact.card, tuple(part[:-1] for part in compact.images), compact.build, compact.network)
    counts = torch.bincount(few.images[1]).tolist()
    assert sorted(counts) == [IPC - 1, *[IPC] * (K - 1)]
    baselines = Baselines(few, REAL, tmp_path / "kept", "cpu")
    baselines.keep([build()], [SEED])
    for name in ("herding", "k-center"):
        places = by_brute_force(name, tmp_path / "kept" / f"full-data-{SEED}.safetensors")
        images, labels = baselines.selected(name, SEED)
        kept = [place for i, place in enumerate(places) if i % IPC < counts[i // IPC]]
        assert torch.equal(images, REAL.take(torch.tensor(kept)))
        assert torch.bincount(labels).tolist() == counts


def test_what_the_file_has_counts_where_the_card_says_another_number(tmp_path, trained, trajectory):
    """A set of one's own, whose card nothing checks: all that stand beside it have as many images as it."""
    path = make_file(tmp_path, factor=1)
    compact, kept = read_beton(path), read_card(path)
    write_beton(path, *compact, replace(kept, images_per_class=1, method={"steps": 3}))
    trained.fake = True
    rows = run(path, trajectory=trajectory)
    images = {row.name: row.images for row in rows if row.labels == "hard" and "full data" not in row.name}
    assert set(images) == {"distilled", "random", "herding", "k-center", "confidence", "distribution matching"}
    assert set(images.values()) == {K * IPC}


def test_a_stored_image_of_which_not_all_is_decoded_counts_whole(tmp_path):
    """A set of another tool may have any number of images beside its card's factor."""
    compact = pool(60, 3)
    kept = compact.subset(torch.cat([(compact.labels == k).nonzero()[:n, 0] for k, n in enumerate([5, 4, 3])]))
    network = {"factory": "tgdd_plugin.networks:convnet", "arguments": ARGUMENTS}
    card = Card(REAL.classes, 0, 1, [], MEAN, STD, factor=2, network=network)
    found = CompactSet.open(write_beton(tmp_path / "set.beton", kept.images, kept.labels, card))
    assert (found.decoded, found.stored) == ([5, 4, 3], [2, 1, 1])


def by_brute_force(name, weights):
    network = build()
    network.load_state_dict(load_file(weights))
    with torch.no_grad():
        features = network.features((REAL.images / 255 - MEAN[0]) / STD[0]).flatten(1).double().numpy()
    choose = {"herding": herding_by_hand, "k-center": k_center_by_hand}[name]
    return choose(features, REAL.labels.tolist(), IPC)


def most_varied_by_hand(folder):
    """The images of each class whose probability of their class has the largest standard deviation over all stages."""
    sure = []
    for path in sorted(folder.glob("*/manifest.json")):
        for stage in manifest(path.parent)["stages"]:
            says = recorded_network(path.parent / stage["file"])((REAL.images / 255 - MEAN[0]) / STD[0]).softmax(1)
            sure.append([float(row[label]) for row, label in zip(says, REAL.labels.tolist(), strict=True)])
    assert len(sure) == 6  # of two runs, at the start and after each of two epochs
    spread = [statistics.stdev(each) for each in zip(*sure, strict=True)]
    ranked = sorted(range(len(REAL)), key=lambda place: -spread[place])
    return [place for label in range(K) for place in [p for p in ranked if REAL.labels[p] == label][:IPC]]


def recorded_network(path):
    file, network = load_file(path), build()
    network.load_state_dict({name.removeprefix("module."): file[name] for name in file if "tgdd/" not in name})
    return network


def taught(images, folder):
    total = torch.zeros(len(images), K)
    runs = sorted(path.parent for path in folder.glob("*/manifest.json"))
    assert len(runs) == 2
    for run_folder in runs:
        network = recorded_network(run_folder / manifest(run_folder)["stages"][-1]["file"])
        with torch.no_grad():
            total += torch.stack([network((i / 255 - MEAN[0])[None] / STD[0])[0].softmax(0) for i in images]) / 2
    return total


@pytest.mark.parametrize("chosen", [[0, 1], [1, 0, *range(2, K)]])
def test_a_set_of_other_classes_or_in_another_order_has_no_rows_of_the_recorded_networks(tmp_path, trajectory, chosen):
    def only(images):
        few = torch.tensor([label in chosen for label in images.labels.tolist()]).nonzero()[:, 0]
        labels = torch.tensor([chosen.index(label) for label in images.labels[few].tolist()])
        return ImagePool(images.take(few), labels, [images.classes[label] for label in chosen])

    compact = only(pool(K * IPC, 3))
    network = {"factory": "tgdd_plugin.networks:convnet", "arguments": {**ARGUMENTS, "num_classes": K}}
    card = Card(compact.classes, 0, IPC, [], MEAN, STD, network=network, method={**METHOD, "factor": 1})
    file = write_beton(tmp_path / "set.beton", compact.images, compact.labels, card)
    settings = EvaluateSettings(baselines=["random", "confidence"], networks=[], worth=False)
    with pytest.warns(UserWarning, match="other classes than the set, or another order: no soft labels, and no row"):
        rows = run(file, only(TEST), only(REAL), settings, trajectory=trajectory)
    assert [row.name for row in rows] == ["distilled", "random", "full data, equal passes", "full data"]


@pytest.mark.parametrize(
    ("recorded", "classes", "wanted"),
    [
        (["cat", "dog"], ["cat", "dog"], True),
        (["0", "1"], ["cat", "dog"], True),
        (["cat", "dog"], ["0", "1"], True),
        (["cat", "dog"], ["dog", "cat"], False),
        (["cat", "dog", "emu"], ["dog", "cat", "fox"], False),
        (["cat", "dog", "emu"], ["cat", "dog"], False),
        (["0", "1", "2"], ["cat", "dog"], False),
    ],
)
def test_whose_outputs_are_a_sets_classes(recorded, classes, wanted):
    assert _tells_apart(recorded, classes) == wanted


def test_the_networks_that_choose_are_those_of_the_full_data(done):
    """Saved as they were trained: they have the accuracies of that row."""
    folder, rows = done
    full = next(row for row in rows if row.name == "full data")
    for seed, wanted in zip((4, 5), full.accuracies, strict=True):
        network = build()
        network.load_state_dict(load_file(folder / f"set-evaluation/full-data-{seed}.safetensors"))
        assert accuracy(network, TEST, Normalization(MEAN, STD)) == wanted


def test_baselines_networks_and_soft_labels_are_left_out_as_said(tmp_path, trained, trajectory):
    trained.fake = True
    file = make_file(tmp_path, factor=1)
    few = EvaluateSettings(baselines=["k-center"], networks=[])
    assert [key[1:] for key in keys(run(file, settings=few))] == [
        ("distilled", "hard"),
        ("full data, equal passes", "hard"),
        ("full data", "hard"),
        ("k-center", "hard"),
    ]
    both = replace(few, baselines=["confidence", "k-center"], soft_labels=False)
    rated = run(file, settings=both, trajectory=trajectory, results=tmp_path / "rated.json")
    assert [row.name for row in rated][-2:] == ["k-center", "confidence"]
    assert "confidence" not in [row.name for row in run(file, settings=both, results=tmp_path / "unrated.json")]
    one = Trajectory.open(next(iter(trajectory.runs)))
    del one.run.stages[1:]  # nothing varies
    rows = run(file, settings=both, trajectory=one, results=tmp_path / "one.json")
    assert "confidence" not in [row.name for row in rows]
    torch.manual_seed(6)
    stream = torch.get_rng_state()
    for soft in (False, True):
        settings = replace(few, soft_labels=soft)
        rows = run(file, settings=settings, trajectory=trajectory, results=tmp_path / f"{soft}.json")
        assert [row.labels for row in rows].count("soft") == soft  # and no random images to be soft
    assert torch.equal(torch.get_rng_state(), stream)  # where no Trainer seeds it
    rows = run(
        file,
        settings=EvaluateSettings(["random", "distribution matching"], []),
        training=replace(TRAINING, full_epochs=0),
        results=tmp_path / "x.json",
    )
    assert [row.name for row in rows] == ["distilled", "random", "full data, equal passes", "distribution matching"]


def test_a_logger_given_as_a_trainer_option_sees_every_row(file):
    logger = InMemoryLogger()
    settings = EvaluateSettings(["random"], [OTHER], learning_rates=[0.01], worth=False)
    rows = run(file, settings=settings, trainer_options={"loggers": [logger]})
    # Two seeds, and one to choose the rate by; 48 passes of all images are three batches.
    steps = sum(3 * (3 if row.name == "full data, equal passes" else row.epochs * -(-row.images // 16)) for row in rows)
    assert len(logger.data["loss/train/total"]) == steps


# Measures.

ROWS = [
    Row("distilled", 10, 5, [0.5, 0.6], [1.0, 2.0], "A"),
    Row("random", 10, 5, [0.3, 0.4], [1.0, 1.0], "A"),
    Row("random, decoded number", 40, 5, [0.45], [1.0], "A", passes=50),
    Row("full data", 100, 5, [0.8, 0.9], [9.0, 9.2], "A"),
    Row("herding", 10, 5, [0.25, 0.35], [1.0, 1.0], "A"),
    Row("distilled", 10, 5, [0.7], [1.0], "A", "soft"),
    Row("random", 10, 5, [0.62], [1.0], "A", "soft"),
    Row("distilled", 10, 5, [0.2], [1.0], "B"),
    Row("random", 10, 5, [0.3], [1.0], "B"),
    Row("distilled", 10, 5, [0.2], [1.0], "C"),
]


def test_worth_is_interpolated_between_random_rows_on_a_logarithmic_scale():
    def rows(*random, own=0.5):
        sizes = zip((10, 20, 40), random, strict=False)
        drawn = [Row(f"random, {n} of each class", n, 5, [a], [1.0], "A", passes=400) for n, a in sizes]
        # One of fewer passes and one of more are not compared.
        others = [Row(f"random, {n}", n, 5, [a], [1.0], "A", passes=p) for n, a, p in ((30, 0.5, 300), (5, 0.55, 500))]
        return [Row("distilled", 10, 5, [own], [1.0], "A", passes=400), *drawn, *others]

    def worth(found):
        return worth_in_random_images(found[0], found)

    assert worth(rows(0.3, 0.4, 0.6)) == "28"  # 20 * (40 / 20) ** 0.5
    assert worth(rows(0.3, 0.5, 0.6)) == "20"
    assert worth(rows(0.3, 0.4, 0.45)) == "> 40"
    assert worth(rows(0.55, 0.6)) == "< 10"
    assert worth(rows(0.3)) is None and worth(rows()) is None
    assert [worth_in_random_images(row, ROWS) for row in ROWS] == ["> 40", None, None, None, "< 10", *[None] * 5]


@pytest.mark.parametrize(("decoded", "four", "wanted"), [(0.35, 0.4, [4, 16]), (0.35, 0.95, [4]), (0.95, 0.4, [])])
def test_more_random_images_are_tried_as_long_as_the_set_is_better(file, monkeypatch, decoded, four, wanted):
    """Stored are 2 of each class, decoded 8, and there are 20; then 4 and 16 of each class are tried."""
    accuracies, trained = [0.9, 0.3, decoded, 0.5, 0.99, four, 0.5], []

    def untrained(networks, loaders, *_, **__):
        trained.append(len(loaders[0].labels) // K)
        return [Trained(0.0, "")] * len(networks)

    monkeypatch.setattr(scorer, "train_each", untrained)
    monkeypatch.setattr(scorer, "accuracy", lambda *_: accuracies[len(trained) - 1])
    rows = run(file, settings=EvaluateSettings(["random"], []))
    assert trained == [8, 2, 8, 20, 20, *wanted]
    assert [row.name for row in rows[5:]] == [f"random, {count} of each class" for count in wanted]
    assert all(row.passes == 48 for row in rows[5:])  # equal passes


@pytest.mark.parametrize(("factor", "counts"), [(1, [4, 1, 2]), (2, [4, 4, 16])])
def test_more_random_images_begin_at_twice_the_largest_class(tmp_path, monkeypatch, factor, counts):
    """Whatever the card says, as one of another tool may: the largest class has 4 stored images, the data 20 of each.

    With factor 2 the classes have 8 decoded images in the mean, yet no other row has 8 of each."""
    compact = pool(60, 3)
    kept = compact.subset(torch.cat([(compact.labels == k).nonzero()[:n, 0] for k, n in enumerate(counts)]))
    network = {"factory": "tgdd_plugin.networks:convnet", "arguments": ARGUMENTS}
    card = Card(REAL.classes, 0, 1, [], MEAN, STD, factor=factor, network=network, method={"name": "other"})
    file = write_beton(tmp_path / "set.beton", kept.images, kept.labels, card)
    monkeypatch.setattr(scorer, "train_each", lambda networks, *_, **__: [Trained(0.0, "")] * len(networks))
    monkeypatch.setattr(scorer, "accuracy", lambda *_: 0.5)
    monkeypatch.setattr(Row, "mean", property(lambda row: 90.0 if row.name == "distilled" else 10.0))
    names = [row.name for row in run(file, settings=EvaluateSettings(["random"], []))]
    assert [name for name in names if "of each class" in name] == [f"random, {n} of each class" for n in (8, 16)]


def test_measures_by_hand():
    found = [(hard_label_recovery(row, ROWS), improvement_over_random(row, ROWS)) for row in ROWS]
    wanted = [
        (30, 20),  # 85 - 55, 55 - 35
        (50, None),
        (40, None),
        (None, None),
        (55, -5),
        (None, 8),  # against random images with soft labels
        (None, None),
        (None, -10),  # no full data for this network
        (None, None),
        (None, None),
    ]
    for came, should in zip(found, wanted, strict=True):
        assert [c is None for c in came] == [s is None for s in should]
        assert [c for c in came if c is not None] == [pytest.approx(s) for s in should if s is not None]
    assert hard_label_recovery(copy.deepcopy(ROWS[3]), ROWS) is None


def test_the_table_is_markdown():
    lines = evaluate_table(ROWS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    headers = ["network", "trained on", "labels", "images", "passes", "accuracy %", "HLR", "IOR", "worth, images", "s"]
    assert cells[0] == headers
    assert set("".join(cells[1])) == {"-"} and len(lines) == 2 + len(ROWS)
    assert all(len(row) == 10 for row in cells)
    assert cells[2] == ["A", "distilled", "hard", "10", "50", "55.0 ± 7.1", "+30.0", "+20.0", "> 40", "1.5"]
    assert cells[5] == ["A", "full data", "hard", "100", "500", "85.0 ± 7.1", "", "", "", "9.1"]
    assert cells[7] == ["A", "distilled", "soft", "10", "50", "70.0", "", "+8.0", "", "1.0"]
    assert cells[9][6:9] == ["", "-10.0", ""]


# Going on.


def test_a_broken_off_evaluation_goes_on(file, done, trained, trajectory):
    results = file.with_name("set-evaluation.json")
    for rows in (1, 5, 10):  # after the first, before any selection, within the soft ones
        trained.stop_after = rows
        with pytest.raises(Stopped):
            run(file, trajectory=trajectory)
        assert len(strict(results)["rows"]) == rows
        assert not results.with_suffix(".md").exists() and not read_card(file).accuracy
    trained.stop_after = None
    rows = run(file, trajectory=trajectory)
    assert len(trained.calls) == len(rows) == 13  # no row was trained twice
    assert essence(rows) == essence(done[1])
    rows = run(file, trajectory=trajectory)  # and all is done
    assert len(trained.calls) == 13 and essence(rows) == essence(done[1])
    assert len(read_card(file).accuracy) == 1
    assert evaluate_table(rows).splitlines() == results.with_suffix(".md").read_text().splitlines()


def test_what_is_asked_for_later_is_all_that_is_trained(finished, done, trained, trajectory):
    settings = replace(ALL, networks=["convnet", OTHER])
    rows = run(finished, settings=settings, trajectory=trajectory)
    assert len(trained.calls) == 2
    assert keys(rows) == [*list(NAMES)[:11], *[("convnet", name, "hard") for name in ("distilled", "random")],
                          *list(NAMES)[11:]]  # fmt: skip
    assert [row for row in rows if row.network != "convnet"] == done[1]
    # Rows that are not asked for are kept in the file, and the trajectory may be left out.
    fewer = run(finished, settings=EvaluateSettings(["random"], [], worth=False))
    assert keys(fewer) == list(NAMES)[:5] and len(trained.calls) == 2
    content = strict(finished.with_name("set-evaluation.json"))
    assert len(content["rows"]) == 15
    assert len((finished.with_name("set-evaluation.md")).read_text().splitlines()) == 7
    # A selection that comes later goes by the networks that were kept.
    (finished.parent / "later").mkdir()
    later = finished.parent / "later/r.json"
    run(finished, settings=EvaluateSettings(["random"], [], worth=False), results=later)
    count = len(trained.calls)
    rows = run(finished, settings=EvaluateSettings(["random", "herding"], [], worth=False), results=later)
    assert len(trained.calls) == count + 1
    herding = next(row for row in done[1] if row.name == "herding")
    assert essence(rows[-1:]) == essence([herding])


def test_a_card_has_one_entry_of_a_comparison_with_all_its_rows(finished, trained, trajectory):
    whole = read_card(finished)
    (entry,) = whole.accuracy
    fewer = EvaluateSettings(["random"], [], worth=False)
    run(finished, settings=fewer)
    run(finished)
    assert read_card(finished).accuracy == [entry]  # rows that are left out, such as those of the trajectory, stay
    other = {**entry, "seeds": [7]}
    replace(whole, accuracy=[other]).write(finished)
    run(finished, settings=fewer)
    assert [len(each["rows"]) for each in read_card(finished).accuracy] == [11, 5]
    run(finished, trajectory=trajectory)  # and rows that come later are added
    assert [each["rows"] for each in read_card(finished).accuracy] == [other["rows"], entry["rows"]]
    assert not trained.calls


def other_pool(images):
    return ImagePool(images.images.flip(3), images.labels, images.classes)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"training": replace(TRAINING, epochs=3)}, "retrain.epochs was 2 and is now 3"),
        ({"training": replace(TRAINING, seeds=3)}, r"retrain.seeds was 2 and is now 3; seeds was \[4, 5\] and is now"),
        ({"seed": 5}, r"seeds was \[4, 5\] and is now \[5, 6\]"),
        ({"test": FLIPPED}, "test_fingerprint was '.*' and is now"),
        ({"test": pool(49, 2)}, "test_images was 50 and is now 49"),
        ({"real": other_pool(REAL)}, "real_fingerprint was"),
        ({"settings": replace(ALL, learning_rates=[0.1])}, r"learning_rates was None and is now \[0.1\]"),
        ({"network": lambda: convnet(K, 1, 8, depth=1, width=5)}, "parameters was .* and is now"),
        (
            {"network": lambda: convnet(K, 1, 8, depth=1, width=4, pooling="max")},
            "architecture.arguments.pooling was 'avg' and is now 'max'",
        ),
        ({"network": TinyNetwork}, "network was 'ConvNet' and is now 'TinyNetwork'"),
    ],
)
def test_another_evaluation_is_refused(finished, trained, trajectory, options, pattern):
    given = {} if "network" in options else {"trajectory": trajectory}
    refused(trained, f"set-evaluation.json' is of another evaluation \\({pattern}", finished, **given, **options)


def test_another_trajectory_or_file_is_refused(finished, trained, trajectory, tmp_path):
    one = Trajectory.open(next(iter(trajectory.runs)))
    refused(trained, r"is of another evaluation \(teachers was", finished, trajectory=one)
    # Also where it was left out in between.
    assert run(finished) and not trained.calls
    refused(trained, r"is of another evaluation \(teachers was", finished, trajectory=one)
    card = read_card(finished)
    write_beton(finished, 255 - read_beton(finished)[0], read_beton(finished)[1], card)
    refused(trained, r"is of another evaluation \(sha256 was", finished, trajectory=trajectory)


def test_held_out_images_are_named_in_the_table_and_stand_on_no_card(file, trained):
    trained.fake = True
    kept, held = REAL.split(0.2, torch.Generator().manual_seed(1))
    before = card_path(file).read_bytes()
    with pytest.warns(UserWarning, match="may have been made from images that are held out now"):
        run(file, held, kept, replace(ALL, baselines=["random"], networks=[]), held_out=True)
    assert json.loads(file.with_name("set-evaluation.json").read_text())["scored_on"] == "held-out training images"
    table = file.with_name("set-evaluation.md").read_text()
    assert table.endswith("|\n\nScored on held-out training images.\n")
    assert card_path(file).read_bytes() == before


def test_results_of_an_earlier_version_have_no_word_of_the_architecture(finished, trained, trajectory):
    results = finished.with_name("set-evaluation.json")
    content = json.loads(results.read_text())
    assert content.pop("architecture")["factory"] == "tgdd_plugin.networks:convnet"
    results.write_text(json.dumps(content))
    assert len(run(finished, trajectory=trajectory)) == 13 and not trained.calls


def test_at_once_is_no_other_evaluation(finished, trained, trajectory):
    rows = run(finished, training=replace(TRAINING, at_once=True), trajectory=str(trajectory.folder))
    assert len(rows) == 13 and not trained.calls


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": [{"name": 3}]}', '{"rows": 3}', "\xff"])
def test_damaged_results_are_refused(file, trained, content):
    file.with_name("set-evaluation.json").write_bytes(content.encode("latin-1"))
    refused(trained, "set-evaluation.json' is damaged .*[.] Delete it, or set `overwrite` to true[.]", file)


def test_kept_networks_that_are_gone_or_others_are_refused(finished, trained, trajectory):
    weights = finished.with_name("set-evaluation") / "full-data-5.safetensors"
    results = finished.with_name("set-evaluation.json")
    content = json.loads(results.read_text())
    content["rows"] = [row for row in content["rows"] if row["name"] != "herding"]
    results.write_text(json.dumps(content))
    pattern = "full-data-5.safetensors' cannot be used .*[.] Delete '.*set-evaluation.json' and evaluate again[.]"
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[:-5]), weights.unlink):
        damage()
        refused(trained, pattern, finished, trajectory=trajectory)


def test_a_set_matched_for_another_evaluation_is_made_anew(finished, trained):
    """Where the results were deleted, as the message of another evaluation says, and the folder was not."""
    matched = finished.with_name("set-evaluation") / "distribution-matching.beton"
    before = read_card(matched)
    finished.with_name("set-evaluation.json").unlink()
    settings = EvaluateSettings(["distribution matching"], [])
    run(finished, settings=settings)
    assert read_card(matched).sha256 == before.sha256
    finished.with_name("set-evaluation.json").unlink()
    run(finished, real=other_pool(REAL), settings=settings)
    assert read_card(matched).real["fingerprint"] == other_pool(REAL).fingerprint() != before.real["fingerprint"]


def test_tied_weights_are_kept(file, trained):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = TinyNetwork()
            self.again = self.network.fc

        def forward(self, images):
            return self.network(images)

    run(file, settings=EvaluateSettings([], []), network=Tied)
    kept = load_file(file.with_name("set-evaluation") / "full-data-4.safetensors")
    assert torch.equal(kept["again.weight"], kept["network.fc.weight"])


# Learning rates.


def test_learning_rates_are_chosen_on_held_out_training_images(file, trained, monkeypatch):
    scored, rates = [], [0.0001, 0.3, 0.03]

    def noted(network, images, *arguments):
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])
        scored.append((images, weights, accuracy(network, images, *arguments)))
        return scored[-1][2]

    monkeypatch.setattr(scorer, "accuracy", noted)
    settings = EvaluateSettings(["herding"], [], learning_rates=rates)
    training = replace(TRAINING, epochs=12, augmentation="none", cutmix=0.0, full_epochs=3)
    results = []
    for number, test in enumerate((TEST, FLIPPED)):
        rows = run(file, test=test, settings=settings, training=training, results=file.with_name(f"{number}.json"))
        results.append(([row.learning_rate for row in rows], scored.copy(), trained.calls.copy()))
        scored.clear()
        trained.calls.clear()
        assert strict(file.with_name(f"{number}.json"))["rows"][0]["learning_rate"] == rows[0].learning_rate
    (chosen, notes, calls), (again, others, _) = results
    # Other test images change no choice and no weights.
    assert chosen == again and all(torch.equal(a[1], b[1]) for a, b in zip(notes, others, strict=True))
    real = {image.numpy().tobytes() for image in REAL.images}
    held = {image.numpy().tobytes() for image in notes[0][0].images}
    assert len(held) == 6 and held < real and torch.bincount(notes[0][0].labels).tolist() == [2] * K
    assert len(notes) == 4 * (3 + 2) and len(calls) == 4 * (3 + 1)  # three trials of one network, then two networks
    for number, (name, rate) in enumerate(
        zip(["distilled", EQUAL_PASSES, "full data", "herding"], chosen, strict=True)
    ):
        trials, final = notes[5 * number :][:3], notes[5 * number :][3:5]
        assert all({i.numpy().tobytes() for i in images.images} == held for images, _, _ in trials)
        assert all(images.images is TEST.images for images, _, _ in final)
        found = [value for _, _, value in trials]
        assert rate == rates[found.index(max(found))]
        for position, (sets, own, options, _) in enumerate(calls[4 * number :][:4]):
            assert own.learning_rate == [*rates, rate][position]
            assert list(options["seeds"]) == ([4] if position < 3 else [4, 5])
            if name != "distilled":  # no training on what is held out
                assert not held & {image.numpy().tobytes() for images, _ in sets for image in images}
        if name == "full data":
            assert len(calls[4 * number][0][0][0]) == 54
        assert len(set(found)) > 1


def test_without_rates_nothing_is_held_out(file, trained):
    trained.fake = True
    run(file, settings=EvaluateSettings(["random"], [], worth=False))
    assert [len(call[0][0][0]) for call in trained.calls] == [24, 6, 24, 60, 60]


# Refused before any training, in one line, and nothing written.


def refused(trained, pattern, file, **options):
    trained.stop_after = len(trained.calls)
    before = snapshot(file.parent)
    with pytest.raises(InputError, match=pattern) as caught:
        run(file, **options)
    assert "\n" not in str(caught.value)
    assert snapshot(file.parent) == before
    trained.stop_after = None


def headless():
    return nn.Sequential(nn.Conv2d(1, K, 8), nn.Flatten())


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (
            {"training": replace(TRAINING, full_epochs=0)},
            "`full_epochs` must be at least 1 for baseline 'herding', which chooses by .*, got 0. Give",
        ),
        ({"settings": EvaluateSettings(networks=["lenet"])}, "`network` must be one of convnet, .* got 'lenet'"),
        (
            {"settings": EvaluateSettings(networks=["tests.common:manifest"])},
            "must have arguments that 'tests.common:manifest' takes",
        ),
        ({"settings": EvaluateSettings([], ["tgdd_plugin.networks:vit", "tests.nowhere:x"])}, "nowhere"),
        ({"real": pool(3, 1)}, r"Class 0 \('dark'\) has 1 real images, 2 were asked for the random ones"),
        ({"real": pool(3, 1), "settings": EvaluateSettings([], [])}, "has 1 real images, 2 were asked for"),
        ({"real": pool(6, 1), "settings": EvaluateSettings([], [], learning_rates=[1.0])}, "leaves 6 and 0 images"),
        (
            {"test": ImagePool(TEST.images[:, :, :6], TEST.labels)},
            r"The test images must be .* got 3 classes of \[1, 6, 8\]",
        ),
        ({"test": []}, "The data set list is empty"),
        ({"real": []}, "The data set list is empty"),
        (
            {"network": convnet(K, 1, 8, **ARGUMENTS)},
            "must be a function that builds a fresh one for each seed, got a ConvNet",
        ),
        ({"network": lambda: convnet(K + 1, 1, 8, **ARGUMENTS)}, r"for 2 images of .*, got \(2, 4\) from ConvNet"),
        ({"network": headless}, "has no linear layer with 3 outputs"),
        ({"trajectory": "no/where"}, "There is no trajectory folder 'no/where'"),
    ],
)
def test_what_cannot_work_is_refused(file, trained, options, pattern):
    refused(trained, pattern, file, **options)


def test_a_trajectory_of_another_network_is_refused(file, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "trajectory"
    settings = RecordSettings(1, 16, augmentation="none", cutmix=0.0)
    record(folder, REAL, TinyNetwork, settings, device="cpu", progress_bar=False)
    refused(trained, "ConvNet does not fit stage", file, trajectory=folder)


def test_results_that_cannot_be_written_are_refused(file, trained):
    (file.parent / "plain").write_text("a file")
    (file.parent / "folder.json").mkdir()
    refused(trained, "Cannot write", file, results=file.parent / "plain/r.json")
    refused(trained, "is a folder", file, results=file.parent / "folder.json")
    for results in (file.parent, "results", "results.md", file.with_name("set.beton.json")):
        refused(
            trained,
            "`results` must be the name of a JSON file, got '.*'. Give a name such as '.*set-evaluation.json'",
            file,
            results=results,
        )


def test_a_file_without_its_card_is_refused(file, trained):
    card_path(file).unlink()
    refused(trained, "has no card", file)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (
            {"baselines": ["randon"]},
            r"`baselines\[0\]` must be one of random, .*, confidence, distribution matching, got 'randon'",
        ),
        ({"baselines": ["random", "random"]}, "`baselines` must be a list with each value once"),
        ({"networks": ["vit", "vit"]}, r"`networks` must be a list with each value once, got \['vit', 'vit'\]"),
        (
            {"learning_rates": []},
            "`learning_rates` must be a non-empty list of finite numbers above 0",
        ),
        ({"learning_rates": [0.1, 0.0]}, r"`learning_rates\[1\]` must be a finite number above 0, got 0.0"),
    ],
)
def test_settings_that_are_wrong(options, pattern):
    with pytest.raises(InputError, match=pattern):
        EvaluateSettings(**options)


def test_one_seed_has_no_spread_and_the_json_is_strict(file, trained):
    trained.fake = True
    run(file, settings=EvaluateSettings(["random"], []), training=replace(TRAINING, seeds=1))
    assert {row["std_points"] for row in strict(file.with_name("set-evaluation.json"))["rows"]} == {None}
    assert "nan" not in card_path(file).read_text().lower()
    assert yaml.safe_load(card_path(file).read_text())["accuracy"][0]["rows"][0]["name"] == "distilled"


# On the command line.

MODULE = """
from sklearn.datasets import load_digits

def sets():
    digits = load_digits(n_class=3)
    pairs = [(image.astype("uint8") * 15, int(label)) for image, label in zip(digits.images, digits.target)]
    return pairs[:90], pairs[90:150]
"""
RECIPE = {
    "output": "out",
    "device": "cpu",
    "data": {"name": "miniature_digits:sets"},
    "network": {"name": "convnet", **ARGUMENTS},
    "record": {"epochs": 1, "augmentation": "crop", "cutmix": 0.0},
    "distill": {"images_per_class": 2, "factor": 2, "steps": 2, "real_per_class": 5, "augmentation": "crop"},
    "retrain": {"protocol": "paper", "epochs": 1, "seeds": 1, "full_epochs": 1, "augmentation": "crop"},
    "evaluate": {"baselines": ["random", "herding"], "networks": [], "worth": False},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    (folder / "miniature_digits.py").write_text(MODULE)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for step in ("record", "distill"):
            assert cli.main([step, "recipe.yaml"]) == 0
        assert cli.main(["record", "recipe.yaml", "output=other", "seed=1"]) == 0
    return folder


@pytest.fixture
def here(digits, tmp_path, monkeypatch):
    shutil.copytree(digits, tmp_path / "digits")
    monkeypatch.chdir(tmp_path / "digits")
    monkeypatch.syspath_prepend(str(tmp_path / "digits"))
    return tmp_path / "digits"


def told(capfd):
    """The rows as printed, and the last line."""
    lines = capfd.readouterr().out.splitlines()
    cells = [re.split(r"  +", line) for line in lines if line.startswith("ConvNet")]
    return [cell[1:4] for cell in cells], lines[-1]


HARD = [
    ["distilled", "hard", "24"],
    ["random", "hard", "6"],
    ["random, decoded number", "hard", "24"],
    ["full data, equal passes", "hard", "90"],
    ["full data", "hard", "90"],
    ["herding", "hard", "6"],
]
SOFT = [["distilled", "soft", "24"], ["random", "soft", "6"]]


def test_evaluate_on_the_command_line(here, capfd):
    file = Path("out/sets-ipc2.beton")
    capfd.readouterr()
    assert cli.main(["evaluate", "recipe.yaml"]) == 0
    rows, last = told(capfd)
    assert rows == [*HARD, *SOFT] and last == "results   out/sets-ipc2-evaluation.json"
    assert len(strict(Path("out/sets-ipc2-evaluation.json"))["rows"]) == 8
    assert [row["labels"] for row in read_card(file).accuracy[0]["rows"]] == ["hard"] * 6 + ["soft"] * 2
    # Given again, by its file alone, all of it is there; the trajectory in that default place, outputs/, is none.
    options = ["data.name=miniature_digits:sets", "device=cpu", "evaluate.networks=[]", "evaluate.worth=false"]
    options += ["evaluate.baselines=[random,herding]", *(f"retrain.{k}={v}" for k, v in RECIPE["retrain"].items())]
    assert cli.main(["evaluate", str(file), *options]) == 0
    assert told(capfd) == (HARD, "results   out/sets-ipc2-evaluation.json: already done")


def test_a_trajectory_in_the_default_place_must_be_that_of_the_card(here, capfd):
    shutil.rmtree("out/trajectory")
    shutil.copytree("other/trajectory", "out/trajectory")
    capfd.readouterr()
    settings = ["recipe.yaml", "evaluate.baselines=[random]", "retrain.full_epochs=0"]
    assert cli.main(["evaluate", *settings]) == 0
    assert told(capfd)[0] == HARD[:4]
    assert cli.main(["evaluate", *settings, "trajectory=other/trajectory"]) == 0  # unless it is named
    assert told(capfd)[0] == [*HARD[:4], *SOFT]


def test_refusals_on_the_command_line_are_one_line(here, capfd):
    capfd.readouterr()
    before = snapshot(here)
    for options, pattern in (
        (["evaluate.baselines=[randon]"], "`evaluate.baselines[0]` must be one of random, herding"),
        (["evaluate.network=[]"], "Unknown key `evaluate.network`. Did you mean `evaluate.networks`?"),
        (["retrain.full_epochs=0"], "baseline 'herding', which chooses by the features"),
        (["file=none.beton"], "There is no file 'none.beton'"),
        (["trajectory=none"], "There is no trajectory folder 'none'"),
    ):
        assert cli.main(["evaluate", "recipe.yaml", *options]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("tgdd: ") and err.count("\n") == 1 and pattern in err
        assert snapshot(here) == before


def test_a_device_of_another_name_is_one_line(file):
    for call in (run, lambda file, device: retrain(file, TEST, TRAINING, device=device, progress_bar=False)):
        with pytest.raises(InputError, match="`device` must be 'cpu', 'gpu', or None .*, got 'cuda'"):
            call(file, device="cuda")
