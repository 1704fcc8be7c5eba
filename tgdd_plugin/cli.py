"""The ``tgdd`` command: run | record | distill | retrain | show."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tgdd_plugin import __version__
from tgdd_plugin.errors import InputError

if TYPE_CHECKING:
    from tgdd_plugin.pool import ImagePool
    from tgdd_plugin.recipe import Recipe

    Data = Callable[[], tuple[ImagePool, ImagePool]]

STEPS = {
    "run": "record, distill and retrain",
    "record": "train networks and record their trajectories",
    "distill": "distill a trajectory into a .beton",
    "retrain": "train networks on a .beton and score them beside random and full data",
    "show": "print a trajectory folder or the card of a .beton, and draw the latter's images",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0, or 2 after one line on standard error for input that cannot be used; 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    # Modules that recipes name as module:function may lie in the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if options.step == "show":
            _show(Path(options.path), options.picture)
        else:
            _work(options.step, options.path, options.overrides)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"tgdd: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tgdd: interrupted; the same command keeps what is finished and the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tgdd",
        description="Records the trajectory of a training run and distills it into a tiny FFCV data set (a .beton).",
    )
    parser.add_argument("--version", action="version", version=f"tgdd_plugin {__version__}")
    steps = parser.add_subparsers(dest="step", required=True)
    for name, text in STEPS.items():
        step = steps.add_parser(name, help=text, description=text)
        if name == "show":
            step.add_argument("path", help="trajectory folder or .beton")
            step.add_argument("--picture", metavar="PNG", help="where to draw a .beton (default: beside it)")
            continue
        shortcut = {"distill": ", or a trajectory folder", "retrain": ", or a .beton"}.get(name, "")
        step.add_argument("path", help=f"recipe (YAML){shortcut}")
        step.add_argument("overrides", nargs="*", metavar="key=value", help="such as distill.steps=500")
    return parser


def _work(step: str, path: str, overrides: list[str]) -> None:
    # Imported here: `tgdd show` and `tgdd --help` need not wait seconds for Composer.
    warnings.filterwarnings("ignore", category=FutureWarning, module="composer|torchmetrics")
    from tgdd_plugin.card import read_card
    from tgdd_plugin.data import load_data
    from tgdd_plugin.files import check_writable, write_whole
    from tgdd_plugin.recipe import read_recipe, recipe_text

    if step == "distill" and Path(path).is_dir():
        # Without a word about data the folder itself is all there is to distill from.
        named = any(override.startswith("data.") for override in overrides)
        source = [] if named else ["distill.source=recorded"]
        recipe = read_recipe(None, [f"trajectory={json.dumps(path)}", *source, *overrides])
    elif step == "retrain" and path.endswith(".beton"):
        recipe = read_recipe(None, [f"file={json.dumps(path)}", *overrides])
    elif not Path(path).exists() and Path(path).suffix not in (".yaml", ".yml"):
        wanted = {"distill": "a trajectory folder or a recipe", "retrain": "a .beton or a recipe"}.get(step, "a recipe")
        raise InputError(f"there is no '{path}'; wanted {wanted} (YAML)")
    else:
        recipe = read_recipe(path, overrides)
    # Found out now, and not after hours of work or of reading images.
    if step == "run":
        check_writable(recipe.beton)
    elif step == "retrain":
        read_card(recipe.beton)
    data = functools.cache(lambda: load_data(recipe.data, progress=True))  # read once, by the first that needs it
    if step in ("run", "record"):
        _record(recipe, data, keep=step == "run")
    if step in ("run", "distill"):
        _distill(recipe, data, keep=step == "run")
    if step in ("run", "retrain"):
        _retrain(recipe, data)
    if step == "run":  # the job as it was done, overrides included, beside what came of it
        write_whole(Path(recipe.output) / "recipe.yaml", recipe_text(recipe))


def _record(recipe: Recipe, data: Data, keep: bool) -> None:
    from dataclasses import asdict

    from tgdd_plugin.files import check_writable
    from tgdd_plugin.recipe import NetworkSettings
    from tgdd_plugin.recording import JOB, is_foreign, record

    folder = recipe.trajectory_folder
    if keep and is_foreign(folder):
        print(f"recorded  {folder}: kept, it was recorded by a Trainer of yours")
        return
    check_writable(folder / JOB)
    real, _ = data()
    network = recipe.network or NetworkSettings()
    trajectory = record(
        folder,
        real,
        network.factory(real.shape, real.num_classes),
        recipe.record,
        head=recipe.head,
        mean=recipe.data.mean,
        std=recipe.data.std,
        job={"data": asdict(recipe.data), "network": asdict(network), "head": recipe.head},
        seed=recipe.seed,
        device=recipe.device,
    )
    stages = sum(len(run.stages) for run in trajectory.runs.values())
    print(f"recorded  {trajectory.folder}: {len(trajectory.runs)} run(s), {stages} stages")


def _distill(recipe: Recipe, data: Data, keep: bool) -> None:
    from tgdd_plugin.agreement import input_shape
    from tgdd_plugin.distillation import distill, is_distilled
    from tgdd_plugin.files import check_writable
    from tgdd_plugin.networks import recorded_factory
    from tgdd_plugin.trajectory import Trajectory

    trajectory = Trajectory.open(recipe.trajectory_folder)
    check_writable(recipe.beton)
    if recipe.network is None:
        recorded_factory(trajectory.run.network)  # what cannot be built is found out before any image is read
    real = None if recipe.distill.source == "recorded" else data()[0]
    if keep and is_distilled(recipe.beton, trajectory, real, recipe.distill):
        print(f"distilled {recipe.beton}: kept, it is of this job")
        return
    shape = real.shape if real else input_shape(trajectory.run)
    network = recipe.network.factory(shape, trajectory.run.num_classes) if recipe.network else None
    path = distill(
        trajectory,
        real,
        recipe.beton,
        recipe.distill,
        network=network,
        head=recipe.head,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=recipe.device,
    )
    print(f"distilled {path}")


def _retrain(recipe: Recipe, data: Data) -> None:
    from tgdd_plugin.retraining import retrain, table

    real, test = data()
    network = recipe.network.factory(real.shape, real.num_classes) if recipe.network else None
    results = recipe.beton.parent / "results.json"
    rows = retrain(
        recipe.beton,
        test,
        recipe.retrain,
        real=real,
        network=network,
        device=recipe.device,
        seed=recipe.seed,
        results=results,
    )
    print(f"\n{table(rows)}\n\nresults   {results}")


def _show(path: Path, picture: str | None) -> None:
    from tgdd_plugin.beton import read_beton
    from tgdd_plugin.card import read_card
    from tgdd_plugin.report import describe_beton, describe_trajectory, image_grid, write_picture
    from tgdd_plugin.trajectory import Trajectory

    if path.is_dir():
        print(describe_trajectory(Trajectory.open(path)))
    elif path.is_file():
        print(describe_beton(path, read_card(path)))
        grid = image_grid(*read_beton(path))
        print(f"\npicture     {write_picture(Path(picture) if picture else path.with_suffix('.png'), grid)}")
    else:
        raise InputError(f"there is no '{path}'; wanted a trajectory folder or a .beton")


if __name__ == "__main__":
    sys.exit(main())
