"""A logger that fails ends nothing: there is one warning, and the images are those of a run without it."""

import warnings

import pytest
from composer import Callback, Event
from composer.loggers import InMemoryLogger, LoggerDestination

from tests.patterned import run
from tgdd_plugin.logs.guarding import guarded


class Failing(LoggerDestination):
    """Fails in one of its methods; counts its calls."""

    def __init__(self, method):
        self.calls = 0
        self.method = method

    def _fail(self, method):
        if method == self.method:
            self.calls += 1
            raise ConnectionError(f"no network for {method}")

    def run_event(self, event, state, logger):
        self._fail(event.value)

    def log_metrics(self, metrics, step=None):
        self._fail("log_metrics")

    def log_images(self, *args, **kwargs):
        self._fail("log_images")

    def close(self, state, logger):
        self._fail("close")

    def post_close(self):
        self._fail("post_close")


@pytest.fixture(scope="module")
def whole(trajectory, pool, tmp_path_factory):
    return run(trajectory, pool, tmp_path_factory.mktemp("whole") / "a.beton").read_bytes()


@pytest.mark.parametrize("method", ["init", "log_metrics", "log_images", "batch_end", "close", "post_close"])
def test_one_warning_and_the_same_images(trajectory, pool, tmp_path, whole, method, capfd):
    failing, other = Failing(method), InMemoryLogger()
    with pytest.warns(UserWarning) as caught:
        path = run(trajectory, pool, tmp_path / "a.beton", loggers=[failing, other], image_interval=6)
    ours = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert ours == [
        "the logger Failing failed, and is left out from here on, while the work goes on: ConnectionError: no network "
        f"for {method}"
    ]
    assert failing.calls == 1, "it is asked no more"
    assert path.read_bytes() == whole
    assert len(other.data["loss/train/total"]) == 12
    assert "Traceback" not in capfd.readouterr().err
    failing.method = None
    assert failing.run_event(Event.INIT, None, None) is None and "run_event" not in failing.__dict__


def test_ctrl_c_in_a_logger_and_errors_of_callbacks_end_the_work(trajectory, pool, tmp_path):
    class Interrupted(LoggerDestination):
        def batch_end(self, state, logger):
            raise KeyboardInterrupt

    class Broken(Callback):
        def batch_end(self, state, logger):
            raise RuntimeError("mine")

    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", loggers=[Interrupted()])
    with pytest.raises(RuntimeError, match="mine"):
        run(trajectory, pool, tmp_path / "b.beton", callbacks=[Broken()])


def test_on_several_ranks_an_error_in_setting_up_is_raised(monkeypatch):
    monkeypatch.setattr("tgdd_plugin.logs.guarding.dist.get_world_size", lambda: 2)
    failing = Failing("init")
    with guarded([failing]), pytest.raises(ConnectionError):
        failing.run_event(Event.INIT, None, None)
    failing = Failing("batch_end")
    with warnings.catch_warnings(record=True) as caught, guarded([failing]):
        warnings.simplefilter("always")
        failing.run_event(Event.BATCH_END, None, None)
    assert len(caught) == 1
