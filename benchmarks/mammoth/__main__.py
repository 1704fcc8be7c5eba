"""Mammoth's methods and memories of this package, by Mammoth's own runner on its own class streams.

    git clone https://github.com/aimagelab/mammoth && git -C mammoth checkout ff35b09
    pip install -r mammoth/requirements.txt googledrivedownloader==0.4 pandas scikit-learn
    python -m benchmarks.mammoth mammoth --data DATA --dataset fashion_mnist   # the same command goes on
    python -m benchmarks.mammoth mammoth --data DATA --dataset cifar100 --per-class 500 --epochs 50 --buffer 2000 -- \\
        --backbone resnet18                                             # CIFAR-100 in ten tasks, for a GPU
    python -m benchmarks.mammoth --table

Each method's buffer holds as many images of the same size. Later commits of Mammoth fetch a CLIP network from the
internet when they are imported. After ``--`` come arguments for Mammoth's ``main.py``, for all methods.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.referees import add_options, is_done, run_all, save, table
from benchmarks.results import split_arguments
from tgdd_plugin import InputError

COMMIT = "ff35b09c9fd3c61746a0f57ccc0d1361e008c89c"
"""The commit of Mammoth that the figures in README.md were measured with."""
NEEDED = {
    "main.py": "def main(",
    "models/__init__.py": "def register_model(",
    "datasets/__init__.py": "def register_dataset(",
    "backbone/__init__.py": "def register_backbone(",
    "utils/buffer.py": "def add_data(",
    "utils/metrics.py": "def forgetting(",
    "datasets/seq_cifar10.py": "class SequentialCIFAR10(",
    "datasets/seq_cifar100.py": "class SequentialCIFAR100(",
    "datasets/seq_mnist.py": "class MyMNIST(",
}
"""The files of Mammoth that are used here, and what each must have."""
PACKAGES = ("kornia", "timm", "torchvision", "tqdm", "onedrivedownloader", "google_drive_downloader", "ftfy", "regex")
PACKAGES += ("yaml", "six", "pandas", "sklearn")
OURS = ("random", "herding", "distilled", "hybrid")
THEIRS = {
    "er": [],
    "derpp": ["--alpha", "0.3", "--beta", "0.5"],  # as models/config/derpp.yaml
    "icarl": [],
    "gdumb": [],
}
DATASETS = {"fashion_mnist": ("seq-fmnist-small", 1, 28), "cifar10": ("seq-cifar10-small", 3, 32)}
DATASETS["cifar100"] = ("seq-cifar100-small", 3, 32)


def check_checkout(folder: Path) -> None:
    """Checks that a folder is a checkout of Mammoth that ``model.py`` and ``stream.py`` fit.

    Raises:
        InputError: If it is not, or packages that Mammoth needs are missing.
    """
    for name, text in NEEDED.items():
        path = folder / name
        if not path.is_file() or text not in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"`checkout` must be a checkout of github.com/aimagelab/mammoth, got '{folder}', where {name} "
                f"{f'lacks `{text}`' if path.is_file() else 'is missing'}. Check out commit {COMMIT[:7]}."
            )
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"Mammoth needs modules that are not installed: {', '.join(missing)}. Install them.")


def load(folder: Path) -> Any:
    """Imports Mammoth's ``main.py``, and registers the model and the streams of this folder.

    Raises:
        InputError: If they cannot be imported.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    sys.path.insert(0, str(folder))
    try:
        runner = importlib.import_module("main")  # which sets two threads
        for name in ("model", "stream"):
            importlib.import_module(f"benchmarks.mammoth.{name}")
    except Exception as error:  # each of its many modules can fail at import, by whatever it imports
        reason = str(error).partition("\n")[0]
        raise InputError(f"'{folder}' cannot be imported ({reason}). Check out commit {COMMIT[:7]}.") from error
    torch.set_num_threads(threads)
    return runner


