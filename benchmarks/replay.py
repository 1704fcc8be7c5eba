"""What a continual learner remembers with distilled images of earlier tasks, beside real images of as many bytes.

    python -m benchmarks.replay recipes/replay_fashion_mnist_cpu.yaml --orders 0 1 2 --gdumb -- data.root=/data
    python -m benchmarks.replay recipes/replay_cifar100.yaml --gdumb each --minutes 9   # the same command goes on
    python -m benchmarks.replay --table                                # prints the table of what is there

A row is one learner: it learns tasks one after another with a network that goes on from task to task and a memory that
is mixed into every batch. All memories store the same number of images of the same size; with a factor the distilled
images are packed. --methods are the policies of tgdd_plugin/replay/policies.py, what is kept of a task, and two bounds:

finetune: nothing is kept.
joint: not a learner, but a fresh network trained on the real images of all tasks (the upper bound).
random: random images of each class.
reservoir: a uniform sample of the stream by Vitter's algorithm, which uses its whole size from the first task on.
herding: the images that iCaRL's herding selects by the features of the network just trained.
distilled: the new classes, distilled from the trajectory of their training; --source recorded reads none of the images.
hybrid: real images by herding and distilled ones, replay.real_share of them real.

--gdumb: also trains fresh networks on the memory alone, as the recipe's retrain says (GDumb; Prabhu et al., ECCV 2020),
    after the last task, or with "each" after each. There are --networks of them, on the memories of the learners.
--domain: tasks bring new appearance instead of new classes: each has all classes and its own share of the training
    images: as they are, inverted, rotated by 90 degrees, and of half the contrast with their channels reversed. The
    memory keeps the given number of images of each class and task.

The time limit is checked between training and distilling, and at every step of distilling.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from composer.core import Event

from benchmarks.harness import Bench, run
from benchmarks.replay_table import GDUMB, LEARNER, METHODS, PROTOCOL, table
from benchmarks.results import Parser, Row, seconds, stopwatch
from tgdd_plugin import DistillSettings, ImagePool, InputError, read_beton
from tgdd_plugin.networks.factory import network_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.replay.learner import learn
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.replay.policies import (
    Policy,
    TaskResult,
    distilled,
    herding_exemplars,
    hybrid,
    random_exemplars,
    reservoir,
)
from tgdd_plugin.replay.settings import ReplaySettings, memory_settings
from tgdd_plugin.replay.task_folders import MEMORY, WITHOUT
from tgdd_plugin.replay.tasks import Task, check_enough_images, split_classes
from tgdd_plugin.training.train import accuracy

SCRATCH = ("random", "herding", "distilled", "hybrid")  # methods that have the GDumb form
DOMAINS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as they are": lambda images: images,
    "inverted": lambda images: 255 - images,
    "rotated": lambda images: images.rot90(1, (2, 3)),
    "half contrast": lambda images: 64 + images.flip(1) // 2,
}


@dataclass(frozen=True)
class Case:
    """The settings of one row.

    Args:
        method: One of :data:`METHODS`.
        source: The ``source`` of a distilled memory, otherwise empty.
        order: The seed of the order of the classes, or of the domains.
        form: :data:`LEARNER`, :data:`GDUMB`, or empty for joint training.
        distill: The resolved settings of a distilled memory, otherwise ``None``.
    """

    method: str
    source: str
    order: int
    form: str = LEARNER
    distill: DistillSettings | None = None

    @property
    def name(self) -> str:
        parts = [f"order{self.order}", self.method, self.source, "scratch" if self.form == GDUMB else ""]
        return "-".join(filter(None, parts))


def domain_tasks(train: ImagePool, test: ImagePool, settings: ReplaySettings) -> list[Task]:
    """Makes tasks that each have all classes in another appearance, at most as many as :data:`DOMAINS` has."""
    if isinstance(settings.tasks, tuple):
        raise InputError(f"`replay.tasks` must be a number with --domain, got {list(settings.tasks)}. Give one.")
    names = list(DOMAINS)[: settings.tasks]
    generator = torch.Generator().manual_seed(settings.order or 0)
    tasks = []
    for number, place in enumerate(torch.randperm(len(names), generator=generator).tolist()):
        own = [(train.labels == label).nonzero()[number :: len(names), 0] for label in range(train.num_classes)]
        look, index = DOMAINS[names[place]], torch.cat(own)
        pools = [(train.take(index), train.labels[index]), (test.images, test.labels)]
        seen = [ImagePool(look(images).contiguous(), labels, train.classes) for images, labels in pools]
        tasks.append(Task(seen[0], seen[1], train.classes))
    return tasks


class Comparison:
    """The rows of one scenario."""

    def __init__(self, bench: Bench, options: argparse.Namespace) -> None:
        self.bench, self.scratch = bench, options.gdumb
        self.scenario = "domains" if options.domain else "classes"
        self.count = options.images_per_class or memory_settings(bench.recipe.distill).images_per_class
        self.network = bench.recipe.network or NetworkSettings()
        self.make = functools.cache(self._make)
        self.cases = [case for order in options.orders for case in self._cases(order, options)]
        if bench.recipe.replay.heads == "task" and (self.scratch or "joint" in options.methods):
            raise InputError(
                "`replay.heads` must be one for joint and --gdumb, whose networks have one head, got task. Leave these "
                "two out, or the heads."
            )
        for order in options.orders:  # before any work
            check_enough_images(self.make(order), self.count)

    def _cases(self, order: int, options: argparse.Namespace) -> list[Case]:
        found = []
        for method in options.methods:
            for source in options.source if method in ("distilled", "hybrid") else [""]:
                settings = None
                if method in ("distilled", "hybrid"):
                    sized = memory_settings(replace(self.bench.recipe.distill, images_per_class=self.count))
                    given = replace(sized, source=source, packed=sized.factor > 1)
                    settings = self.bench.resolved(given, 1)
                form = "" if method == "joint" else LEARNER
                found.append(Case(method, source, order, form, settings))
                if self.scratch and method in SCRATCH:
                    found.append(replace(found[-1], form=GDUMB))
        return found

    def _make(self, order: int) -> list[Task]:
        split = domain_tasks if self.scenario == "domains" else split_classes
        return split(self.bench.train, self.bench.test, replace(self.bench.recipe.replay, order=order))

    def _settings(self, case: Case, tasks: list[Task]) -> ReplaySettings:
        given = replace(self.bench.recipe.replay, order=case.order)
        return given if isinstance(given.tasks, tuple) else replace(given, tasks=len(tasks))

    def row(self, case: Case) -> Row:
        """Opens the row of a case, with the settings that it depends on."""
        recipe, tasks = self.bench.recipe, self.make(case.order)
        replay = asdict(self._settings(case, tasks))
        for name, value in WITHOUT.items():  # keys that earlier rows lack
            if replay[name] == value:
                del replay[name]
        depends: dict[str, Any] = {"record": asdict(replace(recipe.record, runs=1)), "scenario": self.scenario}
        about: dict[str, Any] = {"kind": "continual", "method": case.method, "source": case.source, "form": case.form}
        if case.method in ("finetune", "joint"):
            replay = {name: replay[name] for name in ("tasks", "order", "returning", "heads") if name in replay}
        else:
            del replay["policy"]  # the row's method
            if case.method != "hybrid":
                del replay["real_share"]
            depends["images_per_class"] = about["images_per_class"] = self.count
            about["factor"] = case.distill.factor if case.distill else 1
        if case.distill:
            depends["distill"] = asdict(case.distill)
        if case.form == GDUMB:
            depends |= {"retrain": asdict(recipe.retrain), "scratch": self.scratch}
        about |= {"scenario": self.scenario, "order": case.order, "tasks": [task.new for task in tasks]}
        about["classes_seen"] = [task.train.num_classes for task in tasks]
        row = self.bench.row(f"{self.scenario}-{case.name}", {**depends, "replay": replay}, **about)
        row.content["protocol"] = PROTOCOL
        return row

    def make_row(self, case: Case) -> None:
        """Does what is missing in a row."""
        row = self.row(case)
        seeds = self.bench.seeds if case.form == GDUMB else self.bench.seeds[:1]
        for seed in row.missing("networks", seeds):
            if case.form == LEARNER:
                scores = self.learn(case, row.work)
                matrix, spent = scores.rows, seconds(row.work / "seconds")
                for folder in row.work.glob("task*/trajectory"):  # many stages, which are not needed any more
                    shutil.rmtree(folder)
                row.content |= self.weigh(row.work, len(matrix))
            else:
                (matrix, spent) = (self.joint if case.form == "" else self.gdumb)(case, row, seed)
            entry = {"seed": seed, "accuracy": mean(matrix[-1]), "matrix": matrix, "seconds": spent}
            self.bench.note(row, "networks", entry)

    def learn(self, case: Case, folder: Path) -> Scores:
        """Runs a learner as far as it is not done yet."""
        bench, tasks = self.bench, self.make(case.order)
        recipe, shares = bench.recipe, len(tasks) if self.scenario == "domains" else 1
        methods: dict[str, Callable[[], Policy]] = {
            "finetune": lambda: lambda result: None,
            "random": lambda: random_exemplars(self.count),
            "reservoir": lambda: reservoir(tasks, self.count * bench.train.num_classes * shares, bench.normalization),
            "herding": lambda: herding_exemplars(self.count, bench.normalization),
            "distilled": lambda: self._distilled(case, distilled),
            "hybrid": lambda: self._distilled(
                case, functools.partial(hybrid, real_share=recipe.replay.real_share, normalization=bench.normalization)
            ),
        }
        policy = methods[case.method]()

        def select_exemplars(result: TaskResult) -> Any:
            bench.deadline.check()
            return policy(result)

        with stopwatch(folder / "seconds"):
            return learn(
                tasks,
                lambda count: network_factory(self.network, bench.train.shape, count)(),
                folder,
                select_exemplars,
                self.count * shares,
                recipe.record,
                self._settings(case, tasks),
                mean=bench.normalization.mean,
                std=bench.normalization.std,
                seed=recipe.seed,
                device=recipe.device,
            )

    def _distilled(self, case: Case, make: Callable[..., Policy]) -> Policy:
        assert case.distill is not None
        deadline = self.bench.deadline
        saving = {"save_interval": deadline.due(Event.BATCH_CHECKPOINT)}
        return make(case.distill, device=self.bench.recipe.device, callbacks=[deadline], trainer_options=saving)

    def weigh(self, folder: Path, tasks: int) -> dict[str, int]:
        """Returns the size of a learner's last memory."""
        path = folder / f"task{tasks - 1}" / MEMORY
        memory = ReplayMemory.load(path) if path.is_file() else None
        return {"stored": len(memory) if memory else 0, "bytes": memory.nbytes if memory else 0}

    def joint(self, case: Case, row: Row, seed: int) -> tuple[list[list[float]], float]:
        """Trains a fresh network on all real images, and scores it on each task."""
        tasks = self.make(case.order)
        images = torch.cat([task.train.images for task in tasks]), torch.cat([task.train.labels for task in tasks])
        return self._fresh(row, row.work / f"joint{seed}", images, self.bench.recipe.record, seed, tasks)

    def gdumb(self, case: Case, row: Row, seed: int) -> tuple[list[list[float]], float]:
        """Trains fresh networks on the learner's memory alone, and scores them on each task so far."""
        learner, tasks = replace(case, form=LEARNER), self.make(case.order)
        source, last = self.row(learner), len(tasks) - 1
        if not (source.work / f"task{last}" / MEMORY).is_file():  # as on another machine, without the work folder
            shutil.rmtree(source.work, ignore_errors=True)
            self.learn(learner, source.work)
        row.content |= self.weigh(source.work, len(tasks))
        retrain, matrix, total = self.bench.recipe.retrain, [], 0.0
        for number in range(len(tasks)) if self.scratch == "each" else [last]:
            images = read_beton(source.work / f"task{number}" / MEMORY)
            work = row.work / f"seed{seed}-task{number}"
            settings = retrain.training(len(images[0]))
            scores, spent = self._fresh(row, work, images, settings, seed, tasks[: number + 1])
            matrix, total = [*matrix, *scores], total + spent
        return matrix, total

    def _fresh(
        self, row: Row, work: Path, images: Any, settings: Any, seed: int, tasks: Sequence[Task]
    ) -> tuple[list[list[float]], float]:
        """Trains a fresh network on some images, and scores it on tasks; returns the matrix' row and the seconds."""
        build = network_factory(self.network, self.bench.train.shape, tasks[-1].train.num_classes)
        title = f"{row.content['name']}, {work.name}"
        network, spent = self.bench.fit(work, title, images, settings, seed, build=build)
        return [[accuracy(network, task.test, self.bench.normalization) for task in tasks]], spent


def work(bench: Bench, options: argparse.Namespace) -> None:
    """Makes all rows of the command, as far as the time allows."""
    comparison = Comparison(bench, options)
    for case in comparison.cases:
        comparison.make_row(case)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, "outputs/replay")
    parser.add_argument("--orders", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="(default 0 1 2)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="M", help="(default: all)")
    parser.add_argument("--gdumb", nargs="?", const="last", choices=["last", "each"], help="after which tasks")
    parser.add_argument("--domain", action="store_true", help="the same classes in another appearance in each task")
    parser.add_argument("--images-per-class", type=int, metavar="N", help="in the memory (default: the recipe's)")
    return run(parser, arguments, work, table)


if __name__ == "__main__":
    sys.exit(main())
