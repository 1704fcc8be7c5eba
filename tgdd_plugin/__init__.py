"""Records the trajectory of a Composer training run and distills it into a tiny FFCV data set (TGDD, arXiv 2512.02469).

::

    your Trainer + TGDDCallback --> trajectory folder --distill--> name.beton + card --> retrain, evaluate

Letters used throughout: N images, C channels, H×W pixels, K classes, D features, S stages of a run (0 = the initial
weights), R runs, n stored synthetic images for each class, m real ones, f the factor of multi-formation.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgdd_plugin.algorithms import RandomCutMix, SiameseAugmentation
    from tgdd_plugin.beton import read_beton, write_beton
    from tgdd_plugin.callback import TGDDCallback
    from tgdd_plugin.card import Card, read_card
    from tgdd_plugin.distillation import distill
    from tgdd_plugin.errors import InputError
    from tgdd_plugin.evaluation import EvaluateSettings, evaluate
    from tgdd_plugin.loader import beton_loader
    from tgdd_plugin.memory import ReplayMemory
    from tgdd_plugin.pool import ImagePool
    from tgdd_plugin.ranking import rank_networks
    from tgdd_plugin.replay import DistilledReplay
    from tgdd_plugin.retraining import RetrainSettings, retrain
    from tgdd_plugin.settings import DistillSettings
    from tgdd_plugin.trajectory import Trajectory

__version__ = "0.1.0"

_HOMES = {
    "Card": "card",
    "DistillSettings": "settings",
    "DistilledReplay": "replay",
    "EvaluateSettings": "evaluation",
    "ImagePool": "pool",
    "InputError": "errors",
    "RandomCutMix": "algorithms",
    "ReplayMemory": "memory",
    "RetrainSettings": "retraining",
    "SiameseAugmentation": "algorithms",
    "TGDDCallback": "callback",
    "Trajectory": "trajectory",
    "beton_loader": "loader",
    "distill": "distillation",
    "evaluate": "evaluation",
    "rank_networks": "ranking",
    "read_beton": "beton",
    "read_card": "card",
    "retrain": "retraining",
    "write_beton": "beton",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Composer takes seconds to import and FFCV needs system libraries: each is loaded when first asked for.
    if name not in _HOMES:
        raise AttributeError(f"module 'tgdd_plugin' has no attribute {name!r}")
    return getattr(import_module(f"tgdd_plugin.{_HOMES[name]}"), name)
