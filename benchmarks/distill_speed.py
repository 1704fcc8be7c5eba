"""Measures a step of distillation: the published loop against the engine, and the engine against the size of the job.

    python -m benchmarks.distill_speed                    # ratios, for 1, 10 and 50 images per class
    python -m benchmarks.distill_speed --scale            # the engine's steps and memory against the size of the job
    python -m benchmarks.distill_speed --device gpu --json speed.json

Both sides do the same job in one run: ConvNet-3 of width 128, ten classes of 32×32 colour images, factor 2, 128 real
images per class and step. They take turns, one step of the published loop (`published_loop.py`) after each step of the
engine, and each such pair gives a ratio. The engine is a whole distill() under Composer, timed from the end of a step
to the end of the next. Weights and images are random: what a step costs does not depend on them.

`bare convolutions` is the time of the convolutions alone, forward and backward to their inputs, of the shapes and as
often as a step of the engine has them: what no engine that computes them one by one can be faster than.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from composer import Callback, Logger, State
from torch import nn

from benchmarks.machine import describe_machine, quartiles
from benchmarks.published_loop import PublishedLoop, random_trajectory
from tgdd_plugin import DistillSettings, ImagePool, distill
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.usage import now
from tgdd_plugin.networks.factory import build_network

MEAN, STD = [0.5] * 3, [0.25] * 3
VARIANTS: dict[str, dict[str, Any]] = {
    "sampled": {"source": "sampled"},
    "sampled, bf16": {"source": "sampled", "precision": "bf16"},
    "recorded": {"source": "recorded"},
    "recorded, bf16": {"source": "recorded", "precision": "bf16"},
}
WARM = 3  # steps before the first that counts: compilation, caches, the GPU's clock


class Turns(Callback):
    """Times the engine's steps, and after each calls ``other`` and times that."""

    def __init__(self, other: Callable[[], Any] | None, device: torch.device) -> None:
        self.other = other
        self.device = device
        self.engine: list[float] = []
        self.others: list[float] = []
        self.began = time.perf_counter()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.engine.append(now(self.device) - self.began)
        if self.other is not None and len(self.engine) > WARM - 1:
            began = time.perf_counter()
            self.other()
            self.others.append(now(self.device) - began)
        self.began = now(self.device)


def job(classes: int, side: int, folder: Path) -> tuple[Any, ImagePool, Callable[[], nn.Module]]:
    """A trajectory, real images and a network for a job of that size; ConvNet-3, -4, -5 at 32, 64, 128 px."""
    depth = {32: 3, 64: 4, 128: 5}[side]
    generator = torch.Generator().manual_seed(0)
    per_class = 200
    images = torch.randint(0, 256, (classes * per_class, 3, side, side), dtype=torch.uint8, generator=generator)
    pool = ImagePool(images, torch.arange(classes).repeat_interleave(per_class), [str(i) for i in range(classes)])

    def factory() -> nn.Module:
        return build_network("convnet", {"depth": depth, "width": 128}, pool.shape, classes)

    return random_trajectory(folder, factory, classes, stages=8, mean=MEAN, std=STD), pool, factory


def run_engine(
    trajectory: Any, pool: ImagePool, settings: DistillSettings, device: str, other: Callable[[], Any] | None
) -> Turns:
    """A whole distill(), with ``other`` called between its steps."""
    turns = Turns(other, torch_device(device))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distill(
            trajectory,
            pool,
            Path(folder) / "speed.beton",
            settings,
            device=device,
            progress_bar=False,
            image_interval=0,
            checkpoint_interval="1000000ba",
            callbacks=[turns],
        )
    return turns


def convolutions(factory: Callable[[], nn.Module], settings: DistillSettings, pool: ImagePool, device: str) -> float:
    """Seconds of the bare convolutions of a step, at the precision and in the slices of the engine."""
    on = torch_device(device)
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    network = factory().to(on)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda m, inputs: shapes.append((m, inputs[0].shape[1:])))
    network(torch.zeros(1, *pool.shape, device=on))
    synthetic = pool.num_classes * min(settings.images_per_class * settings.factor**2, settings.max_decoded)
    real = pool.num_classes * settings.real_per_class if settings.source == "sampled" else 0
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    slice_size = 40 if on.type == "cpu" else max(synthetic, 1)
    seconds = 0.0
    for convolution, shape in shapes:
        weight = convolution.weight.detach().to(dtype)
        images = torch.randn(slice_size, *shape, device=on, dtype=dtype, requires_grad=True)
        gradient = torch.randn_like(F.conv2d(images, weight, padding=convolution.padding))

        def forward(images=images, weight=weight, convolution=convolution) -> torch.Tensor:
            return F.conv2d(images, weight, padding=convolution.padding)

        def forward_backward(images=images, forward=forward, gradient=gradient) -> None:
            torch.autograd.grad(forward(), images, gradient)

        with torch.no_grad():
            seconds += real / slice_size * _median_seconds(forward, on)
        seconds += 2 * synthetic / slice_size * _median_seconds(forward_backward, on)
    return seconds


