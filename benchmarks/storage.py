"""Accuracy against bytes: a distilled set in each form that it can be kept in, beside real images of as many bytes.

    python -m benchmarks.storage recipes/fashion_mnist_cpu.yaml --networks 3 -- data.root=/data distill.factor=2
    python -m benchmarks.storage recipes/cifar10.yaml --minutes 9      # stops in time; the same command goes on
    python -m benchmarks.storage --table                               # prints the table of what is there

One trajectory, and one distillation at the recipe's factor and one at factor 1. Forms are made of the same last pixels:

packed uint8: the stored images, rounded; decoded on reading, and rounded again (distill.packed).
decoded uint8: decoded, then rounded: what a stock FFCV loader reads.
float32: never rounded. Whether packed or decoded these are the same images, so one row of networks is trained.
"""

from __future__ import annotations

import json
import sys
import zlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from composer import Callback, Logger, State

from benchmarks.harness import Bench, run
from benchmarks.results import Parser, Row, markdown, percent, provenance, read_rows
from tgdd_plugin import Card, DistillSettings, InputError, read_beton, read_card, write_beton
from tgdd_plugin.beton.ffcv_tables import MIN_PAGE
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.evaluation.scorer import random_images

PIXELS = "pixels.safetensors"
FLOAT_BYTES = 4
NOTES = [
    "Pixels: C · H · W bytes an image, as float32 four times as many. Packed and decoded float32 are the same images: "
    "one row of networks stands in both lines. FFCV's image field takes no float32.",
    f"❗ A .beton has a floor of {2 * MIN_PAGE // 2**20} MiB, whatever it holds (two of FFCV's pages), and holds "
    "grayscale values three times: on disk, small sets are all of one size. Zipped (zlib, level 9), it shows what is "
    "in it, and 4 KiB of zeros.",
]


