"""One line of progress: written over on a terminal, plain and seldom in a file."""

import io
import re
import sys

import pytest
from composer import Callback

from tests.common import make_trainer
from tgdd_plugin.core import progress_bar
from tgdd_plugin.core.progress_bar import ProgressBar
from tgdd_plugin.core.usage import in_words


class Clock(Callback):
    """Time as the progress bar sees it: so many seconds a batch."""

    def __init__(self, monkeypatch, seconds):
        self.now = 0.0
        self.seconds = seconds
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: self.now)

    def after_train_batch(self, state, logger):
        self.now += self.seconds


def lines_of(capsys, monkeypatch, seconds, duration, **options):
    callbacks = [Clock(monkeypatch, seconds), ProgressBar("recording")]
    trainer = make_trainer(max_duration=duration, callbacks=callbacks, **options)
    trainer.fit()
    trainer.close()
    return capsys.readouterr().err.splitlines()


def test_plain_lines_come_seldom_and_say_how_long_it_takes(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # loaded by something, but this is no notebook
    lines = lines_of(capsys, monkeypatch, 2.0, "40ba")  # 80 seconds: every tenth takes 8
    steps = [int(re.match(r"recording: step (\d+) of 40, ", line)[1]) for line in lines]
    assert steps == [5, 10, 15, 20, 25, 30, 35]
    assert re.fullmatch(r"recording: step 10 of 40, loss [\d.e+-]+, 60 s left, [\d.]+ GiB", lines[1])


def test_a_short_training_says_nothing_and_a_long_one_every_ten_minutes(capsys, monkeypatch):
    assert lines_of(capsys, monkeypatch, 0.05, "40ba") == []
    lines = lines_of(capsys, monkeypatch, 350.0, "40ba")  # almost four hours
    assert [int(line.split()[2]) for line in lines] == list(range(2, 40, 2))
    assert "step 4 of 40" in lines[1] and "3.5 h left" in lines[1]


def test_epochs_are_counted_where_the_duration_is_in_epochs(capsys, monkeypatch):
    lines = lines_of(capsys, monkeypatch, 10.0, "5ep")
    assert [line.split(",")[0] for line in lines] == [f"recording: epoch {n} of 5" for n in range(1, 5)]


def test_what_goes_on_from_a_checkpoint_says_so(capsys, monkeypatch, tmp_path):
    lines_of(capsys, monkeypatch, 0.05, "3ba", save_folder=str(tmp_path), save_interval="3ba")
    lines = lines_of(capsys, monkeypatch, 40.0, "8ba", load_path=str(tmp_path / "latest-rank0.pt"))
    assert lines[0] == "recording: goes on after step 3 of 8"
    assert [int(line.split()[2]) for line in lines[1:]] == [4, 5, 6, 7] and ", 3 min left" in lines[1]


def test_a_terminal_has_one_line(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress_bar, "tqdm", lambda **options: Bar(**{**options, "file": terminal, "mininterval": 0}))
    from tqdm import tqdm as Bar

    trainer = make_trainer(max_duration="8ba", callbacks=[ProgressBar("distilling")])
    trainer.fit()
    trainer.close()
    text = terminal.getvalue()
    assert "\n" not in text.rstrip("\n") and re.search(r"distilling: .*8/8 .*loss [\d.e+-]+, [\d.]+ GiB", text)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (150, "2 min"), (5990, "100 min"), (9000, "2.5 h")]
)
def test_durations(seconds, words):
    assert in_words(seconds) == words
