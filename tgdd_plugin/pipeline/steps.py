"""The steps of a job, as the command line does them: each says what it wrote, and keeps what is there already."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import check_before_distilling
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.tables import text_table
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.compatibility import input_shape
from tgdd_plugin.distillation.distiller import distill
from tgdd_plugin.distillation.inputs import check_before_recording
from tgdd_plugin.evaluation import comparison, tables
from tgdd_plugin.evaluation.results import HELD_OUT
from tgdd_plugin.evaluation.scorer import RANDOM, Row
from tgdd_plugin.networks.factory import network_factory, recorded_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.costs import costs_path, measured, recording_costs_path
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.finished_results import content_of, print_results
from tgdd_plugin.pipeline.recipe import recipe_text
from tgdd_plugin.pipeline.replay_step import check_replay, learn_tasks
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.recording.runs import is_foreign, record
from tgdd_plugin.trajectory.manifest import JOB, MANIFEST, Run
from tgdd_plugin.trajectory.store import Trajectory

Data = Callable[[], tuple[ImagePool, ImagePool]]
"""Returns train and test images; they are read when they are first asked for."""


def work(step: str, recipe: Recipe) -> dict[str, Any]:
    """Does one step of a job, or all of them.

    Args:
        step: One of :data:`STEP_FUNCTIONS`.
        recipe: The job, as :func:`tgdd_plugin.pipeline.job.read_job` returns it.

    Returns:
        What was made, for programs: paths, whether it was ``already_done``, and results as plain values.

    Raises:
        InputError: If what the recipe names cannot be used.
    """
    return STEP_FUNCTIONS[step](recipe, functools.cache(lambda: load_data(recipe.data, progress=True)))


def _run(recipe: Recipe, data: Data) -> dict[str, Any]:
    from tgdd_plugin.pipeline.report import write_report  # loads matplotlib, which no other step needs

    made = {
        "record": _record(recipe, data, keep=True),
        "distill": _distill(recipe, data),
        "retrain": _retrain(recipe, data),
    }
    # The job as it was done, overrides included, beside its results.
    write_whole(recipe.beton.with_name(f"{recipe.beton.stem}-recipe.yaml"), recipe_text(recipe))
    report = write_report([recipe.beton], recipe.beton.with_name(f"{recipe.beton.stem}-report.html"))
    print(f"report    {report}")
    return {**made, "report": report}


def _record(recipe: Recipe, data: Data, keep: bool = False) -> dict[str, Any]:
    folder = recipe.trajectory_folder
    if keep and is_foreign(folder):
        known = Trajectory.open(folder, check=False).run.class_names
        check_before_distilling(recipe.distill.classes, known, "the trajectory", *data())
        print(f"recorded  {folder}: kept, it was recorded by a Trainer of yours")
        return {"trajectory": folder, "already_done": True}
    check_writable(folder / JOB)
    real, test = data()
    before = _complete_runs(folder)
    if keep and not before:
        given, kept = Normalization.of(recipe.data.mean, recipe.data.std), recipe.record.exemplars
        check_before_recording(recipe.distill, real, given, runs=recipe.record.runs, exemplars=kept)
        check_before_distilling(recipe.distill.classes, real.classes, "the training images", real, test)
    network = recipe.network or NetworkSettings()
    shape, classes = real.shape, real.num_classes
    job: dict[str, Any] = {"data": asdict(recipe.data), "network": asdict(network), "head": recipe.head}
    if recipe.extra_networks:
        job["extra_networks"] = [asdict(other) for other in recipe.extra_networks]
    with measured(recording_costs_path(folder), "record") as measure:
        trajectory = record(
            folder,
            real,
            [network_factory(network, shape, classes), *_extra_networks(recipe, shape, classes)],
            recipe.record,
            head=recipe.head,
            mean=recipe.data.mean,
            std=recipe.data.std,
            job=job,
            seed=recipe.seed,
            device=recipe.device,
            loggers=recipe.loggers,
        )
        measure.worked = before != _complete_runs(folder)
    stages = sum(len(run.stages) for run in trajectory.runs.values())
    done = "" if measure.worked else "already done, "
    print(f"recorded  {trajectory.folder}: {done}{len(trajectory.runs)} run(s), {stages} stages")
    return {
        "trajectory": trajectory.folder,
        "already_done": not measure.worked,
        "runs": len(trajectory.runs),
        "stages": stages,
    }


def _complete_runs(folder: Path) -> list[Path]:
    """The folders of the complete runs in a trajectory folder, which :func:`record` keeps."""
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}") if Run.read(path.parent).complete)


def _distill(recipe: Recipe, data: Data) -> dict[str, Any]:
    trajectory = Trajectory.open(recipe.trajectory_folder)
    if recipe.network is None and not recipe.extra_networks:
        for kind in trajectory.representative_runs.values():
            recorded_factory(kind.network)  # what cannot be built is found out before any image is read
    real = data()[0] if recipe.distill.reads_data else None
    shape, classes = real.shape if real else input_shape(trajectory.run), trajectory.run.num_classes
    given = [network_factory(recipe.network, shape, classes)] if recipe.network else []
    before = _written(recipe.beton)
    with measured(costs_path(recipe.beton), "distill", keep=False) as measure:  # other steps' costs were of another set
        path = distill(
            trajectory,
            real,
            recipe.beton,
            recipe.distill,
            network=[*given, *_extra_networks(recipe, shape, classes)] or None,
            head=recipe.head,
            mean=recipe.data.mean,
            std=recipe.data.std,
            device=recipe.device,
            loggers=recipe.loggers,
            overwrite=recipe.overwrite,
            picture=recipe.beton.with_suffix(".png"),
        )
        measure.worked = before != _written(recipe.beton)
    if not measure.worked:
        print(f"distilled {path}: already done, and kept as it is")
        return {"file": recipe.beton, "already_done": True}
    print(f"distilled {path}, drawn in {path.with_suffix('.png').name}")
    return {"file": recipe.beton, "already_done": False, "picture": recipe.beton.with_suffix(".png")}


def _written(file: Path) -> int | None:
    """When a file was last written, in nanoseconds; ``None`` if there is none."""
    return file.stat().st_mtime_ns if file.is_file() else None


def _retrain(recipe: Recipe, data: Data) -> dict[str, Any]:
    real, test = data()

    def score(**common: Any) -> list[Row]:
        return comparison.retrain(recipe.beton, test, recipe.retrain, real=real, **common)

    return _compare("retrain", "retrain", recipe, real, score, tables.retrain_table)


def _evaluate(recipe: Recipe, data: Data) -> dict[str, Any]:
    real, test = data()
    trajectory = Trajectory.open(recipe.trajectory) if recipe.trajectory else _own_trajectory(recipe)

    def score(**common: Any) -> list[Row]:
        others = _extra_networks(recipe, real.shape, real.num_classes) if trajectory else []
        settings = recipe.evaluate, recipe.retrain
        return comparison.evaluate(recipe.beton, test, real, *settings, trajectory=trajectory, others=others, **common)

    def table(rows: list[Row]) -> str:
        return tables.evaluate_table(rows, functools.partial(text_table, align="lll" + 7 * "r"))

    return _compare("evaluate", "evaluation", recipe, real, score, table)


def _compare(
    step: str,
    ending: str,
    recipe: Recipe,
    real: ImagePool,
    score: Callable[..., list[Row]],
    table: Callable[[list[Row]], str],
) -> dict[str, Any]:
    """Makes the rows of a comparison, kept in ``<name>-<ending>.json``, and prints their table and where they are."""
    results = recipe.beton.with_name(f"{recipe.beton.stem}-{ending}.json")
    before, held_out = content_of(results), recipe.data.holdout > 0
    with measured(costs_path(recipe.beton), step) as measure:
        rows = score(
            network=_network(recipe, real),
            device=recipe.device,
            loggers=recipe.loggers,
            seed=recipe.seed,
            results=results,
            overwrite=recipe.overwrite,
            held_out=held_out,
        )
        measure.worked = before != content_of(results)
        print(f"\n{table(rows)}\n")  # before the cost is noted, for which there may be no room
    if held_out:
        print(f"These are accuracies on {HELD_OUT}, to choose settings by; the card does not get them.\n")
    if better := _no_better_than_random(rows):
        print(
            f"As many random images do as well ({better}). More steps (distill.steps), a longer "
            f"recording or another number of images may help.\n"
        )
    return {"file": recipe.beton, **print_results(results, before), "rows": [row.summary() for row in rows]}


def _no_better_than_random(rows: Sequence[Row]) -> str:
    """The rows of as many random images on which networks ended as well as on the distilled ones, in words."""
    distilled = rows[0]
    keys = [(distilled.network, name, distilled.labels) for name in RANDOM]
    return " and ".join(f"row '{row.name}'" for row in rows if row.key in keys and row.mean >= distilled.mean)


def _network(recipe: Recipe, real: ImagePool) -> Callable[[], nn.Module] | None:
    """Returns a function that builds the recipe's network, if the recipe names one."""
    classes = len(read_card(recipe.beton).classes)  # perhaps fewer than the data have, see distill.classes
    return network_factory(recipe.network, real.shape, classes) if recipe.network else None


