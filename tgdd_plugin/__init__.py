"""Records the trajectory of a Composer training run and distills it into a tiny FFCV data set (TGDD, arXiv 2512.02469).

::

    your Trainer + TGDDCallback --> trajectory folder --distill--> name.beton + card --> retrain, evaluate

Letters used throughout: N images, C channels, H×W pixels, K classes, D features, S stages of a run (0 = the initial
weights), R runs, n stored synthetic images for each class, m real ones, f the factor of multi-formation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tgdd_plugin.old_names import install

if TYPE_CHECKING:
    from tgdd_plugin.augmentation.algorithms import RandomCutMix, SiameseAugmentation
    from tgdd_plugin.beton.card import Card, read_card
    from tgdd_plugin.beton.format import read_beton, write_beton
    from tgdd_plugin.beton.loader import beton_loader, mixed_loader
    from tgdd_plugin.core.errors import InputError
    from tgdd_plugin.data.image_pool import ImagePool
    from tgdd_plugin.distillation.distiller import distill
    from tgdd_plugin.distillation.settings import DistillSettings
    from tgdd_plugin.evaluation.comparison import evaluate, retrain
    from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
    from tgdd_plugin.nas.ranking import rank_networks
    from tgdd_plugin.recording.callback import TGDDCallback
    from tgdd_plugin.recording.description import describe_run
    from tgdd_plugin.recording.recorder import TrajectoryRecorder
    from tgdd_plugin.replay.algorithm import DistilledReplay
    from tgdd_plugin.replay.memory import ReplayMemory
    from tgdd_plugin.trajectory.store import Trajectory

__version__ = "0.1.0"

install(
    packages={"beton", "data", "distillation", "evaluation", "nas", "recording", "replay", "training", "trajectory"}
)

_HOMES = {
    "Card": "beton.card",
    "DistillSettings": "distillation.settings",
    "DistilledReplay": "replay.algorithm",
    "EvaluateSettings": "evaluation.settings",
    "ImagePool": "data.image_pool",
    "InputError": "core.errors",
    "RandomCutMix": "augmentation.algorithms",
    "ReplayMemory": "replay.memory",
    "RetrainSettings": "evaluation.settings",
    "SiameseAugmentation": "augmentation.algorithms",
    "TGDDCallback": "recording.callback",
    "Trajectory": "trajectory.store",
    "TrajectoryRecorder": "recording.recorder",
    "beton_loader": "beton.loader",
    "describe_run": "recording.description",
    "distill": "distillation.distiller",
    "evaluate": "evaluation.comparison",
    "mixed_loader": "beton.loader",
    "rank_networks": "nas.ranking",
    "read_beton": "beton.format",
    "read_card": "beton.card",
    "retrain": "evaluation.comparison",
    "write_beton": "beton.format",
}
__all__ = [
    "Card",
    "DistillSettings",
    "DistilledReplay",
    "EvaluateSettings",
    "ImagePool",
    "InputError",
    "RandomCutMix",
    "ReplayMemory",
    "RetrainSettings",
    "SiameseAugmentation",
    "TGDDCallback",
    "Trajectory",
    "TrajectoryRecorder",
    "beton_loader",
    "describe_run",
    "distill",
    "evaluate",
    "mixed_loader",
    "rank_networks",
    "read_beton",
    "read_card",
    "retrain",
    "write_beton",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # which would let a misspelt name pass

    def __getattr__(name: str) -> Any:
        # Composer takes seconds to import and FFCV needs system libraries: each is loaded when first asked for.
        if name not in _HOMES:
            raise AttributeError(f"module 'tgdd_plugin' has no attribute {name!r}")
        return getattr(import_module(f"tgdd_plugin.{_HOMES[name]}"), name)
