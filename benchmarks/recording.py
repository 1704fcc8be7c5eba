"""What TGDDCallback costs beside writing its files.

One Trainer trains epoch after epoch of the same synthetic images, with the callback in every other one, so that
whatever else the machine does disturbs both sides alike. An epoch with and its neighbour without are a pair; the order
within pairs alternates, and the first pair only warms up. What is told is the median over the pairs, the middle half of
them, and between which values the median itself lies (95 %): the last says what the measurement is worth.

Each epoch is a ``fit()`` of its own, so the callback's work at its start and end, due once a run, is counted in every
epoch: the overhead of a real run is less. CPU time is told beside the time on the clock, as it is disturbed less.

    python -m benchmarks.recording --width 64 --pairs 40

With ``--indices`` it measures something else: what a stage costs late in a run, as a ratio to one at index 3. The
stages of a long run alternate with the first ones of a fresh run, so that both meet the same disk and the same load.

    python -m benchmarks.recording --indices 30 300 1000 3000 --width 16
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from tabulate import tabulate

import tgdd_plugin.recording.recorder
import tgdd_plugin.trajectory.manifest
import tgdd_plugin.trajectory.writing
from benchmarks.machine import describe_machine, print_figures, quartiles
from tgdd_plugin import TGDDCallback, TrajectoryRecorder, describe_run
from tgdd_plugin.data.device_loader import DeviceLoader
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks import convnet

LIMIT = 2.0  # per cent of training time
STAGES = 60  # timed from each index on
OVERHEAD = "overhead beside file writing, %"
Seconds = dict[str, float]


class Clock:
    """Adds up the time in some blocks of code, and the CPU time."""

    def __init__(self, wait: Callable[[], Any] = lambda: None) -> None:
        self.wait = wait  # for the device, so that work queued before a block is not taken for the block's
        self.seconds = self.cpu = 0.0
        self.calls = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self.wait()
        start, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wait()
            self.seconds += time.perf_counter() - start
            self.cpu += time.process_time() - cpu
            self.calls += 1

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def inside(self, module: Any, name: str) -> Iterator[None]:
        """Counts the time inside ``module.name`` for as long as the block runs."""
        function = getattr(module, name)
        setattr(module, name, self.around(function))
        try:
            yield
        finally:
            setattr(module, name, function)


def make_trainer(options: argparse.Namespace, tgdd: TGDDCallback) -> Trainer:
    on = torch.device("cuda" if options.device == "gpu" else "cpu")
    generator = torch.Generator().manual_seed(0)
    shape = (options.images, 3, options.side, options.side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(on)
    labels = torch.randint(10, (options.images,), generator=generator)
    torch.manual_seed(0)
    network = convnet(10, 3, options.side, width=options.width)
    return Trainer(
        model=ComposerClassifier(network, num_classes=10),
        train_dataloader=DeviceLoader(
            images, labels, Normalization([0.5] * 3, [0.25] * 3), batch_size=options.batch_size, device=on
        ),
        optimizers=torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9),
        device=options.device,
        progress_bar=False,
        auto_log_hparams=False,
        callbacks=[tgdd],
        run_name="run",
    )


def measure_epoch(trainer: Trainer, duration: str, wait: Callable[[], Any]) -> Seconds:
    """One ``fit()``: its time, and how much of it went into writing files, into stages as a whole and into hooks."""
    whole, files, stages, hooks = Clock(wait), Clock(wait), Clock(wait), Clock()
    with (
        files.inside(tgdd_plugin.trajectory.writing, "write_whole"),
        files.inside(tgdd_plugin.trajectory.manifest, "write_whole"),
        files.inside(tgdd_plugin.trajectory.manifest.Journal, "__init__"),
        files.inside(tgdd_plugin.trajectory.manifest.Journal, "append"),
        stages.inside(tgdd_plugin.recording.recorder, "add_stage"),
        hooks.inside(TGDDCallback, "run_event"),
        whole.running(),
    ):
        trainer.fit(duration=duration)
    return {
        "whole": whole.seconds,
        "whole cpu": whole.cpu,
        "files": files.seconds,
        "files cpu": files.cpu,
        "stages": stages.seconds,
        "count": stages.calls,
        "hooks": hooks.seconds,
    }


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Seconds]], float]:
    """The pairs, and the bytes of a stage."""
    wait = torch.cuda.synchronize if options.device == "gpu" else lambda: None
    pairs = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        trainer = make_trainer(options, TGDDCallback(folder, options.interval, dtype=options.dtype))
        others = [callback for callback in trainer.state.callbacks if not isinstance(callback, TGDDCallback)]
        sides = {"with": list(trainer.state.callbacks), "without": others}
        for number in range(options.pairs + 1):
            pair = {}
            for side in ("with", "without") if number % 2 else ("without", "with"):
                trainer.state.callbacks = sides[side]
                pair[side] = measure_epoch(trainer, f"{options.epochs}ep", wait)
            pairs.append(pair)
        trainer.state.callbacks = sides["with"]
        trainer.close()
        sizes = [path.stat().st_size for path in Path(folder).glob("*/*.safetensors")]
    return pairs[1:], sum(sizes) / len(sizes)


def summarize(pairs: list[dict[str, Seconds]], size: float) -> dict[str, Seconds]:
    """Figures by name; ``size`` is a stage's in bytes."""

    def over(value: Callable[[Seconds, Seconds], float]) -> Seconds:
        return quartiles([value(pair["with"], pair["without"]) for pair in pairs])

    def percent(on: Seconds, off: Seconds, kind: str = "") -> float:
        return 100 * (on["whole" + kind] - on["files" + kind] - off["whole" + kind]) / off["whole" + kind]

    return {
        "training without, s": over(lambda on, off: off["whole"]),
        "training with, s": over(lambda on, off: on["whole"]),
        "in the file writing, s": over(lambda on, off: on["files"]),
        OVERHEAD: over(percent),
        "  the same in CPU time, %": over(lambda on, off: percent(on, off, " cpu")),
        "  inside the callback's hooks, %": over(lambda on, off: 100 * (on["hooks"] - on["files"]) / off["whole"]),
        "a stage in all, ms": over(lambda on, off: 1000 * on["stages"] / on["count"]),
        "file writing for each stage, ms": over(lambda on, off: 1000 * on["files"] / on["count"]),
        "file writing, MiB/s": over(lambda on, off: on["count"] * size / 2**20 / on["files"]),
        "size of a stage, MiB": quartiles([size / 2**20] * len(pairs)),
    }