def _extra_networks(recipe: Recipe, shape: Sequence[int], num_classes: int) -> list[Callable[[], nn.Module]]:
    return [
        network_factory(each, shape, num_classes, f"extra_networks[{number}]")
        for number, each in enumerate(recipe.extra_networks)
    ]


def _own_trajectory(recipe: Recipe) -> Trajectory | None:
    """Returns the trajectory in the default folder, if the file was distilled from it; it may be of another job."""
    try:
        trajectory = Trajectory.open(recipe.trajectory_folder)
    except InputError:
        return None
    return trajectory if trajectory.checksums == read_card(recipe.beton).trajectory.get("stages") else None


def _replay(recipe: Recipe, data: Data) -> dict[str, Any]:
    check_replay(recipe)
    return learn_tasks(recipe, *data())


def _nas(recipe: Recipe, data: Data) -> dict[str, Any]:
    # Optuna and its database take a second that no other step needs.
    from tgdd_plugin.pipeline.nas_step import check_search, search_and_train

    check_search(recipe)
    return search_and_train(recipe, *data())


STEP_FUNCTIONS: dict[str, Callable[[Recipe, Data], dict[str, Any]]] = {
    "run": _run,
    "record": _record,
    "distill": _distill,
    "retrain": _retrain,
    "evaluate": _evaluate,
    "replay": _replay,
    "nas": _nas,
}
"""What does each step of a job, by the names of their subcommands."""
