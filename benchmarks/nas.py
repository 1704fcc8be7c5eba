"""How far the ranking of networks on a distilled set can be trusted, beside that of full training and other proxies.

    python -m benchmarks.nas recipes/nas_fashion_mnist_cpu.yaml --count 30 -- data.root=/data
    python -m benchmarks.nas recipes/nas_cifar10.yaml --count 120 --minutes 9    # stops in time; the same goes on
    python -m benchmarks.nas --table                                   # prints the tables of what is there

A sample of the recipe's search space that has every value equally often is trained in full, as `retrain` says for
retrain.full_epochs, and scored on the test images: the truth. Each network is also trained on every proxy, as `retrain`
says, and judged by training images that are held out for it. Beside them stand the network's parameters, FLOPs and
synflow, and the means of their ranks. The proxies:

distilled, sampled or recorded: the set that ships.     random: as many images of each class, other ones for each seed.
herding: as many, chosen by the features of the network that was recorded.
one epoch: no compact set, but one epoch of so many different random images that as many are seen in all.
..., soft labels: the distilled and the random images with what the recorded networks, trained, say of them.

A row is a network's truth, or a network on the proxies. --part 0/2 and --part 1/2 share the networks between two
processes. --networks says how many are trained of each on each proxy, --truths on the full data. --truths 0, and
--proxies without a name, make one kind of row alone; --truth names the folder of truths that several --output share.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Bench, Images, run
from benchmarks.nas_table import DISTILLED, EPOCH, FULL, PROXIES, SOFT, table
from benchmarks.results import Parser, Row, key_of
from tgdd_plugin import DistillSettings, InputError
from tgdd_plugin.beton.card import card_path
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.data.coresets import herding
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.distillation.compatibility import bare_networks
from tgdd_plugin.evaluation.scorer import random_images
from tgdd_plugin.evaluation.soft_labels import predict_soft_labels
from tgdd_plugin.nas.costs import costs_of
from tgdd_plugin.nas.search_space import candidate_builder, check_factory, name_of
from tgdd_plugin.networks.features import features_of
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import accuracy, check_network, train_each


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
        for arguments in self.networks:  # what cannot work is found out before any work
            check_network(self.build(arguments), bench.train.shape, bench.train.num_classes)
        generator = torch.Generator().manual_seed(bench.recipe.seed)
        self.pool, self.validation_images = bench.train.split(self.space.validation, generator)
        # From here on: recording, distilling and every training go without the validation images.
        bench.train, bench.base["judge"] = self.pool, self.validation_images.fingerprint()
        sized = bench.sized(bench.recipe.distill)
        self.count, self.factor = sized.images_per_class, sized.factor
        self.short = bench.retraining(bench.recipe.distill)
        self.made: dict[str, str] = {}  # of what was made for it, a checksum
        self.every: dict[str, Callable[[int], Images]] = {
            "distilled, sampled": functools.cache(functools.partial(self.distilled, "sampled")),
            "distilled, recorded": functools.cache(functools.partial(self.distilled, "recorded")),
            "random": lambda seed: random_images(self.pool, self.count, seed),
            "herding": functools.cache(lambda seed: self.herded()),
            EPOCH: lambda seed: random_images(self.pool, self.different, seed),
        }
        for proxy in (*DISTILLED, "random"):
            self.every[proxy + SOFT] = functools.cache(functools.partial(self.softened, proxy))
        self.proxies = {name: images for name, images in self.every.items() if name in options.proxies}

    @property
    def different(self) -> int:
        """Images of each class in one epoch that sees as many as a training on the compact set does."""
        images = self.count * self.factor**2
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
        pixels = self.every[proxy](seed)[0].to(self.bench.on)
        teachers = [run.stages[-1].sha256 for run in trajectory.runs.values()]
        self.made[proxy + SOFT] = key_of({"set": self.made.get(proxy), "teachers": teachers})
        return pixels, predict_soft_labels(trajectory, networks, pixels, self.bench.normalization)

    def row(self, arguments: dict[str, Any]) -> Row:
        """The row of a network on the proxies, with the settings it depends on, and its costs."""
        recipe = self.bench.recipe
        depends = {
            "arguments": arguments,
            "factory": self.space.factory,
            "record": asdict(recipe.record),
            "distill": asdict(recipe.distill),
            "retrain": asdict(replace(recipe.retrain, seeds=1, at_once=None)),
        }
        row = self.bench.row(_file_of(arguments), depends, kind="network", arguments=arguments)
        if "costs" not in row.content:
            began = time.perf_counter()
            with forked_streams(recipe.seed):
                costs = asdict(costs_of(self.build(arguments)(), self.pool.shape, torch.device("cpu")))
            row.content["costs"] = {**costs, "seconds": time.perf_counter() - began}
        return row

    def truth(self, arguments: dict[str, Any]) -> Row:
        """The row of a network's full training, which depends on no proxy."""
        training = asdict(self.bench.recipe.retrain.full_training(len(self.pool)))
        depends = {"arguments": arguments, "factory": self.space.factory, "training": training}
        classes = self.pool.num_classes
        return self.bench.row(
            f"truth-{_file_of(arguments)}", depends, kind="truth", arguments=arguments, classes=classes
        )

    def train_in_full(self, arguments: dict[str, Any], seeds: Sequence[int]) -> None:
        """Trains the networks that a truth lacks."""
        row, how = self.truth(arguments), self.bench.recipe.retrain.full_training(len(self.pool))
        for seed in row.missing(FULL, seeds):
            title = f"{row.content['name']}, seed {seed}"
            images, build = (self.pool.images, self.pool.labels), self.build(arguments)
            network, spent = self.bench.fit(row.work / f"full{seed}", title, images, how, seed, build=build)
            found = accuracy(network, self.bench.test, self.bench.normalization)
            self.bench.note(row, FULL, {"seed": seed, "accuracy": found, "seconds": spent})

    def train_on_proxies(self, arguments: dict[str, Any]) -> None:
        """Trains the networks that a row's columns lack, those of one kind as retrain.at_once says."""
        if not self.proxies:
            return
        row = self.row(arguments)
        kinds: dict[tuple[bool, bool], list[tuple[str, int]]] = {}
        for name in self.proxies:
            # As on another machine, a set may have been distilled anew, to other images.
            kept = [entry for entry in row.content.get(name, []) if entry.get("sha256") == self.made.get(name)]
            row.content[name] = kept
            kind = kinds.setdefault((name == EPOCH, name.endswith(SOFT)), [])
            kind += [(name, seed) for seed in row.missing(name, self.bench.seeds)]
        for (one_epoch, _), jobs in kinds.items():
            if jobs:
                how = replace(self.short, epochs=1, passes=None) if one_epoch else self.short
                self._train_alike(row, jobs, how)

    def _train_alike(self, row: Row, jobs: Sequence[tuple[str, int]], how: TrainSettings) -> None:
        networks, loaders, on = [], [], self.bench.on
        for name, seed in jobs:
            pixels, labels = self.proxies[name](seed)
            with forked_streams(seed):
                networks.append(self.build(row.content["arguments"])())
            size, normalization = how.batch_size, self.bench.normalization
            loaders.append(DeviceLoader(pixels.to(on), labels, normalization, batch_size=size, seed=seed, device=on))
        classes, retrain, device = self.pool.num_classes, self.bench.recipe.retrain, self.bench.recipe.device
        seeds = [seed for _, seed in jobs]
        trained = train_each(
            networks,
            loaders,
            classes,
            how,
            seeds=seeds,
            at_once=retrain.at_once,
            title=row.content["name"],
            device=device,
        )
        for (name, seed), network, training in zip(jobs, networks, trained, strict=True):
            found = accuracy(network, self.validation_images, self.bench.normalization)
            entry = {"seed": seed, "accuracy": found, "seconds": training.seconds}
            entry |= {"sha256": self.made[name]} if name in self.made else {}
            self.bench.note(row, name, entry)


