"""The search: each candidate once, by one process or several, killed or not."""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file

from tests.nas import shades
from tests.nas.interrupted import loses_the_first_interrupt
from tests.nas.shades import REAL, RECIPE, SETTINGS, SPACE, TRAINING, K, accuracies, pool, search, states, write_few
from tgdd_plugin import cli
from tgdd_plugin.core.errors import InputError, without_password
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas import final_training, optuna_search, search_job, study_storage, trial_queue, workers
from tgdd_plugin.nas.ranking import Candidate
from tgdd_plugin.nas.search_space import candidate_builder, name_of
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.pipeline.nas_step import results_file
from tgdd_plugin.pipeline.recipe import read_recipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a search that nothing disturbed, and what it found."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, search(write_few(folder), folder)


def test_every_candidate_is_tried_once_and_a_second_call_trains_nothing(beton, whole, monkeypatch):
    folder, found = whole
    assert {each.name for each in found} == {name_of(arguments) for arguments in NasSettings(**SETTINGS).grid()}
    assert [each.row.mean for each in found] == sorted((each.row.mean for each in found), reverse=True)
    assert all(len(each.accuracies) == 2 and not each.problem for each in found)
    monkeypatch.setattr(search_job, "measure", lambda *_: pytest.fail("trained again"))
    assert search(beton, folder) == found
    assert states(folder) == {"COMPLETE": 6}


def test_candidates_are_judged_by_held_out_training_images(beton, tmp_path, monkeypatch):
    judged = []
    measure = search_job.measure
    monkeypatch.setattr(search_job, "measure", lambda *given: judged.append(given[2].test) or measure(*given))
    search(beton, tmp_path, candidates=1)
    expected = REAL.split(0.3, torch.Generator().manual_seed(0))[1]
    assert torch.equal(judged[0].images, expected.images) and len(judged[0]) == 18


