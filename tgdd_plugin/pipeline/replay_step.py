"""What ``tgdd replay`` does: the tasks of a recipe, learned one after another, and the table of their scores."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.tables import text_table
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.networks.factory import network_factory
from tgdd_plugin.networks.settings import NetworkSettings
from tgdd_plugin.pipeline.finished_results import content_of, print_results
from tgdd_plugin.pipeline.settings import Recipe
from tgdd_plugin.replay.learner import learn
from tgdd_plugin.replay.policies import replay_policy
from tgdd_plugin.replay.settings import memory_settings
from tgdd_plugin.replay.tasks import split_classes


def check_replay(recipe: Recipe) -> None:
    """Finds out before any image is read what would only be found out afterwards.

    Raises:
        InputError: If the scores cannot be written, or the recipe has several networks.
    """
    check_writable(_scores_file(recipe))
    if recipe.extra_networks:
        raise InputError(
            f"`extra_networks` must be left out in a replay, whose one network goes on from task to task, got "
            f"{len(recipe.extra_networks)} network(s). Leave them out."
        )


def learn_tasks(recipe: Recipe, real: ImagePool, test: ImagePool) -> dict[str, Any]:
    """Learns the tasks, prints and writes their scores.

    Returns:
        The scores and where they are, for programs.
    """
    path, replay = _scores_file(recipe), recipe.replay
    before = content_of(path)
    network = recipe.network or NetworkSettings()
    mean, std = recipe.data.mean, recipe.data.std
    if mean is None or std is None:
        mean, std = real.statistics()
    # Packed, an image of the memory costs what a real one does, also with a factor.
    settings = memory_settings(recipe.distill)
    settings = replace(settings, packed=settings.factor > 1)
    tasks = split_classes(real, test, replay)
    policy = replay_policy(
        replay.policy,
        tasks,
        settings,
        Normalization(mean, std),
        recipe.device,
        real_share=replay.real_share,
        loggers=recipe.loggers,
    )
    job: dict[str, Any] = {"data": asdict(recipe.data), "network": asdict(network), "policy": replay.policy}
    if replay.policy in ("distilled", "hybrid"):
        job["distill"] = asdict(settings)
    if replay.policy == "hybrid":
        job["real_share"] = replay.real_share
    scores = learn(
        tasks,
        lambda count: network_factory(network, real.shape, count)(),
        path.parent,
        policy,
        settings.images_per_class,
        recipe.record,
        replay,
        mean=mean,
        std=std,
        head=recipe.head,
        job=job,
        seed=recipe.seed,
        device=recipe.device,
        loggers=recipe.loggers,
    )
    write_whole(path.with_suffix(".md"), scores.table() + "\n")
    print(f"\n{scores.table(text_table)}\n")
    return {**print_results(path, before), "rows": scores.rows, "seen": scores.seen, "figures": scores.figures()}


def _scores_file(recipe: Recipe) -> Path:
    return Path(recipe.output) / "scores.json"
