"""Whether a ``.beton`` is there already, and of which job: finished work is neither repeated nor replaced unasked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.existing import check_replaceable, existing_card
from tgdd_plugin.core.differences import as_plain, first_difference
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.settings import EARLIER, DistillSettings

SAME_IMAGES = ("classes_per_chunk", "compile")
"""Settings that change the images by rounding alone: with another value, it is still the same job."""


def method_of(settings: DistillSettings) -> dict[str, Any]:
    """Returns the ``method`` of a card: the name and all settings."""
    return {"name": "TGDD", **asdict(settings)}


def find_difference(output: str | Path, job: Card) -> str | None:
    """Says in words what parts the job that wrote a ``.beton`` from another one, or returns ``None`` for the same job.

    Args:
        output: The ``.beton``.
        job: The card that the job would write, see :func:`tgdd_plugin.distillation.result.result_card`.

    Raises:
        InputError: If there is no such file, or its card is missing, damaged or of another file.
    """
    return first_difference(_job_of(read_card(output)), _job_of(job))


def is_finished(output: Path, job: Card, *, overwrite: bool) -> bool:
    """Whether a job's ``.beton`` is there already, whole.

    Args:
        output: The ``.beton``.
        job: The card that the job would write.
        overwrite: Whether the file of another job may be replaced.

    Raises:
        InputError: If what is there is of another job, or no ``.beton`` with its card, and may not be replaced.
    """
    earlier = existing_card(output, overwrite=overwrite)
    if earlier is None:
        return False
    difference = first_difference(_job_of(earlier), _job_of(job))
    check_replaceable(output, difference, overwrite=overwrite)
    return difference is None


def check_settings(output: Path, settings: DistillSettings, *, overwrite: bool) -> None:
    """Refuses to replace the ``.beton`` of a job with other settings, as far as they are known without any data.

    Args:
        output: The ``.beton``, which need not be there.
        settings: The settings as the user gave them, with defaults that are still to be filled in.
        overwrite: Whether the file of another job may be replaced.

    Raises:
        InputError: As :func:`is_finished`.
    """
    card = existing_card(output, overwrite=overwrite)
    if card is None:
        return
    earlier, now = _method(card), _without_how(method_of(settings))
    # What the user left out is filled in from the images and the trajectory.
    known = {key: earlier.get(key) if value is None else value for key, value in now.items()}
    if isinstance(had := earlier.get("real_per_class"), int):
        # A step takes at most as many as there are of a class, which only the images tell.
        known["real_per_class"] = min(settings.real_per_class, had)
    check_replaceable(output, first_difference({"distill": earlier}, {"distill": known}), overwrite=overwrite)


def free_name(output: Path, job: Card) -> Path:
    """Returns ``output``, or where that is a file of another job, its name with the first free number behind it."""
    number = 1
    path = output
    while path.exists() and not _is_of(path, job):
        number += 1
        path = output.with_name(f"{output.stem}-{number}{output.suffix}")
    return path


def _is_of(path: Path, job: Card) -> bool:
    try:
        return find_difference(path, job) is None
    except InputError:
        return False


def _job_of(card: Card) -> dict[str, Any]:
    """What a card says of the job that made its file, as plain values; the plainest first."""
    stages = card.trajectory.get("stages", [])
    job = {
        "distill": _method(card),
        "packed": card.packed,
        "classes": card.classes,
        "real": {key: card.real.get(key) for key in ("images", "fingerprint")},
        "network": card.network,
        "head": card.trajectory.get("head"),
        "mean": card.mean,
        "std": card.std,
        "trajectory": {
            "runs": card.trajectory.get("runs"),
            "stages": len(stages),
            "checksum": hashlib.sha256(json.dumps(stages).encode()).hexdigest()[:12],
        },
    }
    plain: dict[str, Any] = as_plain(job)
    return plain


def _method(card: Card) -> dict[str, Any]:
    """The method of a card; a setting that the version which wrote it did not have yet was as its default is."""
    if card.method.get("name") != "TGDD":
        return {"name": None, **card.method}
    given = {key: value for key, value in card.method.items() if key != "calibrated"}  # which follows from the others
    return _without_how({"name": "TGDD", **asdict(DistillSettings()), **EARLIER, **given})


def _without_how(method: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in method.items() if key not in SAME_IMAGES}
