"""The record of a comparison: one JSON format for its results file, and one entry for the card of the ``.beton``."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tgdd_plugin.beton.card import Card, card_path, entries_agree, read_card
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import JSON_SIZE, parse_json, read_bounded
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.differences import as_plain, first_difference, under_section
from tgdd_plugin.core.errors import InputError, reason_of
from tgdd_plugin.core.locks import locked
from tgdd_plugin.core.versions import installed_versions
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.compact_set import CompactSet
from tgdd_plugin.evaluation.scorer import PROTOCOL, Key, Row, Scorer
from tgdd_plugin.evaluation.settings import RetrainSettings

ON_CARD = ("protocol", "network", "architecture", "parameters", "test_images", "seeds", "settings")
"""The keys of a results file that the card repeats."""

HELD_OUT = "held-out training images"
"""What a comparison is scored on that serves to choose settings: the card, which is published, gets none of it."""

FINGERPRINTS = ("test_fingerprint", "real_fingerprint")
"""The keys that are named only where nothing else differs: nobody can tell what to give in their place."""

MOST_TOLD = 5
"""The most differences from an earlier comparison that an error names."""


def describe_comparison(
    file: str | Path,
    compact: CompactSet,
    scorer: Scorer,
    real: ImagePool | None,
    training: RetrainSettings,
    *,
    held_out: bool,
) -> dict[str, Any]:
    """Returns what the rows of a comparison depend on, as plain values.

    Args:
        file: The ``.beton``.
        compact: The set of that file.
        scorer: The scorer of the networks.
        real: All real training images, with those that are held out; ``None`` if there are none.
        training: How networks are trained.
        held_out: Whether the scorer's images are training images that were held out.
    """
    fresh = compact.fresh()
    return {
        "scored_on": HELD_OUT if held_out else "test images",
        "file": Path(file).name,
        "sha256": compact.card.sha256,
        "protocol": PROTOCOL,
        "test_images": len(scorer.test),
        "test_fingerprint": scorer.test.fingerprint(),
        "real_fingerprint": None if real is None else real.fingerprint(),
        "network": compact.network,
        "parameters": sum(parameter.numel() for parameter in fresh.parameters()),
        "architecture": as_plain(getattr(fresh, "tgdd_network", None)),  # networks of equal size may differ in it
        "seeds": list(scorer.seeds),
        "settings": asdict(replace(training.filled(), at_once=None, mix=0.0)),  # neither makes another row
        "learning_rates": None,
        "teachers": None,
    }


def warn_if_seen(file: Path, card: Card, real: ImagePool | None) -> None:
    """Warns where a card does not say that its set was made from ``real``, the images that were not held out."""
    if real is not None and card.real.get("fingerprint") != real.fingerprint():
        warnings.warn(
            f"'{file}' may have been made from images that are held out now, as its card does not say that it was made "
            f"from the other {len(real)}; give the same data.holdout to tgdd record and tgdd distill, or to tgdd run",
            stacklevel=3,
        )


def write_results(path: Path, about: dict[str, Any], rows: Sequence[Row], scorer: Scorer) -> None:
    """Writes the results file at once; ``about`` is of :func:`describe_comparison`."""
    content = {**about, **_origin(scorer), "rows": [row.summary() for row in rows]}
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_results(path: Path, about: dict[str, Any], *, overwrite: bool = False) -> dict[Key, Row]:
    """Reads the finished rows of a results file; there are none if there is no file.

    Args:
        path: The results file.
        about: The comparison as it is now. It gets the teachers of the file if it has none.
        overwrite: Whether a file that is damaged, or of another comparison, is passed over. Default: ``False``.

    Raises:
        InputError: If the file is damaged, or of another comparison.
    """
    if not path.is_file():
        return {}
    text = read_bounded(path, JSON_SIZE, "results file")
    try:
        content = parse_json(text)
        rows = [build_checked(Row, row) for row in content["rows"]]
        earlier = {key: content.get(key) for key in about}
        for key in ("architecture", "scored_on"):
            earlier[key] = content.get(key, about[key])  # an earlier version did not write it
        earlier["settings"] = RetrainSettings.completed(earlier["settings"] or {}, about["settings"])
    except (ValueError, TypeError, KeyError) as error:
        if overwrite:
            return {}
        raise InputError(f"'{path}' is damaged ({error}). Delete it, or set `overwrite` to true.") from error
    teachers = about["teachers"] or earlier["teachers"]  # a trajectory may be left out, or come later
    before = under_section({**earlier, "teachers": earlier["teachers"] or teachers}, "retrain")
    now = under_section({**about, "teachers": teachers}, "retrain")
    named_before, named_now = ({**each, **dict.fromkeys(FINGERPRINTS)} for each in (before, now))
    other = first_difference(named_before, named_now, most=MOST_TOLD) or first_difference(before, now, most=MOST_TOLD)
    if other and overwrite:
        return {}
    if other:
        raise InputError(
            f"'{path}' is of another evaluation ({other}). Set `overwrite` to true to replace it, or move it away."
        )
    about["teachers"] = teachers
    return {row.key: row for row in rows}


def add_to_card(file: str | Path, card: Card, about: dict[str, Any], rows: Sequence[Row], scorer: Scorer) -> None:
    """Adds accuracies to the card of ``file``, once: a comparison that has more rows than before takes its own place.

    Those of held-out training images are not added, as settings were chosen by them, and a card is published.
    Where the card cannot be written, as in a folder that may only be read, or the file is not the one any more that
    ``card`` was read from, a warning says so.

    Args:
        file: The ``.beton``.
        card: Its card when the comparison began.
        about: See :func:`describe_comparison`.
        rows: The rows that the card gets.
        scorer: The scorer of the rows.
    """
    if about["scored_on"] == HELD_OUT:
        return
    entry = {key: about[key] for key in ON_CARD} | {"rows": [row.summary() for row in rows], **_origin(scorer)}
    try:
        with locked(card_path(file), wait=60):
            latest = read_card(file)  # another call may have added its rows meanwhile
            if latest.sha256 != card.sha256:
                raise InputError(f"'{file}' was replaced during training. Retrain on it again.")
            if not any(_is_part(entry, noted) for noted in latest.accuracy):  # the same evaluation may be called again
                latest.accuracy = [*(noted for noted in latest.accuracy if not _is_part(noted, entry)), entry]
                latest.write(Path(file))
    except (OSError, InputError) as error:  # the rows took long to train, and go back to the caller
        reason = getattr(error, "strerror", None) or reason_of(error)
        warnings.warn(f"the card '{card_path(file)}' did not get the accuracies: {reason}", stacklevel=3)


def _is_part(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether an entry of a card says nothing that another does not say, but for the time that it took, and where."""
    rows = _without_time(other)
    return entries_agree(entry, other, ON_CARD) and all(row in rows for row in _without_time(entry))


def _without_time(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an entry without seconds, and without what follows from their accuracies: an earlier version rounded
    it to two digits."""
    left_out = ("seconds", "mean_percent", "std_points")
    return [{key: value for key, value in row.items() if key not in left_out} for row in entry["rows"]]


def _origin(scorer: Scorer) -> dict[str, Any]:
    return {"device": scorer.where(), "versions": installed_versions("mosaicml", "ffcv", "numpy")}


def usual_results(file: Path) -> Path:
    """The results file of an evaluation of ``file`` where none is named."""
    return file.with_name(f"{file.stem}-evaluation.json")


def results_file(results: str | os.PathLike[str] | None, file: Path) -> Path:
    """The results file that was named, or :func:`usual_results`.

    Raises:
        InputError: If its name is none of a JSON file, or the folder of its name cannot be.
    """
    usual = usual_results(file)
    results = Path(results) if results else usual
    if results.suffix != ".json" or results.with_suffix("").is_file():
        raise InputError(f"`results` must be the name of a JSON file, got '{results}'. Give a name such as '{usual}'.")
    return results
