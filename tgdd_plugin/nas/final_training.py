"""Training the best candidate of a search on the full data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.bounded_reading import check_tensor_file, parse_json
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.device import Device, torch_device
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.weights import weights_content
from tgdd_plugin.evaluation.scorer import FULL_DATA, Row, Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings
from tgdd_plugin.nas.ranking import Candidate
from tgdd_plugin.nas.search_space import candidate_builder
from tgdd_plugin.nas.settings import SearchSpace

NO_EPOCHS = (
    "`retrain.full_epochs` must be at least 1 for nas.train_best, which trains on the full data, got 0. Give the "
    "epochs, or leave nas.train_best out."
)


def train_best(
    best: Candidate,
    space: SearchSpace,
    file: str | Path,
    real: Any,
    test: Any,
    training: RetrainSettings,
    *,
    output: str | Path,
    device: Device | None = None,
    seed: int = 0,
    progress_bar: bool = True,
    trainer_options: Mapping[str, Any] | None = None,
) -> Row:
    """Trains a candidate on the full data, for ``training.full_epochs``, and scores it on test images.

    Args:
        best: The candidate.
        space: The search space of the candidate.
        file: The ``.beton`` of the search, for its normalization.
        real, test: The real training and test images, as ``real`` in :func:`search`.
        training: How networks are trained, and how many.
        output: A safetensors file for the weights of the first network. If it is there already and of this candidate,
            nothing is trained.
        device, seed, progress_bar: As in :func:`search`.
        trainer_options: As in :func:`tgdd_plugin.retrain`. Default: none.

    Returns:
        The row of the table.

    Raises:
        InputError: If the images do not fit the file, or ``training.full_epochs`` is 0.
    """
    if not training.full_epochs:
        raise InputError(NO_EPOCHS)
    output, card = check_writable(Path(output)), read_card(file)
    pool, test = fitting_pool(real, "real", file, card), fitting_pool(test, "test", file, card)
    settings = training.full_training(len(pool))
    depends = [best.arguments, space.factory, pool.fingerprint(), test.fingerprint(), asdict(settings), training.seeds]
    key = json.dumps([*depends, seed])
    if (done := _row_of(output, key)) is not None:
        return done
    pool = pool.to(torch_device(device))
    seeds = range(seed, seed + training.seeds)
    classes = len(card.classes)
    scorer = Scorer(test, card.normalization, seeds, classes, device, training.at_once, progress_bar, trainer_options)
    scorer = replace(scorer, checkpoints=output.with_name(f".{output.stem}-checkpoints"))
    row = Row(FULL_DATA, network=best.name)
    build = candidate_builder(space, best.arguments, card.shape, classes)
    network = scorer.score(row, build, lambda seed: (pool.images, pool.labels), settings)[0]
    write_whole(output, weights_content(network.state_dict(), {"job": key, "row": json.dumps(asdict(row))}))
    scorer.remove_checkpoints()
    return row


def _row_of(path: Path, key: str) -> Row | None:
    """Returns the row in the header of a file of weights, if it is of the same job."""
    if not path.is_file():
        return None
    try:
        check_tensor_file(path)
        with safetensors.safe_open(path, "pt") as content:
            about = content.metadata() or {}
        return build_checked(Row, parse_json(about["row"])) if about.get("job") == key else None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError):
        return None  # another file of that name is not ours; it is written anew