class Keeper(Callback):
    """Keeps the last pixels before they are rounded: stored, and decoded where they were distilled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @torch.no_grad()
    def fit_end(self, state: State, logger: Logger) -> None:
        model: Any = state.model
        stored = model.synthetic.pixels.detach()
        decoded = model.synthetic.decode(torch.arange(len(stored), device=stored.device)).clamp(0, 1).flatten(0, 1)
        tensors = {"stored": stored.cpu().contiguous(), "decoded": decoded.cpu().contiguous()}
        write_whole(self.folder / PIXELS, safetensors.torch.save(tensors))


def work(bench: Bench, options: Namespace) -> None:
    """All rows of the command, as far as the time goes."""
    recipe = bench.recipe
    sized = bench.sized(recipe.distill)
    factor, count = sized.factor, sized.images_per_class
    if factor == 1:
        raise InputError("distill.factor is 1, where there is nothing to pack; give -- distill.factor=2")
    base = replace(recipe.distill, packed=False)
    asked = [replace(base, source=source, factor=f) for source in options.source for f in (factor, 1)]
    for settings in [bench.resolved(given, recipe.record.runs) for given in asked]:  # all checked before any work
        distilled(bench, settings)
    sizes = [count, count * factor**2]  # a real image has as many bytes as a stored one
    bench.baselines(sizes)
    for size in sizes:
        weigh_random(bench, size)
    if recipe.retrain.full_epochs:
        weigh(_baseline(bench, "full"), bench.train.images)


def distilled(bench: Bench, settings: DistillSettings) -> None:
    """The rows of one distillation: its decoded images, with the unrounded ones as a second column, and its packed."""
    retrain = bench.retraining(settings)
    depends = {"record": asdict(bench.recipe.record), "distill": asdict(settings), "retrain": asdict(retrain)}
    count, factor, source = settings.images_per_class, settings.factor, settings.source
    about = {"images_per_class": count, "factor": factor, "source": source}
    name = f"ipc{count}-factor{factor}-{source}"
    plain = bench.row(name, depends, kind="distilled", **about)
    packed = bench.row(f"{name}-packed", {**depends, "packed": True}, kind="packed", **about)
    wanted = [(plain, "networks"), (plain, "float"), (packed, "networks")] if factor > 1 else [(plain, "networks")]
    if not any(row.missing(column, bench.seeds) for row, column in wanted):
        return
    trajectory = bench.record(bench.recipe.record, bench.recipe.record.runs)
    images, labels = bench.distill(plain, trajectory, settings, [Keeper(plain.work)])
    beton = plain.work / "distilled.beton"
    weigh(plain, images, beton)
    bench.score(plain, "networks", lambda seed: (images, labels), retrain)
    if factor == 1:
        return
    pixels = safetensors.torch.load_file(plain.work / PIXELS)
    unrounded = pixels["decoded"] * 255
    assert torch.equal(unrounded.round().to(torch.uint8), images), "these are not the pixels that shipped"
    bench.score(plain, "float", lambda seed: (unrounded, labels), retrain)  # the loader divides by 255, as ever
    stored = SyntheticImages(pixels["stored"], factor).to_uint8(packed=True)
    path = write_beton(packed.work / "packed.beton", *stored, replace(read_card(beton), packed=True))
    sha256 = read_card(path).sha256
    if packed.content.get("sha256", sha256) != sha256:  # distilled anew, to other images
        packed.content.pop("networks", None)
    packed.content["sha256"] = sha256
    weigh(packed, stored[0], path)
    bench.score(packed, "networks", lambda seed: read_beton(path), retrain)


def weigh(row: Row, images: torch.Tensor, beton: Path | None = None) -> None:
    """Notes in a row what its images take: as bytes of uint8 pixels, and in a file."""
    row.content |= {"stored": len(images), "pixels": images.numel()}
    if beton is not None:
        row.content |= {"beton": beton.stat().st_size, "zipped": len(zlib.compress(beton.read_bytes(), 9))}
    row.save()


def weigh_random(bench: Bench, size: int) -> None:
    """The same for random real images: those of the first network."""
    row = _baseline(bench, f"random{size}")
    if "beton" in row.content:
        return
    images, labels = random_images(bench.train, size, bench.recipe.seed)
    card = Card(bench.train.classes, 0, size, [], list(bench.normalization.mean), list(bench.normalization.std))
    weigh(row, images, write_beton(row.work / f"random{size}.beton", images, labels, card))


def _baseline(bench: Bench, name: str) -> Row:
    path = bench.output / f"{bench.name}-{name}.json"
    return Row(path, bench.output / "work", json.loads(path.read_text()))


def table(folder: Path) -> str:
    """The Markdown table of a folder's rows, from few bytes to many."""
    rows = read_rows(folder)
    head = ["data", "form", "factor", "source", "images in the file", "images trained on", "pixels, KiB"]
    head += [".beton, KiB", "zipped, KiB", "accuracy"]
    lines = [line for row in rows if "stored" in row for line in _lines(row)]
    lines.sort(key=lambda line: (line[0], line[6]))
    shown = [[*line[:6], *(size and f"{size / 1024:,.1f}" for size in line[6:9]), line[9]] for line in lines]
    return markdown(head, shown, [*NOTES, *provenance(rows)])


def _lines(row: dict[str, Any]) -> Iterator[list[Any]]:
    """A row's lines, with the sizes in bytes."""
    kind, stored, pixels = row["kind"], row["stored"], row["pixels"]
    factor = row.get("factor", "")
    about = [factor, row.get("source", "")]
    sizes = [row.get("beton", ""), row.get("zipped", "")]
    forms = {"packed": "packed uint8", "random": "random real images, uint8", "full": "full data, uint8"}
    form = forms.get(kind) or ("decoded uint8" if factor > 1 else "uint8")
    yield [row["data"], form, *about, stored, row.get("images", ""), pixels, *sizes, percent(row)]
    if row.get("float"):
        for form, share in (("packed float32", factor**2), ("decoded float32", 1)):
            exact = percent({"networks": row["float"]})
            held = FLOAT_BYTES * pixels // share
            yield [row["data"], form, *about, stored // share, row["images"], held, "", "", exact]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__, "outputs/storage")
    parser.set_defaults(source=["sampled"])
    return run(parser, arguments, work, table)


if __name__ == "__main__":
    sys.exit(main())
