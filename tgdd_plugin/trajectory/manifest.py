"""The manifest of a recorded run: what was trained, on what, and its stages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, with_config
from typing_extensions import TypedDict

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import JSON_SIZE, parse_json, read_bounded
from tgdd_plugin.core.checked_json import (
    MOST_CLASSES,
    MOST_SIDE,
    OPEN,
    AnyFloat,
    Finite,
    Flag,
    Positive,
    Sha256,
    Text,
    Whole,
    build_checked,
    shaped,
)
from tgdd_plugin.core.class_names import as_names, number_names
from tgdd_plugin.core.differences import for_json
from tgdd_plugin.core.errors import InputError, shown
from tgdd_plugin.core.network_record import NetworkRecord
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.trajectory.journal import Journal, remove_journals, with_journal

MANIFEST = "manifest.json"
JOB = "job.json"
"""The job that recorded all runs of a folder, beside them; a Trainer of the user's own writes none."""
EXEMPLARS = "exemplars.safetensors"
FORMAT = 1

ONGOING_FORMAT = 2
"""The format of a manifest with a journal: an earlier version, which would miss the journal's stages, refuses it."""

MOST_METRICS = 1000
"""The most metrics of a stage."""

METRICS_SIZE = JSON_SIZE // 2
"""The most bytes of all stages' metrics."""

MOST_STAGES = 40_000
"""The most stages of a run: they take the other half of what a manifest may be large."""

_READINGS = 100  # of a manifest that is being rewritten again and again

Size = Annotated[float, Strict(), Field(ge=1, le=MOST_SIDE, multiple_of=1)]
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}\.safetensors")


@with_config(OPEN)
class _Input(TypedDict):
    """``shape`` is (C, H, W), in floats."""

    shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    mean: list[Finite]
    std: list[Annotated[Finite, Field(ge=0)]]


@with_config(OPEN)
class _Gap(TypedDict):
    epoch: Whole
    batch: Whole
    reason: Text


@dataclass(frozen=True)
class Stage:
    """One recorded moment of a run.

    Args:
        file: Name of the safetensors file in the run's folder.
        index: How many stages had been due before it (0 = the initial weights); thinning leaves gaps.
        epoch: Epochs completed.
        batch: Batches (optimizer steps) completed.
        sample: Samples seen.
        sha256: Checksum of the file.
        metrics: Training loss and metrics by name, means over the batches since the stage before.
        finite: Whether no weight is NaN or positive infinity; written only if not. Earlier versions did not look.
    """

    file: Text
    index: Whole
    epoch: Whole
    batch: Whole
    sample: Whole
    sha256: Sha256
    metrics: Annotated[dict[Text, AnyFloat], Field(max_length=MOST_METRICS)] = field(default_factory=dict)
    finite: Flag = True


