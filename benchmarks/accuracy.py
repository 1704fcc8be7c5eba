"""What distilled sets are worth under the paper's protocol: accuracies on real data, row by row.

    python -m benchmarks.accuracy recipes/cifar10.yaml --ipc 1 10 50 --factor 2 1 --networks 5 -- data.root=/data
    python -m benchmarks.accuracy recipes/cifar10.yaml --minutes 9     # stops in time; the same command goes on
    python -m benchmarks.accuracy --table                              # prints the table of what is there

A row is a distilled set, as many random images as it stores and as it decodes, or the full data. Its number is honest:
the last iterate, as it ships (decoded uint8), at the last epoch, mean ± std over networks; nothing is chosen on the
test images. Beside it, on demand:

--float: the same networks on the pixels before they are rounded, and the difference, network by network.
--paper-protocol: the best of 20 iterates x 6 test evaluations within one training each, all on the test images, as the
    paper's program reports it (repeat 1; here of the uint8 images, so its last figure is the first honest network's).
--ablation: in place of the cells, the paper's table of parts: none, + augmentation and factor, + stages, + constraint,
    and plain distribution matching by the same engine; with how far apart the classes of each set lie, in the features
    of a network that saw neither the sets nor the recorded run, and the seconds of a step.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from composer import Callback, Logger, State
from torch import nn

from benchmarks.harness import Bench, run
from benchmarks.results import (
    SECONDS,
    Parser,
    Row,
    key_of,
    markdown,
    percent,
    provenance,
    read_rows,
    seconds_of,
    spread,
)
from benchmarks.separation import class_separation
from tgdd_plugin import DistillSettings, ImagePool, InputError
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.weights import load_weights, weights_content
from tgdd_plugin.distillation.settings import SizedSettings
from tgdd_plugin.evaluation.distribution_matching import fresh_networks, matching_settings
from tgdd_plugin.networks.features import features_of
from tgdd_plugin.training.train import accuracy

ITERATES, EVALUATIONS = 20, 6  # of the paper's program
FLOAT = "float.safetensors"
MATCHING = "plain distribution matching"
PARTS = [MATCHING, "none", "+ augmentation and factor", "+ stages", ""]  # another method; without any, to all
JUDGE = 1000  # added to the seed of the network whose features judge the sets


def marks(total: int, parts: int) -> list[int]:
    """Where each of so many equal parts ends; the last is ``total``."""
    return sorted({total * part // parts for part in range(1, parts + 1)} - {0})


class Keeper(Callback):
    """Keeps iterates of a distillation as they would ship, and the last one before it is rounded."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.steps = marks(steps, ITERATES)

    def batch_end(self, state: State, logger: Logger) -> None:
        if (step := state.timestamp.batch.value) in self.steps:
            model: Any = state.model
            self._write(f"iterate{step}.safetensors", model.synthetic.to_uint8()[0])

    @torch.no_grad()
    def fit_end(self, state: State, logger: Logger) -> None:
        model: Any = state.model
        synthetic = model.synthetic
        classes = torch.arange(len(synthetic.pixels), device=synthetic.pixels.device)
        self._write(FLOAT, synthetic.decode(classes).clamp(0, 1).flatten(0, 1).cpu())

    def _write(self, name: str, images: torch.Tensor) -> None:
        write_whole(self.folder / name, safetensors.torch.save({"images": images.contiguous()}))


class Evaluations(Callback):
    """Scores a network at some epochs of its training, and changes nothing about it."""

    def __init__(self, bench: Bench, epochs: int) -> None:
        self.bench = bench
        self.epochs = marks(epochs, EVALUATIONS)
        self.accuracies: list[float] = []

    def epoch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.epoch.value in self.epochs:
            network: Any = state.model.module
            self.accuracies.append(accuracy(network, self.bench.test, self.bench.normalization))
            network.train()

    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": self.accuracies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracies = list(state["accuracies"])


