"""What Composer's loggers wrote, read by each one's own reader, against the CSV log."""

import csv
import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from composer import Callback
from composer.loggers import InMemoryLogger
from PIL import Image

from tests.patterned import SETTINGS, Crash, run, tiny
from tgdd_plugin import InputError, retrain
from tgdd_plugin.logs.log_file import read_log
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.recording.runs import record

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # inside those packages
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
HOW = {"epochs": 2, "batch_size": 16, "augmentation": "none", "cutmix": 0.0}


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def bare(trajectory, pool, tmp_path_factory):
    return run(trajectory, pool, tmp_path_factory.mktemp("bare") / "a.beton", loggers={"csv": False}).read_bytes()


def test_tensorboard_reads_losses_pictures_and_settings(trajectory, pool, tmp_path, bare):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def read(folder):
        return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()

    loggers = {"tensorboard": str(tmp_path / "events"), "image_interval": 6}
    path = run(trajectory, pool, tmp_path / "a.beton", loggers=loggers)
    assert path.read_bytes() == bare
    (folder,) = (tmp_path / "events").iterdir()
    assert folder.name.startswith("distill-a-")
    events, log = read(folder), read_log(tmp_path / "a-log.csv")
    for column, tag in [("loss", "loss/train/total"), ("match", "loss/train/match")]:
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == list(range(12))  # Composer counts the steps before
        assert [scalar.value for scalar in scalars] == pytest.approx(log[column], rel=1e-5)
    assert [scalar.value for scalar in events.Scalars("tgdd/gradient_norm")] == pytest.approx(
        log["gradient_norm"], rel=1e-5
    )
    pictures = events.Images("tgdd/synthetic")
    assert [picture.step for picture in pictures] == [0, 6, 12]
    for picture in pictures:
        pixels = np.array(Image.open(io.BytesIO(picture.encoded_image_string)))
        assert len(np.unique(pixels)) > 50 and pixels.mean() < 250, "not white"
    (nested,) = [place for place in folder.iterdir() if place.is_dir()]
    content = read(nested).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    noted = HParamsPluginData.FromString(content).session_start_info.hparams
    assert noted["steps"].string_value == "12" and noted["start"].string_value == '"mix"'


def test_tensorboard_names_the_trainings(trajectory, pool, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=1))
    how = {"passes": 6, "batch_size": 3, "seeds": 2, "full_epochs": 0, "at_once": False}
    retrain(path, pool, how, device="cpu", progress_bar=False, loggers={"tensorboard": str(tmp_path / "events")})
    record(
        tmp_path / "t", pool, tiny, HOW, device="cpu", progress_bar=False, loggers={"tensorboard": str(tmp_path / "e")}
    )
    names = sorted(str(place.relative_to(tmp_path)) for place in tmp_path.glob("e*/*/*") if place.is_dir())
    assert names == ["e/t/seed0", "events/a/ConvNet-distilled-hard-seed0", "events/a/ConvNet-distilled-hard-seed1"]


def test_mlflow_reads_losses_pictures_and_settings_of_one_resumed_run(trajectory, pool, tmp_path, monkeypatch, bare):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    pytest.importorskip("alembic", reason="MLflow's SQLite store is not installed")
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    options = {"loggers": {"mlflow": uri, "image_interval": 6}, "checkpoint_interval": "5ba"}
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", callbacks=[Crash(8)], **options)
    assert run(trajectory, pool, tmp_path / "a.beton", **options).read_bytes() == bare
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("tgdd").experiment_id])
    assert found.data.params["steps"] == "12" and found.info.run_name.startswith("distill-a-")
    metrics = {entry.step: entry.value for entry in client.get_metric_history(found.info.run_id, "loss/train/total")}
    log = read_log(tmp_path / "a-log.csv")
    assert sorted(metrics) == list(range(12))
    assert [metrics[step] for step in range(12)] == pytest.approx(log["loss"], rel=1e-5)
    pictures = [artifact.path for artifact in client.list_artifacts(found.info.run_id, "images")]
    whole = [path for path in pictures if path.endswith(".png") and "compressed" not in path]
    # Weights & Biases and MLflow keep what is logged again after a resumption twice.
    assert {path.partition("+step+")[2].partition("+")[0] for path in whole} == {"0", "6", "12"}
    with Image.open(client.download_artifacts(found.info.run_id, whole[-1])) as picture:
        assert len(np.unique(np.array(picture))) > 50