def _file_of(arguments: dict[str, Any]) -> str:
    return name_of(arguments).replace("=", "").replace(" ", "-")


def work(bench: Bench, options: argparse.Namespace) -> None:
    """All rows of the command, as far as the time goes."""
    if options.holdout is not None:
        raise InputError("--holdout has no place here: the truth is on test images, and proxies never see any")
    ranking = Ranking(bench, options)
    for images in ranking.proxies.values():  # what they are made of, before hours of training
        images(bench.recipe.seed)
    truths = range(bench.recipe.seed, bench.recipe.seed + options.truths)
    for arguments in ranking.networks[ranking.part :: ranking.parts]:
        ranking.train_on_proxies(arguments)
        ranking.train_in_full(arguments, truths)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, "outputs/nas")
    parser.add_argument("--count", type=int, default=30, help="networks (default 30)")
    parser.add_argument("--sample", type=int, default=0, metavar="SEED", help="of the choice of networks (default 0)")
    parser.add_argument("--proxies", nargs="*", choices=PROXIES, default=PROXIES[:5], help="which (default: but soft)")
    parser.add_argument("--truths", type=int, default=1, help="full trainings of each network (default 1)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th network, from the I-th on")
    parser.add_argument("--truth", type=Path, metavar="FOLDER", help="where the truths are (default: in --output)")
    options = parser.read(arguments)[0]
    return run(parser, arguments, work, functools.partial(table, truths=options.truth))


if __name__ == "__main__":
    sys.exit(main())
