"""How far the ranking of networks on a distilled set can be trusted, beside that of full training and other proxies.

    python -m benchmarks.nas recipes/nas_fashion_mnist_cpu.yaml --count 30 -- data.root=/data
    python -m benchmarks.nas recipes/nas_cifar10.yaml --count 120 --minutes 9    # stops in time; the same goes on
    python -m benchmarks.nas --table                                   # prints the tables of what is there

A sample of the recipe's search space that has every value equally often is trained in full, as `record` says for
retrain.full_epochs, and scored on the test images: the truth. Each network is also trained on every proxy, as `retrain`
says, and judged by training images that are held out for it. The proxies:

distilled, sampled or recorded: the set that ships.     random: as many images of each class, other ones for each seed.
herding: as many, chosen by the features of the network that was recorded.
one epoch: no compact set, but one epoch of so many different random images that as many are seen in all.
..., soft labels (--soft): the distilled and the random images with what the recorded networks, trained, say of them.

A row is a network. --part 0/2 and --part 1/2 share the networks between two processes. --networks says how many are
trained of each on each proxy, --truths on the full data.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.harness import Bench, Images, run
from benchmarks.results import Parser, Row, key_of, markdown, provenance, read_rows
from tgdd_plugin import DistillSettings, InputError
from tgdd_plugin.beton.card import card_path
from tgdd_plugin.data.coresets import herding
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.compatibility import bare_networks
from tgdd_plugin.evaluation.scorer import random_images
from tgdd_plugin.evaluation.soft_labels import predict_soft_labels
from tgdd_plugin.nas.search_space import candidate_builder, check_factory, name_of
from tgdd_plugin.networks.features import features_of
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import accuracy, check_network

FULL, EPOCH, SOFT = "full", "one epoch", ", soft labels"
DISTILLED = ("distilled, sampled", "distilled, recorded")
PROXIES = (*DISTILLED, "random", "herding", EPOCH, *(name + SOFT for name in (*DISTILLED, "random")))
TOP = (5, 10)
SAMPLES = 2000
CHANCE = 2.0  # times chance: a network below was not trained by full training


class Ranking:
    """The networks of one command, and what they are trained on."""

    def __init__(self, bench: Bench, options: argparse.Namespace) -> None:
        self.bench, self.space = bench, bench.recipe.nas
        numbers = re.fullmatch(r"(\d+)/(\d+)", options.part)
        self.part, self.parts = (int(number) for number in numbers.groups()) if numbers else (0, 0)
        if not self.part < self.parts:
            raise InputError(f"--part is '{options.part}'; wanted I/N with I from 0 to N - 1")
        check_factory(self.space)
        if not bench.recipe.retrain.full_epochs:
            raise InputError("retrain.full_epochs is 0; the truth is what networks reach on the full data")
        self.networks = self.space.sample(options.count, options.sample)
        self.sizes: dict[str, int] = {}  # parameters
        for arguments in self.networks:  # what cannot work is found out before any work
            build = self.build(arguments)
            check_network(build, bench.train.shape, bench.train.num_classes)
            with torch.random.fork_rng():
                self.sizes[name_of(arguments)] = sum(weights.numel() for weights in build().parameters())
        generator = torch.Generator().manual_seed(bench.recipe.seed)
        self.pool, self.validation_images = bench.train.split(self.space.validation, generator)
        # From here on: recording, distilling and every training go without the validation images.
        bench.train, bench.base["judge"] = self.pool, self.validation_images.fingerprint()
        self.count = bench.recipe.distill.images_per_class
        self.short = bench.retraining(bench.recipe.distill)
        self.made: dict[str, str] = {}  # of what was made for it, a checksum
        self.proxies: dict[str, Callable[[int], Images]] = {}
        for source in options.source:
            self.proxies[f"distilled, {source}"] = functools.cache(functools.partial(self.distilled, source))
        self.proxies["random"] = lambda seed: random_images(self.pool, self.count, seed)
        self.proxies["herding"] = functools.cache(lambda seed: self.herded())
        self.proxies[EPOCH] = lambda seed: random_images(self.pool, self.different, seed)
        if options.soft:
            for proxy in [name for name in self.proxies if name == "random" or name in DISTILLED]:
                self.proxies[proxy + SOFT] = functools.cache(functools.partial(self.softened, proxy))

    @property
    def different(self) -> int:
        """Images of each class in one epoch that sees as many as a training on the compact set does."""
        images = self.count * self.bench.recipe.distill.factor**2
        wanted = self.short.passes // self.pool.num_classes if self.short.passes else images * self.short.epochs
        if wanted > int(self.pool.counts.min()):
            raise InputError(
                f"one epoch that sees as many images takes {wanted} images of each class, and there are "
                f"{int(self.pool.counts.min())}; lower retrain.epochs"
            )
        return wanted

    def build(self, arguments: dict[str, Any]) -> Callable[[], torch.nn.Module]:
        return candidate_builder(self.space, arguments, self.bench.train.shape, self.bench.train.num_classes)

    def trajectory(self) -> Any:
        return self.bench.record(self.bench.recipe.record, self.bench.recipe.record.runs)

    def distilled(self, source: str, seed: int = 0) -> Images:
        """What ships, distilled once from runs and images that the judging ones are not among."""
        settings: DistillSettings = self.bench.resolved(
            replace(self.bench.recipe.distill, source=source), self.bench.recipe.record.runs
        )
        depends = {"record": asdict(self.bench.recipe.record), "distill": asdict(settings)}
        row = self.bench.row(f"distilled-{source}", depends, kind="distilled", source=source)
        if self.part and not card_path(row.work / "distilled.beton").is_file():
            raise InputError("part 0 has not distilled the sets yet; start the other parts once it has")
        images = self.bench.distill(row, self.trajectory(), settings)
        self.made[f"distilled, {source}"] = row.content["sha256"]
        return images

    def herded(self) -> Images:
        trajectory = self.trajectory()
        (folder, recorded), network = next(iter(trajectory.runs.items())), self.bench.build()
        network.load_state_dict(trajectory.load(folder, recorded.stages[-1]), strict=False)
        features = features_of(network.to(self.bench.on), self.pool, self.bench.normalization)
        index = herding(features, self.pool.labels, self.count)
        return self.pool.take(index), self.pool.labels[index]

    def softened(self, proxy: str, seed: int) -> Images:
        """A proxy's images with the trajectory's soft labels."""
        trajectory = self.trajectory()
        networks = bare_networks(self.bench.builds, trajectory, self.pool.shape)
        pixels = self.proxies[proxy](seed)[0].to(self.bench.on)
        teachers = [run.stages[-1].sha256 for run in trajectory.runs.values()]
        self.made[proxy + SOFT] = key_of({"set": self.made.get(proxy), "teachers": teachers})
        return pixels, predict_soft_labels(trajectory, networks, pixels, self.bench.normalization)

    def row(self, arguments: dict[str, Any]) -> Row:
        """The row of a network, with the settings it depends on."""
        recipe = self.bench.recipe
        depends = {
            "arguments": arguments,
            "factory": self.space.factory,
            "record": asdict(recipe.record),
            "distill": asdict(recipe.distill),
            "retrain": asdict(replace(recipe.retrain, seeds=1, at_once=None)),
        }
        parameters = self.sizes[name_of(arguments)]
        name = name_of(arguments).replace("=", "").replace(" ", "-")
        classes = self.pool.num_classes
        return self.bench.row(
            name, depends, kind="network", arguments=arguments, parameters=parameters, classes=classes
        )

    def column(
        self,
        arguments: dict[str, Any],
        name: str,
        seeds: Sequence[int],
        images: Callable[[int], Images],
        validation_images: ImagePool,
    ) -> None:
        """Trains the networks that a row's column lacks."""
        row = self.row(arguments)
        retrain, made = self.bench.recipe.retrain, self.made.get(name)
        # As on another machine, a set may have been distilled anew, to other images.
        row.content[name] = [entry for entry in row.content.get(name, []) if entry.get("sha256") == made]
        how = replace(self.short, epochs=1, passes=None) if name == EPOCH else self.short
        if name == FULL:  # as the recorded network was, whatever suits a training on few images
            own = {each.name: getattr(self.bench.recipe.record, each.name) for each in fields(TrainSettings)}
            how = TrainSettings(**{**own, "epochs": retrain.full_epochs, "passes": None})
        for seed in row.missing(name, seeds):
            title = f"{row.content['name']}, {name}, seed {seed}"
            work = row.work / f"{name.replace(', ', '-').replace(' ', '-')}{seed}"
            build = self.build(arguments)
            network, spent = self.bench.fit(work, title, images(seed), how, seed, build=build)
            found = accuracy(network, validation_images, self.bench.normalization)
            entry = {"seed": seed, "accuracy": found, "seconds": spent}
            self.bench.note(row, name, {**entry, "sha256": made} if made else entry)


