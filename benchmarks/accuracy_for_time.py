"""From which budget to which is a compact set worth it? Accuracy at equal image passes: compact, random and all images.

    OMP_NUM_THREADS=1 python -m benchmarks.accuracy_for_time recipes/fashion_mnist_cpu.yaml \\
        --files outputs/ipc10.beton outputs/ipc50.beton --output outputs/accuracy_for_time -- data.root=DATA

Each budget is a training of its own, by the recipe's protocol; passes are images x epochs. Beside each file stand as
many random images (others for each seed), random images of other numbers, of which the best is told, and all images.
Rows are kept in ``results.json`` as they are done, and the same command goes on. Nothing is chosen on the test images
but, for the column that says so, the number of random images.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.tables import markdown_table
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.scorer import Images, Row, Scorer, random_images
from tgdd_plugin.networks.factory import network_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe

FULL = "all images"


def random_name(per_class: int) -> str:
    return f"random, {per_class} of each class"


def sets(files: list[Path], sizes: list[int], real: ImagePool) -> Iterator[tuple[str, Callable[[int], Images]]]:
    """What networks are trained on, by name; each is a function of the seed."""
    numbers = set(sizes)
    for path in files:
        images = read_beton(path)
        numbers.add(len(images[1]) // real.num_classes)
        yield path.stem, lambda seed, images=images: images
    for number in sorted(numbers):
        yield random_name(number), functools.partial(random_images, real, number)
    yield FULL, lambda seed: (real.images, real.labels)


def table(rows: list[Row], counts: dict[str, int]) -> str:
    """A line for each budget and file: the file, as many random images, the best number of those, and all images."""
    lines = []
    for budget in sorted({row.passes for row in rows}):
        own = {row.name: row for row in rows if row.passes == budget}
        random = [row for row in own.values() if row.is_random]
        if not random or FULL not in own:
            continue
        best, whole = max(random, key=lambda row: row.mean), own[FULL]
        for name, per_class in counts.items():
            if not {name, random_name(per_class)} <= own.keys():
                continue
            row, same = own[name], own[random_name(per_class)]
            found = f"{best.spread} ({best.name.removeprefix('random, ')})"
            apart, seconds = f"{row.mean - whole.mean:+.1f}", f"{statistics.mean(row.seconds):.1f}"
            lines.append([f"{budget:,}", name, row.spread, same.spread, found, whole.spread, apart, seconds])
    headers = ["passes", "set", "set %", "random, same number %", "best random %", "all images %", "set to all", "s"]
    return markdown_table(headers, lines)


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
    parser.add_argument("--output", type=Path, default=Path("outputs/accuracy_for_time"))
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, overrides = parser.parse_args(arguments[:end]), arguments[end + 1 :]
    warnings.filterwarnings("ignore")
    recipe = read_recipe(options.recipe, overrides)
    real, test = load_data(recipe.data, progress=True)
    card = read_card(options.files[0])
    real, test = (fitting_pool(pool, "real", options.files[0], card) for pool in (real, test))
    build = network_factory(recipe.network or NetworkSettings(), card.shape, len(card.classes))
    real = real.to(torch_device(recipe.device))
    seeds = range(recipe.seed, recipe.seed + recipe.retrain.seeds)
    scorer = Scorer(test, card.normalization, seeds, len(card.classes), recipe.device, recipe.retrain.at_once)
    path = options.output / "results.json"
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    rows = [build_checked(Row, row) for row in kept]
    done = {(row.passes, row.name) for row in rows}
    machine = describe_machine(recipe.device or "cpu", torch.get_num_threads())
    for budget in sorted(options.passes):
        how = replace(recipe.retrain, passes=budget, epochs=None).training(budget)
        for name, images in sets(options.files, options.random, real):
            if (budget, name) not in done:
                row = Row(name)
                scorer.score(row, build, images, how)
                rows.append(row)
                content = {"machine": machine, "rows": [each.summary() for each in rows]}
                write_whole(path, json.dumps(content, indent=1) + "\n")
                print(f"{budget:,} passes, {name}: {row.spread} %", file=sys.stderr, flush=True)
    counts = {file.stem: len(read_beton(file)[1]) // len(card.classes) for file in options.files}
    print(f"{machine}\n\n{table(rows, counts)}")


if __name__ == "__main__":
    main()
