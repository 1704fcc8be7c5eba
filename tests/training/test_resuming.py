"""A training that is cut short goes on from its last checkpoint, and ends as an uninterrupted one."""

import collections
import errno
import functools
import os
import pickle
import re
import shutil
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from composer import Callback

from tests.common import Crash, TinyNetwork
from tests.nas.shades import pool
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.training import resuming
from tgdd_plugin.training.resuming import LATEST, checkpoint_folder, remove_checkpoints
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import train_each, train_network
from tgdd_plugin.trajectory.store import Trajectory

IMAGES = pool(20, 1)
SETTINGS = TrainSettings(epochs=4, batch_size=8, learning_rate=0.1, precision="fp32", compile=False)  # 12 batches
NORMALIZATION = Normalization(*IMAGES.statistics())
build = functools.partial(TinyNetwork, norm=True, dropout=0.2)


pytestmark = pytest.mark.filterwarnings("error:No batches were trained")  # as users would be told, too


@pytest.fixture(autouse=True)
def _saved_after_each_batch(monkeypatch):
    monkeypatch.setattr(resuming, "SAVED_EVERY", 0.0)


class Batches(Callback):
    """Keeps the numbers of the batches that it sees."""

    def __init__(self):
        self.seen = []

    def batch_end(self, state, logger):
        self.seen.append(state.timestamp.batch.value)


def loader_of(seed, **options):
    given = {"batch_size": 8, "seed": seed, **options}
    return DeviceLoader(IMAGES.images, IMAGES.labels, NORMALIZATION, **given)


def train(checkpoints, *callbacks, seeds=(5,), settings=SETTINGS, at_once=False):
    networks = []
    for seed in seeds:
        with forked_streams(seed):
            networks.append(build())
    how = {"seeds": seeds, "at_once": at_once, "device": "cpu", "callbacks": list(callbacks)}
    done = train_each(networks, [loader_of(seed) for seed in seeds], 3, settings, checkpoints=checkpoints, **how)
    return [network.state_dict() for network in networks], done


def assert_same(one, other):
    for weights, twin in zip(one, other, strict=True):
        assert list(weights) == list(twin) and all(torch.equal(weights[name], twin[name]) for name in weights)


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, TrainSettings(**{**vars(SETTINGS), "schedule": "one-cycle", "passes": 80, "nesterov": True})],
    ids=["epochs", "passes"],
)
@pytest.mark.parametrize("at", [1, 3, 7])  # within the first epoch, at its end, and within the third
def test_it_ends_with_the_same_weights(tmp_path, settings, at):
    whole, _ = train(None, settings=settings)
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, Crash(at), settings=settings)
    rest = Batches()
    resumed, (trained,) = train(tmp_path, rest, settings=settings)
    assert rest.seen == list(range(at + 1, 13)), "it goes on, and not from the start"
    assert_same(resumed, whole)
    assert trained.computed == "fp32, eager" and trained.seconds > 0


def test_of_several_networks_those_that_are_trained_are_not_trained_again(tmp_path):
    whole, _ = train(None, seeds=(5, 6))

    class CrashSecond(Crash):
        trainings = 0

        def fit_start(self, state, logger):
            self.trainings += 1

        def after_forward(self, state, logger):
            if self.trainings == 2:
                super().after_forward(state, logger)

    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, CrashSecond(3), seeds=(5, 6))
    rest = Batches()
    resumed, trained = train(tmp_path, rest, seeds=(5, 6), at_once=None)
    assert rest.seen == list(range(4, 13))
    assert_same(resumed, whole)
    assert all(each.computed == "fp32, eager" and each.seconds > 0 for each in trained)


def test_networks_that_are_trained_at_once_go_on_at_once(tmp_path):
    whole, _ = train(None, seeds=(5, 6), at_once=True)
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, Crash(7), seeds=(5, 6), at_once=True)
    rest = Batches()
    resumed, _ = train(tmp_path, rest, seeds=(5, 6), at_once=None)
    assert rest.seen == list(range(8, 13)), "each batch is of both networks"
    assert_same(resumed, whole)


def test_a_short_training_leaves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "SAVED_EVERY", 60.0)
    train(tmp_path, seeds=(5, 6))
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, Crash(7))
    assert not list(tmp_path.rglob("*.pt"))
    anew = Batches()
    train(tmp_path, anew)
    assert anew.seen[0] == 1, "what was stopped within its first minute begins anew, as docs/distill.md says"