def work(bench: Bench, options: argparse.Namespace) -> None:
    """All rows of the command, as far as the time goes."""
    if options.holdout is not None:
        raise InputError("--holdout has no place here: the truth is on test images, and proxies never see any")
    ranking = Ranking(bench, options)
    for images in ranking.proxies.values():  # what they are made of, before hours of training
        images(bench.recipe.seed)
    whole = ranking.pool.images, ranking.pool.labels
    for arguments in ranking.networks[ranking.part :: ranking.parts]:
        for proxy, images in ranking.proxies.items():
            ranking.column(arguments, proxy, bench.seeds, images, ranking.validation_images)
        truths = range(bench.recipe.seed, bench.recipe.seed + options.truths)
        ranking.column(arguments, FULL, truths, lambda seed: whole, bench.test)


def correlation(truth: Sequence[float], proxy: Sequence[float], kind: str) -> tuple[float, float, float]:
    """A rank correlation, and the 95 % bootstrap interval over networks (percentiles, seed 0).

    Args:
        truth, proxy: Of the same networks.
        kind: ``'spearman'`` or ``'kendall'`` (tau-b).
    """
    of = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}[kind]
    pairs = np.array([truth, proxy])
    draw = np.random.default_rng(0)
    again = [of(*pairs[:, draw.integers(pairs.shape[1], size=pairs.shape[1])]).statistic for _ in range(SAMPLES)]
    low, high = np.nanpercentile(again, [2.5, 97.5])
    return float(of(*pairs).statistic), float(low), float(high)


