"""Writes ``files.tar.xz`` and ``expected.json`` with the code of commit 61e3f62, the last before the layout changed.

Both are in the repository already; this says how they came about. In a checkout of that commit, on a CPU::

    PYTHONPATH=CHECKOUT OMP_NUM_THREADS=1 python tests/compatibility/write_files.py

Folders are broken off in mid-course and packed; copies of them are then finished by the same code, and the SHA-256 of
what came of each is noted, as the present code has to end with the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import compatibility_data as data
import torch

import tgdd_plugin
from tgdd_plugin import ReplayMemory, cli, continual, distill, jobs, nas, read_beton

COMMIT = "61e3f62"
HERE = Path(__file__).resolve().parent


def command(*arguments: str, status: int = 0) -> None:
    if cli.main(list(arguments)) != status:
        raise SystemExit(f"tgdd {' '.join(arguments)} did not end with {status}")


@contextlib.contextmanager
def killed() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Composer turns one into the other
        return
    raise AssertionError("it was to be broken off")


def kill_distillation(recipe_file: str, output: str) -> None:
    """Leaves a checkpoint of step 6 beside ``output``."""
    recipe = jobs.read_recipe(recipe_file)
    pool, _ = jobs.load_data(recipe.data)
    with killed():
        distill(
            recipe.trajectory_folder,
            pool,
            output,
            recipe.distill,
            device="cpu",
            checkpoint_interval="3ba",
            callbacks=[data.Crash(7)],
            progress_bar=False,
        )


def kill_replay() -> None:
    """In the training of the third task; each earlier one was trained and fine-tuned."""
    train, calls = continual.train, []

    def broken(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            options["callbacks"] = [*options["callbacks"], data.Crash(1)]
        return train(*arguments, **options)

    with mock.patch.object(continual, "train", broken):
        command("replay", "replay.yaml", status=130)


def kill_search() -> None:
    """In the third of four candidates."""
    measure, calls = nas.measure, []

    def broken(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    with mock.patch.object(nas, "measure", broken):
        command("nas", "one.yaml", status=130)


def saved_memory(path: str) -> ReplayMemory:
    memory = ReplayMemory(images_per_class=2)
    memory.add("one/packed.beton", name="first")
    memory.save(path)
    return memory


def begin() -> None:
    """Everything as it is packed."""
    command("record", "one.yaml")
    command("distill", "one.yaml")
    command("distill", "one.yaml", "distill.factor=2", "distill.packed=true", "file=one/packed.beton")
    command("evaluate", "one.yaml")
    kill_distillation("one.yaml", "one/killed.beton")
    kill_search()
    saved_memory("one/memory.beton")
    command("record", "two.yaml")
    kill_distillation("two.yaml", "two/killed.beton")
    kill_replay()
    with killed():
        data.fit(Path("composer"), crash=7)


def finish() -> None:
    """The same calls as in test_earlier_files.py."""
    command("distill", "one.yaml", "file=one/killed.beton")
    command("record", "one.yaml", "record.runs=3")  # after it, as the checkpoint is of two runs
    memory = ReplayMemory.load("one/memory.beton")
    memory.add("one/packed.beton", name="second", domain=True)
    memory.save("one/memory.beton")
    command("distill", "two.yaml", "file=two/killed.beton")
    command("replay", "replay.yaml")
    data.fit(Path("composer"))


def main() -> None:
    checkout = Path(tgdd_plugin.__file__).parents[1]
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    if not head.stdout.startswith(COMMIT):
        raise SystemExit(f"run it with PYTHONPATH at a checkout of {COMMIT}; this is {head.stdout.strip()}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        data.write_image_folder(Path("images"))
        for recipe in (HERE / "recipes").iterdir():
            shutil.copy(recipe, ".")
        begin()
        with tarfile.open(HERE / "files.tar.xz", "w:xz", preset=9) as archive:
            for name in ("one", "two", "replay", "composer"):
                archive.add(name, filter=anonymous)
        finish()
        expected = {
            "commit": COMMIT,
            "torch": torch.__version__,
            "rounding": data.rounding(),
            "packed": data.digest(read_beton("one/packed.beton")[0]),
            "finished": {name: data.hashes(Path(name)) for name in ("one", "two", "replay", "composer")},
            "scores": json.loads(Path("replay/scores.json").read_text())["rows"],
        }
        (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        os.chdir(HERE)


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