def test_a_search_that_was_broken_off_goes_on(beton, tmp_path, monkeypatch, whole):
    expected = accuracies(whole[1])
    tried = []
    measure = search_job.measure

    def interrupted(candidate, *rest):
        tried.append(candidate.name)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return measure(candidate, *rest)

    monkeypatch.setattr(search_job, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(beton, tmp_path)
    assert accuracies(search(beton, tmp_path)) == expected
    assert Counter(tried) == {**dict.fromkeys(expected, 1), tried[2]: 2}


DEATHS = ["search_job.measure", "study_storage.RDBStorage.record_heartbeat"]  # at work, or before it began
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.nas import shades
from tgdd_plugin.nas import search_job, study_storage

study_storage.HEARTBEAT, study_storage.GRACE = 1, 3
for dies in sys.argv[1:]:
    if not (child := os.fork()):
        exec(f"{dies} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)")
        shades.search(Path("few.beton"), Path(dies))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, dies
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a folder for each death, in which a search died of it; forked off one process that imports all."""
    folder = tmp_path_factory.mktemp("killed")
    write_few(folder)
    for dies in DEATHS:
        (folder / dies).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", KILLED, *DEATHS], cwd=folder, env=environment, check=True)
    return folder


@pytest.mark.parametrize("dies", DEATHS)
def test_what_a_killed_process_was_trying_is_taken_up(beton, killed, monkeypatch, dies):
    monkeypatch.setattr(study_storage, "HEARTBEAT", 1)
    monkeypatch.setattr(study_storage, "GRACE", 3)
    folder = killed / dies
    assert states(folder) == {"RUNNING": 1}
    assert len(search(beton, folder)) == 6
    assert states(folder) == {"COMPLETE": 6}


def test_a_candidate_that_kills_its_process_is_given_up(beton, tmp_path, monkeypatch):
    monkeypatch.setattr(study_storage, "HEARTBEAT", 1)
    monkeypatch.setattr(study_storage, "GRACE", 2)
    queue = trial_queue.Queue(str(tmp_path / "q.db"), "q", 1, lambda count, _: [{"x": 1}] * count, {})
    tried = []

    def dies(trial):
        tried.append(queue.killed(trial))
        if len(tried) <= 4:
            queue.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # as others do it after its death
        else:
            queue.note(trial, {})
        return 0.0

    queue.work(dies)
    assert tried == [0, 1, 2, 3, 4]
    monkeypatch.setattr(trial_queue.Queue, "killed", lambda *_: 4)
    with pytest.raises(InputError, match="the process was killed 4 times"):
        search(beton, tmp_path, candidates=1)


def test_processes_share_the_candidates(beton, tmp_path, whole):
    assert accuracies(search(beton, tmp_path, workers=2)) == accuracies(whole[1])
    assert states(tmp_path) == {"COMPLETE": 6}


def test_no_candidate_of_a_queue_is_taken_twice(tmp_path):
    """Four processes on forty short trials: SQLite alone gives some of them to two."""
    code = f"""
import sys
from tgdd_plugin.nas.trial_queue import Queue
queue = Queue({str(tmp_path / "q.db")!r}, "q", 40, lambda count, _: [{{"x": i}} for i in range(count)], {{}})
def attempt(trial):
    x = trial.suggest_categorical("x", list(range(40)))
    print(x, flush=True)
    queue.note(trial, {{}})
    return float(x)
queue.work(attempt)
"""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    printed = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * 4, [err.decode()[-2000:] for _, err in printed]
    tried = [int(x) for out, _ in printed for x in out.split()]
    assert sorted(tried) == list(range(40))


def test_a_candidate_that_fails_is_noted_and_the_search_goes_on(beton, tmp_path):
    found = search(beton, tmp_path, choices={**SPACE, "channels": [1, 2]})
    assert [bool(each.problem) for each in found] == [False] * 6 + [True] * 6
    assert "got an error (RuntimeError" in found[-1].problem
    assert states(tmp_path) == {"COMPLETE": 6, "FAIL": 6}


def test_a_search_in_which_all_fail_is_an_error(beton, tmp_path):
    with pytest.raises(
        InputError,
        match="None of the 2 candidates could be trained; 'channels=[23]' failed: .*[^.][.] Correct the factory or its",
    ):
        search(beton, tmp_path, choices={"channels": [2, 3]})


def test_once_the_factory_is_corrected_all_are_tried_again(beton, tmp_path, monkeypatch):
    settings = {"factory": "tests.nas.shades:build", "choices": {"width": [2, 3]}}
    training = replace(TRAINING, epochs=1, seeds=1)
    with pytest.raises(InputError, match="None of the 2 candidates could be trained"):
        search(beton, tmp_path, training, **settings)
    monkeypatch.setattr(shades, "CORRECT", [True])
    found = search(beton, tmp_path, training, **settings)
    assert len(found) == 2 and not any(each.problem for each in found)
    assert states(tmp_path) == {"FAIL": 2, "COMPLETE": 2}


def test_what_is_below_the_median_gets_one_seed_when_pruned(beton, tmp_path, monkeypatch):
    scores = iter([0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5, 0.1, 0.95, 0.95])
    monkeypatch.setattr("tgdd_plugin.evaluation.scorer.accuracy", lambda *_: next(scores))
    choices = {"channels": [1], "dropout": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}
    found = search(beton, tmp_path, choices=choices, prune=True)
    # Optuna's MedianPruner lets the first five be.
    assert [each.accuracies for each in found if each.pruned] == [[0.1]]
    assert found[0].accuracies == [0.95, 0.95] and found[-1].pruned
    assert states(tmp_path) == {"COMPLETE": 6, "PRUNED": 1}


def test_pruning_needs_a_second_seed(beton, tmp_path):
    with pytest.raises(InputError, match="`retrain.seeds` must be at least 2 for nas.prune, .* got 1. Raise it"):
        search(beton, tmp_path, training=replace(TRAINING, seeds=1), prune=True)
    assert not list(tmp_path.glob("*.db"))


def test_a_sampler_chooses_and_comes_back_at_no_cost(beton, tmp_path, monkeypatch):
    trained = []
    measure = search_job.measure
    monkeypatch.setattr(search_job, "measure", lambda *given: trained.append(given[0].name) or measure(*given))
    found = search(beton, tmp_path, sampler="tpe", candidates=6)
    assert sum(states(tmp_path).values()) == 6
    assert sorted(trained) == sorted(each.name for each in found) and len(set(trained)) == len(trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": {**SPACE, "norm": [True]}}, "is of another search .choices.norm was"),
        ({"candidates": 3}, "`nas.candidates` must be at least 6, as many as the study 'nas' has, got 3. Give that"),
        (
            {"training": RetrainSettings(protocol="paper", epochs=4, batch_size=4, learning_rate=0.1, seeds=2)},
            "training.epochs was 3 and is now 4",
        ),
    ],
)
def test_the_study_of_another_search_is_refused(beton, tmp_path, whole, change, message):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(InputError, match=message):
        search(beton, tmp_path, **change)
    assert len(search(beton, tmp_path, study="another", **{"candidates": 1, **change})) in (1, 3)


def test_what_does_not_matter_to_candidates_may_change(beton, whole):
    folder, first = whole
    training = replace(TRAINING, full_epochs=7, at_once=False)
    assert search(beton, folder, training=training, workers=3, cost="latency") == first


@pytest.mark.parametrize(
    "where",
    [
        "nowhere://user@host/base",
        "sqlite://host:port/base",
        "picture.png",
        "picture.png/nas.db",
        "picture.png/a/nas.db",
        "sqlite://",
    ],
)
def test_a_place_that_is_none_is_refused(beton, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    Path("picture.png").write_bytes(b"\x89PNG" * 100)
    with pytest.raises(InputError, match=f"'{where}' cannot be used for a study .*[.] Name a new file"):
        search(beton, tmp_path, storage=where)


def test_a_study_left_half_made_is_taken_up(beton, tmp_path):
    with study_storage.quiet():
        optuna.create_study(storage=study_storage.open_storage(str(tmp_path / "nas.db")), study_name="nas")
    assert len(search(beton, tmp_path)) == 6


def test_no_connection_stays_open_behind_a_search(tmp_path):
    """Python 3.13 warns of each that it collects. Here none is collected, as the queue is still there."""
    place = tmp_path / "q.db"
    queue = trial_queue.Queue(str(place), "q", 1, lambda count, _: [{"x": 1}] * count, {})
    queue.work(lambda trial: queue.note(trial, {}) or 0.0)
    assert len(queue.tried()) == 1 and str(place) not in [file.path for file in psutil.Process().open_files()]


def test_a_process_that_was_taken_for_dead_goes_on(beton, tmp_path, monkeypatch):
    """As after an hour's sleep: the others have failed its trial, and its result comes too late."""
    measure, slept = search_job.measure, []

    def sleepy(candidate, *rest):
        found = measure(candidate, *rest)
        if not slept:
            storage = study_storage.open_storage(str(tmp_path / "nas.db"))
            with study_storage.quiet():
                (running,) = optuna.load_study(study_name="nas", storage=storage).get_trials(
                    states=(TrialState.RUNNING,)
                )
            storage.set_trial_state_values(running._trial_id, TrialState.FAIL)
            slept.append(candidate.name)
        return found

    monkeypatch.setattr(search_job, "measure", sleepy)
    assert len(search(beton, tmp_path)) == 6
    assert states(tmp_path) == {"COMPLETE": 6}


def test_an_error_that_is_no_candidates_fault_ends_the_work(tmp_path):
    queue = trial_queue.Queue(str(tmp_path / "q.db"), "q", 1, lambda count, _: [{"x": 1}] * count, {})
    with pytest.raises(InputError, match="my own"):
        queue.work(lambda trial: (_ for _ in ()).throw(InputError("my own")))


@pytest.mark.parametrize("begins", [True, False])
def test_workers_that_end_too_early_are_told(beton, tmp_path, monkeypatch, begins):
    """The advice is about memory where a worker began a candidate, and else about how a script must start them."""

    def dies(trial):
        raise KeyboardInterrupt

    class Process:
        pid = None

        def __init__(self, target, args, daemon):
            self.job = args[0]

        def start(self):
            with contextlib.suppress(KeyboardInterrupt):
                if begins:
                    self.job.queue().work(dies)

        def is_alive(self):
            return False

        def kill(self):
            pass

    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda _: type("Context", (), {"Process": Process}))
    with pytest.raises(InputError, match="All 2 workers ended, and 6 candidates are left") as error:
        search(beton, tmp_path, workers=2)
    assert ("too little memory" in str(error.value)) is begins
    assert ('under `if __name__ == "__main__":`' in str(error.value)) is not begins