def cells(
    settings: DistillSettings, options: argparse.Namespace, sized: Callable[[DistillSettings], SizedSettings]
) -> Iterator[tuple[str, str, DistillSettings]]:
    """The name, the parts and the settings of each distilled row that is asked for; ``sized`` fills in the defaults."""
    for count in options.ipc or [settings.images_per_class]:
        base = sized(replace(settings, images_per_class=count))
        for factor in options.factor or [base.factor]:
            for source in options.source:
                yield (
                    f"ipc{base.images_per_class}-factor{factor}-{source}",
                    "",
                    replace(base, factor=factor, source=source),
                )


def ablation(
    settings: DistillSettings, options: argparse.Namespace, sized: Callable[[DistillSettings], SizedSettings]
) -> Iterator[tuple[str, str, DistillSettings]]:
    """The same for the paper's table of parts; without stages, it is the last one of each run that is matched."""
    factor = options.factor[:1] if options.factor else None
    options = argparse.Namespace(ipc=options.ipc, factor=factor, source=["sampled"])
    for name, _, whole in cells(settings, options, sized):
        staged = replace(whole, alpha=0.0)
        single = replace(staged, stages="last")
        yield f"{name}-matching", PARTS[0], matching_settings(whole)
        yield f"{name}-none", PARTS[1], replace(single, augmentation="none", factor=1)
        yield f"{name}-augmented", PARTS[2], single
        yield f"{name}-staged", PARTS[3], staged
        yield name, PARTS[4], whole


def work(bench: Bench, options: argparse.Namespace) -> None:
    """All rows of the command, as far as the time goes."""
    recipe = bench.recipe
    if options.paper_protocol and recipe.retrain.protocol != "paper":
        raise InputError("--paper-protocol scores trainings of the paper's protocol; add retrain.protocol=paper")
    asked = (ablation if options.ablation else cells)(recipe.distill, options, bench.sized)
    # What cannot work is found out before any work.
    wanted = [(name, parts, bench.resolved(given, recipe.record.runs)) for name, parts, given in asked]
    sizes = set()
    for name, parts, settings in wanted:
        retrain = asdict(bench.retraining(settings))
        row = bench.row(
            name,
            {"record": asdict(recipe.record), "distill": asdict(settings), "retrain": retrain},
            kind="distilled",
            images_per_class=settings.images_per_class,
            factor=settings.factor,
            source=settings.source,
            parts=parts,
        )
        distilled(bench, row, settings, options)
        sizes |= {settings.images_per_class, settings.images_per_class * settings.factor**2}
    bench.baselines(sorted(sizes))


def distilled(bench: Bench, row: Row, settings: DistillSettings, options: argparse.Namespace) -> None:
    """One distilled row: its set, and the networks trained on it."""
    retrain = bench.retraining(settings)
    steps = marks(settings.steps, ITERATES) if options.paper_protocol else []
    columns = ["networks", "float"] if options.float else ["networks"]
    done = not any(row.missing(c, bench.seeds) for c in columns) and not row.missing("paper_protocol", steps, "step")
    if done and not (options.ablation and "separation" not in row.content):
        return
    if row.content["parts"] == MATCHING:
        seed, shape = bench.recipe.seed, bench.train.shape
        folder = row.work / "fresh"
        trajectory = fresh_networks(folder, bench.build, bench.train.classes, bench.normalization, seed, shape)
    else:
        trajectory = bench.record(bench.recipe.record, bench.recipe.record.runs)
    images, labels = bench.distill(row, trajectory, settings, [Keeper(row.work, settings.steps)])
    if options.ablation and "separation" not in row.content:
        pool = ImagePool(images, labels, bench.train.classes)
        features = features_of(judge(bench), pool, bench.normalization)
        found = class_separation(features, pool.labels)
        row.content["separation"] = found if math.isfinite(found) else None  # of one image each there is no spread
        row.save()
    bench.score(row, "networks", lambda seed: (images, labels), retrain)
    if options.float:
        unrounded = safetensors.torch.load_file(row.work / FLOAT)["images"] * 255
        assert torch.equal(unrounded.round().to(torch.uint8), images), "these are not the pixels that shipped"
        bench.score(row, "float", lambda seed: (unrounded, labels), retrain)  # the loader divides by 255, as ever
    for step in row.missing("paper_protocol", steps, "step"):
        data = safetensors.torch.load_file(row.work / f"iterate{step}.safetensors")["images"], labels
        evaluations = Evaluations(bench, retrain.epochs)
        title = f"{row.content['name']}, paper protocol, iterate {step}"
        seed = bench.recipe.seed
        _, spent = bench.fit(row.work / f"iterate{step}", title, data, retrain, seed, [evaluations])
        entry = {"step": step, "seed": seed, "epochs": evaluations.epochs, "accuracies": evaluations.accuracies}
        bench.note(row, "paper_protocol", {**entry, "seconds": spent})


