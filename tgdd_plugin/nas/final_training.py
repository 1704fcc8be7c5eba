"""Training the best candidate of a search on the full data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.device import torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import weights_content
from tgdd_plugin.evaluation.scorer import Row, Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas.ranking import Candidate
from tgdd_plugin.nas.search_space import candidate_builder
from tgdd_plugin.nas.settings import SearchSpace

NO_EPOCHS = "train_best trains on the full data, and full_epochs is 0; give retrain.full_epochs"


def train_best(
    best: Candidate,
    space: SearchSpace,
    file: str | Path,
    real: Any,
    test: Any,
    training: RetrainSettings,
    *,
    output: str | Path,
    device: str | None = None,
    seed: int = 0,
    progress_bar: bool = True,
) -> Row:
    """Trains a candidate on the full data, for ``training.full_epochs``, and scores it on test images.

    Args:
        best: The candidate.
        space: It is of.
        file: The ``.beton`` of the search, for its normalisation.
        real, test: Images as in :func:`search`.
        training: How, and how many networks.
        output: A file for the weights of the first one (safetensors). If it is there already and of this candidate,
            nothing is trained.
        device, seed, progress_bar: As in :func:`search`.

    Returns:
        The row of the table.

    Raises:
        InputError: If something does not fit, or ``training.full_epochs`` is 0.
    """
    if not training.full_epochs:
        raise InputError(NO_EPOCHS)
    output, card = check_writable(Path(output)), read_card(file)
    pool, judge = fitting_pool(real, "real", file, card), fitting_pool(test, "test", file, card)
    settings = training.training(training.full_epochs)
    depends = [best.arguments, space.factory, pool.fingerprint(), judge.fingerprint(), asdict(settings), training.seeds]
    key = json.dumps([*depends, seed])
    if (done := _row_of(output, key)) is not None:
        return done
    pool = pool.to(torch_device(device))
    seeds = range(seed, seed + training.seeds)
    scorer = Scorer(judge, card.normalization, seeds, len(card.classes), device, training.at_once, progress_bar)
    row = Row("full data", network=best.name)
    build = candidate_builder(space, best.arguments, card.shape, len(card.classes))
    network = scorer.score(row, build, lambda seed: (pool.images, pool.labels), settings)[0]
    write_whole(output, weights_content(network.state_dict(), {"job": key, "row": json.dumps(asdict(row))}))
    return row


def _row_of(path: Path, key: str) -> Row | None:
    """The row noted in a file of weights, if it is of the same job."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as content:
            about = content.metadata() or {}
        return build_checked(Row, json.loads(about["row"])) if about.get("job") == key else None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None  # another file of that name is not ours to judge; it is written anew