def wandb_records(data, block=2**15):
    """The records of a file of Weights & Biases: its header, then LevelDB's log format (block by block)."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        if (left := block - position % block) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_offline_keeps_losses_and_settings(trajectory, pool, tmp_path, monkeypatch, bare):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    loggers = {"wandb": "tgdd", "image_interval": 0}  # for pictures, it asks a server even when it is offline
    assert run(trajectory, pool, tmp_path / "a.beton", loggers=loggers).read_bytes() == bare
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    losses, config = {}, {}
    for record_ in map(Record.FromString, wandb_records(file.read_bytes())):
        config |= {update.key: update.value_json for update in record_.config.update}
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record_.history.item}
        if "loss/train/total" in items:
            losses[int(items["_step"])] = float(items["loss/train/total"])
    assert list(losses) == list(range(12))
    assert list(losses.values()) == pytest.approx(read_log(tmp_path / "a-log.csv")["loss"], rel=1e-5)
    assert config["steps"] == "12" and config["start"] == '"mix"'


@pytest.mark.parametrize("package", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_told_before_any_work(package, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = f"`loggers.{package}` must be null where the package {package} is not installed, got 'x'"
    with pytest.raises(InputError, match=rf"{message}. Leave it out, or: pip install 'mosaicml\[{package}\]'"):
        LoggerSettings(**{package: "x"}).check_installed()
    with pytest.raises(InputError, match=message):
        record(tmp_path / "t", None, tiny, loggers={package: "x"})
    LoggerSettings().check_installed()


def test_a_logger_that_cannot_be_set_up_is_left_out(trajectory, pool, tmp_path, monkeypatch, bare):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)

    def refuses(*args, **kwargs):
        raise ConnectionError("no server there")

    monkeypatch.setattr("tgdd_plugin.logs.destinations.MLFlowLogger", refuses)
    with pytest.warns(UserWarning, match="mlflow cannot be set up, and is left out.*ConnectionError: no server there"):
        path = run(trajectory, pool, tmp_path / "a.beton", loggers={"mlflow": "http://localhost:1"})
    assert path.read_bytes() == bare and (tmp_path / "a-log.csv").is_file()


class Rates(Callback):
    """Keeps the learning rate of each step of the optimizer."""

    def __init__(self):
        self.used = []

    def fit_start(self, state, logger):
        state.optimizers[0].register_step_post_hook(
            lambda optimizer, *_: self.used.append(optimizer.param_groups[0]["lr"])
        )


@pytest.mark.parametrize("schedule", ["steps", "one-cycle"])
def test_a_training_logs_the_rates_that_its_steps_were_made_at(pool, tmp_path, schedule):
    rates, logger = Rates(), InMemoryLogger()
    options = {"device": "cpu", "progress_bar": False, "trainer_options": {"callbacks": [rates]}}
    record(tmp_path / "t", pool, tiny, {**HOW, "schedule": schedule}, loggers=[logger], **options)
    rows = rows_of(tmp_path / "t" / "seed0-log.csv")
    assert len(set(rates.used)) > 2
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates.used, rel=1e-6)
    logged = {name: [int(at.batch) for at, _ in logger.data[name]] for name in ("lr-SGD/group0", "loss/train/total")}
    assert logged["lr-SGD/group0"] == logged["loss/train/total"] == list(range(len(rows)))


def test_recordings_have_a_log_for_each_run(pool, tmp_path):
    kept = record(tmp_path / "kept", pool, tiny, {**HOW, "runs": 2}, device="cpu", progress_bar=False)
    off = {"loggers": {"csv": False}, "device": "cpu", "progress_bar": False}
    bare = record(tmp_path / "bare", pool, tiny, {**HOW, "runs": 2}, **off)
    assert not list((tmp_path / "bare").glob("*.csv")) and kept.checksums == bare.checksums
    for run_folder, noted in kept.runs.items():
        rows = rows_of(tmp_path / "kept" / f"{run_folder.name}-log.csv")
        assert list(rows[0]) == ["step", "loss", "learning_rate", "accuracy", "seconds"]
        assert [int(row["step"]) for row in rows] == list(range(1, 9))
        losses = [float(row["loss"]) for row in rows[4:]]
        assert np.mean(losses) == pytest.approx(noted.stages[-1].metrics["loss/train/total"], rel=1e-5)
        assert 0 <= float(rows[-1]["accuracy"]) <= 1


@pytest.mark.parametrize("at_once", [False, True])
def test_retraining_has_one_log_and_a_row_that_is_made_again_has_its_rows_once(
    trajectory, pool, tmp_path, monkeypatch, at_once
):
    path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=1))
    how = {"passes": 12, "batch_size": 3, "seeds": 2, "full_epochs": 0, "at_once": at_once}
    options = {"results": tmp_path / "r.json", "device": "cpu", "progress_bar": False}
    plain = retrain(path, pool, how, real=pool, device="cpu", progress_bar=False)
    assert not list(tmp_path.glob("r*"))
    rows = retrain(path, pool, how, real=pool, **options)
    assert [row.accuracies for row in rows] == [row.accuracies for row in plain]
    log = rows_of(tmp_path / "r-log.csv")
    assert list(log[0])[:6] == ["network", "trained_on", "labels", "seeds", "step", "loss"]
    names = ["distilled", "random", "full data, equal passes"]
    seeds = ["0-1"] if at_once else ["0", "1"]
    wanted = [(name, seed, str(step)) for name in names for seed in seeds for step in range(1, 5)]
    assert [(row["trained_on"], row["seeds"], row["step"]) for row in log] == wanted
    assert all(0 < float(row["loss"]) < 3 for row in log), "the mean over networks, not their sum"
    (tmp_path / "r.json").unlink()
    retrain(path, pool, how, **options)
    again = rows_of(tmp_path / "r-log.csv")
    assert sorted((row["trained_on"], row["seeds"], row["step"]) for row in again) == sorted(wanted)
