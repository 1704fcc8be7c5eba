"""Does every damaged file end in one clear error, or is it rightly accepted?

Each input is a file that this package wrote, damaged at random (:mod:`benchmarks.mutations`), and given to the
function that reads it (:mod:`benchmarks.readers`). A finding is any exception but an InputError, a message of several
lines or with control characters in it, a crash, more than 5 s or 512 MiB, or a sign that code of the file ran: a
process, an import of a module not loaded before, an unpickled object, a file opened for writing elsewhere. An input
follows from the seed, the reader and its number alone; those of findings are kept in ``failures``, made smaller.

    OMP_NUM_THREADS=1 python -m benchmarks.fuzz --tries 500000 --output fuzz
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.examination import Canary, examine, too_late
from benchmarks.forked import Tries, run_forked
from benchmarks.machine import describe_machine
from benchmarks.readers import Reader, reader
from benchmarks.small_jobs import load_everything, prepare, quiet, undisturbed
from tgdd_plugin.core.tables import markdown_table

SHARES = {
    "card": 24,
    "manifest": 48,
    "journal": 24,
    "recipe": 16,
    "override": 16,
    "job.json": 28,
    "results": 32,
    "scores": 32,
    "stage": 40,
    "exemplars": 32,
    ".pt": 3,
    ".beton": 6,
    "tgdd show": 1,
    "memory": 12,
}
"""How the inputs are shared out among the readers."""
CHUNK = 500
"""Inputs of one child process."""


def make_input(own: Reader, seed: int, name: str, number: int) -> bytes:
    """The input of a number, always the same."""
    return own.make(random.Random(f"{seed}/{name}/{number}"))


class Campaign:
    """All inputs.

    Args:
        folder: Where everything lies.
        seed: Of the inputs.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        load_everything()
        self.folder, self.seed = folder.resolve(), seed
        self.made, self.log = self.folder / "made", self.folder / "log.txt"
        memory = Path("/dev/shm")  # files of four MiB, many times a second
        base = memory if os.access(memory, os.W_OK) else None
        self.place = Path(tempfile.mkdtemp(prefix="tgdd-fuzz-", dir=base))
        if not (self.made / "out" / "scores.json").is_file():
            prepare("recorder", self.made, self.made)
            for job in ("recorder", "distill", "evaluate", "run", "replay"):
                ended = run_forked(undisturbed(job), self.made, self.log)
                if ended.how != "done":
                    raise RuntimeError(f"{job} {ended.how}: {ended.output}")

    def close(self) -> None:
        """Removes the folder of the damaged files."""
        shutil.rmtree(self.place, ignore_errors=True)

    def chunk(self, name: str, first: int, last: int) -> dict[str, Any]:
        """Examines the inputs of a reader from one number to another; a crash only ends the child that did."""
        row: dict[str, Any] = {"try": [name, first], "inputs": 0, "accepted": 0, "slowest": 0.0, "findings": []}
        start = time.monotonic()
        while first < last:
            at = mmap.mmap(-1, 16)
            report = self.folder / "report.json"
            report.unlink(missing_ok=True)
            work = Path(tempfile.mkdtemp(dir=self.place))
            ended = run_forked(self._examined(name, first, last, work, at, report), work, self.log, limit=600)
            shutil.rmtree(work, ignore_errors=True)
            got = int.from_bytes(at[:8], "little")
            if report.is_file():
                part = json.loads(report.read_text())
                row["inputs"] += part["inputs"]
                row["accepted"] += part["accepted"]
                row["slowest"] = max(row["slowest"], part["slowest"])
                row["findings"] += part["findings"]
                first += part["inputs"]
            else:
                row["inputs"] += got + 1 - first
                finding = {"number": got, "problem": f"the process {ended.how}: {ended.output[-300:]}", "trace": ""}
                row["findings"].append(finding)
                first = got + 1
        row["seconds"] = time.monotonic() - start
        return row

    def _examined(
        self, name: str, first: int, last: int, work: Path, at: mmap.mmap, report: Path
    ) -> Callable[[], None]:
        def child() -> None:
            quiet()
            signal.signal(signal.SIGALRM, too_late)
            own = reader(name, self.made, work)
            _warm_up(own, self.seed, name)
            canary = Canary(work)
            found: dict[str, Any] = {"inputs": 0, "accepted": 0, "slowest": 0.0, "findings": []}
            for number in range(first, last):
                at[:8] = number.to_bytes(8, "little")
                data = make_input(own, self.seed, name, number)
                start = time.process_time()
                accepted, problem, trace = examine(own, data, canary)
                found["slowest"] = max(found["slowest"], time.process_time() - start)
                found["inputs"] += 1
                found["accepted"] += accepted
                if problem:
                    found["findings"].append({"number": number, "problem": problem, "trace": trace[-3000:]})
                    if "memory" in problem:  # the peak hides the next one
                        break
            report.write_text(json.dumps(found))

        return child

    def keep(self, name: str, finding: dict[str, Any]) -> None:
        """Keeps the input of a finding, as it is and made smaller."""
        place = self.folder / "failures" / f"{name.replace(' ', '-').strip('.')}-{finding['number']}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "problem.txt").write_text(f"{finding['problem']}\n\n{finding['trace']}")
        work = Path(tempfile.mkdtemp(dir=self.place))

        def child() -> None:
            quiet()
            signal.signal(signal.SIGALRM, too_late)
            own = reader(name, self.made, work)
            data = make_input(own, self.seed, name, finding["number"])
            (place / "input").write_bytes(data)
            canary = Canary(work)
            kind = finding["problem"].split(":")[0]

            def fails(smaller: bytes) -> bool:
                return examine(own, smaller, canary)[1].split(":")[0] == kind

            if len(data) < 100_000 and "process" not in kind:
                (place / "smaller").write_bytes(minimize(data, fails))

        run_forked(child, work, self.log, limit=120)
        shutil.rmtree(work, ignore_errors=True)


