"""The CSV log of a distillation, read by the csv module, against what a logger of Composer's own and a callback see."""

import csv
from dataclasses import replace

import pytest
import torch
from composer import Callback
from composer.loggers import InMemoryLogger

from tests.patterned import SETTINGS, Crash, run
from tgdd_plugin import InputError
from tgdd_plugin.logs.csv_logger import CSVLogger
from tgdd_plugin.logs.log_file import read_log

LAST = ["probe_accuracy", "seconds"]


class GradientNorms(Callback):
    """The norm of the pixels' gradient in each step, computed here."""

    def __init__(self):
        self.seen = []

    def after_train_batch(self, state, logger):
        self.seen.append(sum(float(value) ** 2 for value in state.model.synthetic.pixels.grad.flatten()) ** 0.5)


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_row_for_each_step_with_what_composer_logs(trajectory, pool, tmp_path):
    logger, norms = InMemoryLogger(), GradientNorms()
    run(trajectory, pool, tmp_path / "a.beton", loggers=[logger], callbacks=[norms])
    rows = rows_of(tmp_path / "a-log.csv")
    assert list(rows[0]) == ["step", "loss", "match", "constraint", "learning_rate", "gradient_norm", *LAST]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    for column, metric in [("loss", "total"), ("match", "match"), ("constraint", "constraint")]:
        logged = [float(value) for _, value in logger.data[f"loss/train/{metric}"]]
        assert [float(row[column]) for row in rows] == pytest.approx(logged, rel=1e-6)
    assert [float(row["gradient_norm"]) for row in rows] == pytest.approx(norms.seen, rel=1e-4)
    assert {row["learning_rate"] for row in rows} == {"0.5"}
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds) and seconds[-1] > 0
    assert read_log(tmp_path / "a-log.csv")["step"] == list(range(1, 13))


def test_a_resumed_run_loses_and_repeats_no_row_and_the_images_are_those_without_a_log(trajectory, pool, tmp_path):
    whole = run(trajectory, pool, tmp_path / "whole.beton")
    path, log = tmp_path / "a.beton", tmp_path / "a-log.csv"
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, callbacks=[Crash(8)], checkpoint_interval="5ba")
    before = rows_of(log)
    assert [int(row["step"]) for row in before] == list(range(1, 8)), "steps after the checkpoint at 5 are there, too"
    with log.open("a") as file:
        file.write("8,0.1")  # as if the power had failed
    run(trajectory, pool, path, checkpoint_interval="5ba")
    assert without_seconds(rows_of(log)) == without_seconds(rows_of(tmp_path / "whole-log.csv"))
    assert rows_of(log)[4] == before[4], "rows up to the checkpoint stay as they were"
    bare = run(trajectory, pool, tmp_path / "bare.beton", loggers={"csv": False})
    assert not (tmp_path / "bare-log.csv").exists()
    assert path.read_bytes() == whole.read_bytes() == bare.read_bytes()


def test_another_job_begins_the_log_anew_and_a_finished_one_leaves_it(trajectory, pool, tmp_path):
    path, log = tmp_path / "a.beton", tmp_path / "a-log.csv"
    run(trajectory, pool, path)
    run(trajectory, pool, path, replace(SETTINGS, steps=3, alpha=0), overwrite=True)
    rows = rows_of(log)
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert {row["constraint"] for row in rows} == {""}, "not measured"
    content = log.read_bytes()
    run(trajectory, pool, path, replace(SETTINGS, steps=3, alpha=0))
    assert log.read_bytes() == content


@pytest.mark.parametrize("content", ["name,age\nI,3\n", b"\xff\x00\n"])
def test_a_file_of_the_users_is_not_replaced_and_the_work_goes_on(trajectory, pool, tmp_path, content):
    log = tmp_path / "a-log.csv"
    content = content if isinstance(content, bytes) else content.encode()
    log.write_bytes(content)
    with pytest.warns(UserWarning, match="CSVLogger failed.*a-log.csv' is there already.*Move it away") as caught:
        path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=2))
    assert sum(issubclass(warning.category, UserWarning) for warning in caught) == 1  # others are not ours
    assert path.is_file() and log.read_bytes() == content


def test_a_long_run_has_rows_for_some_steps_and_the_last(trajectory, pool, tmp_path):
    logger = CSVLogger(tmp_path / "few.csv", {"loss": "loss/train/total"}, most=5)
    run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=11), loggers=[logger])
    few, all_rows = rows_of(tmp_path / "few.csv"), rows_of(tmp_path / "a-log.csv")
    assert [int(row["step"]) for row in few] == [3, 6, 9, 11]
    assert [row["loss"] for row in few] == [all_rows[int(row["step"]) - 1]["loss"] for row in few]


def test_rows_about_something_else_are_kept(trajectory, pool, tmp_path):
    for about in ("one", "two", "one"):
        logger = CSVLogger(tmp_path / "log.csv", {"loss": "loss/train/total"}, about={"name": about})
        options = {"loggers": [logger], "overwrite": True}
        run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=2, seed=len(about)), **options)
        (tmp_path / "a.beton").unlink()
    assert [(row["name"], row["step"]) for row in rows_of(tmp_path / "log.csv")] == [
        *[("two", "1"), ("two", "2")],
        *[("one", "1"), ("one", "2")],
    ]


def test_a_damaged_log_is_told(tmp_path):
    log = tmp_path / "a-log.csv"
    assert read_log(log) == {}
    log.write_text("step,loss\n1,0.5\n2,\n3,x\n")
    with pytest.raises(InputError, match="is damaged"):
        read_log(log)
    log.write_text("step,loss\n1,0.5\n2,\n3,0")
    assert torch.tensor(read_log(log)["loss"]).isnan().tolist() == [False, True]
