"""A search that is extended: what was tried stays, and the whole is what it would have been at once."""

import json
import shutil
from dataclasses import replace

import pytest

from tests.nas.shades import RECIPE, SPACE, accuracies, search, states, write_few
from tgdd_plugin import cli
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.nas import search_job
from tgdd_plugin.nas.search_space import name_of
from tgdd_plugin.nas.settings import SearchSpace

CHOICES = {**SPACE, "dropout": [0.0, 0.25, 0.5, 0.75]}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The folder of a search among three candidates, and what it found."""
    folder = tmp_path_factory.mktemp("three")
    return folder, search(write_few(folder), folder, choices=CHOICES, candidates=3)


@pytest.fixture
def begun(three, tmp_path):
    """A copy of that folder, to be written to."""
    return shutil.copytree(three[0], tmp_path / "begun")


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_an_extended_search_is_one_of_that_size_at_once(beton, tmp_path, monkeypatch, sampler):
    trained = []
    measure = search_job.measure
    monkeypatch.setattr(search_job, "measure", lambda *given: trained.append(given[0].name) or measure(*given))
    how = {"choices": CHOICES, "sampler": sampler}
    (tmp_path / "once").mkdir()
    once = search(beton, tmp_path / "once", candidates=6, **how)
    trained.clear()
    few = search(beton, tmp_path, candidates=3, **how)
    more = search(beton, tmp_path, candidates=6, **how)
    assert len(trained) == len(set(trained)) == len(more)  # nothing twice
    assert accuracies(more) == accuracies(once) and [each.name for each in more] == [each.name for each in once]
    kept = {each.name: each for each in more}
    assert [kept[each.name] for each in few] == few  # times included
    assert sum(states(tmp_path).values()) == 6


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_the_same_choices_in_another_order_are_the_same_search(beton, tmp_path, monkeypatch, sampler):
    """Which is the whole that it would have been at once, names included."""

    def rated(candidate, *_):
        candidate.accuracies = [0.9 - candidate.arguments["dropout"] / 2 + candidate.arguments["norm"] / 20]
        return candidate

    monkeypatch.setattr(search_job, "measure", rated)
    (tmp_path / "once").mkdir()
    once = search(beton, tmp_path / "once", choices=CHOICES, candidates=8, sampler=sampler)
    search(beton, tmp_path, choices=CHOICES, candidates=3, sampler=sampler)
    more = search(beton, tmp_path, choices=dict(reversed(CHOICES.items())), candidates=8, sampler=sampler)
    assert [each.name for each in more] == [each.name for each in once]
    assert len(once) == 8 or sampler == "tpe"


def test_workers_extend_a_search_to_the_whole_space(three, begun):
    found = search(begun / "few.beton", begun, choices=CHOICES, workers=2)
    assert {each.name for each in found} == {name_of(each) for each in SearchSpace(choices=CHOICES).grid()}
    assert states(begun) == {"COMPLETE": 8}
    kept = {each.name: each for each in found}
    assert [kept[each.name] for each in three[1]] == three[1]


def test_who_was_asked_for_fewer_helps_and_leaves_the_results_to_the_others(begun, monkeypatch):
    work = search_job.SearchJob.work

    def extended_meanwhile(job, queue, done):
        replace(job, settings=replace(job.settings, candidates=7)).queue().slots()  # as another process does
        work(job, queue, done)

    monkeypatch.setattr(search_job.SearchJob, "work", extended_meanwhile)
    with pytest.raises(InputError, match="`nas.candidates` must be at least 7, as many as the study 'nas' has, got 4"):
        search(begun / "few.beton", begun, choices=CHOICES, candidates=4)
    assert states(begun) == {"COMPLETE": 7}
    monkeypatch.setattr(search_job, "measure", lambda *_: pytest.fail("trained again"))
    assert len(search(begun / "few.beton", begun, choices=CHOICES, candidates=7)) == 7


def test_a_process_that_asked_for_fewer_at_the_same_moment_does_not_shrink_the_search(begun):
    opened = []

    def opens(count):
        def slots(count, _):
            return [{"x": number} for number in range(count)]

        opened.append(search_job.Queue(str(begun / "nas.db"), "other", count, slots, {}))
        return opened[-1]

    few, many = opens(2), opens(5)
    many.slots()
    few.study.set_user_attr("candidates", 2)  # as a process does that looked before another had noted its larger number
    assert len(many.slots()) == len(few.slots()) == 5


def test_a_study_of_an_earlier_version_keeps_its_sample(begun, tmp_path, monkeypatch):
    shutil.copy(begun / "few.beton", tmp_path)
    shutil.copy(begun / "few.beton.yaml", tmp_path)
    space, queue = SearchSpace(choices=CHOICES), search_job.Queue

    def earlier(storage, name, count, slots, about, pruner):
        made = queue(storage, name, count, lambda count, _: space.sample(count), about, pruner)
        made.study.set_user_attr("about", about | {"candidates": count})
        return made

    tried = []
    measure = search_job.measure

    def broken_off(candidate, *rest):
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(candidate.name)
        return measure(candidate, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(search_job, "Queue", earlier)
        patch.setattr(search_job, "measure", broken_off)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "few.beton", tmp_path, choices=CHOICES, candidates=3)
    sample = {name_of(each) for each in space.sample(3)}
    assert set(tried) < sample != {name_of(each) for each in space.sequence(3)}
    with pytest.raises(InputError, match="must be at least 3, as many"):
        search(tmp_path / "few.beton", tmp_path, choices=CHOICES, candidates=2)
    assert {each.name for each in search(tmp_path / "few.beton", tmp_path, choices=CHOICES, candidates=3)} == sample
    more = search(tmp_path / "few.beton", tmp_path, choices=CHOICES, candidates=6)
    assert len(more) == 6 and sample < {each.name for each in more}


def test_the_command_extends_results_and_never_shrinks_them(beton, tmp_path, capsys):
    recipe, results = tmp_path / "recipe.yaml", tmp_path / "few-nas.json"
    recipe.write_text(RECIPE.format(output=tmp_path, file=beton))
    assert cli.main(["nas", str(recipe), "nas.candidates=1"]) == 0
    (first,) = json.loads(results.read_text())["candidates"]
    assert cli.main(["nas", str(recipe)]) == 0
    assert capsys.readouterr().out.endswith(f"results   {results}\n")
    whole = results.read_bytes()
    assert len(json.loads(whole)["candidates"]) == 2 and first in json.loads(whole)["candidates"]
    assert cli.main(["nas", str(recipe), "nas.candidates=1"]) == 2
    assert "`nas.candidates` must be at least 2, as many as the study 'nas' has, got 1." in capsys.readouterr().err
    assert results.read_bytes() == whole
