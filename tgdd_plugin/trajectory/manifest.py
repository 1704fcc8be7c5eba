"""The manifest of a recorded run: what was trained, on what, and its stages."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.checked_json import build_checked
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.trajectory.journal import Journal, remove_journals, with_journal

MANIFEST = "manifest.json"
EXEMPLARS = "exemplars.safetensors"
FORMAT = 1

ONGOING_FORMAT = 2
"""The format of a manifest with a journal: an earlier version, which would miss the journal's stages, refuses it."""

_READINGS = 100  # of a manifest that is being rewritten again and again


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

    file: str
    index: int
    epoch: int
    batch: int
    sample: int
    sha256: str
    metrics: dict[str, float] = field(default_factory=dict)
    finite: bool = True


@dataclass
class Run:
    """One training run: the content of its ``manifest.json``.

    Args:
        name: The Trainer's ``run_name``.
        network: ``class`` of the network, number of ``parameters``, and, where it is known how to build it again,
            ``factory`` (``module:function``) and ``arguments``; names of ``algorithms`` that may have changed it.
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

    name: str
    network: dict[str, Any]
    head: str
    num_classes: int
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    input: dict[str, list[float]] | None = None
    interval: str = "1ep"
    augmentation: str | None = None
    exemplars: str | None = None
    complete: bool = False
    stages: list[Stage] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def normalization(self) -> Normalization | None:
        """What the run's inputs were normalized with, if known."""
        return None if self.mean is None or self.std is None else Normalization(self.mean, self.std)

    def __post_init__(self) -> None:
        # Not a field: it says what of this run is on the disk, and is not part of what the run is.
        self.journal: Journal | None = None

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
        # A network may have been built with arguments that JSON lacks: their names will do, training must go on.
        write_whole(folder / MANIFEST, json.dumps(content, indent=1, default=str) + "\n")
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
        return json.dumps({**self._fields(), "stages": None}, default=str)

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
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InputError(
                f"The file '{path}' is damaged ({reason}). Copy the folder again, or delete it and record the run "
                f"again."
            ) from error
        raise InputError(
            f"The file '{path}' must be of format {FORMAT} or {ONGOING_FORMAT}, got {content['format']!r}. Update "
            f"tgdd_plugin to open it."
        )

    @classmethod
    def _checked(cls, content: dict[str, Any]) -> Run:
        stages = content["stages"]
        if isinstance(stages, list):
            stages = [build_checked(Stage, stage) for stage in stages]
        run = build_checked(cls, {**content, "stages": stages})
        run.network["class"], run.network["parameters"]  # every reader relies on them
        if run.input is not None:
            run.input["shape"], run.input["mean"], run.input["std"]
        for earlier, stage in zip([None, *run.stages], run.stages, strict=False):
            if stage.file != Path(stage.file).name or "\\" in stage.file or not stage.file.endswith(".safetensors"):
                raise ValueError(f"stage file '{stage.file}' is not the name of a safetensors file in this folder")
            if earlier and not (earlier.batch < stage.batch and earlier.index < stage.index):
                raise ValueError(f"stage '{stage.file}' comes after '{earlier.file}' but is not later")
        return run


def _stage_fields(stage: Stage) -> dict[str, Any]:
    content = asdict(stage)
    if stage.finite:
        del content["finite"]
    return content


def _read_content(path: Path) -> dict[str, Any]:
    """Reads a manifest, with the stages of its journal if it names one."""
    text = ""
    for _ in range(_READINGS):
        earlier, text = text, path.read_text(encoding="utf-8")
        content: dict[str, Any] = json.loads(text)
        if content["format"] != ONGOING_FORMAT:
            break
        try:
            return with_journal(path.parent, content)
        except FileNotFoundError:
            if text == earlier:
                raise ValueError(f"its journal '{content['journal']}' is missing") from None
    return content