def _median_seconds(work: Callable[[], Any], device: torch.device) -> float:
    times = []
    for _ in range(7):
        began = now(device)
        work()
        times.append(now(device) - began)
    return median(times)


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The published loop against every variant of the engine."""
    rows = []
    print(f"{'images per class':>16}  {'engine':16}  {'published s':>11}  {'engine s':>9}  {'ratio':>6}  "
          f"{'middle half':>15}  {'bare convolutions s':>19}")  # fmt: skip
    for count in arguments.ipc:
        for name in arguments.variants:
            torch.compiler.reset()  # each variant compiles for itself
            settings = DistillSettings(
                images_per_class=count, factor=2, start="mix", steps=WARM + arguments.pairs, schedule="constant",
                compile=not arguments.eager, **VARIANTS[name],
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                trajectory, pool, factory = job(10, 32, Path(folder))
                loop = PublishedLoop(trajectory, pool, settings, factory, MEAN, STD, torch_device(arguments.device))
                turns = run_engine(trajectory, pool, settings, arguments.device, loop.step)
            engine, published = turns.engine[WARM:], turns.others[-arguments.pairs - 1 : -1]
            ratio = quartiles([p / e for p, e in zip(published, engine, strict=True)])
            bare = convolutions(factory, settings, pool, arguments.device)
            row = {"images_per_class": count, "engine": name, "published_s": quartiles(published)["median"],
                   "engine_s": quartiles(engine)["median"], "ratio": ratio, "bare_convolutions_s": bare}  # fmt: skip
            rows.append(row)
            between = f"{ratio['low']:.1f} .. {ratio['high']:.1f}"
            print(f"{count:>16}  {name:16}  {row['published_s']:>11.3f}  {row['engine_s']:>9.4f}  "
                  f"{ratio['median']:>5.1f}x  {between:>15}  {bare:>19.4f}", flush=True)  # fmt: skip
    return rows


def scale(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps a second and peak memory against the size of the job, each size in a process of its own."""
    sizes = [(k, 1, 32) for k in (10, 100, 1000)] + [(10, n, 32) for n in (10, 50)] + [(10, 1, s) for s in (64, 128)]
    rows = []
    print(f"{'classes':>7}  {'images per class':>16}  {'side':>4}  {'engine':16}  {'s/step':>8}  {'ms/class':>8}  "
          f"{'peak MiB':>8}")  # fmt: skip
    for name in arguments.variants:
        for classes, count, side in sizes:
            command = [
                sys.executable,
                "-m",
                "benchmarks.distill_speed",
                "--cell",
                f"{classes},{count},{side}",
                "--variants",
                name,
            ]
            command += ["--device", arguments.device, "--pairs", str(arguments.pairs)]
            command += ["--threads", str(arguments.threads)] + ["--eager"] * arguments.eager
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{classes:>7}  {count:>16}  {side:>4}  {name:16}  failed: {done.stderr.splitlines()[-1]}")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append({"classes": classes, "images_per_class": count, "side": side, "engine": name, **row})
            print(f"{classes:>7}  {count:>16}  {side:>4}  {name:16}  {row['seconds']:>8.3f}  "
                  f"{1000 * row['seconds'] / classes:>8.2f}  {row['peak_mib']:>8.0f}", flush=True)  # fmt: skip
    return rows


def cell(arguments: argparse.Namespace) -> None:
    """One size, for :func:`scale`: prints a line of JSON."""
    classes, count, side = (int(n) for n in arguments.cell.split(","))
    settings = DistillSettings(
        images_per_class=count, factor=2, start="mix", steps=WARM + arguments.pairs, schedule="constant",
        compile=not arguments.eager, **VARIANTS[arguments.variants[0]],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trajectory, pool, _ = job(classes, side, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        turns = run_engine(trajectory, pool, settings, arguments.device, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    if arguments.device == "gpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"seconds": quartiles(turns.engine[WARM:])["median"], "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50], help="images per class")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--pairs", type=int, default=8, help="steps of each side (default: 8)")
    parser.add_argument("--scale", action="store_true", help="the engine alone, against classes, images and resolution")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.cell:
        cell(arguments)
        return
    machine = describe_machine(arguments.device, arguments.threads)
    print(machine)
    rows = scale(arguments) if arguments.scale else compare(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
