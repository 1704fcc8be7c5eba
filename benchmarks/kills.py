"""Does a job that was killed at any moment end, when it is given again, with the bytes of an undisturbed one?

Each try kills a job by SIGKILL, half of them at a random moment, half just before, within or just after one of its
operations on files: a rename, a removal, a new folder, an fsync, the half of a write. Then the same job runs again
(every fourth time it is killed once more) until it comes to its end. Looked at are: files that are not whole after a
kill, and, in the end, every file's content beside the undisturbed job's, files that should not be there, and rows that
stand twice. The undisturbed job ran in a process of its own, not a forked one.

    OMP_NUM_THREADS=1 python -m benchmarks.kills --tries 500 --output kills
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.forked import Tries, keep_failure, run_forked
from benchmarks.machine import describe_machine
from benchmarks.operations import watch_operations
from benchmarks.outcomes import differences, half_files, outcome, repeated_rows
from benchmarks.small_jobs import JOBS, load_everything, prepare, quiet, undisturbed
from tgdd_plugin.core.tables import markdown_table

WEIGHTS = {"recorder": 5, "callback": 4, "distill": 4, "run": 3, "retrain": 2, "evaluate": 2, "replay": 3, "search": 2}
"""How many of 25 tries a job gets."""
CALLS = ("replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir", "fsync", "truncate", "open", "rmtree")
"""The functions of ``os`` and ``shutil`` that are watched."""


def killed_at(job: str, folder: Path, number: int) -> Callable[[], None]:
    """The job, which kills itself at one of its operations on files, counted from 0."""

    def work() -> None:
        count = 0

        def at(moment: str) -> None:
            nonlocal count
            if moment == "before reading":
                return
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        quiet()
        watch_operations(folder, at, CALLS)
        JOBS[job]()

    return work


def listing(job: str, folder: Path, path: Path) -> Callable[[], None]:
    """The job, which lists its operations on files."""

    def work() -> None:
        found: list[str] = []
        quiet()
        watch_operations(folder, found.append, CALLS)
        JOBS[job]()
        found = [moment for moment in found if moment != "before reading"]
        os.write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), json.dumps(found).encode())

    return work


class Campaign:
    """The tries of all jobs.

    Args:
        folder: Where everything lies.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder.resolve(), seed
        self.log = self.folder / "log.txt"
        self.made = self.folder / "made"
        self.known: dict[str, tuple[dict[str, str], list[str], float]] = {}

    def _make(self) -> None:
        """Makes what jobs need that go on with what others made."""
        load_everything()
        if not (self.made / "set.beton.yaml").is_file():
            prepare("recorder", self.made, self.made)
            for job in ("recorder", "distill"):
                self._expect_done(undisturbed(job), self.made)

    def reference(self, job: str) -> tuple[dict[str, str], list[str], float]:
        """The outcome of an undisturbed job in a process of its own, its operations on files, and its seconds.

        Raises:
            RuntimeError: If it fails, or a forked child comes to another outcome.
        """
        if job in self.known:
            return self.known[job]
        if job not in ("recorder", "callback"):
            self._make()
        place = prepare(job, self.folder / "fresh", self.made)
        command = [sys.executable, "-m", "benchmarks.small_jobs", job]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job} fails undisturbed: {done.stderr[-3000:]}")
        wanted = outcome(place)
        place = prepare(job, self.folder / "try", self.made)
        self._expect_done(listing(job, place, self.folder / "operations.json"), place)
        if (found := outcome(place)) != wanted:
            raise RuntimeError(f"{job} ends otherwise in a forked child: {differences(wanted, found)}")
        prepare(job, place, self.made)
        seconds = self._expect_done(undisturbed(job), place)
        self.known[job] = wanted, json.loads((self.folder / "operations.json").read_text()), seconds
        return self.known[job]

    def _expect_done(self, work: Callable[[], None], place: Path) -> float:
        ended = run_forked(work, place, self.log)
        if ended.how != "done":
            raise RuntimeError(f"an undisturbed job {ended.how}: {ended.output}")
        return ended.seconds

    def attempt(self, job: str, number: int) -> dict[str, Any]:
        """One try: kills the job, gives it again until it ends, and looks."""
        wanted, operations, seconds = self.reference(job)
        rng = random.Random(f"{self.seed}/{job}/{number}")
        order = random.Random(f"{self.seed}/{job}").sample(range(len(operations)), len(operations))
        row: dict[str, Any] = {"try": [job, number], "kills": [], "problems": []}
        place = prepare(job, self.folder / "try", self.made)
        again = 1 + (rng.random() < 0.25)
        while again:
            at_operation = number % 2 == 0 and not row["kills"]
            if at_operation:
                operation = order[number // 2 % len(order)]
                moment = operations[operation]
                ended = run_forked(killed_at(job, place, operation), place, self.log)
            else:
                after = seconds * rng.random()
                moment = f"after {after:.3f} s"
                ended = run_forked(undisturbed(job), place, self.log, kill_after=after)
            if ended.how == "done" and not row["kills"]:
                prepare(job, place, self.made)  # faster than before: it was not killed
                continue
            if ended.how != "killed":
                break
            row["kills"].append(moment)
            row["problems"] += [f"half file: {name}" for name in half_files(place)]
            again -= 1
        if again == 0:
            ended = run_forked(undisturbed(job), place, self.log)
        if ended.how != "done":
            row["problems"].append(f"the job given again {ended.how}: {_last_line(ended.output)}")
        else:
            row["problems"] += differences(wanted, outcome(place))
            row["problems"] += [f"repeated row: {each}" for each in repeated_rows(place)]
        if ended.orphans:
            row["problems"].append("left a process behind")
        if row["problems"]:
            keep_failure(place, self.folder / "failures" / f"{job}-{number}", self.log)
        return row


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def summarize(rows: list[dict[str, Any]]) -> str:
    """A table of all tries."""

    def count(rows: list[dict[str, Any]], word: str) -> int:
        return sum(any(problem.startswith(word) for problem in row["problems"]) for row in rows)

    lines = []
    for job in [*JOBS, "all"]:
        own = [row for row in rows if job in (row["try"][0], "all")]
        if own:
            same = sum(not row["problems"] for row in own)
            counts = [count(own, word) for word in ("half file", "leftover", "repeated row")]
            lines.append([job, sum(len(row["kills"]) for row in own), f"{same} of {len(own)}", *counts])
    headers = ["job", "kills", "same bytes in the end", "half files", "leftovers", "rows repeated"]
    kinds = Counter(re.sub(r"after \d.*", "a random moment", kill) for row in rows for kill in row["kills"])
    moments = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
    return f"{markdown_table(headers, lines)}\n\nmoments: {moments}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=500, help="of all jobs together (default 500)")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS), help="(default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--output", type=Path, default=Path("kills"), help="folder; the same command goes on there")
    options = parser.parse_args(arguments)
    quiet()
    campaign = Campaign(options.output, options.seed)
    tries = Tries(campaign.folder / "tries.jsonl")
    weight = sum(WEIGHTS[job] for job in options.jobs)
    wanted = [[job, number] for job in options.jobs for number in range(-(-options.tries * WEIGHTS[job] // weight))]
    for job, number in tries.missing("try", wanted):
        row = campaign.attempt(job, number)
        tries.add(row)
        if row["problems"]:
            print(f"{job} {number}: killed {row['kills']}: {'; '.join(row['problems'])}", flush=True)
    rows = [row for row in tries.rows if row["try"] in wanted]
    print(f"{describe_machine('cpu', 1)}\n\n{summarize(rows)}")
    return 1 if any(row["problems"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
