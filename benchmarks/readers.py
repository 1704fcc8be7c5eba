"""Every reader of this package with the files that it reads: what :mod:`benchmarks.fuzz` damages."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.mutations import (
    ESCAPES,
    TEXTS,
    mutate_bytes,
    mutate_document,
    mutate_lines,
    mutate_pt,
    mutate_safetensors,
    mutate_tree,
)
from benchmarks.small_jobs import record_without_end
from tgdd_plugin import cli
from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.beton.importing import import_tensors
from tgdd_plugin.core.atomic_files import sha256
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.evaluation.results import read_results
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.pipeline.show import describe_beton, describe_trajectory
from tgdd_plugin.recording import runs
from tgdd_plugin.replay.memory import ReplayMemory
from tgdd_plugin.replay.metrics import Scores
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.tensor_files import read_exemplars


@dataclass(frozen=True)
class Reader:
    """A reader, and damaged files for it.

    Args:
        make: Returns a damaged file, drawn at random.
        read: Puts the bytes of a file in its place and reads it; returns what should be printable text, if anything.
        may_import: Whether what it reads is the user's own, and may name functions to import.
    """

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes], str | None]
    may_import: bool = False


def reader(name: str, made: Path, work: Path) -> Reader:
    """One of the readers.

    Args:
        name: Its name, one of :data:`GROUPS`.
        made: The folder in which jobs of :mod:`benchmarks.small_jobs` came to their end.
        work: A folder for the damaged files.
    """
    return GROUPS[name](made, work)[name]


def _dump_yaml(tree: Any) -> str:
    return yaml.dump(tree, sort_keys=False, Dumper=yaml.CSafeDumper, default_flow_style=None)


def _cards(made: Path, work: Path) -> dict[str, Reader]:
    place = work / "card"
    place.mkdir()
    file = place / "set.beton"
    file.write_bytes(b"the checksum of the file is right, so that the card is read on")
    trees = []
    for source in sorted(made.rglob("*.beton.yaml")):
        tree = yaml.safe_load(source.read_text())
        trees.append({**tree, "sha256": sha256(file)})

    def read(data: bytes) -> str:
        (place / "set.beton.yaml").write_bytes(data)
        card = read_card(file)
        check_card(asdict(card))
        return describe_beton(file, card)

    return {"card": Reader(lambda rng: mutate_document(rng, rng.choice(trees), _dump_yaml, "yaml"), read)}


def check_card(card: dict[str, Any]) -> None:
    """Raises an AssertionError for a card that should have been refused."""
    mean, std = card["mean"], card["std"]
    assert len(mean) == len(std) == card["shape"][0], "channels"
    assert all(0 < value < float("inf") for value in std) and all(abs(value) < float("inf") for value in mean), "std"
    assert all(isinstance(name, str) for name in card["classes"]) and card["classes"], "classes"
    assert all(type(card[key]) is int and card[key] > 0 for key in ("images", "factor")), "counts"
    assert type(card["images_per_class"]) is int and card["images_per_class"] >= 0, "counts"  # 0: not a fixed number


def check_run(run: dict[str, Any]) -> None:
    """Raises an AssertionError for a manifest that should have been refused."""
    assert isinstance(run["num_classes"], int) and 0 < run["num_classes"] < 10**9, "num_classes"
    assert run["classes"] is None or len(run["classes"]) == run["num_classes"], "class names"
    assert run["std"] is None or all(0 < value < float("inf") for value in run["std"]), "std"
    assert all("/" not in stage["file"] and "\\" not in stage["file"] for stage in run["stages"]), "stage file"
    batches = [stage["batch"] for stage in run["stages"]]
    assert batches == sorted(set(batches)), "order of stages"


def _copy_run(made: Path, place: Path) -> Path:
    source, run = made / "trajectory" / "run", place / "run"
    run.mkdir(parents=True)
    for path in source.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    return run


def _trajectories(made: Path, work: Path) -> dict[str, Reader]:
    run = _copy_run(made, work / "trajectory")
    content = {path.name: path.read_bytes() for path in run.iterdir()}
    tree = json.loads(content["manifest.json"])

    def read(data: bytes) -> str:
        (run / "manifest.json").write_bytes(data)
        found = Run.read(run)
        check_run(asdict(found))
        return describe_trajectory(Trajectory.open(run))

    place = work / "journal" / "run"
    record_without_end(place.parent)
    (journal,) = place.glob("stages-*.jsonl")
    lines = journal.read_bytes().splitlines()

    def read_journal(data: bytes) -> str:
        journal.write_bytes(data)
        check_run(asdict(Run.read(place)))
        return describe_trajectory(Trajectory.open(place))

    return {
        "manifest": Reader(lambda rng: mutate_document(rng, tree, json.dumps, "json"), read),
        "journal": Reader(lambda rng: mutate_lines(rng, lines), read_journal),
    }


def _recipes(made: Path, work: Path) -> dict[str, Reader]:
    place = work / "recipe"
    place.mkdir()
    root = Path(__file__).parents[1] / "recipes"
    trees = [yaml.safe_load(path.read_text()) for path in sorted(root.glob("*.yaml"))]

    def read(data: bytes) -> None:
        (place / "recipe.yaml").write_bytes(data)
        read_recipe(place / "recipe.yaml")

    keys = [
        (section, key) for tree in trees for section, part in tree.items() if isinstance(part, dict) for key in part
    ]

    def override(rng: random.Random) -> bytes:
        section, key = rng.choice(keys)
        name = rng.choice(
            [f"{section}.{key}", section, key, f"{section}.{key}.x", rng.choice(TEXTS), "nas.choices.depth"]
        )
        value = "{a: [1, 2]}"
        with suppress(ValueError, KeyError, yaml.YAMLError):
            value = _dump_yaml(mutate_tree(rng, rng.choice(trees)[section])).strip()
        value = rng.choice([value, *TEXTS, *ESCAPES, "[" * rng.choice([5, 1000, 100_000]), "1" * 5000, "{a: 1, a: 2}"])
        return f"{name}{rng.choice(['=', '=', '=', ''])}{value}".encode(errors="surrogatepass")

    def read_override(data: bytes) -> None:
        read_recipe(None, [data.decode(errors="surrogatepass")])

    return {
        "recipe": Reader(lambda rng: mutate_document(rng, rng.choice(trees), _dump_yaml, "yaml"), read, True),
        "override": Reader(override, read_override, True),
    }


def _records(made: Path, work: Path) -> dict[str, Reader]:
    place = work / "records"
    (place / "seed0").mkdir(parents=True)
    (place / "seed0" / "manifest.json").write_bytes((made / "trajectory" / "run" / "manifest.json").read_bytes())
    job = json.loads((made / "out" / "trajectory" / "job.json").read_text())
    results = json.loads((made / "set-evaluation.json").read_text())
    scores = json.loads((made / "out" / "scores.json").read_text())
    about = {key: value for key, value in results.items() if key not in ("rows", "device", "versions")}

    def read_job(data: bytes) -> None:
        (place / "job.json").write_bytes(data)
        runs._check_job(place / "job.json", job)

    def read_rows(data: bytes) -> None:
        (place / "results.json").write_bytes(data)
        rows = read_results(place / "results.json", dict(about))
        assert all(isinstance(key, tuple) and row.summary() for key, row in rows.items()), "rows"

    def read_scores(data: bytes) -> str:
        (place / "scores.json").write_bytes(data)
        found = Scores.read(place / "scores.json")
        return found.table() if found.rows else ""

    return {
        "job.json": Reader(lambda rng: mutate_document(rng, job, json.dumps, "json"), read_job),
        "results": Reader(lambda rng: mutate_document(rng, results, json.dumps, "json"), read_rows),
        "scores": Reader(lambda rng: mutate_document(rng, scores, json.dumps, "json"), read_scores),
    }


def _tensors(made: Path, work: Path) -> dict[str, Reader]:
    place = _copy_run(made, work / "tensors")
    trajectory = Trajectory.open(place)
    stage = trajectory.run.stages[-1]
    whole = (place / stage.file).read_bytes()
    exemplars = (place / "exemplars.safetensors").read_bytes()

    def read_stage(data: bytes) -> None:
        (place / stage.file).write_bytes(data)
        trajectory.has_class_means(place, stage)
        trajectory.class_means(place, stage)
        trajectory.load(place, stage)

    def read_images(data: bytes) -> None:
        (place / "exemplars.safetensors").write_bytes(data)
        trajectory.exemplar_count(place)
        read_exemplars(place, trajectory.run.num_classes)

    images, labels = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    forms = [[images, labels], {"data": [[images, labels], [images, labels]]}, [images, torch.eye(3).repeat(2, 1)]]
    saved = []
    for form in forms:
        for new in (True, False):
            file = io.BytesIO()
            torch.save(form, file, _use_new_zipfile_serialization=new)
            saved.append(file.getvalue())
    folder = work / "pt"
    folder.mkdir()

    def read_pt(data: bytes) -> None:
        (folder / "data.pt").write_bytes(data)
        import_tensors(folder / "data.pt", folder / "out.beton", mean=[0.5], std=[0.25], tolerance=1e9)

    return {
        "stage": Reader(lambda rng: mutate_safetensors(rng, whole), read_stage),
        "exemplars": Reader(lambda rng: mutate_safetensors(rng, exemplars), read_images),
        ".pt": Reader(lambda rng: mutate_pt(rng, rng.choice(saved)), read_pt),
    }


def _betons(made: Path, work: Path) -> dict[str, Reader]:
    place = work / "beton"
    place.mkdir()
    whole = (made / "set.beton").read_bytes()
    card = yaml.safe_load((made / "set.beton.yaml").read_text())
    memory = (made / "out" / "task1" / "memory.beton").read_bytes()
    memory_card = yaml.safe_load((made / "out" / "task1" / "memory.beton.yaml").read_text())
    used = len(whole.rstrip(b"\x00"))
    hot = [(0, 64), (0, 512), (2**21, 2**21 + 512), (used - 600, used), (0, len(whole))]

    def read(data: bytes) -> None:
        (place / "set.beton").write_bytes(data)
        read_beton(place / "set.beton")

    def read_with_card(data: bytes) -> None:
        (place / "carded.beton").write_bytes(data)
        text = _dump_yaml({**card, "sha256": sha256(place / "carded.beton")})
        (place / "carded.beton.yaml").write_text(text)
        with redirect_stdout(io.StringIO()):
            status = cli.main(["show", str(place / "carded.beton"), "--picture", str(place / "picture.png")])
        assert status in (0, 2), "status"
        if status == 2:
            raise InputError("it printed one line")

    def read_memory(data: bytes) -> None:
        (place / "memory.beton.yaml").write_bytes(data)
        ReplayMemory.load(place / "memory.beton")

    (place / "memory.beton").write_bytes(memory)
    return {
        ".beton": Reader(lambda rng: mutate_bytes(rng, whole, hot), read),
        "tgdd show": Reader(lambda rng: mutate_bytes(rng, whole, hot), read_with_card),
        "memory": Reader(lambda rng: mutate_document(rng, memory_card, _dump_yaml, "yaml"), read_memory),
    }


GROUPS: dict[str, Callable[[Path, Path], dict[str, Reader]]] = {
    "card": _cards,
    **dict.fromkeys(("manifest", "journal"), _trajectories),
    **dict.fromkeys(("recipe", "override"), _recipes),
    **dict.fromkeys(("job.json", "results", "scores"), _records),
    **dict.fromkeys(("stage", "exemplars", ".pt"), _tensors),
    **dict.fromkeys((".beton", "tgdd show", "memory"), _betons),
}
"""What makes each reader, by its name."""