def top_overlap(truth: Sequence[float], proxy: Sequence[float], count: int) -> float:
    """Share of the proxy's best ``count`` networks that are among the truth's."""
    best = [set(np.argsort(-np.array(values), kind="stable")[:count].tolist()) for values in (truth, proxy)]
    return len(best[0] & best[1]) / count


def regret(truth: Sequence[float], proxy: Sequence[float]) -> float:
    """The truth's best minus the truth of the proxy's best, in the truth's unit."""
    return max(truth) - truth[int(np.argmax(proxy))]


def table(folder: Path) -> str:
    """The Markdown table of a folder's rows, one line for each proxy, over all networks and over those that train."""
    rows = [row for row in read_rows(folder) if row["kind"] == "network" and row.get(FULL)]
    jobs = {json.dumps({**row["settings"], "arguments": None}, sort_keys=True) for row in rows}
    if len(jobs) > 1:
        raise InputError(f"'{folder}' has networks of {len(jobs)} different jobs; give each an --output of its own")
    if len(rows) < 3:
        return f"{len(rows)} networks are trained in full; a ranking wants at least 3"
    chance = 100 / rows[0]["classes"]
    head = ["networks", "proxy", "Spearman (95 %)", "Kendall (95 %)", *(f"top {n}" for n in TOP), "regret, points"]
    head += ["time, % of full training"]
    lines = []
    proxies = list(dict.fromkeys(name for row in rows for name in row if name in PROXIES))
    trained = [row for row in rows if of(row, FULL) > CHANCE * chance]
    for title, chosen in (("all", rows), ("trained", trained)):
        for proxy in proxies:
            both = [row for row in chosen if row.get(proxy)]
            if len(both) < 3:
                continue
            truth, found = [of(row, FULL) for row in both], [of(row, proxy) for row in both]
            cells = []
            for kind in ("spearman", "kendall"):
                value, low, high = correlation(truth, found, kind)
                cells.append(f"{value:.2f} ({low:.2f} .. {high:.2f})")
            tops = [f"{100 * top_overlap(truth, found, n):.0f} %" if len(both) > n else "" for n in TOP]
            cost = 100 * sum(seconds(row, proxy) for row in both) / sum(seconds(row, FULL) for row in both)
            cells += [*tops, f"{regret(truth, found):.1f}", f"{cost:.1f}"]
            lines.append([f"{title}: {len(both)}", proxy, *cells])
    truths = sorted(of(row, FULL) for row in rows)
    notes = [
        f"Truth: accuracy on {' and '.join(sorted({row['scored_on'] for row in rows}))} after full training, "
        f"{truths[0]:.1f} to {truths[-1]:.1f} %, median {truths[len(truths) // 2]:.1f}; 'trained' are those above "
        f"{CHANCE:g} times chance. Top n: share of the proxy's best n among the truth's. Regret: what picking the "
        f"proxy's best loses. Time of all networks of a proxy together, without making the set.",
    ]
    return markdown(head, lines, [*notes, *provenance(rows)[1:]])


def of(row: dict[str, Any], column: str) -> float:
    """A network's mean accuracy in a column, in per cent."""
    return 100 * mean(entry["accuracy"] for entry in row[column])


def seconds(row: dict[str, Any], column: str) -> float:
    """All its trainings' time in a column; of full training, one's."""
    spent = [entry["seconds"] for entry in row[column]]
    return mean(spent) if column == FULL else sum(spent)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, "outputs/nas")
    parser.add_argument("--count", type=int, default=30, help="networks (default 30)")
    parser.add_argument("--sample", type=int, default=0, metavar="SEED", help="of the choice of networks (default 0)")
    parser.add_argument("--soft", action="store_true", help="soft labels too")
    parser.add_argument("--truths", type=int, default=1, help="full trainings of each network (default 1)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th network, from the I-th on")
    return run(parser, arguments, work, table)


if __name__ == "__main__":
    sys.exit(main())