def test_a_storage_that_breaks_is_one_clear_line(beton, tmp_path, monkeypatch):
    def locked(*_):
        raise optuna.exceptions.StorageInternalError("database is locked")

    monkeypatch.setattr(trial_queue.Queue, "note", locked)
    with pytest.raises(
        InputError, match="cannot be used any more .StorageInternalError: database is locked.[.] What is in it is kept"
    ):
        search(beton, tmp_path)


@pytest.mark.parametrize("name", ["what?now", "run%3A1", "100%20", "a+b c#d&e@é"])
def test_a_study_lies_in_the_folder_that_was_named_whatever_its_name(tmp_path, name):
    (tmp_path / name).mkdir()
    with study_storage.quiet():
        optuna.create_study(study_name="x", storage=study_storage.open_storage(str(tmp_path / name / "nas.db")))
    assert (tmp_path / name / "nas.db").is_file() and [path.name for path in tmp_path.iterdir()] == [name]


def test_a_seed_that_is_a_date_draws(beton, tmp_path):
    place = tmp_path / "nas.db"
    how = {"storage": place, "device": "cpu", "seed": 20240101, "progress_bar": False}
    settings = NasSettings(**{**SETTINGS, "sampler": "tpe", "candidates": 2})
    assert len(optuna_search.search(beton, REAL, settings, TRAINING, **how)) <= 2


