"""A search on random real images in place of the file's, and one that is ranked by more than accuracy."""

import json
import pickle
import re

import pytest
import torch

from tests.nas.shades import REAL, RECIPE, K, pool, search
from tgdd_plugin import cli
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.scorer import random_images
from tgdd_plugin.nas import search_job
from tgdd_plugin.nas.costs import flops
from tgdd_plugin.nas.search_space import candidate_builder
from tgdd_plugin.nas.settings import NasSettings


def as_set(images):
    return {tuple(image.flatten().tolist()) for image in images}


def test_candidates_are_trained_on_as_many_random_images_other_ones_for_each_seed(beton, tmp_path, monkeypatch):
    given = []
    measure = search_job.measure
    monkeypatch.setattr(search_job, "measure", lambda *every: given.append(every[3]) or measure(*every))
    found = search(beton, tmp_path, candidates=2, images="random")
    assert all(len(each.accuracies) == 2 and not each.problem for each in found)
    judge = as_set(REAL.split(0.3, torch.Generator().manual_seed(0))[1].images)
    of_seed = [given[0](seed) for seed in (0, 1)]
    for images, labels in of_seed:
        assert labels.bincount().tolist() == [4] * K  # as the file has
        assert as_set(images) <= as_set(REAL.images) - judge
        real = {
            tuple(image.flatten().tolist()): int(label) for image, label in zip(REAL.images, REAL.labels, strict=True)
        }
        assert [real[tuple(image.flatten().tolist())] for image in images] == labels.tolist()
    assert as_set(of_seed[0][0]) != as_set(of_seed[1][0])
    assert all(torch.equal(given[0](0)[0], other(0)[0]) for other in given)  # the same for every candidate
    monkeypatch.setattr(search_job, "measure", lambda *_: pytest.fail("trained again"))
    assert search(beton, tmp_path, candidates=2, images="random") == found


def test_a_study_of_other_images_is_refused(beton, tmp_path):
    search(beton, tmp_path, candidates=1)
    with pytest.raises(InputError, match=r"of another search \(images was None and is now 'random, .*nas.study"):
        search(beton, tmp_path, candidates=1, images="random")


def test_a_job_brings_its_images_to_another_process(beton):
    images, labels = random_images(REAL, 2, 5)
    arrays = REAL.images.numpy(), REAL.labels.numpy(), REAL.classes
    job = search_job.SearchJob("", beton, arrays, {5: [images.numpy(), labels.numpy()]}, NasSettings(), None, "cpu", 5)
    there = pickle.loads(pickle.dumps(job)).training_images(5)
    assert torch.equal(there[0], images) and torch.equal(there[1], labels)


def test_random_images_of_a_number_for_each_class():
    real = pool(30, 3)
    images, labels = random_images(real, [1, 0, 10], 0)
    assert labels.bincount(minlength=K).tolist() == [1, 0, 10] and len(as_set(images)) == 11
    few = ImagePool(real.images[:4], torch.tensor([0, 0, 0, 2]), real.classes)
    assert random_images(few, [2, 0, 2], 0)[1].tolist() == [0, 0, 2]  # of a rare class all
    with pytest.raises(InputError, match=r"Class 1 \('grey'\) has no real images, 3 were asked for the random ones"):
        random_images(few, [2, 1, 3], 0)
    with pytest.raises(InputError, match="distill at most images_per_class=3"):
        random_images(few, [4, 0, 1], 0)


def test_a_study_without_costs_gets_them_where_they_rank(beton, tmp_path, monkeypatch):
    measure = search_job.measure

    def earlier(*given):
        found = measure(*given)
        found.flops = found.synflow = None
        return found

    monkeypatch.setattr(search_job, "measure", earlier)
    first = search(beton, tmp_path, candidates=2)
    assert all(each.flops is None for each in first)
    found = search(beton, tmp_path, candidates=2, rank_by=["flops", "accuracy"])
    build = candidate_builder(NasSettings(factory="tests.common:TinyNetwork"), found[0].arguments, (1, 8, 8), K)
    assert {each.flops for each in found} == {flops(build(), (1, 8, 8))}
    latencies = {each.name: each.latency for each in first}
    assert all(each.latency == latencies[each.name] for each in found)


def test_the_command_ranks_by_several_things(beton, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    text = RECIPE.format(output=tmp_path, file=beton).replace("channels: [1], norm: [false, true]", "channels: [1]")
    recipe.write_text(text)
    chosen = ["nas.images=random", "nas.rank_by=[accuracy, flops, synflow]"]
    assert cli.main(["nas", str(recipe), *chosen]) == 0
    head = capsys.readouterr().out.splitlines()[1]
    assert re.split(r"  +", head)[:7] == [
        "rank",
        "network",
        "accuracy %",
        "mean rank",
        "parameters",
        "MFLOPs",
        "synflow",
    ]
    content = json.loads((tmp_path / "few-nas.json").read_text())
    assert content["settings"]["rank_by"] == ["accuracy", "flops", "synflow"]
    assert content["settings"]["images"] == "random"
    assert content["candidates"][0]["flops"] > 0 and content["candidates"][0]["synflow"] > 0
    for wrong, message in [
        ("nas.rank_by=[]", "`nas.rank_by` must be a non-empty list"),
        ("nas.rank_by=[money]", "`nas.rank_by[0]` must be one of accuracy, parameters, flops, synflow, got 'money'"),
        ("nas.rank_by=[flops, flops]", "`nas.rank_by` must be a list with each value once"),
        ("nas.images=real", "`nas.images` must be one of file, random, got 'real'"),
    ]:
        assert cli.main(["nas", str(recipe), wrong]) == 2
        assert message in capsys.readouterr().err
