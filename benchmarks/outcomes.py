"""What a job left in its folder, to be compared with what an undisturbed one leaves, and what must not be there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import yaml

from tgdd_plugin.beton.ffcv_tables import check_beton
from tgdd_plugin.trajectory.manifest import Run

NOT_COMPARED = ("checkpoints",)
"""Folders of the user's, not of this package."""


def outcome(folder: Path) -> dict[str, str]:
    """The content of each file by its name, without seconds; the empty text for what does not repeat."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in NOT_COMPARED or "__pycache__" in name.parts:
            continue
        if path.is_dir():
            found[f"{name}/"] = ""
        elif path.name == "manifest.json":
            found[str(name)] = _digest(asdict(Run.read(path.parent)))
        elif path.suffix == ".json":
            found[str(name)] = _digest(_timeless(json.loads(path.read_text())))
        elif path.suffix == ".yaml":
            found[str(name)] = _digest(_timeless(yaml.safe_load(path.read_text())))
        elif path.suffix in (".db", ".md"):
            found[str(name)] = ""
        else:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in ("seconds", "latency")}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def half_files(folder: Path) -> list[str]:
    """The files under their final names that are not whole."""
    found = []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name.startswith(".") or any(part.startswith(".") for part in Path(name).parts):
            continue
        if Path(name).parts[0] in NOT_COMPARED:
            continue
        try:
            if path.suffix == ".safetensors":
                with safetensors.safe_open(path, "numpy") as file:
                    [file.get_tensor(key) for key in file.keys()]
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".yaml":
                assert isinstance(yaml.safe_load(path.read_text()), dict)
            elif path.suffix == ".beton":
                check_beton(path)
            if path.name == "manifest.json":
                for stage in Run.read(path.parent).stages:
                    assert hashlib.sha256((path.parent / stage.file).read_bytes()).hexdigest() == stage.sha256
        except Exception as error:
            found.append(f"{name} ({type(error).__name__}: {error})")
    return found


def repeated_rows(folder: Path) -> list[str]:
    """The rows that stand twice in a card or in results."""
    found = []
    for path in [*folder.rglob("*.json"), *folder.rglob("*.beton.yaml")]:
        content = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
        if not isinstance(content, dict):
            continue
        lists = [content.get("rows"), content.get("candidates")]
        for entry in content.get("accuracy") or []:
            lists.append(entry["rows"])
        lists.append([row for entry in content.get("accuracy") or [] for row in entry["rows"]])
        for rows in lists:
            rows = [row for row in rows or [] if isinstance(row, dict)]
            keys = Counter(json.dumps([row.get("network"), row.get("name"), row.get("labels")]) for row in rows)
            found += [f"{path.name}: {key}" for key, count in keys.items() if count > 1]
    return found


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """In words, what two outcomes do not share."""
    words = [f"leftover: {name}" for name in found.keys() - wanted.keys()]
    words += [f"missing: {name}" for name in wanted.keys() - found.keys()]
    return words + [f"other content: {name}" for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