def test_no_password_is_told():
    assert without_password("postgresql://me:secret@host/base") == "postgresql://me:***@host/base"
    assert without_password("nas.db") == "nas.db"


def test_the_best_is_trained_in_full_once(beton, tmp_path, monkeypatch):
    test, output = pool(30, 9), tmp_path / "best.safetensors"
    training = RetrainSettings(protocol="paper", epochs=2, full_epochs=3, seeds=2, learning_rate=0.1)
    space, best = NasSettings(**SETTINGS), Candidate("x", {"channels": 1, "norm": True, "dropout": 0.0})
    arguments = (best, space, beton, REAL, test, training)
    row = final_training.train_best(*arguments, output=output, device="cpu", progress_bar=False)
    assert row.images == 60 and row.epochs == 3 and len(row.accuracies) == 2
    network = candidate_builder(space, best.arguments, (1, 8, 8), K)()
    network.load_state_dict(load_file(output))
    monkeypatch.setattr("tgdd_plugin.evaluation.scorer.train_each", lambda *_, **__: pytest.fail("trained again"))
    assert final_training.train_best(*arguments, output=output, device="cpu", progress_bar=False) == row
    with pytest.raises(InputError, match="`retrain.full_epochs` must be at least 1 .*, got 0[.] Give the epochs"):
        final_training.train_best(
            best, space, beton, REAL, test, RetrainSettings(protocol="paper", full_epochs=0), output=output
        )


