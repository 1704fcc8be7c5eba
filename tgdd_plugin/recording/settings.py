"""How runs are trained and recorded: every setting and its default."""

from __future__ import annotations

from dataclasses import dataclass

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.recording.callback import TGDDCallback
from tgdd_plugin.training.settings import TrainSettings


@dataclass(frozen=True)
class RecordSettings(TrainSettings):
    """How the runs are trained and recorded; the training is :class:`TrainSettings`' with the paper's 60 epochs.

    Args:
        runs: How many of each network are trained one after another, with seeds ``seed``, ``seed + 1``, ... Default:
            ``1``.
        interval: See :class:`TGDDCallback`. Default: ``'1ep'``.
        max_stages: See :class:`TGDDCallback`. Default: ``None``.
        dtype: See :class:`TGDDCallback`. Default: ``'float32'``.
        exemplars: See :class:`TGDDCallback`. Default: ``40``.
    """

    runs: int = 1
    interval: str = "1ep"
    max_stages: int | None = None
    dtype: str = "float32"
    exemplars: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runs < 1:
            raise InputError(f"runs is {self.runs}; wanted at least 1")
        # The callback checks its arguments: here, so that they are checked before any work.
        TGDDCallback("", self.interval, max_stages=self.max_stages, dtype=self.dtype, exemplars=self.exemplars)
