"""A job as it was asked for: read and checked as far as that takes no time, before anything heavy is imported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tgdd_plugin.beton.factors import check_factor
from tgdd_plugin.core.atomic_files import check_writable
from tgdd_plugin.core.errors import InputError, shown
from tgdd_plugin.distillation.finished import check_settings
from tgdd_plugin.distillation.sources import source_without_images
from tgdd_plugin.networks.settings import check_network_name
from tgdd_plugin.pipeline.file_checks import check_data, check_fit, check_kind
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.pipeline.shipped_recipes import shipped_recipes
from tgdd_plugin.pipeline.step_table import BETON, STEPS, TRAJECTORY
from tgdd_plugin.replay.settings import memory_settings, real_images, task_sizes
from tgdd_plugin.trajectory.folders import run_folders
from tgdd_plugin.trajectory.store import Trajectory


def read_job(step: str, path: str, overrides: list[str]) -> Recipe:
    """Reads a recipe, or makes one for a trajectory folder or a ``.beton``, and checks what the step needs of it.

    Args:
        step: The name of the step.
        path: A recipe, the name of one that comes with the package, or what the step takes in its place (a trajectory
            folder, a ``.beton``).
        overrides: Overrides of the recipe's keys, as ``section.key=value``.

    Raises:
        InputError: If the recipe cannot be used, or what it names is not there.
    """
    recipe = _read(step, path, overrides)
    if step == "replay":
        recipe = replace(recipe, distill=memory_settings(recipe.distill))
    recipe.loggers.check_installed()
    if STEPS[step].instead == BETON:
        check_fit(recipe.data, recipe.beton)
    if step == "distill" or (step == "evaluate" and recipe.trajectory):
        run_folders(recipe.trajectory_folder)
    if step == "run" and recipe.trajectory and not Path(recipe.trajectory).is_dir():
        # A mistyped name would otherwise be that of a new recording, which takes hours.
        raise InputError(
            f"`trajectory` must be a folder that is there, got '{shown(recipe.trajectory)}'. Name a recording, or "
            f"leave it out to record into '{recipe.output}/trajectory'; tgdd record records into any other folder."
        )
    for name in recipe.evaluate.networks if step == "evaluate" else []:
        check_network_name(name, "evaluate.networks")
    if step == "nas":
        check_network_name(recipe.nas.factory, "nas.factory")
    if step != "distill" or recipe.distill.reads_data:
        check_data(recipe.data)
    if step in ("run", "distill") or (step == "replay" and recipe.replay.policy in ("distilled", "hybrid")):
        recipe.loggers.check_probe(recipe.distill.source)
        if recipe.distill.reads_data:
            _check_size(recipe)
        else:
            _check_recording(step, recipe)
    if step == "distill" and recipe.distill.factor:
        recorded = Trajectory.open(recipe.trajectory_folder, check=False).run.input
        if recorded is not None:
            check_factor(recipe.distill.factor, *(int(side) for side in recorded["shape"][1:]))
    if step == "replay" and recipe.data.known:
        task_sizes(recipe.replay.tasks, recipe.data.known.classes)
    if step in ("run", "distill"):
        # Found out now, and not after hours of work.
        check_settings(check_writable(recipe.beton), recipe.distill, overwrite=recipe.overwrite)
    return recipe


def _read(step: str, path: str, overrides: list[str]) -> Recipe:
    instead = STEPS[step].instead
    if instead == TRAJECTORY and Path(path).is_dir():
        recipe = read_recipe(None, [f"trajectory={json.dumps(path, ensure_ascii=False)}", *overrides])
        if _names_data(overrides) or recipe.distill.source is not None:
            return recipe
        # Where no data are named the folder itself is all there is to distill from.
        source = source_without_images(Trajectory.open(path, check=False), recipe.distill.classes)
        return replace(recipe, distill=replace(recipe.distill, source=source))
    if instead == BETON and path.endswith(".beton"):
        return read_recipe(None, [f"file={json.dumps(path, ensure_ascii=False)}", *overrides])
    if not Path(path).is_file() and Path(path).suffix not in (".yaml", ".yml"):
        recipes = shipped_recipes()
        if path in recipes:  # also where a folder of that name, perhaps of its results, is there
            return read_recipe(recipes[path], overrides)
        if not Path(path).exists():
            raise InputError(
                f"There is no '{shown(path)}'. Give {instead}{', ' * bool(instead)}a recipe (YAML), or the name of one "
                f"that comes with the package: {', '.join(recipes)}."
            )
    check_kind(step, path, instead)
    return read_recipe(path, overrides)


def _names_data(overrides: list[str]) -> bool:
    """Whether overrides name data; a normalization alone does not, as the images may come from elsewhere.

    Raises:
        InputError: If something is said of data that are not named, which would then be the default ones.
    """
    keys = {override.partition("=")[0] for override in overrides}
    if keys & {"data.name", "data"}:
        return True
    for key in sorted(keys):
        if key.startswith("data.") and key not in ("data.mean", "data.std"):
            raise InputError(
                f"`data.name` must be given with `{shown(key)}`, which says something of real images, got no name. "
                f"Give data.name=..., or leave it out and distill from what was recorded."
            )
    return False


def _check_size(recipe: Recipe) -> None:
    """Checks the size of the set against what is known of the data by its name."""
    known = recipe.data.known
    if known is None:
        return
    classes = len(recipe.distill.classes or range(known.classes))
    sized = recipe.distill.sized(classes, known.side)
    name = recipe.data.name
    check_factor(sized.factor, known.side, known.side)
    needed = sized.start_images
    if needed > known.per_class:
        count = sized.images_per_class
        most = known.per_class // (needed // count)
        wanted, got, lower = f"`distill.images_per_class` must be at most {most}", f"{count}", "Lower it"
        if budget := sized.sized_by(classes):
            wanted = f"`distill.budget` must make images_per_class at most {most}"
            got = f"{budget}, which makes it {count}"
            lower = f"Choose a smaller one or distill.images_per_class={most}"
        raise InputError(
            f"{wanted} for {name}, where a class has up to {known.per_class} training images, got {got}: start "
            f"'{sized.start}' takes {needed} of each. {lower}, or choose distill.start=noise."
        )


def _check_recording(step: str, recipe: Recipe) -> None:
    """Checks that what the step records will have all that its distillation without the data needs."""
    if step == "run" and not recipe.trajectory:
        _check_exemplars(recipe, recipe.record.runs)
        _check_means(recipe)
    elif step == "replay":
        if recipe.replay.policy == "distilled":
            _check_exemplars(recipe, 1)
        _check_means(recipe)
        if recipe.replay.policy == "hybrid":
            _check_real_images(recipe)


def _check_exemplars(recipe: Recipe, runs: int) -> None:
    """Checks that so many recorded runs will keep as many real images as a distillation without the data starts from.

    Nothing is checked where a budget sizes the set and the number of classes is not known yet.
    """
    data = recipe.data.known
    known = recipe.distill.classes or range(data.classes if data else 0)
    if recipe.distill.budget is not None and not known:
        return
    needed = recipe.distill.sized(len(known) or 1, data.side if data else None).start_images
    if needed > recipe.record.exemplars * runs:
        raise InputError(
            f"`record.exemplars` must be at least {-(-needed // runs)} for distill.source '{recipe.distill.source}', "
            f"which starts from {needed} images of each class that {runs} run(s) keep, got {recipe.record.exemplars}. "
            f"Raise it, or lower distill.images_per_class, or choose distill.start=noise."
        )
    if recipe.distill.source == "exemplars" and not recipe.record.exemplars:
        raise InputError(
            "`record.exemplars` must be at least 1 for distill.source 'exemplars', which matches the images that the "
            "runs keep, got 0. Raise it, or choose distill.source=recorded."
        )


def _check_means(recipe: Recipe) -> None:
    """Checks that the training has images of one class each, whose means a distillation may need."""
    if recipe.distill.source == "recorded" and recipe.record.cutmix == 1:
        raise InputError(
            "`record.cutmix` must be below 1 for distill.source 'recorded', as images that CutMix mixed count in no "
            "class mean, got 1.0. Lower it, or choose distill.source=exemplars."
        )


def _check_real_images(recipe: Recipe) -> None:
    """Checks that the recording of a task will keep the real images of a memory of both kinds."""
    sized = recipe.distill.sized(1)
    needed = real_images(sized.images_per_class, recipe.replay.real_share) * sized.factor**2
    if needed > recipe.record.exemplars:
        raise InputError(
            f"`record.exemplars` must be at least {needed} for replay.policy 'hybrid' with distill.source "
            f"'{recipe.distill.source}', whose real images come from there, got {recipe.record.exemplars}. Raise it, "
            f"lower replay.real_share, or leave distill.source out."
        )
