"""record(): what it hands to the Trainer of each run."""

from dataclasses import asdict

import pytest
import torch
from composer import Callback
from composer.loggers import InMemoryLogger

from tests.common import TinyNetwork
from tests.nas.shades import pool
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.networks import convnet
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings, as_recorded


class Counter(Callback):
    """Counts the trainings that it sees."""

    trainings = 0

    def fit_start(self, state, logger):
        self.trainings += 1


def test_a_logger_given_as_a_trainer_option_sees_every_run(tmp_path):
    settings = RecordSettings(epochs=2, batch_size=8, augmentation="none", cutmix=0.0, runs=2)
    logger, counter = InMemoryLogger(), Counter()
    options = {"device": "cpu", "progress_bar": False}
    seen = record(
        tmp_path / "seen",
        pool(24, 1),
        TinyNetwork,
        settings,
        trainer_options={"loggers": [logger], "callbacks": counter},
        **options,
    )
    assert counter.trainings == 2 and len(logger.data["loss/train/total"]) == 2 * 2 * 3  # runs, epochs, batches
    plain = record(tmp_path / "plain", pool(24, 1), TinyNetwork, settings, **options)
    for one, other in zip(seen.runs.items(), plain.runs.items(), strict=True):  # and the same stages are recorded
        for stage, twin in zip(one[1].stages, other[1].stages, strict=True):
            weights, same = seen.load(one[0], stage), plain.load(other[0], twin)
            assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())


def test_a_recording_of_the_earlier_number_of_exemplars_is_the_same_job():
    now = asdict(RecordSettings())
    for earlier, kept in ((40, 100), (7, 7), (100, 100)):
        assert as_recorded({**now, "exemplars": earlier}, now)["exemplars"] == kept
    own = asdict(RecordSettings(exemplars=12))
    assert as_recorded({**now, "exemplars": 40}, own)["exemplars"] == 40, "that is another number than was asked for"


def test_images_of_one_class_are_refused_before_anything_is_written(tmp_path):
    one = ImagePool(pool(24, 1).images, torch.zeros(24), ["dark"])
    with pytest.raises(InputError, match="must be of at least 2 classes, got class 'dark' alone"):
        record(tmp_path / "t", one, lambda: TinyNetwork(num_classes=1), device="cpu", progress_bar=False)
    assert not (tmp_path / "t").exists()


def test_images_that_are_not_square_are_told_where_the_network_takes_no_others(tmp_path):
    wide = ImagePool(torch.zeros(4, 1, 8, 12, dtype=torch.uint8), torch.arange(4) % 2)
    wanted = "convnet and vit take square images alone: choose another one, .*data.image_size"
    with pytest.raises(InputError, match=wanted):
        record(tmp_path / "t", wide, lambda: convnet(2, 1, 8, depth=1, width=4), device="cpu", progress_bar=False)
    with pytest.raises(InputError, match="Build it for as many channels, pixels and classes"):
        record(tmp_path / "t", pool(24, 1), lambda: convnet(2, 1, 4, depth=1), device="cpu", progress_bar=False)
