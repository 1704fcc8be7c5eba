"""What ``tgdd nas`` does: a search, its table, and the training of the first candidate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import JSON_SIZE, parse_json, read_bounded
from tgdd_plugin.core.errors import InputError, printable
from tgdd_plugin.core.tables import text_table
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.evaluation.scorer import Row
from tgdd_plugin.nas import final_training, optuna_search, ranking
from tgdd_plugin.nas.settings import NasSettings
from tgdd_plugin.pipeline.file_names import safe_name
from tgdd_plugin.pipeline.finished_results import content_of, print_results
from tgdd_plugin.pipeline.settings import Recipe


def check_search(recipe: Recipe) -> None:
    """Finds out before any image is read what would only be found out after the search.

    Raises:
        InputError: If the ``.beton`` cannot be used, or the first candidate could not be trained.
    """
    read_card(recipe.beton)
    if recipe.nas.train_best and not recipe.retrain.full_epochs:
        raise InputError(final_training.NO_EPOCHS)


def results_file(recipe: Recipe) -> Path:
    """Returns the file of a search's results, beside the ``.beton``: each study has its own."""
    name, ending = recipe.nas.study, ""
    if name != NasSettings.study:
        ending = f"-{safe_name(name)}"
        if safe_name(name) != name:  # so that no other name is as this one is written
            ending += f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return recipe.beton.with_name(f"{recipe.beton.stem}-nas{ending}.json")


def search_and_train(recipe: Recipe, real: ImagePool, test: ImagePool) -> dict[str, Any]:
    """Searches, prints and writes the candidates, and trains the first one if the recipe says so.

    Returns:
        The candidates and where they are, for programs.
    """
    if recipe.nas.train_best:  # not after the search
        test = fitting_pool(test, "test", recipe.beton, read_card(recipe.beton))
    results = results_file(recipe)
    weights, before = results.with_suffix(".safetensors"), content_of(results)
    candidates = optuna_search.search(
        recipe.beton,
        real,
        recipe.nas,
        recipe.retrain,
        storage=recipe.beton.with_name(f"{recipe.beton.stem}-nas.db"),
        device=recipe.device,
        seed=recipe.seed,
    )
    table = ranking.table(candidates, recipe.nas.cost, recipe.nas.rank_by)
    _write_candidates(results, recipe, candidates, table)
    print(f"\n{ranking.table(candidates, recipe.nas.cost, recipe.nas.rank_by, _aligned, reasons=False)}\n")
    if failed := [f"{each.name} failed: {each.problem}" for each in candidates if each.problem]:
        print("\n".join(map(printable, failed)) + "\n")
    made = {"file": recipe.beton, "candidates": [each.summary() for each in candidates]}
    if not recipe.nas.train_best:
        return {**made, **print_results(results, before)}
    best = final_training.train_best(
        candidates[0],
        recipe.nas,
        recipe.beton,
        real,
        test,
        recipe.retrain,
        output=weights,
        device=recipe.device,
        seed=recipe.seed,
    )
    found = f"The first, trained on the full data: {best.spread} % on the test images."
    _write_candidates(results, recipe, candidates, f"{table}\n\n{found}", best)
    print(f"{found}\n\nweights   {weights}")
    return {**made, "best": best.summary(), "weights": weights, **print_results(results, before)}


def _aligned(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Draws the candidates for a terminal: numbers to the right, names and the mark in the last column to the left."""
    return text_table(headers, rows, f"rl{'r' * (len(headers) - 3)}l")


def _write_candidates(
    results: Path, recipe: Recipe, candidates: list[ranking.Candidate], text: str, best: Row | None = None
) -> None:
    """Writes the results of a search as JSON, and its table beside it."""
    # The URL of a database may have a password in it.
    settings = {name: value for name, value in asdict(recipe.nas).items() if name != "storage"}
    content: dict[str, Any] = {"file": recipe.beton.name, "settings": settings, "retrain": asdict(recipe.retrain)}
    content |= {"candidates": [each.summary() for each in candidates], "best": best and best.summary()}
    if not best and _trained_before(results, content):
        return
    write_whole(results, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_whole(results.with_suffix(".md"), text + "\n")


def _trained_before(results: Path, content: dict[str, Any]) -> bool:
    """Whether an earlier call had found the same and trained the best of it, too, which is not to be lost."""
    try:
        earlier, now = parse_json(read_bounded(results, JSON_SIZE, "results file")), json.loads(json.dumps(content))
        earlier["settings"]["train_best"] = now["settings"]["train_best"]
        return bool(earlier["best"]) and {**earlier, "best": None} == now
    except (OSError, ValueError, KeyError, TypeError):
        return False
