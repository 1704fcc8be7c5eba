"""From which budget to which is a compact set worth it? Accuracy at equal image passes: compact, real and all images.

    OMP_NUM_THREADS=1 python -m benchmarks.accuracy_for_time recipes/fashion_mnist_cpu.yaml \\
        --files outputs/ipc10.beton outputs/ipc50.beton --output outputs/accuracy_for_time -- data.root=DATA

Each budget is a training of its own, by the recipe's protocol; passes are images x epochs. Beside each file stand as
many random images as it stores and as it decodes (others for each seed), as many by herding in the features of the
trajectory's last stage, random images of other numbers, of which the best is told, and all images; with ``--mix``
also trainings that spend a share of their passes on the file, or on as many random or herding's images, and the rest
on all real ones. Rows are kept in ``results.json`` as they are done, and the same command goes on; ``figure.svg``
beside it shows them. Nothing is chosen on the test images but, for the column that says so, the number of random
images.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.figures import draw_accuracies
from benchmarks.machine import describe_machine
from benchmarks.results import split_arguments
from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.differences import as_plain, first_difference
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.tables import markdown_table
from tgdd_plugin.data.coresets import herding
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.mixing import mixed_images
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.evaluation.scorer import Images, Row, Scorer, random_images
from tgdd_plugin.networks.factory import network_factory
from tgdd_plugin.networks.features import features_of
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.trajectory.store import Trajectory

FULL = "all images"


def random_name(per_class: int) -> str:
    return f"random, {per_class} of each class"


def herding_name(per_class: int) -> str:
    return f"herding, {per_class} of each class"


def mixed_name(stem: str, share: float) -> str:
    return f"{stem} in {100 * share:g}% of the passes"


def sets(
    files: list[Path],
    sizes: list[int],
    real: ImagePool,
    features: Callable[[], torch.Tensor] | None,
    mixes: Sequence[float],
    passes: int,
) -> Iterator[tuple[str, Callable[[int], Images]]]:
    """What networks are trained on for so many passes, by name; each is a function of the seed."""
    numbers, stored = set(sizes), set()
    few: list[tuple[str, int, Callable[[int], Images]]] = []  # name, images of each class, and the images of a seed
    for path in files:
        images, card = read_beton(path), read_card(path)
        stored.add(card.images_per_class)
        numbers |= {card.images_per_class, card.images // len(card.classes)}
        few.append((path.stem, card.images_per_class, lambda seed, images=images: images))
    few += [(random_name(number), number, functools.partial(random_images, real, number)) for number in sorted(numbers)]
    for number in sorted(stored) if features else []:

        def chosen(seed: int, number: int = number) -> Images:
            index = herding(features(), real.labels.cpu(), number)
            return real.take(index), real.labels[index]

        few.append((herding_name(number), number, chosen))
    for name, number, take in few:
        yield name, take
        for share in mixes if number in stored else []:

            def mixed(seed: int, take: Callable[[int], Images] = take, share: float = share) -> Images:
                return mixed_images(*take(seed), real, passes, share, seed)

            yield mixed_name(name, share), mixed
    yield FULL, lambda seed: (real.images, real.labels)


def last_features(recipe: Recipe, build: Callable[[], nn.Module], real: ImagePool) -> torch.Tensor:
    """Of all real images, under the last stage of the recipe's trajectory."""
    trajectory = Trajectory.open(recipe.trajectory_folder)
    folder, run = next(iter(trajectory.runs.items()))
    network = build()
    network.load_state_dict(trajectory.load(folder, run.stages[-1]))
    return features_of(network.to(real.images.device), real, Normalization(run.mean, run.std), run.head)


def table(rows: list[Row], stored: dict[str, int]) -> str:
    """A line for each budget and file: the file, as many real images as it stores, the best number of random ones, and
    all images.
    """
    lines = []
    for budget in sorted({row.passes for row in rows}):
        own = {row.name: row for row in rows if row.passes == budget}
        random = [row for name, row in own.items() if row.is_random and " in " not in name]
        if not random or FULL not in own:
            continue
        best, whole = max(random, key=lambda row: row.mean), own[FULL]
        for name, row in own.items():
            stem = name.partition(" in ")[0]
            per_class, share = stored.get(stem), name.removeprefix(stem)
            if per_class is None or random_name(per_class) not in own:
                continue
            same, herded = (own.get(kind(per_class) + share) for kind in (random_name, herding_name))
            found = f"{best.spread} ({best.name.removeprefix('random, ')})"
            apart, seconds = f"{row.mean - whole.mean:+.1f}", f"{statistics.mean(row.seconds):.1f}"
            line = [
                f"{budget:,}",
                name,
                row.spread,
                same and same.spread,
                herded and herded.spread,
                found,
                whole.spread,
            ]
            lines.append([*line, apart, seconds])
    real = ["random, same number %", "herding %", "best random %", "all images %"]
    return markdown_table(["passes", "set", "set %", *real, "set to all", "s"], lines)