def read_log(text: str) -> tuple[list[list[float]], dict[str, Any]]:
    """Reads the last line of Mammoth's ``logs.pyd``: accuracies a_ij from 0 to 1, and its figures in per cent."""
    number = r"(?:np\.float64\()?(-?[\d.]+(?:e-?\d+)?)"
    line = text.strip().splitlines()[-1]
    found = {(int(i), int(j)): float(v) for j, i, v in re.findall(rf"'accuracy_(\d+)_task(\d+)': {number}", line)}
    seen = {int(i): float(value) for i, value in re.findall(rf"'accmean_task(\d+)': {number}", line)}
    (forgetting,) = re.findall(rf"'forgetting': {number}", line)
    matrix = [[found[i, j] / 100 for j in range(1, i + 1)] for i in sorted(seen)]
    return matrix, {"seen": [seen[i] for i in sorted(seen)], "forgetting": float(forgetting)}


def arguments_of(method: str, seed: int, options: argparse.Namespace, base: Path) -> list[str]:
    """What Mammoth's command line gets for one run."""
    dataset, channels, size = DATASETS[options.dataset]
    chosen: dict[str, Any] = {
        "dataset": dataset,
        "data_root": Path(options.data).resolve(),
        "per_class": options.per_class,
        "test_per_class": options.test_per_class,
        "backbone": "tgdd-convnet",
        "buffer_size": options.buffer,
        "lr": options.lr,
        "optim_mom": 0.9,
        "batch_size": 32,
        "n_epochs": options.epochs,
        "seed": seed,
        "base_path": base,
        "num_workers": 0,
        "enable_other_metrics": 1,
        "non_verbose": 1,
    }
    if "--backbone" not in options.extra:
        chosen |= {"convnet_channels": channels, "convnet_size": size}
    model = [method, *THEIRS[method]] if method in THEIRS else ["tgdd", "--policy", method, "--work", str(base)]
    if method not in THEIRS:
        model += ["--distill_steps", str(options.steps), "--memory_epochs", str(options.memory_epochs)]
        model += ["--real_per_class", str(min(64, options.per_class))]
    return ["--model", *model, *(str(part) for key, value in chosen.items() for part in (f"--{key}", value))]


def run(runner: Any, method: str, seed: int, options: argparse.Namespace) -> None:
    """Does one run, unless its file is there."""
    settings = {
        name: getattr(options, name)
        for name in ("buffer", "per_class", "test_per_class", "epochs", "lr", "steps", "memory_epochs", "extra")
    }
    about = {"library": "mammoth", "data": options.dataset, "method": method, "seed": seed, "images": options.buffer}
    about["settings"] = settings
    if is_done(options.output, about):
        return
    base = (options.output / "work" / f"{options.dataset}-{method}-seed{seed}").resolve()
    sys.argv = ["main.py", *arguments_of(method, seed, options, base), *options.extra]
    began = time.perf_counter()
    runner.main()
    spent = time.perf_counter() - began
    (log,) = base.glob("results/class-il/*/*/logs.pyd")
    save(options.output, about, *read_log(log.read_text()), spent)


def main(arguments: Sequence[str] | None = None) -> int:
    given, extra = split_arguments(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, help="folder of Mammoth's repository")
    add_options(parser, "mammoth", [*THEIRS, *OURS])
    parser.add_argument("--dataset", choices=DATASETS, default="fashion_mnist", help="(default fashion_mnist)")
    parser.add_argument("--test-per-class", type=int, default=1000, help="test images of each class (default 1000)")
    options = parser.parse_args(given)
    options.extra, options.output = extra, options.output.resolve()  # Mammoth changes the working folder
    if options.table:
        print(table(options.output))
        return 0
    if options.checkout is None:
        print("name a checkout of Mammoth, or give --table", file=sys.stderr)
        return 2
    options.data, checkout = Path(options.data).resolve(), options.checkout.resolve()

    def prepare() -> Callable[[str, int], None]:
        check_checkout(checkout)
        runner = load(checkout)
        return lambda method, seed: run(runner, method, seed, options)

    return run_all(options, prepare)


if __name__ == "__main__":
    sys.exit(main())
