"""What is kept of the images on their way: as they were, also after a crash, and no more than a look needs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composer import Callback
from PIL import Image

from tests.patterned import SETTINGS, Crash, run, tiny
from tgdd_plugin import ImagePool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.data.film_strip import MOST_FRAMES, read_strip
from tgdd_plugin.distillation.evolution import Evolution, moments
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory, pool: ImagePool) -> Trajectory:
    folder = tmp_path_factory.mktemp("trajectory")
    return record(folder, pool, tiny, RecordSettings(epochs=1), device="cpu", progress_bar=False)


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 10_000, 10**6])
def test_the_start_the_end_and_a_few_between(steps: int) -> None:
    found = moments(steps)
    assert found[0] == 0 and found[-1] == steps and found == sorted(set(found)) and len(found) <= MOST_FRAMES


class Looks(Callback):
    """All decoded images after every step."""

    def __init__(self) -> None:
        self.seen: dict[int, torch.Tensor] = {}

    def fit_start(self, state, logger):
        self.batch_end(state, logger)

    def batch_end(self, state, logger):
        self.seen[state.timestamp.batch.value] = state.model.synthetic.to_uint8()[0]


@pytest.mark.parametrize("ema", [None, "3ba"])
def test_the_strip_shows_the_images_as_they_were(trajectory: Trajectory, pool: ImagePool, tmp_path: Path, ema) -> None:
    looks = Looks()
    settings = replace(SETTINGS, ema=ema)
    path = run(trajectory, pool, tmp_path / "a.beton", settings, callbacks=[looks], picture=tmp_path / "a.svg")
    strip = read_strip(tmp_path / "a-evolution.png")
    assert strip.steps == moments(SETTINGS.steps)
    (width, height), columns = strip.size, len(strip.labels)
    with Image.open(io.BytesIO(strip.png)) as picture:
        pixels = torch.tensor(list(picture.getdata()), dtype=torch.uint8).view(
            len(strip.steps), height, width * columns, 3
        )
    final, labels = read_beton(path)
    for row, step in enumerate(strip.steps):
        images = final if step == SETTINGS.steps else looks.seen[step]
        own = [images[labels == label] for label in range(3)]
        each = columns // 3
        wanted = [of[i * len(of) // each] for of in own for i in range(each)]
        assert torch.equal(pixels[row], torch.cat([image.permute(1, 2, 0) for image in wanted], dim=1))


def test_a_killed_run_ends_with_the_same_strip(trajectory: Trajectory, pool: ImagePool, tmp_path: Path) -> None:
    run(trajectory, pool, tmp_path / "whole" / "a.beton", SETTINGS, picture=tmp_path / "whole" / "a.svg")
    options = {"checkpoint_interval": "5ba", "picture": tmp_path / "killed" / "a.svg"}
    path = tmp_path / "killed" / "a.beton"
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, SETTINGS, callbacks=[Crash(8)], **options)
    assert not (tmp_path / "killed" / "a-evolution.png").exists()
    run(trajectory, pool, path, SETTINGS, **options)
    whole, killed = (read_strip(tmp_path / name / "a-evolution.png") for name in ("whole", "killed"))
    assert whole == killed and len(whole.steps) > 6


def test_without_a_picture_nothing_is_kept(trajectory: Trajectory, pool: ImagePool, tmp_path: Path) -> None:
    run(trajectory, pool, tmp_path / "a.beton", SETTINGS)
    assert not list(tmp_path.glob("*.png"))


def test_the_state_of_a_callback_is_its_frames() -> None:
    first, second = (Evolution(SyntheticImages(torch.rand(2, 1, 1, 4, 4)), 5) for _ in range(2))
    first.frames = {0: torch.zeros(2)}
    second.load_state_dict(first.state_dict())
    assert second.frames is not first.frames and torch.equal(second.frames[0], first.frames[0])