def described(recipe: Recipe, seeds: Sequence[int], files: list[Path]) -> dict[str, Any]:
    """What the rows depend on, as plain values; where the data lie is of no matter."""
    if len({file.stem for file in files}) < len(files):
        raise InputError(f"`--files` must have names of their own, got {[str(file) for file in files]}. Rename one.")
    sets = {file.stem: read_card(file).sha256 for file in files}
    how = {"data": asdict(replace(recipe.data, root="")), "retrain": asdict(recipe.retrain), "seeds": list(seeds)}
    return as_plain({**how, "network": recipe.network and asdict(recipe.network), "sets": sets})


def earlier_rows(path: Path, about: dict[str, Any]) -> list[Row]:
    """The rows that are there, of these settings and files; those of further files are kept beside them."""
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    if earlier := content.get("about"):  # rows of earlier versions do not say
        about["sets"] = {**earlier["sets"], **about["sets"]}
        known = {**earlier, "sets": {**about["sets"], **earlier["sets"]}}
        if other := first_difference(known, about):
            raise InputError(f"'{path}' is of another job ({other}). Choose another --output.")
    return [build_checked(Row, row) for row in content["rows"]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="After --, keys of the recipe: -- data.root=/data retrain.seeds=5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe")
    parser.add_argument("--files", type=Path, nargs="+", required=True, help="the .beton files")
    parser.add_argument("--passes", type=int, nargs="+", default=[2_000, 5_000, 10_000, 20_000])
    parser.add_argument("--random", type=int, nargs="*", default=[200, 500], help="more numbers of random images")
    parser.add_argument("--mix", type=float, nargs="*", default=[], help="shares of the passes on each file")
    parser.add_argument("--title", help="of the figure; default: the data's name")
    parser.add_argument("--output", type=Path, default=Path("outputs/accuracy_for_time"))
    given, overrides = split_arguments(arguments)
    options = parser.parse_args(given)
    warnings.filterwarnings("ignore")
    recipe = read_recipe(options.recipe, overrides)
    real, test = load_data(recipe.data, progress=True)
    card = read_card(options.files[0])
    real, test = (fitting_pool(pool, "real", options.files[0], card) for pool in (real, test))
    build = network_factory(recipe.network or NetworkSettings(), card.shape, len(card.classes))
    real = real.to(torch_device(recipe.device))
    seeds = range(recipe.seed, recipe.seed + recipe.retrain.seeds)
    features = None
    if recipe.trajectory_folder.is_dir():
        features = functools.cache(lambda: last_features(recipe, build, real))
    scorer = Scorer(test, card.normalization, seeds, len(card.classes), recipe.device, recipe.retrain.at_once)
    path, about = options.output / "results.json", described(recipe, seeds, options.files)
    rows = earlier_rows(path, about)
    done = {(row.passes, row.name) for row in rows}
    machine = describe_machine(recipe.device or "cpu", torch.get_num_threads())
    for budget in sorted(options.passes):
        how = replace(recipe.retrain, passes=budget, epochs=None).training(budget)
        for name, images in sets(options.files, options.random, real, features, options.mix, budget):
            if (budget, name) not in done:
                row = Row(name)
                scorer.score(row, build, images, how)
                rows.append(row)
                content = {"machine": machine, "about": about, "rows": [each.summary() for each in rows]}
                write_whole(path, json.dumps(content, indent=1) + "\n")
                print(f"{budget:,} passes, {name}: {row.spread} %", file=sys.stderr, flush=True)
    stored = {file.stem: read_card(file).images_per_class for file in options.files}
    print(f"{machine}\n\n{table(rows, stored)}")
    draw_accuracies(options.output / "figure.svg", rows, stored, options.title or recipe.data.name)


if __name__ == "__main__":
    main()
