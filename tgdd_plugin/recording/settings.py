"""How runs are trained and recorded: every setting and its default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from tgdd_plugin.core.differences import with_later_settings
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.settings import Count, Flag, NonNegativeInt, check_time, settings_class
from tgdd_plugin.training.settings import TrainSettings

StageCount = Annotated[int, Strict(), Field(ge=2)]
"""TGDD needs at least two stages."""
EARLIER_EXEMPLARS = 40
"""The number of exemplars that was the default."""
Dtype = Literal["float32", "float16", "bfloat16"]
OnError = Literal["warn", "raise"]


@settings_class
class StageSettings:
    """What a stage holds and which stages are kept: the options of a recorder, checked.

    Raises:
        InputError: For a value of the wrong type or out of range.
    """

    max_stages: StageCount | None = None
    """Thin the stages evenly to at most so many while training goes on; null keeps all."""
    dtype: Dtype = "float32"
    """How floating-point weights are stored."""
    statistics: Flag = True
    """Record class means of the features."""
    exemplars: NonNegativeInt = 100
    """Real images of each class kept beside the stages; 0 keeps none."""
    overwrite: Flag = False
    """Replace a complete recording of the same run."""
    on_error: OnError = "warn"
    """What an error of the recording does while training goes on: a warning, or the end of training."""


@settings_class
class RecordSettings(TrainSettings):
    """How runs are trained and recorded: the training of :class:`TrainSettings`, with the callback's options.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    runs: Count = 1
    """How many networks are trained one after another, with seeds seed, seed + 1, ... The paper uses 5."""
    interval: str = "1ep"
    """How often a stage is recorded, as a Composer time string: 1ep, 50ba, 0.1dur."""
    max_stages: StageCount | None = None
    """Thin the stages evenly to at most so many while training goes on; null keeps all."""
    dtype: Dtype = "float32"
    """How floating-point weights are stored in a stage."""
    exemplars: NonNegativeInt = 100
    """Real images of each class kept in the trajectory, for distillation to start from, and to match without the data;
    0 keeps none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_time("interval", self.interval)


def as_recorded(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that an earlier version noted of a recording, to be compared with those of now.

    What it had no key for is as it is now, and so is the number of exemplars where both are the default of their time.
    """
    settings = with_later_settings(earlier, now)
    if settings.get("exemplars") == EARLIER_EXEMPLARS and now.get("exemplars") == RecordSettings().exemplars:
        settings["exemplars"] = now["exemplars"]
    return settings


def local_folder(folder: str | Path) -> Path:
    """Returns the path of a trajectory folder.

    Raises:
        InputError: If it is an address, as Composer's ``save_folder`` may be: it would name a folder here.
    """
    if "://" in str(folder):
        raise InputError(
            f"`folder` must be one of this machine, got '{folder}'. Record into a local folder, and upload that after "
            f"the training."
        )
    return Path(folder)
