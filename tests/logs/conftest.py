import pytest

from tests.patterned import patterned, tiny
from tgdd_plugin import ImagePool
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory


@pytest.fixture(scope="session")
def pool() -> ImagePool:
    return patterned()


@pytest.fixture(scope="session")
def trajectory(tmp_path_factory: pytest.TempPathFactory, pool: ImagePool) -> Trajectory:
    settings = RecordSettings(epochs=2, batch_size=16, learning_rate=0.05)
    return record(tmp_path_factory.mktemp("trajectory"), pool, tiny, settings, device="cpu", progress_bar=False)