def judge(bench: Bench) -> nn.Module:
    """A network trained on all real images from another seed than any other; kept once it is."""
    how = bench.recipe.retrain.full_training(len(bench.train))
    work = bench.output / "work" / f"judge-{key_of({**bench.base, 'retrain': asdict(how)})}"
    path = work.with_suffix(".safetensors")
    if not path.is_file():
        images = bench.train.images, bench.train.labels
        network, _ = bench.fit(work, "a network that judges the sets", images, how, bench.recipe.seed + JUDGE)
        write_whole(path, weights_content(network.state_dict()))
    network = bench.build()
    network.load_state_dict(load_weights(path))
    return network.to(bench.on)


def table(folder: Path) -> str:
    """The Markdown table of a folder's rows."""
    rows = read_rows(folder)
    named = {row["name"]: row for row in rows}
    head = ["data", "images per class", "factor", "source", "parts", "distilled", "random, as many stored"]
    head += ["random, as many decoded", "full data", "class separation", "seconds a step"]
    head += ["float − uint8", "paper protocol (best on test)", SECONDS]
    lines = []
    chosen = [row for row in rows if row["kind"] == "distilled"]
    for row in sorted(chosen, key=_order):
        data, count, factor = row["data"], row["images_per_class"], row["factor"]
        others = [f"random{count}", f"random{count * factor**2}" if factor > 1 else "", "full"]
        baselines = [percent(named.get(f"{data}-{other}")) for other in others]
        judged = (row["separation"], row["seconds"]["step"]) if "separation" in row else (None, None)
        parts = ["" if value is None else f"{value:.2f}" for value in judged]
        numbers = [percent(row), *baselines, *parts, float_gap(row), best_on_test(row), seconds_of(row)]
        lines.append([data, count, factor, row["source"], row["parts"], *numbers])
    return markdown(head, lines, provenance(rows))


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    part = PARTS.index(row["parts"])
    return row["data"], row["images_per_class"], part, -row["factor"], row["source"] != "sampled"


def float_gap(row: dict[str, Any]) -> str:
    """What rounding costs, network by network, in points."""
    shipped = {entry["seed"]: entry["accuracy"] for entry in row.get("networks", [])}
    pairs = [(entry["accuracy"], shipped.get(entry["seed"])) for entry in row.get("float", [])]
    return spread([100 * (exact - rounded) for exact, rounded in pairs if rounded is not None], "+.2f")


def best_on_test(row: dict[str, Any]) -> str:
    """The maximum that the paper's program would report."""
    scored = row.get("paper_protocol", [])
    every = len(marks(row["settings"]["distill"]["steps"], ITERATES))
    so_far = f" ({len(scored)} of {every} iterates)" if len(scored) < every else ""
    return f"{100 * max(max(entry['accuracies']) for entry in scored):.1f}{so_far}" if scored else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, "outputs/accuracy")
    parser.add_argument("--ipc", nargs="+", type=int, metavar="N", help="images per class (default: the recipe's)")
    parser.add_argument("--factor", nargs="+", type=int, metavar="F", help="(default: the recipe's)")
    parser.add_argument("--float", action="store_true", help="train on the unrounded pixels too")
    parser.add_argument("--paper-protocol", action="store_true", help="the best on the test set: 20 more trainings")
    parser.add_argument("--ablation", action="store_true", help="the paper's table of parts, source sampled")
    return run(parser, arguments, work, table)


if __name__ == "__main__":
    sys.exit(main())