class LongRun:
    """A recording whose stages follow each other without training in between."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.network = convnet(10, 3, options.side, width=options.width)
        self.recorder = TrajectoryRecorder(folder, dtype=options.dtype)
        self.recorder.start(describe_run("run", self.network, 10, mean=[0.5], std=[0.25]), self.network)
        self.images = torch.rand(20, 3, options.side, options.side)
        self.index = 0

    def stage(self) -> tuple[float, float]:
        """Records the next stage; returns its time in seconds, and its CPU time."""
        self.index += 1
        self.recorder.batch(self.images, torch.arange(20) % 10, {"loss": torch.tensor(1.0)})
        start, cpu = time.perf_counter(), time.process_time()
        self.recorder.stage(self.index)
        return time.perf_counter() - start, time.process_time() - cpu


def measure_indices(options: argparse.Namespace) -> list[dict[str, float]]:
    """Times so many stages from every index on, in turn with as many from index 3 on of a fresh run."""
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        long = LongRun(Path(folder) / "long", options)
        for index in options.indices:
            while long.index < index - 1:
                long.stage()
            fresh = LongRun(Path(folder) / f"fresh{index}", options)
            for _ in range(2):
                fresh.stage()
            late, early = zip(*((long.stage(), fresh.stage()) for _ in range(STAGES)), strict=True)
            row: dict[str, float] = {"index": index}
            for name, side in (("ms", late), ("ms at index 3", early)):
                for kind, column in (("", 0), (" CPU", 1)):
                    row[name + kind] = 1000 * statistics.median(seconds[column] for seconds in side)
            row["ratio"] = row["ms"] / row["ms at index 3"]
            row["ratio CPU"] = row["ms CPU"] / row["ms at index 3 CPU"]
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--width", type=int, default=128, help="of the ConvNet (default 128)")
    parser.add_argument("--side", type=int, default=32, help="pixels (default 32)")
    parser.add_argument("--images", type=int, default=1024, help="in the training set (default 1024)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default 64)")
    parser.add_argument("--epochs", type=int, default=1, help="on either side of a pair (default 1)")
    parser.add_argument("--pairs", type=int, default=30, help="(default 30)")
    parser.add_argument("--interval", default="1ep", help="of the callback (default 1ep)")
    parser.add_argument("--dtype", default="float32", help="of the stages (default float32)")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default 1, the least disturbed)")
    parser.add_argument("--indices", type=int, nargs="+", metavar="I", help="measure stages at these indices instead")
    parser.add_argument("--folder", help="where to record for the while (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="write everything measured there")
    options = parser.parse_args()
    if options.device == "gpu" and not torch.cuda.is_available():
        parser.error("--device gpu: torch sees no GPU here; use --device cpu")
    if options.pairs < 2:
        parser.error(f"--pairs {options.pairs}: wanted at least 2")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)

    if options.indices:
        rows = measure_indices(options)
        print(f"{describe_machine(options.device, options.threads)}; medians of {STAGES} stages each\n")
        print(tabulate(rows, headers="keys", floatfmt=".2f"))
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
        return
    pairs, size = measure(options)
    summary = summarize(pairs, size)
    machine = describe_machine(options.device, options.threads)
    print(f"{machine}; ConvNet-3 of width {options.width}, {options.images} images of {options.side}x{options.side},")
    print(f"{options.epochs} epoch(s), a {options.dtype} stage per {options.interval}, {len(pairs)} pairs\n")
    print_figures(summary)
    verdict = "within" if summary[OVERHEAD]["median"] < LIMIT else "above"
    print(f"\nThe overhead beside file writing is {verdict} the {LIMIT} % allowed.")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        content = {"machine": machine, "settings": settings, "summary": summary, "stage bytes": size, "pairs": pairs}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
