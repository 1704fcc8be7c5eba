"""A job: what to record, distill and retrain. Every default lives in the section's own settings."""

from __future__ import annotations

from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Literal

from tgdd_plugin.core.settings import Flag, Seed, settings_class
from tgdd_plugin.data.settings import DataSettings
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.logs.settings import LoggerSettings
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.file_names import beton_name
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.replay.settings import ReplaySettings


@settings_class
class Recipe:
    """A job: its files, and a section of settings for each part.

    Raises:
        InputError: For an unknown key, or a value of the wrong type or out of range.
    """

    output: str = "outputs"
    """Folder for all that the job writes."""
    seed: Seed = 0
    """The first seed of recording and retraining."""
    device: Literal["cpu", "gpu"] | None = None
    """Where networks run. null: on a GPU if there is one."""
    trajectory: str | None = None
    """The trajectory folder. null: <output>/trajectory. Name yours to distill a run of your own."""
    file: str | None = None
    """The .beton. null: <output>/<data>-ipc<n>.beton, or <data>-<n>passes.beton for a budget; where data.name is left
    out, <data> is what was recorded."""
    overwrite: Flag = False
    """Replace a finished .beton of another job, and the results of another comparison. A replay's folder is never
    replaced."""
    head: str | None = None
    """Name of the network's linear head. null: the one recorded; for recording, the last linear layer with an output
    for each class."""
    data: DataSettings = field(default_factory=DataSettings)
    """The images."""
    network: NetworkSettings | None = None
    """The network. null: the one that the trajectory or the card names; for recording, convnet."""
    extra_networks: list[NetworkSettings] = field(default_factory=list)
    """More networks, each a section as network is: as many runs of each are recorded as well, and the set is distilled
    under all of them."""
    record: RecordSettings = field(default_factory=RecordSettings)
    """Training with a recording; left out if the trajectory was recorded by a Trainer of your own."""
    distill: DistillSettings = field(default_factory=DistillSettings)
    """The distillation."""
    retrain: RetrainSettings = field(default_factory=RetrainSettings)
    """Training on the distilled set, beside random and full data; an evaluation and a search train likewise."""
    loggers: LoggerSettings = field(default_factory=LoggerSettings)
    """Where recordings, distillations and retrainings are logged; the results do not depend on it."""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    """What stands beside the set in an evaluation."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Continual learning: each task is trained as record says and distilled as distill says."""
    nas: NasSettings = field(default_factory=NasSettings)
    """Architecture search: each candidate is trained on the file as retrain says."""

    @property
    def trajectory_folder(self) -> Path:
        """The trajectory folder, named or by default."""
        return Path(self.trajectory) if self.trajectory else Path(self.output) / "trajectory"

    @property
    def beton(self) -> Path:
        """The ``.beton``, named or by default."""
        name = beton_name(self.data.name, self.distill)
        return Path(self.file) if self.file else Path(self.output) / name


SECTIONS = [
    "network",
    "extra_networks",
    *(each.name for each in fields(Recipe) if is_dataclass(getattr(Recipe(), each.name))),
]
"""The keys that are sections."""
TOP_LEVEL = [each.name for each in fields(Recipe) if each.name not in SECTIONS]
"""The keys that stand in no section."""