def minimize(data: bytes, fails: Callable[[bytes], bool], tries: int = 400) -> bytes:
    """Leaves out what can be left out while it fails, first by halves, then by smaller parts."""
    size = len(data) // 2
    while size >= 1 and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            tries -= 1
            smaller = data[:at] + data[at + size :]
            if fails(smaller):
                data = smaller
            else:
                at += size
        size //= 2
    return data


def _warm_up(own: Reader, seed: int, name: str) -> None:
    """Has everything imported that reading imports, so that what comes later stands out."""
    for number in range(5):
        with suppress(Exception):
            own.read(make_input(own, seed, name, 10**9 + number))


def summarize(rows: list[dict[str, Any]]) -> str:
    """A table of all inputs."""
    lines = []
    for name in [*SHARES, "all"]:
        own = [row for row in rows if name in (row["try"][0], "all")]
        if not own:
            continue
        problems = [finding["problem"] for row in own for finding in row["findings"]]
        slow = sum("slow" in problem for problem in problems)
        large = sum("memory" in problem for problem in problems)
        code = sum(problem.startswith("code") for problem in problems)
        inputs, accepted = (sum(row[key] for row in own) for key in ("inputs", "accepted"))
        refused = inputs - accepted
        other = len(problems) - slow - large - code
        slowest = max(row["slowest"] for row in own)
        lines.append(
            [name, f"{inputs:,}", f"{refused:,}", f"{accepted:,}", other, f"{slow} ({slowest:.2f} s)", large, code]
        )
    headers = [
        "file",
        "inputs",
        "refused",
        "accepted",
        "other exceptions",
        "over 5 s (slowest)",
        "over 512 MiB",
        "code",
    ]
    return markdown_table(headers, lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=500_000, help="inputs of all readers together (default 500000)")
    parser.add_argument("--readers", nargs="+", choices=list(SHARES), default=list(SHARES), help="(default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    parser.add_argument("--output", type=Path, default=Path("fuzz"), help="folder; the same command goes on there")
    options = parser.parse_args(arguments)
    quiet()
    warnings.simplefilter("ignore")
    campaign = Campaign(options.output, options.seed)
    try:
        rows = _run(campaign, options)
    finally:
        campaign.close()
    print(f"{describe_machine('cpu', 1)}\n\n{summarize(rows)}")
    return 1 if any(row["findings"] for row in rows) else 0


def _run(campaign: Campaign, options: argparse.Namespace) -> list[dict[str, Any]]:
    tries = Tries(campaign.folder / "tries.jsonl")
    names = [name for name in SHARES if name in options.readers]
    total, kept = sum(SHARES[name] for name in names), {}
    wanted = {}
    for name in names:
        count = -(-options.tries * SHARES[name] // total)
        for first in range(0, count, CHUNK):
            wanted[json.dumps([name, first])] = min(first + CHUNK, count)
    order = sorted(wanted, key=lambda key: json.loads(key)[1] / SHARES[json.loads(key)[0]])  # all readers side by side
    for name, first in tries.missing("try", [json.loads(key) for key in order]):
        row = campaign.chunk(name, first, wanted[json.dumps([name, first])])
        tries.add(row)
        for finding in row["findings"]:
            kind = f"{name}: {finding['problem'].split(':')[0]}"
            kept[kind] = kept.get(kind, 0) + 1
            if kept[kind] <= 3:
                campaign.keep(name, finding)
                print(f"{name} {finding['number']}: {finding['problem']}", flush=True)
    return [row for row in tries.rows if json.dumps(row["try"]) in wanted]


if __name__ == "__main__":
    sys.exit(main())
