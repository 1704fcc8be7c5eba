"""A candidate whose training found too little memory is tried once more, last and alone; other errors are final."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.nas.shades import accuracies, search, states
from tgdd_plugin.evaluation.scorer import Scorer
from tgdd_plugin.nas.trial_queue import GivenBack, Queue

SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB.")


@pytest.fixture
def trained(monkeypatch):
    """Returns a function that gives errors to the first candidate, and returns the list of all that are trained."""

    def fails(*errors):
        left, names, score = list(errors), [], Scorer.score

        def scored(scorer, row, *rest):
            names.append(row.name)
            if left and row.name == names[0]:
                raise left.pop(0)
            return score(scorer, row, *rest)

        monkeypatch.setattr(Scorer, "score", scored)
        return names

    return fails


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_what_found_too_little_memory_is_tried_again_last(beton, tmp_path, trained, sampler):
    names = trained(SHORT)
    found = search(beton, tmp_path, candidates=3, sampler=sampler)
    assert {each.name for each in found} == set(names) and not any(each.problem for each in found)
    assert len(names) == len(set(names)) + 1 and names[-1] == names[0]
    assert "FAIL" not in states(tmp_path)
    (tmp_path / "undisturbed").mkdir()
    assert accuracies(found).items() <= accuracies(search(beton, tmp_path / "undisturbed")).items()


@pytest.mark.parametrize(
    ("errors", "tries"),
    [
        ([SHORT, SHORT], 2),
        ([RuntimeError("CUDA error: out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")], 2),
        ([RuntimeError("shapes do not match")], 1),
    ],
)
def test_a_second_lack_of_memory_is_final_and_other_errors_are_at_once(beton, tmp_path, trained, errors, tries):
    names = trained(*errors)
    found = search(beton, tmp_path, candidates=2)
    assert names.count(names[0]) == tries and len(names) == tries + 1
    assert found[-1].name == names[0] and str(errors[-1]) in found[-1].problem and not found[0].problem
    assert search(beton, tmp_path, candidates=2) == found and len(names) == tries + 1


def test_a_candidate_that_two_processes_began_is_given_back_once_and_comes_last(tmp_path):
    queue = Queue(str(tmp_path / "q.db"), "q", 3, lambda count, _: [{"x": x} for x in range(count)], {})
    for _ in range(2):
        queue.study.enqueue_trial({"x": 0}, {"slot": 0})
    tried = []

    def attempt(trial):
        tried.append((trial.suggest_categorical("x", [0, 1, 2]), queue.given_back(trial)))
        if tried[-1] == (0, False):
            raise GivenBack
        queue.note(trial, {})
        return 1.0

    queue.work(attempt)
    assert tried[0] == (0, False) and tried[-1] == (0, True) and sorted(x for x, _ in tried) == [0, 0, 1, 2]


def test_second_tries_are_alone_whichever_process_makes_them(tmp_path):
    code = f"""
import os, time
from pathlib import Path
from tgdd_plugin.nas.trial_queue import GivenBack, Queue
alone = Path({str(tmp_path / "alone")!r})
queue = Queue({str(tmp_path / "q.db")!r}, "q", 8, lambda count, _: [{{"x": i}} for i in range(count)], {{}})
def attempt(trial):
    x = trial.suggest_categorical("x", list(range(8)))
    if not queue.given_back(trial):
        time.sleep(0.1)
        assert not alone.exists()
        raise GivenBack
    alone.touch(exist_ok=False)
    time.sleep(0.3)
    print(x, flush=True)
    alone.unlink()
    queue.note(trial, {{}})
    return float(x)
queue.work(attempt)
"""
    command = [sys.executable, "-c", code]
    place = Path(__file__).parents[2]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=place) for _ in range(3)]
    try:
        printed = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * 3, [err.decode()[-2000:] for _, err in printed]
    assert sorted(int(x) for out, _ in printed for x in out.split()) == list(range(8))