def test_the_command_writes_table_results_and_weights(beton, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(output=tmp_path, file=beton))
    assert cli.main(["nas", str(recipe), "nas.train_best=true"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ +1  channels=1 norm=", printed, re.MULTILINE) and "trained on the full data" in printed
    content = json.loads((tmp_path / "few-nas.json").read_text())
    assert len(content["candidates"]) == 2 and content["best"]["images"] == 60
    assert (tmp_path / "few-nas.md").read_text().startswith("| rank |")
    assert (tmp_path / "few-nas.safetensors").is_file() and (tmp_path / "few-nas.db").is_file()
    assert printed.endswith(f"results   {tmp_path / 'few-nas.json'}\n")
    assert cli.main(["nas", str(recipe), "nas.train_best=true"]) == 0
    assert capsys.readouterr().out == printed.rstrip("\n") + ": already done\n"
    written = (tmp_path / "few-nas.md").read_text()
    assert cli.main(["nas", str(recipe)]) == 0  # the same search: the training of its best is kept
    assert "already done" in capsys.readouterr().out
    assert (json.loads((tmp_path / "few-nas.json").read_text()), (tmp_path / "few-nas.md").read_text()) == (
        content,
        written,
    )
    assert cli.main(["nas", str(recipe), "nas.rank_by=[parameters]"]) == 0  # another one has no best yet
    assert json.loads((tmp_path / "few-nas.json").read_text())["best"] is None
    (tmp_path / "few-nas.json").write_text("[" * 200_000)  # nothing of ours, and too deep to be read
    assert cli.main(["nas", str(recipe), "nas.rank_by=[parameters]"]) == 0
    assert json.loads((tmp_path / "few-nas.json").read_text())["file"] == "few.beton"
    capsys.readouterr()
    assert cli.main(["nas", str(recipe), "nas.choices.norm=[]"]) == 2
    assert "`nas.choices.norm` must be a non-empty list" in capsys.readouterr().err


def test_reasons_stand_below_the_printed_table(beton, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(output=tmp_path, file=beton))
    assert cli.main(["nas", str(recipe), "nas.choices.channels=[1,2]", "nas.choices.norm=[false]"]) == 0
    table, reasons = capsys.readouterr().out.strip().split("\n\n")[:2]
    assert max(map(len, table.splitlines())) < 100 and re.search("channels=2 norm=False +failed$", table)
    assert reasons.startswith("channels=2 norm=False failed: `network` must return logits")
    assert "| failed: `network` must return logits" in (tmp_path / "few-nas.md").read_text()


def test_each_study_has_results_of_its_own(beton, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(output=tmp_path, file=beton))
    assert cli.main(["nas", str(recipe)]) == 0
    first = (tmp_path / "few-nas.json").read_bytes()
    assert cli.main(["nas", str(recipe), "nas.study=wider", "nas.choices.dropout=[0.0, 0.5]"]) == 0
    assert (tmp_path / "few-nas.json").read_bytes() == first
    other = json.loads((tmp_path / "few-nas-wider.json").read_text())
    assert len(other["candidates"]) == 4
    assert states(tmp_path, "wider", "few-nas.db") == {"COMPLETE": 4} and states(tmp_path, file="few-nas.db")
    files = [results_file(read_recipe(recipe, [f"nas.study={name}"])).name for name in ("a-b", "a/b", "nas", "'///'")]
    assert files[0] == "few-nas-a-b.json" and files[2] == "few-nas.json" and len(set(files)) == 4
    with study_storage.quiet():
        study = optuna.load_study(study_name="wider", storage=study_storage.open_storage(str(tmp_path / "few-nas.db")))
    for trial in study.get_trials():  # what Optuna's dashboard shows
        matching = next(one for one in other["candidates"] if one["arguments"] == trial.params)
        assert (trial.user_attrs["parameters"], trial.user_attrs["latency"]) == (
            matching["parameters"],
            matching["latency"],
        )


@pytest.mark.parametrize("place", ["record_heartbeat", "set_trial_state_values"])
def test_ctrl_c_while_the_study_is_written_leaves_no_candidate_running(beton, tmp_path, monkeypatch, place):
    """Before a candidate's training, and as its result is written; the first of three times."""
    original, calls = getattr(study_storage.RDBStorage, place), []

    def interrupted(*arguments, **named):
        if not calls:
            calls.append(place)
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **named)

    monkeypatch.setattr(study_storage.RDBStorage, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(beton, tmp_path)
    assert calls and "RUNNING" not in states(tmp_path)
    start = time.monotonic()
    assert len(search(beton, tmp_path)) == 6 and time.monotonic() - start < study_storage.GRACE
    assert states(tmp_path) == {"COMPLETE": 6}


def test_a_worker_that_loses_an_interrupt_gets_another(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "AGAIN", 0.5)
    context = multiprocessing.get_context("spawn")
    begun, place = context.Event(), tmp_path / "told"
    process = context.Process(target=loses_the_first_interrupt, args=(begun, place), daemon=True)
    process.start()
    try:
        assert begun.wait(120)
        workers._stop([process])
        process.join(10)
    finally:
        process.kill()
    assert not process.is_alive() and place.read_text() == "went on, then ended"


def test_ctrl_c_stops_the_workers_and_nothing_is_lost(beton, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(output=tmp_path, file=beton))
    slow = ["retrain.epochs=100000", "retrain.compile=false", "nas.workers=2"]  # no Ctrl-C while it compiles
    command = [sys.executable, "-m", "tgdd_plugin.cli", "nas", str(recipe)]
    place, patience, started = tmp_path / "few-nas.db", time.monotonic() + 240, []
    with subprocess.Popen([*command, *slow], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE) as running:
        try:
            while not (place.is_file() and _running(tmp_path) == 2):
                assert time.monotonic() < patience and running.poll() is None
                time.sleep(0.5)
                started = psutil.Process(running.pid).children(recursive=True)
            running.send_signal(signal.SIGINT)
            error = running.communicate(timeout=120)[1].decode()
        finally:
            for process in [running, *started]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    assert running.returncode == 130 and "interrupted" in error
    assert states(tmp_path, file="few-nas.db") == {}
    assert started and not psutil.wait_procs(started, timeout=5)[1]


def _running(folder):
    try:
        return states(folder, file="few-nas.db")["RUNNING"]
    except (InputError, KeyError):
        return 0
