"""Modules and names of version 0.1 that moved; they go with the next release.

``from tgdd_plugin.memory import ReplayMemory`` still works, with a ``DeprecationWarning`` that says where it is now.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

_TABLE = """
algorithms.RandomCutMix augmentation.algorithms
algorithms.SiameseAugmentation augmentation.algorithms
beton.read_beton beton.format
beton.write_beton beton.format
callback.TGDDCallback recording.callback
card.Card beton.card
card.read_card beton.card
continual.ReplaySettings replay.settings
continual.Task replay.tasks
continual.distilled replay.policies
continual.learn replay.learner
continual.split_classes replay.tasks
data.DataSettings data.settings
data.load_data pipeline.datasets
distillation.distill distillation.distiller
errors.InputError core.errors
evaluation.EvaluateSettings evaluation.settings
evaluation.evaluate evaluation.comparison
evaluation.hard_label_recovery evaluation.metrics
evaluation.improvement_over_random evaluation.metrics
evaluation.table evaluation.tables:evaluate_table
exchange.export_folder beton.exporting
exchange.export_tensors beton.exporting
exchange.import_tensors beton.importing
loader.DeviceLoader data.device_loader
loader.beton_loader beton.loader
memory.ReplayMemory replay.memory
nas.search nas.optuna_search
nas.train_best nas.final_training
pool.ImagePool data.image_pool
ranking.rank_networks nas.ranking
recipe.NetworkSettings networks.settings
recipe.Recipe pipeline.settings
recipe.read_recipe pipeline.recipe
recording.RecordSettings recording.settings
recording.record recording.runs
replay.DistilledReplay replay.algorithm
retraining.RetrainSettings evaluation.settings
retraining.retrain evaluation.comparison
retraining.table evaluation.tables:retrain_table
search_space.NasSettings nas.settings
search_space.SearchSpace nas.settings
settings.DistillSettings distillation.settings
training.TrainSettings training.settings
trajectory.Trajectory trajectory.store
"""
# By old module, where each of its names is now; ``module:name`` where the name changed, too.
MOVED: dict[str, dict[str, str]] = {}
for _row in _TABLE.split("\n")[1:-1]:
    _old, _home = _row.split()
    MOVED.setdefault(_old.partition(".")[0], {})[_old.partition(".")[2]] = _home


def forward(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of an old module: finds a moved name at its present place, with a ``DeprecationWarning``."""

    def __getattr__(name: str) -> Any:
        if name not in MOVED[module]:
            raise AttributeError(f"module 'tgdd_plugin.{module}' has no attribute '{name}'")
        home, _, present = MOVED[module][name].partition(":")
        present = present or name
        warnings.warn(
            f"tgdd_plugin.{module}.{name} is now tgdd_plugin.{home}.{present}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(f"tgdd_plugin.{home}"), present)

    return __getattr__


def install(packages: set[str]) -> None:
    """Makes the old modules importable, those that are no subpackage today; these forward by themselves.

    Args:
        packages: Names of today's subpackages.
    """
    for module in MOVED.keys() - packages:
        old = ModuleType(f"tgdd_plugin.{module}", "A module of version 0.1; see tgdd_plugin.old_names.")
        old.__getattr__ = forward(module)  # type: ignore[method-assign]
        sys.modules[old.__name__] = old
