"""Does training end with the same weights when the folder it is recorded into fails?

Each try trains a small network under TGDDCallback and breaks its trajectory folder at one of the callback's operations
on files, for one operation, for some, or for good. Where this process may mount, some faults are real: a file system
that becomes read-only or full. A try is as it should be if ``fit()`` came to its end with the bits of an undisturbed
one, if what the manifest names is there and whole, if every stage that the undisturbed training has is there or among
the gaps wherever the manifest says ``complete``, and if there was a warning where anything is missing.

    OMP_NUM_THREADS=1 python -m benchmarks.faults --tries 200 --output faults
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from safetensors.torch import save_file

from benchmarks.folder_faults import CALLS, FAULTS, MOUNTED, SPANS, Fault, mount
from benchmarks.forked import Ended, Tries, keep_failure, run_forked
from benchmarks.machine import describe_machine
from benchmarks.operations import watch_operations
from benchmarks.small_jobs import MEAN, STD, composer_trainer, quiet, small_network
from tgdd_plugin import TGDDCallback
from tgdd_plugin.core.tables import markdown_table
from tgdd_plugin.recording import safeguard
from tgdd_plugin.trajectory.manifest import Run


class Arm(Callback):
    """Lets a fault come from the first batch on: what is wrong before may end ``fit()``, as nothing is lost yet."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault = fault

    def batch_start(self, state: State, logger: Logger) -> None:
        if self.fault is not None:
            self.fault.armed = True


def training(place: Path, fault: Fault | None) -> Callable[[], None]:
    """A training under TGDDCallback, which leaves its weights and what it warned of in ``place``."""

    def work() -> None:
        quiet()
        network = small_network()
        if fault is not None:
            watch_operations(fault.folder, fault.at, CALLS)
            safeguard.drop_lost_files = fault.look
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            recorder = TGDDCallback(str(place / "trajectory"), "1ba", mean=MEAN, std=STD, exemplars=4)
            trainer = composer_trainer(network, Arm(fault), recorder)
            try:
                trainer.fit()
            finally:
                trainer.close()
        if fault is not None:
            fault.armed = False
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        save_file(network.state_dict(), place / "final.safetensors")
        words = [str(warning.message) for warning in caught]
        said: dict[str, Any] = {"warnings": words, "operations": 0, "deleted_too_late": False}
        if fault is not None:
            said |= {"operations": fault.count, "deleted_too_late": fault.deleted_at > fault.looked_at}
        (place / "said.json").write_text(json.dumps(said))

    return work


def look(place: Path, wanted: Path, ended: Ended) -> list[str]:
    """What is not as it should be after a try, in words.

    Args:
        place: The folder of the try.
        wanted: The folder of an undisturbed training.
        ended: How the try's training ended.
    """
    if ended.how != "done":
        last = ended.output.strip().splitlines()[-1:] or [""]
        return [f"fit() {ended.how}: {last[0][:300]}"]
    problems = []
    if (place / "final.safetensors").read_bytes() != (wanted / "final.safetensors").read_bytes():
        problems.append("other weights")
    run = place / "trajectory" / "run"
    content = json.loads((place / "said.json").read_text())
    said = content["warnings"]
    if content["deleted_too_late"]:  # after the last look of the recording, which cannot tell it
        return problems
    recorded = _manifest(run)
    expected = {stage["batch"]: stage["sha256"] for stage in _manifest(wanted / "trajectory" / "run")["stages"]}
    found = {stage["batch"]: stage["sha256"] for stage in recorded.get("stages", [])}
    for stage in recorded.get("stages", []):
        path = run / stage["file"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != stage["sha256"]:
            problems.append(f"{stage['file']} is named, and not there or not whole")
    # Class means are those since the last stage that was recorded, so later bytes may differ after a gap.
    missing = sorted(expected.keys() - found.keys())
    gaps = {gap["batch"] for gap in recorded.get("gaps", [])}
    if recorded.get("complete") and not set(missing) <= gaps:
        problems.append(f"complete, and stages at batches {sorted(set(missing) - gaps)} are missing without a gap")
    if not gaps and not missing and recorded.get("complete") and found != expected:
        problems.append("complete without a gap, and other stages")
    if (missing or gaps or not recorded.get("complete")) and not any("record" in words.lower() for words in said):
        problems.append("something is missing, and there was no warning")
    return problems


def _manifest(run: Path) -> dict[str, Any]:
    return asdict(Run.read(run)) if (run / "manifest.json").is_file() else {}


class Campaign:
    """The tries.

    Args:
        folder: Where everything lies.
        seed: Of the faults.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder.resolve(), seed
        self.log, self.wanted = self.folder / "log.txt", self.folder / "undisturbed"
        shutil.rmtree(self.wanted, ignore_errors=True)
        self.wanted.mkdir(parents=True)
        never = Fault("slow disk", 10**9, 0, self.wanted / "trajectory")  # counts only
        ended = run_forked(training(self.wanted, never), self.wanted, self.log)
        if ended.how != "done":
            raise RuntimeError(f"the undisturbed training {ended.how}: {ended.output}")
        self.operations: int = json.loads((self.wanted / "said.json").read_text())["operations"]
        self.faults = FAULTS if self._can_mount() else tuple(fault for fault in FAULTS if fault not in MOUNTED)

    def attempt(self, number: int) -> dict[str, Any]:
        """One try."""
        rng = random.Random(f"{self.seed}/{number}")
        fault = self.faults[number % len(self.faults)]
        span = rng.choice(list(SPANS))
        operation = rng.randrange(self.operations)
        place = self.folder / "try"
        shutil.rmtree(place, ignore_errors=True)
        (place / "trajectory").mkdir(parents=True)
        mounted = fault in MOUNTED
        if mounted:
            mount(place / "trajectory")
        try:
            made = Fault(fault, operation, SPANS[span], place / "trajectory")
            ended = run_forked(training(place, made), place, self.log)
            problems = look(place, self.wanted, ended)
            if problems:
                keep_failure(place, self.folder / "failures" / str(number), self.log)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(place / "trajectory")], check=True)
        return {"try": number, "fault": fault, "span": span, "operation": operation, "problems": problems}

    def _can_mount(self) -> bool:
        place = self.folder / "mount"
        place.mkdir(exist_ok=True)
        try:
            mount(place)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", str(place)], check=True)
        return True


def summarize(rows: list[dict[str, Any]]) -> str:
    """A table of all tries."""
    lines = []
    for fault in [*FAULTS, "all"]:
        own = [row for row in rows if fault in (row["fault"], "all")]
        if own:
            finished = sum(not any("fit()" in p or "weights" in p for p in row["problems"]) for row in own)
            true = sum(not row["problems"] for row in own)
            lines.append([fault, len(own), f"{finished} of {len(own)}", f"{true} of {len(own)}"])
    return markdown_table(["fault", "tries", "trained to the same weights", "and the manifest is true"], lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=200, help="(default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    parser.add_argument("--output", type=Path, default=Path("faults"), help="folder; the same command goes on there")
    options = parser.parse_args(arguments)
    quiet()
    campaign = Campaign(options.output, options.seed)
    tries = Tries(campaign.folder / "tries.jsonl")
    for number in tries.missing("try", list(range(options.tries))):
        row = campaign.attempt(number)
        tries.add(row)
        if row["problems"]:
            print(f"{number}: {row['fault']}, {row['span']}, {row['operation']}: {row['problems']}", flush=True)
    rows = [row for row in tries.rows if row["try"] < options.tries]
    print(f"{describe_machine('cpu', 1)}\n\n{summarize(rows)}")
    return 1 if any(row["problems"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
