"""Where the checkpoints of a distillation lie: in a hidden folder beside its output, named by what it depends on."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from tgdd_plugin.beton.card import Card
from tgdd_plugin.distillation.finished import SAME_IMAGES
from tgdd_plugin.distillation.inputs import Inputs
from tgdd_plugin.distillation.settings import EARLIER


def checkpoint_folder(output: Path, inputs: Inputs, modules: Sequence[nn.Module], card: Card) -> Path:
    """The folder of a job's checkpoints, which has the name of the run; that of an earlier version where there is one.

    Earlier versions named it by the settings that change no image but by rounding, too.
    """
    names = [_run_name(output, inputs, modules, card, without=without) for without in (SAME_IMAGES, ())]
    now, earlier = (output.parent / f".{name}" for name in names)
    return earlier if earlier.is_dir() and not now.is_dir() else now


def _run_name(output: Path, inputs: Inputs, modules: Sequence[nn.Module], card: Card, *, without: Sequence[str]) -> str:
    """The name of the output and of all that its pixels depend on: another job never resumes from its checkpoints."""
    # What earlier versions did without a key for it has none here either: their checkpoints still serve.
    settings = {
        name: None if name in without else value
        for name, value in asdict(inputs.settings).items()
        if name not in ("packed", "budget") and (name, value) not in EARLIER.items()
    }
    networks: Any = [type(module).__qualname__ for module in modules]
    networks = networks if len(networks) > 1 else networks[0]  # as when there was one only: its checkpoints still serve
    key: list[Any] = [
        settings,
        inputs.trajectory.checksums,
        inputs.normalization.mean,
        inputs.normalization.std,
        list(inputs.shape),
        inputs.fingerprint,
        networks,
    ]
    if "head" in card.trajectory:
        key.append(card.trajectory["head"])
    return f"distill-{output.stem}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}"


def checkpoint_folders(output: Path) -> list[Path]:
    """The folders of checkpoints of all jobs whose output has that name."""
    return list(output.parent.glob(f".distill-{glob.escape(output.stem)}-*"))
