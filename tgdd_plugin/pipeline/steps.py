"""The steps of a job, as the command line does them: each says what it wrote, and keeps what is there already."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.compatibility import input_shape
from tgdd_plugin.distillation.distiller import distill, is_distilled
from tgdd_plugin.evaluation import comparison, tables
from tgdd_plugin.evaluation.scorer import Row
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

Data = Callable[[], tuple[ImagePool, ImagePool]]
"""Returns train and test images; they are read when they are first asked for."""


def work(step: str, path: str, overrides: list[str]) -> None:
    """Does one step of a job, or all of them.

    Args:
        step: One of :data:`STEPS`.
        path: A recipe, or what the step takes in its place (a trajectory folder, a ``.beton``).
        overrides: Overrides of the recipe's keys, as ``section.key=value``.

    Raises:
        InputError: If the recipe, or what it names, cannot be used.
    """
    recipe = _read_job(step, path, overrides)
    STEPS[step](recipe, functools.cache(lambda: load_data(recipe.data, progress=True)))


def _read_job(step: str, path: str, overrides: list[str]) -> Recipe:
    """Reads a recipe, or makes one for a trajectory folder or a ``.beton``."""
    if step == "distill" and Path(path).is_dir():
        # Without a word about data the folder itself is all there is to distill from.
        named = any(override.startswith("data.") for override in overrides)
        source = [] if named else ["distill.source=recorded"]
        return read_recipe(None, [f"trajectory={json.dumps(path)}", *source, *overrides])
    if step in ON_FILE and path.endswith(".beton"):
        return read_recipe(None, [f"file={json.dumps(path)}", *overrides])
    if not Path(path).exists() and Path(path).suffix not in (".yaml", ".yml"):
        others = {"distill": "a trajectory folder or ", **dict.fromkeys(ON_FILE, "a .beton or ")}
        raise InputError(f"There is no '{path}'. Give {others.get(step, '')}a recipe (YAML).")
    return read_recipe(path, overrides)


def _run(recipe: Recipe, data: Data) -> None:
    check_writable(recipe.beton)  # found out now, and not after hours of work
    _record(recipe, data, keep=True)
    _distill(recipe, data, keep=True)
    _retrain(recipe, data)
    # The job as it was done, overrides included, beside its results.
    write_whole(Path(recipe.output) / "recipe.yaml", recipe_text(recipe))


def _record(recipe: Recipe, data: Data, keep: bool = False) -> None:
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
        [network_factory(network, real.shape, real.num_classes), *_extra_networks(recipe, real)],
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


def _distill(recipe: Recipe, data: Data, keep: bool = False) -> None:
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
    read_card(recipe.beton)  # found out now, and not after the images are read
    real, test = data()
    results = recipe.beton.parent / "results.json"
    rows = comparison.retrain(
        recipe.beton,
        test,
        recipe.retrain,
        real=real,
        network=_network(recipe, real),
        device=recipe.device,
        seed=recipe.seed,
        results=results,
    )
    print(f"\n{tables.retrain_table(rows)}\n\nresults   {results}")


def _evaluate(recipe: Recipe, data: Data) -> None:
    read_card(recipe.beton)
    real, test = data()
    trajectory = Trajectory.open(recipe.trajectory) if recipe.trajectory else _own_trajectory(recipe)
    results = recipe.beton.with_name(f"{recipe.beton.stem}-evaluation.json")
    rows = comparison.evaluate(
        recipe.beton,
        test,
        real,
        recipe.evaluate,
        recipe.retrain,
        trajectory=trajectory,
        network=_network(recipe, real),
        others=_extra_networks(recipe, real) if trajectory else [],
        device=recipe.device,
        seed=recipe.seed,
        results=results,
    )
    print(f"\n{tables.evaluate_table(rows)}\n\nresults   {results}")


def _network(recipe: Recipe, real: ImagePool) -> Callable[[], nn.Module] | None:
    """Returns a function that builds the recipe's network, if the recipe names one."""
    classes = len(read_card(recipe.beton).classes)  # perhaps fewer than the data have, see distill.classes
    return network_factory(recipe.network, real.shape, classes) if recipe.network else None


def _extra_networks(recipe: Recipe, real: ImagePool) -> list[Callable[[], nn.Module]]:
    return [network_factory(each, real.shape, real.num_classes) for each in recipe.extra_networks]


def _own_trajectory(recipe: Recipe) -> Trajectory | None:
    """Returns the trajectory in the default folder, if the file was distilled from it; it may be of another job."""
    try:
        trajectory = Trajectory.open(recipe.trajectory_folder)
    except InputError:
        return None
    return trajectory if trajectory.checksums == read_card(recipe.beton).trajectory.get("stages") else None


def _replay(recipe: Recipe, data: Data) -> None:
    check_writable(Path(recipe.output) / "scores.json")
    if recipe.extra_networks:
        raise InputError(
            f"`extra_networks` must be left out in a replay, whose one network goes on from task to task, got "
            f"{len(recipe.extra_networks)} network(s). Leave them out."
        )
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

    read_card(recipe.beton)
    if recipe.nas.train_best and not recipe.retrain.full_epochs:  # found out now, and not after the search
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
    table = ranking.table(candidates, recipe.nas.cost)
    _write_candidates(results, recipe, candidates, table)
    print(f"\n{table}\n\nresults   {results}")
    if not recipe.nas.train_best:
        return
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
    _write_candidates(results, recipe, candidates, f"{table}\n\n{found}", best)
    print(f"\n{found}\n\nweights   {results.with_suffix('.safetensors')}")


def _write_candidates(
    results: Path, recipe: Recipe, candidates: list[ranking.Candidate], text: str, best: Row | None = None
) -> None:
    """Writes the results of a search as JSON, and its table beside it."""
    # The URL of a database may have a password in it.
    settings = {name: value for name, value in asdict(recipe.nas).items() if name != "storage"}
    content: dict[str, Any] = {"file": recipe.beton.name, "settings": settings, "retrain": asdict(recipe.retrain)}
    content |= {"candidates": [each.summary() for each in candidates], "best": best and best.summary()}
    write_whole(results, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_whole(results.with_suffix(".md"), text + "\n")


STEPS: dict[str, Callable[[Recipe, Data], None]] = {
    "run": _run,
    "record": _record,
    "distill": _distill,
    "retrain": _retrain,
    "evaluate": _evaluate,
    "replay": _replay,
    "nas": _nas,
}
"""The steps of a job by the names of their subcommands."""

ON_FILE = ("retrain", "evaluate", "nas")
"""The steps that take a ``.beton`` in place of a recipe."""