def test_it_goes_on_in_the_way_that_was_settled(tmp_path):
    """What was found to be fastest is not looked for again: figures would depend on where the training was cut."""
    settings = TrainSettings(**{**vars(SETTINGS), "epochs": 40, "precision": "auto"})
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, Crash(100), settings=settings)
    (path,) = tmp_path.rglob(LATEST)
    content = torch.load(path, weights_only=False)
    ways = content["state"]["callbacks"]["Float32Fallback"]["ways"]
    assert set(ways) <= {4, 8}
    ways[8] = ["bf16", False]
    torch.save(content, path)
    _, (trained,) = train(tmp_path, settings=settings)
    assert trained.computed == "bf16, eager"


class Harmful:
    """Would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damage(path, how, harmed):
    if how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "harmful":
        torch.save({"state": Harmful(harmed)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(harmed)))


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "harmful", "pickle"])
def test_a_checkpoint_that_cannot_be_used_is_left_out(tmp_path, how):
    whole, _ = train(None)
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, Crash(7))
    (latest,) = tmp_path.rglob(LATEST)
    damage(latest, how, tmp_path / "harmed")
    rest = Batches()
    with pytest.warns(UserWarning, match=r"the checkpoint in '.*seed5' cannot be used, and work begins anew: "):
        resumed, _ = train(tmp_path, rest)
    assert rest.seen == list(range(1, 13)) and not (tmp_path / "harmed").exists()
    assert_same(resumed, whole)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_for_a_while_stays(tmp_path, monkeypatch, number):
    """As of a network drive; hours of work would be lost with it."""
    whole, _ = train(None)
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path, Crash(7))
    (latest,) = tmp_path.rglob(LATEST)
    before = latest.read_bytes()

    def away(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(resuming.zipfile, "ZipFile", away)
        reason = rf"The checkpoint in '.*seed5' cannot be read \({os.strerror(number)}\). Give the same command once"
        with pytest.raises(InputError, match=reason):
            train(tmp_path)
    assert latest.read_bytes() == before
    rest = Batches()
    resumed, _ = train(tmp_path, rest)
    assert rest.seen == list(range(8, 13))
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos"),
        TypeError("cannot pickle 'generator' object"),
    ],
)
def test_an_error_in_saving_costs_the_checkpoint_alone(tmp_path, monkeypatch, error):
    """The last one stays, whole, and the next is tried again."""
    whole, _ = train(None)
    saves, save = [], resuming.save_checkpoint

    def full(state, filename):
        saves.append(state.timestamp.batch.value)
        if saves[-1] in (5, 6):
            Path(filename).write_bytes(b"a part")
            raise error
        return save(state, filename)

    monkeypatch.setattr(resuming, "save_checkpoint", full)
    with (
        pytest.raises(RuntimeError, match="crash"),
        pytest.warns(UserWarning, match="No space|unexpected pos|cannot pickle") as told,
    ):
        train(tmp_path, Crash(6))
    assert len([one for one in told if "no checkpoint could be saved" in str(one.message)]) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [LATEST]
    rest = Batches()
    with pytest.warns(UserWarning, match="no checkpoint could be saved"):
        resumed, _ = train(tmp_path, rest)
    assert rest.seen == list(range(5, 13)) and saves[-1] == 12
    assert_same(resumed, whole)


def test_what_could_not_be_read_again_is_not_saved_and_told_at_once(tmp_path):
    """A crash would otherwise be the first to tell."""

    class Kept(Callback):
        def state_dict(self):
            return {"last": collections.deque([1, 2])}

    with (
        pytest.raises(RuntimeError, match="crash"),
        pytest.warns(
            UserWarning,
            match="could be saved .* goes on without: .state_dict... of a callback must hold plain values "
            "and tensors alone, got collections.deque. Keep",
        ) as told,
    ):
        train(tmp_path, Kept(), Crash(6))
    words = [str(one.message) for one in told if "no checkpoint could be saved" in str(one.message)]
    assert len(words) == 1 and "\n" not in words[0] and "\x1b" not in words[0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_user_allows_to_be_loaded_stays_allowed(tmp_path):
    with torch.serialization.safe_globals([timedelta]):
        with pytest.raises(RuntimeError, match="crash"):
            train(tmp_path, Crash(6))
        train(tmp_path)
        assert timedelta in torch.serialization.get_safe_globals()
    assert timedelta not in torch.serialization.get_safe_globals()


def test_a_users_own_checkpoints_are_the_only_ones(tmp_path):
    given = {"save_folder": str(tmp_path / "own"), "save_interval": "1ep", "run_name": "mine"}
    train_network(build(), loader_of(5), 3, SETTINGS, checkpoints=tmp_path / "ours", device="cpu", **given)
    assert (tmp_path / "own").is_dir() and not (tmp_path / "ours").exists()


def test_a_folder_is_of_one_training_alone(tmp_path):
    def name(seed=5, network_seed=5, depends=None, **options):
        with forked_streams(network_seed):
            network = build()
        return checkpoint_folder(tmp_path, "run", [network], [loader_of(seed, **options)], depends).name

    assert re.fullmatch(r"\.run-[0-9a-f]{12}", name()) and name() == name()
    others = [name(seed=6), name(network_seed=6), name(depends={"epochs": 3}), name(batch_size=4), name(shuffle=False)]
    others.append(checkpoint_folder(tmp_path, "run", [build(), build()], [loader_of(5), loader_of(6)], None).name)
    assert len({name(), *others}) == 7
    for each in (name(), name(seed=6), ".run-2-0123456789ab", ".run-notes"):
        (tmp_path / each).mkdir()
    remove_checkpoints(tmp_path, "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run-2-0123456789ab", ".run-notes"]


RECORDED = RecordSettings(
    epochs=4, batch_size=8, learning_rate=0.1, runs=2, exemplars=2, interval="2ba", precision="fp32", compile=False
)


def recorded(folder, *callbacks, settings=RECORDED):
    options = {"callbacks": list(callbacks)} if callbacks else {}
    record(folder, IMAGES, build, settings, device="cpu", progress_bar=False, trainer_options=options)
    trajectory = Trajectory.open(folder)
    runs = trajectory.runs.items()
    return {
        (name.name, stage.batch): (trajectory.load(name, stage), stage.metrics)
        for name, run in runs
        for stage in run.stages
    }


@pytest.mark.parametrize(("at", "begun"), [(2, 0), (3, 3), (7, 7), (11, 11)])  # the first epoch has three batches
def test_a_recording_goes_on_and_holds_the_same_stages(tmp_path, at, begun):
    whole = recorded(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        recorded(tmp_path / "cut", Crash(at))
    rest = Batches()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cut short")
        resumed = recorded(tmp_path / "cut", rest)
    assert rest.seen == [*range(begun + 1, 13), *range(1, 13)], "the first run goes on, and the second is made"
    assert list(resumed) == list(whole) and len(whole) == 2 * 7
    for key, (weights, metrics) in whole.items():
        assert_same([resumed[key][0]], [weights])
        assert resumed[key][1] == metrics
    statistics = [
        sorted(path.read_bytes() for path in (tmp_path / each).rglob("*.safetensors")) for each in ("whole", "cut")
    ]
    assert statistics[0] == statistics[1], "class means and exemplars, too"
    assert not list((tmp_path / "cut").glob(".training*")), "what is not needed any more is removed"


def test_a_recording_whose_stages_were_deleted_begins_anew(tmp_path):
    """And not in its midst, without the stages before."""
    with pytest.raises(RuntimeError, match="crash"):
        recorded(tmp_path, Crash(7))
    shutil.rmtree(tmp_path / "seed0")
    rest = Batches()
    assert [batch for _, batch in recorded(tmp_path, rest)] == 2 * [0, 2, 4, 6, 8, 10, 12]
    assert rest.seen == [*range(1, 13), *range(1, 13)]


def test_a_recording_of_other_images_begins_anew(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        recorded(tmp_path, Crash(7))
    rest = Batches()
    with pytest.warns(UserWarning, match="cut short"):
        record(
            tmp_path,
            pool(20, 2),
            build,
            RECORDED,
            device="cpu",
            progress_bar=False,
            trainer_options={"callbacks": rest},
        )
    assert rest.seen == [*range(1, 13), *range(1, 13)]
    assert not list(tmp_path.glob(".training*"))
