"""The steps of a job, as the command line does them: each says what it wrote, and keeps what is there already."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.compatibility import input_shape
from tgdd_plugin.distillation.distiller import distill, is_distilled
from tgdd_plugin.evaluation import comparison, tables
from tgdd_plugin.nas import ranking
from tgdd_plugin.networks.factory import network_factory, recorded_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe, recipe_text
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.recording.runs import JOB, is_foreign, record
from tgdd_plugin.replay.learner import learn
from tgdd_plugin.replay.policies import replay_policy
from tgdd_plugin.replay.tasks import split_classes
from tgdd_plugin.trajectory.store import Trajectory

ON_FILE = ("retrain", "evaluate", "nas")
"""Steps that take a ``.beton`` in place of a recipe."""


Data = Callable[[], tuple[ImagePool, ImagePool]]


def work(step: str, path: str, overrides: list[str]) -> None:
    """Does one step of a job, or all of them.

    Args:
        step: ``'run'``, ``'record'``, ``'distill'``, ``'retrain'``, ``'evaluate'``, ``'replay'`` or ``'nas'``.
        path: A recipe, or what the step takes in its place (a trajectory folder, a ``.beton``).
        overrides: Of the recipe's keys, as ``section.key=value``.

    Raises:
        InputError: If any of it cannot be used.
    """
    if step == "distill" and Path(path).is_dir():
        # Without a word about data the folder itself is all there is to distill from.
        named = any(override.startswith("data.") for override in overrides)
        source = [] if named else ["distill.source=recorded"]
        recipe = read_recipe(None, [f"trajectory={json.dumps(path)}", *source, *overrides])
    elif step in ON_FILE and path.endswith(".beton"):
        recipe = read_recipe(None, [f"file={json.dumps(path)}", *overrides])
    elif not Path(path).exists() and Path(path).suffix not in (".yaml", ".yml"):
        wanted = (
            "a trajectory folder or "
            if step == "distill"
            else ""
            if step in ("run", "record", "replay")
            else "a .beton or "
        )
        raise InputError(f"there is no '{path}'; wanted {wanted}a recipe (YAML)")
    else:
        recipe = read_recipe(path, overrides)
    # Found out now, and not after hours of work or of reading images.
    if step == "run":
        check_writable(recipe.beton)
    elif step == "replay":
        check_writable(Path(recipe.output) / "scores.json")
    elif step in ON_FILE:
        read_card(recipe.beton)
    data = functools.cache(lambda: load_data(recipe.data, progress=True))  # read once, by the first that needs it
    if step in ("run", "record"):
        _record(recipe, data, keep=step == "run")
    if step in ("run", "distill"):
        _distill(recipe, data, keep=step == "run")
    if step in ("run", "retrain"):
        _retrain(recipe, data)
    if step == "evaluate":
        _evaluate(recipe, data)
    if step == "replay":
        _replay(recipe, data)
    if step == "nas":
        _nas(recipe, data)
    if step == "run":  # the job as it was done, overrides included, beside what came of it
        write_whole(Path(recipe.output) / "recipe.yaml", recipe_text(recipe))


def _record(recipe: Recipe, data: Data, keep: bool) -> None:
    folder = recipe.trajectory_folder
    if keep and is_foreign(folder):
        print(f"recorded  {folder}: kept, it was recorded by a Trainer of yours")
        return
    check_writable(folder / JOB)
    real, _ = data()
    network = recipe.network or NetworkSettings()
    job: dict[str, Any] = {"data": asdict(recipe.data), "network": asdict(network), "head": recipe.head}
    if recipe.extra_networks:
        job["extra_networks"] = [asdict(other) for other in recipe.extra_networks]
    trajectory = record(
        folder,
        real,
        [network_factory(each, real.shape, real.num_classes) for each in (network, *recipe.extra_networks)],
        recipe.record,
        head=recipe.head,
        mean=recipe.data.mean,
        std=recipe.data.std,
        job=job,
        seed=recipe.seed,
        device=recipe.device,
    )
    stages = sum(len(run.stages) for run in trajectory.runs.values())
    print(f"recorded  {trajectory.folder}: {len(trajectory.runs)} run(s), {stages} stages")


def _distill(recipe: Recipe, data: Data, keep: bool) -> None:
    trajectory = Trajectory.open(recipe.trajectory_folder)
    check_writable(recipe.beton)
    if recipe.network is None and not recipe.extra_networks:
        for kind in trajectory.representative_runs.values():
            recorded_factory(kind.network)  # what cannot be built is found out before any image is read
    real = None if recipe.distill.source == "recorded" else data()[0]
    if keep and is_distilled(recipe.beton, trajectory, real, recipe.distill):
        print(f"distilled {recipe.beton}: kept, it is of this job")
        return
    shape = real.shape if real else input_shape(trajectory.run)
    given = [recipe.network, *recipe.extra_networks] if recipe.network else recipe.extra_networks
    path = distill(
        trajectory,
        real,
        recipe.beton,
        recipe.distill,
        network=[network_factory(each, shape, trajectory.run.num_classes) for each in given] or None,
        head=recipe.head,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=recipe.device,
    )
    print(f"distilled {path}")


def _retrain(recipe: Recipe, data: Data) -> None:
    real, test = data()
    network = network_factory(recipe.network, real.shape, real.num_classes) if recipe.network else None
    results = recipe.beton.parent / "results.json"
    rows = comparison.retrain(
        recipe.beton,
        test,
        recipe.retrain,
        real=real,
        network=network,
        device=recipe.device,
        seed=recipe.seed,
        results=results,
    )
    print(f"\n{tables.retrain_table(rows)}\n\nresults   {results}")


def _evaluate(recipe: Recipe, data: Data) -> None:
    real, test = data()
    network = network_factory(recipe.network, real.shape, real.num_classes) if recipe.network else None
    trajectory = Trajectory.open(recipe.trajectory) if recipe.trajectory else _own_trajectory(recipe)
    results = recipe.beton.with_name(f"{recipe.beton.stem}-evaluation.json")
    rows = comparison.evaluate(
        recipe.beton,
        test,
        real,
        recipe.evaluate,
        recipe.retrain,
        trajectory=trajectory,
        network=network,
        others=[network_factory(each, real.shape, real.num_classes) for each in recipe.extra_networks]
        if trajectory
        else [],
        device=recipe.device,
        seed=recipe.seed,
        results=results,
    )
    print(f"\n{tables.evaluate_table(rows)}\n\nresults   {results}")


def _own_trajectory(recipe: Recipe) -> Trajectory | None:
    """What lies in the default place, if it is what the file was distilled from: it may be of another job."""
    try:
        trajectory = Trajectory.open(recipe.trajectory_folder)
    except InputError:
        return None
    return trajectory if trajectory.checksums == read_card(recipe.beton).trajectory.get("stages") else None


def _replay(recipe: Recipe, data: Data) -> None:
    if recipe.extra_networks:
        raise InputError("extra_networks has no place in a replay, whose one network goes on from task to task")
    real, test = data()
    network = recipe.network or NetworkSettings()
    mean, std = recipe.data.mean, recipe.data.std
    if mean is None or std is None:
        mean, std = real.statistics()
    folder = Path(recipe.output)
    # Packed, an image of the memory costs what a real one does, also with a factor.
    settings = replace(recipe.distill, packed=recipe.distill.factor > 1)
    tasks, name = split_classes(real, test, recipe.replay), recipe.replay.policy
    policy = replay_policy(name, tasks, settings, Normalization(mean, std), recipe.device)
    job = {"data": asdict(recipe.data), "network": asdict(network), "policy": name}
    if name == "distilled":
        job["distill"] = asdict(settings)
    scores = learn(
        tasks,
        lambda count: network_factory(network, real.shape, count)(),
        folder,
        policy,
        settings.images_per_class,
        recipe.record,
        recipe.replay,
        mean=mean,
        std=std,
        head=recipe.head,
        job=job,
        seed=recipe.seed,
        device=recipe.device,
    )
    table = scores.table()
    write_whole(folder / "scores.md", table + "\n")
    print(f"\n{table}\n\nresults   {folder / 'scores.json'}")


def _nas(recipe: Recipe, data: Data) -> None:
    # Optuna and its database take a second that no other step needs.
    from tgdd_plugin.nas import final_training, optuna_search

    if recipe.nas.train_best and not recipe.retrain.full_epochs:  # now, and not after the search
        raise InputError(final_training.NO_EPOCHS)
    real, test = data()
    results = recipe.beton.with_name(f"{recipe.beton.stem}-nas.json")
    candidates = optuna_search.search(
        recipe.beton,
        real,
        recipe.nas,
        recipe.retrain,
        storage=results.with_suffix(".db"),
        device=recipe.device,
        seed=recipe.seed,
    )
    table, best = ranking.table(candidates, recipe.nas.cost), None

    def write(text: str) -> None:
        # A database's URL may have a password in it.
        settings = {name: value for name, value in asdict(recipe.nas).items() if name != "storage"}
        content: dict[str, Any] = {"file": recipe.beton.name, "settings": settings, "retrain": asdict(recipe.retrain)}
        content |= {"candidates": [each.summary() for each in candidates], "best": best and best.summary()}
        write_whole(results, json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_whole(results.with_suffix(".md"), text + "\n")

    write(table)
    print(f"\n{table}\n\nresults   {results}")
    if recipe.nas.train_best:
        best = final_training.train_best(
            candidates[0],
            recipe.nas,
            recipe.beton,
            real,
            test,
            recipe.retrain,
            output=results.with_suffix(".safetensors"),
            device=recipe.device,
            seed=recipe.seed,
        )
        found = f"The first, trained on the full data: {best.spread} % on the test images."
        write(f"{table}\n\n{found}")
        print(f"\n{found}\n\nweights   {results.with_suffix('.safetensors')}")