@dataclass
class Run:
    """One training run: the content of its ``manifest.json``.

    Args:
        name: The Trainer's ``run_name``.
        network: ``class`` of the network, number of ``parameters``, and, where it is known how to build it again,
            ``factory`` (``module:function``) and ``arguments``; names of ``algorithms`` that may have changed it,
            and as ``surgery`` Composer's that did, with their arguments.
        head: Name of the linear layer whose input is φ(x) and whose output is h(x).
        num_classes: K.
        classes: Names of the classes, if known.
        mean: Per-channel mean that the run's inputs were normalized with, if known, for pixels in [0, 1].
        std: The per-channel standard deviation, likewise.
        input: ``shape`` (C, H, W) and per-channel ``mean`` and ``std`` of the first batch, as the network got it.
        interval: How often a stage was due, as given to the callback.
        augmentation: The augmentation of the training images, if known, as a strategy of
            :mod:`tgdd_plugin.augmentation.dsa` in the order of its operations; ``'none'`` if there was none.
        exemplars: SHA-256 of ``exemplars.safetensors`` beside the manifest; ``None`` if no real images are kept.
        complete: Whether ``fit()`` came to its end, and nothing that was recorded was lost meanwhile.
        stages: The stages, in the order of training.
        versions: The versions of the packages that recorded it.
        gaps: What could not be recorded while training went on: ``epoch``, ``batch`` and the ``reason`` of each.
    """

    name: Text
    network: Annotated[dict[str, Any], shaped(NetworkRecord)]
    head: Text
    num_classes: Annotated[int, Strict(), Field(ge=1, le=MOST_CLASSES)]
    classes: list[Text] | None = None
    mean: list[Finite] | None = None
    std: list[Positive] | None = None
    input: Annotated[dict[str, list[float]], shaped(_Input)] | None = None
    interval: Text = "1ep"
    augmentation: Text | None = None
    exemplars: Sha256 | None = None
    complete: Flag = False
    stages: list[Stage] = field(default_factory=list)
    versions: dict[Text, Text] = field(default_factory=dict)
    gaps: list[Annotated[dict[str, Any], shaped(_Gap)]] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """The names of the K classes; their numbers where none are noted."""
        return self.classes or number_names(self.num_classes)

    @property
    def normalization(self) -> Normalization | None:
        """What the run's inputs were normalized with, if known."""
        return None if self.mean is None or self.std is None else Normalization(self.mean, self.std)

    def __post_init__(self) -> None:
        self.classes = None if self.classes is None else as_names(self.classes)
        # Not a field: it says what of this run is on the disk, and is not part of what the run is.
        self.journal: Journal | None = None
        self._room = 0

    def has_room_for(self, metrics: Mapping[str, float]) -> bool:
        """Whether the manifest can still be read with those metrics in one more stage; if so, they count as there."""
        size = _size_of(metrics)
        if size > self._room:  # stages that were thinned away have left room
            self._room = METRICS_SIZE - sum(_size_of(stage.metrics) for stage in self.stages)
        if size > self._room:
            return False
        self._room -= size
        return True

    def write(self, folder: Path, *, ongoing: bool = False) -> None:
        """Writes ``folder/manifest.json`` whole or not at all.

        Args:
            folder: The run's folder.
            ongoing: Whether :meth:`write_stage` is to follow, for which the manifest names a journal. Default:
                ``False``.
        """
        self.journal = None  # until all is written, what is on the disk is not known
        journal = Journal(folder, self._about(), len(self.stages)) if ongoing else None
        content = {"format": FORMAT} if journal is None else {"format": ONGOING_FORMAT, "journal": journal.path.name}
        content |= {**self._fields(), "stages": [_stage_fields(stage) for stage in self.stages]}
        if not self.gaps:
            del content["gaps"]
        # A network may have been built with arguments that JSON lacks: text will do, training must go on.
        write_whole(folder / MANIFEST, json.dumps(content, indent=1, default=for_json) + "\n", swept=True)
        self.journal = journal
        remove_journals(folder, keep=journal)

    def write_stage(self, folder: Path, dropped: list[str]) -> None:
        """Writes the last stage, at a cost that does not grow with the number of stages.

        Only its line in the journal is written, unless anything else has changed since the manifest was.

        Args:
            folder: The run's folder.
            dropped: The files of stages that were in the manifest and are not any more.
        """
        journal = self.journal
        if (
            journal is None
            or journal.path.parent != folder
            or journal.is_long
            or journal.count + 1 - len(dropped) != len(self.stages)
            or journal.about != self._about()
        ):
            return self.write(folder, ongoing=True)
        self.journal = None  # after an error, the next stage rewrites the manifest
        journal.append(_stage_fields(self.stages[-1]), dropped)
        self.journal = journal

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def _about(self) -> str:
        """What the manifest says beside its stages, to be compared."""
        return json.dumps({**self._fields(), "stages": None}, default=for_json)

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Reads ``folder/manifest.json``.

        The folder may come from anywhere, so nothing in it is believed unchecked. The run may be recorded meanwhile:
        what is read is the run as it was at one moment.

        Raises:
            InputError: If it is missing, not JSON, of a later format, lacks a field, holds a value of the wrong type,
                names a file outside ``folder``, or its stages are not in the order of training.
        """
        path = folder / MANIFEST
        try:
            content = _read_content(path)
            if content["format"] in (FORMAT, ONGOING_FORMAT):
                return cls._checked(content)
        except FileNotFoundError:
            raise InputError(
                f"The folder '{folder}' has no {MANIFEST}. Record a run there with TGDDCallback(folder=...)."
            ) from None
        except OSError as error:
            raise InputError(
                f"The file '{path}' cannot be read ({error.strerror}). Make it readable or copy it again."
            ) from error
        except InputError:  # no regular file, or too large a one
            raise
        except ValueError as error:
            raise InputError(
                f"The file '{path}' is damaged ({error}). Copy the folder again, or delete it and record the run again."
            ) from None
        raise InputError(
            f"The file '{path}' must be of format {FORMAT} or {ONGOING_FORMAT}, got {shown(content['format'], 40)}. "
            f"Update tgdd_plugin to open it."
        )

    @classmethod
    def _checked(cls, content: dict[str, Any]) -> Run:
        if "stages" not in content:
            raise ValueError("`stages` is missing")
        run = build_checked(cls, content)
        check_stages(run.stages)
        channels = int(run.input["shape"][0]) if run.input else None
        if run.input and not len(run.input["mean"]) == len(run.input["std"]) == channels:
            raise ValueError(f"`input` must have a mean and std for each of the {channels} channels of its shape")
        if (run.mean is None) != (run.std is None) or len(run.mean or ()) != len(run.std or ()) or run.mean == []:
            raise ValueError(f"`mean` and `std` must be equally many values, got {run.mean} and {run.std}")
        if run.mean and channels and len(run.mean) not in (1, channels):
            raise ValueError(f"`mean` and `std` must be one value, or {channels}, got {len(run.mean)}")
        if run.classes is not None and len(run.classes) != run.num_classes:
            raise ValueError(f"`classes` must be as many names as `num_classes` says, got {len(run.classes)}")
        return run


def _size_of(metrics: Mapping[str, float]) -> int:
    return sum(len(json.dumps(name)) + 40 for name in metrics)  # a number has up to 24 characters, beside indentation


def _stage_fields(stage: Stage) -> dict[str, Any]:
    content = asdict(stage)
    if stage.finite:
        del content["finite"]
    return content


def _read_content(path: Path) -> dict[str, Any]:
    """Reads a manifest, with the stages of its journal if it names one."""
    text = b""
    for _ in range(_READINGS):
        earlier, text = text, read_bounded(path, JSON_SIZE, "manifest")
        content: dict[str, Any] = parse_json(text)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it is not a mapping with a `format`")
        if content["format"] != ONGOING_FORMAT:
            break
        try:
            return with_journal(path.parent, content)
        except FileNotFoundError:
            if text == earlier:
                raise ValueError(f"its journal '{content['journal']}' is missing") from None
    return content


def check_stages(stages: Sequence[Stage]) -> None:
    """Checks that stages name files in their own folder, and are in the order of training.

    Raises:
        ValueError: If not; the message is one line.
    """
    for earlier, stage in zip([None, *stages], stages, strict=False):
        if not _FILE_NAME.fullmatch(stage.file):
            raise ValueError(
                f"stage file '{shown(stage.file, 200)}' is not the name of a safetensors file in this folder"
            )
        if earlier and not (earlier.batch < stage.batch and earlier.index < stage.index):
            raise ValueError(f"stage '{stage.file}' comes after '{earlier.file}' but is not later")
