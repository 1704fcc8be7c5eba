"""The work behind the rows, piece by piece: it stops in time and is taken up again by the same command.

What is finished is saved at once: a recorded run, a distillation, each trained network's number. What is unfinished
when the time is up goes on from a Composer checkpoint, and ends with the same numbers (on a CPU; a GPU may add in
another order).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer import Callback
from composer.core import Event
from torch import nn

from benchmarks.deadline import Deadline, TimeUp
from benchmarks.machine import describe_machine
from benchmarks.results import TIME_UP, Parser, Row, key_of, open_row, seconds, stopwatch
from tgdd_plugin import DistillSettings, InputError, TGDDCallback, distill
from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.settings import SizedSettings
from tgdd_plugin.evaluation.scorer import Images, random_images
from tgdd_plugin.logs.log_file import log_path, read_log
from tgdd_plugin.networks.factory import network_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.datasets import load_data
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.recording.runs import recorder_of, run_name
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import accuracy, check_network, train_network
from tgdd_plugin.trajectory.manifest import MANIFEST, Run
from tgdd_plugin.trajectory.store import Trajectory


class Bench:
    """A recipe's data, network and settings, and what is done with them for the rows."""

    def __init__(self, recipe: Recipe, options: argparse.Namespace) -> None:
        self.deadline = Deadline(options.minutes)
        self.recipe, self.output = recipe, options.output
        self.seeds = range(recipe.seed, recipe.seed + (options.networks or recipe.retrain.seeds))
        self.on = torch_device(recipe.device)
        self.train, self.test = (pool.to(self.on) for pool in load_data(recipe.data, progress=True))
        mean, std = recipe.data.mean, recipe.data.std
        self.normalization = Normalization.of(mean, std) or Normalization(*self.train.statistics())
        network = recipe.network or NetworkSettings()
        shape, classes = self.train.shape, self.train.num_classes
        self.builds = [network_factory(each, shape, classes) for each in (network, *recipe.extra_networks)]
        self.build = self.builds[0]
        for build in self.builds:
            check_network(build, shape, classes)
        self.name = recipe.data.name.rpartition(":")[2]
        data = {**asdict(recipe.data), "root": None, "fingerprint": self.train.fingerprint()}
        self.base = {"data": data, "network": asdict(network), "head": recipe.head, "seed": recipe.seed}
        if recipe.extra_networks:
            self.base["extra_networks"] = [asdict(other) for other in recipe.extra_networks]

    def row(self, name: str, settings: dict[str, Any], **about: Any) -> Row:
        """Opens a row's file, or begins one; see :func:`benchmarks.results.open_row`."""
        scored_on = "held-out training images" if self.recipe.data.holdout else "test images"
        about = {"data": self.name, **about, "scored_on": scored_on}
        return open_row(self.output, f"{self.name}-{name}", {**self.base, **settings}, about)

    def note(self, row: Row, column: str, entry: dict[str, Any]) -> None:
        """Adds a trained network to a row and saves it, with the machine and versions it came from."""
        row.content.setdefault(column, []).append(entry)
        device = "gpu" if self.on.type == "cuda" else "cpu"
        machine = describe_machine(device, torch.get_num_threads())
        for name, value in (("machines", machine), ("versions", installed_versions("mosaicml", "ffcv", "numpy"))):
            if value not in row.content[name]:
                row.content[name].append(value)
        row.save()
        best = max(entry.get("accuracies", [entry.get("accuracy")]))
        print(f"{row.content['name']}, {column}: {100 * best:.1f} % in {entry['seconds']:.0f} s", file=sys.stderr)
        self.deadline.check()

    def fit(
        self,
        work: Path,
        title: str,
        images: Images,
        settings: TrainSettings,
        seed: int,
        callbacks: Sequence[Any] = (),
        build: Callable[[], nn.Module] | None = None,
    ) -> tuple[nn.Module, float]:
        """Trains a fresh network, as :func:`tgdd_plugin.retrain` and ``record`` do; returns it and the seconds."""
        with forked_streams(seed):
            network = (build or self.build)()
        size = settings.batch_size
        pixels = images[0].to(self.on)
        loader = DeviceLoader(pixels, images[1], self.normalization, batch_size=size, seed=seed, device=self.on)
        with stopwatch(work / "seconds"):
            train_network(
                network,
                loader,
                self.train.num_classes,
                settings,
                seed=seed,
                device=self.recipe.device,
                title=title,
                metrics=any(isinstance(callback, TGDDCallback) for callback in callbacks),
                callbacks=[self.deadline, *callbacks],
                run_name=work.name,
                autoresume=True,
                save_folder=str(work),
                save_interval=self.deadline.due(Event.EPOCH_CHECKPOINT),
                save_overwrite=True,
                save_num_checkpoints_to_keep=1,
            )
        spent = seconds(work / "seconds") or 0.0
        shutil.rmtree(work)
        return network, spent

    def score(self, row: Row, column: str, images: Callable[[int], Images], settings: TrainSettings) -> None:
        """Trains a network for each seed that the row's column lacks, scored at the last epoch."""
        for seed in row.missing(column, self.seeds):
            data = images(seed)
            row.content["images"] = len(data[1])
            title = f"{row.content['name']}, {column}, seed {seed}"
            network, spent = self.fit(row.work / f"{column}{seed}", title, data, settings, seed)
            found = accuracy(network, self.test, self.normalization)
            self.note(row, column, {"seed": seed, "accuracy": found, "seconds": spent})

    def baselines(self, sizes: Sequence[int]) -> None:
        """The rows of random images, other ones for each seed, and of the full data."""
        retrain, pool = self.recipe.retrain, self.train

        for size in sizes:
            how = retrain.training(size * pool.num_classes)
            row = self.row(
                f"random{size}", {"retrain": asdict(how), "random": size}, kind="random", images_per_class=size
            )
            self.score(row, "networks", functools.partial(random_images, pool, size), how)
        if retrain.full_epochs:
            whole = retrain.full_training(len(pool))
            row = self.row("full", {"retrain": asdict(whole)}, kind="full")
            self.score(row, "networks", lambda seed: (pool.images, pool.labels), whole)

    def record(self, settings: RecordSettings, count: int, first: int = 0) -> Trajectory:
        """Trains those of ``count`` runs of each network, from number ``first`` on, that are not recorded yet."""
        depends = {**self.base, "record": {**asdict(settings), "runs": None}}
        folder = self.output / "work" / f"trajectory-{key_of(depends)}"
        runs: dict[Path, Run] = {}
        for kind, number in itertools.product(range(1, len(self.builds) + 1), range(first, first + count)):
            seed = self.recipe.seed + number
            path = folder / run_name(seed, kind)
            if not ((path / MANIFEST).is_file() and Run.read(path).complete):
                tgdd = recorder_of(folder, settings, self.train.classes, self.normalization, self.recipe.head)
                images = self.train.images, self.train.labels
                title = f"recording {path.name}, {settings.epochs} epochs"
                work = folder / "checkpoints" / path.name
                spent = self.fit(work, title, images, settings, seed, [tgdd], self.builds[kind - 1])[1]
                write_whole(path.with_suffix(".seconds"), str(spent))
                self.deadline.check()
            runs |= Trajectory.open(path).runs
        return Trajectory(folder, runs)

    def distill(
        self, row: Row, trajectory: Trajectory, settings: DistillSettings, callbacks: Sequence[Callback] = ()
    ) -> Images:
        """The images that ship; distilled now, unless they are there. ``settings`` are resolved ones."""
        beton = row.work / "distilled.beton"
        if not beton.is_file():
            with stopwatch(row.work / "seconds"):
                distill(
                    trajectory,
                    self.train if settings.source == "sampled" else None,
                    beton,
                    settings,
                    network=self.builds,
                    head=self.recipe.head,
                    device=self.recipe.device,
                    overwrite=True,
                    callbacks=[self.deadline, *callbacks],
                    trainer_options={"save_interval": self.deadline.due(Event.BATCH_CHECKPOINT)},
                )
        card = read_card(beton)
        if row.content.get("sha256", card.sha256) != card.sha256:  # as on another machine, without the folder of work
            print(
                f"{row.content['name']}: distilled anew, to other images; its numbers are made again", file=sys.stderr
            )
            for column in ("networks", "float", "paper_protocol"):
                row.content.pop(column, None)
        recorded = [seconds(path.with_suffix(".seconds")) for path in trajectory.runs]
        row.content |= {"sha256": card.sha256, "images": card.images}
        row.content["seconds"] = {"record": recorded, "distill": seconds(row.work / "seconds"), "step": _step(beton)}
        row.save()
        self.deadline.check()
        return read_beton(beton)

    def sized(self, settings: DistillSettings) -> SizedSettings:
        """With the defaults filled in that the size of the images rules, or a budget."""
        return settings.sized(len(settings.classes or self.train.classes), self.train.shape[1:])

    def retraining(self, settings: DistillSettings) -> TrainSettings:
        """How networks are trained on a set that is distilled by these settings."""
        classes, sized = len(settings.classes or self.train.classes), self.sized(settings)
        return self.recipe.retrain.training(classes * sized.images_per_class * sized.factor**2)

    def resolved(self, settings: DistillSettings, runs: int) -> DistillSettings:
        """With all defaults filled in.

        Raises:
            InputError: If the images are too few or too small, or that many runs will not keep enough to start from.
        """
        settings = self.sized(settings)
        decoded, side = settings.images_per_class * settings.factor**2, self.train.shape[1]
        if side % settings.factor or decoded > int(self.train.counts.min()):
            raise InputError(
                f"{settings.images_per_class} images per class at factor {settings.factor} want a side that the factor "
                f"divides and {decoded} real images per class; they have {side} px and {int(self.train.counts.min())}"
            )
        record = self.recipe.record
        needed = settings.start_images
        if not settings.reads_data and needed > record.exemplars * runs:
            raise InputError(
                f"source {settings.source} starts from the {record.exemplars} images of each class that each of {runs} "
                f"run(s) keeps, and {needed} are needed; give record.exemplars={-(-needed // runs)}"
            )
        return settings.resolved(side, trained_with=record.augmentation)


def _step(beton: Path) -> float | None:
    """The median seconds of a step, as the log of a distillation has them."""
    spent = torch.tensor(read_log(log_path(beton)).get("seconds", []))
    return round(float(spent.diff().median()), 4) if len(spent) > 1 else None


def run(
    parser: Parser,
    arguments: Sequence[str] | None,
    work: Callable[[Bench, argparse.Namespace], None],
    table: Callable[[Path], str],
) -> int:
    """The whole of a script: does the work as far as the time goes, and prints the table.

    Returns:
        0; 2 after one line for input that cannot be used; :data:`TIME_UP` if there is more to do; 130 if interrupted.
    """
    warnings.filterwarnings("ignore")
    options, overrides = parser.read(arguments)
    status = 0
    try:
        if not options.table:
            try:
                work(Bench(read_recipe(options.recipe, overrides), options), options)
            except TimeUp:
                print("the time is up; the same command goes on", file=sys.stderr)
                status = TIME_UP
        print(table(options.output))
    except (InputError, OSError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return status
