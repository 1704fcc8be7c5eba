"""evaluate(): what a compact set is worth, beside all it must beat, row by row; nothing is chosen on test images."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import nn

from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.compatibility import fitting_pool
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import build_checked, check_writable, difference, write_whole
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.versions import versions
from tgdd_plugin.evaluation.baselines import SELECTIONS, ImageSets
from tgdd_plugin.evaluation.metrics import Key, key_of, table
from tgdd_plugin.evaluation.retraining import add_accuracy
from tgdd_plugin.evaluation.scorer import PROTOCOL, RANDOM, Images, Row, Scorer
from tgdd_plugin.evaluation.settings import EvaluateSettings, RetrainSettings
from tgdd_plugin.networks.factory import build_network, build_recorded
from tgdd_plugin.training.settings import TrainSettings
from tgdd_plugin.training.train import check_network
from tgdd_plugin.trajectory.store import Trajectory


@dataclass
class _Job:
    """A row to be, and how: what it trains, on what, and for how long."""

    row: Row
    build: Callable[[], nn.Module]
    images: Callable[[int], Images]
    settings: TrainSettings


def evaluate(
    file: str | Path,
    test: Any,
    real: Any,
    settings: EvaluateSettings | None = None,
    training: RetrainSettings | None = None,
    *,
    trajectory: Trajectory | str | Path | None = None,
    network: Callable[[], nn.Module] | None = None,
    others: Sequence[Callable[[], nn.Module]] = (),
    device: str | None = None,
    seed: int = 0,
    results: str | Path | None = None,
    progress_bar: bool = True,
) -> list[Row]:
    """Scores a ``.beton`` beside its baselines, on several architectures; the same call goes on where one stopped.

    Args:
        file: The ``.beton``, its card beside it. The card gets the accuracies.
        test: Real test images: an :class:`ImagePool`, or any data set :meth:`ImagePool.from_dataset` takes.
        real: The real training images, in the same form.
        settings: Which rows. Default: ``EvaluateSettings()``.
        training: How networks are trained, and how many. Default: ``RetrainSettings()``.
        trajectory: The trajectory whose last stages give soft labels. Default: none, and no such rows.
        network: A function that builds a fresh network of the set's own architecture. Default: for this package's
            networks, as the card says.
        others: The same for the further networks of a trajectory of several. Default: for this package's, as recorded.
        device: ``'cpu'`` or ``'gpu'``. Default: a GPU if there is one.
        seed: The first of ``training.seeds`` seeds, as of :func:`tgdd_plugin.retrain`. Default: ``0``.
        results: The JSON file that keeps every row once it is done; a Markdown table comes to lie beside it, and in a
            folder of its name what later rows need. Default: ``<name>-evaluation.json`` beside ``<name>.beton``.
        progress_bar: Default: ``True``.

    Returns:
        The rows: the file's own architecture first (:func:`table` makes Markdown of them).

    Raises:
        InputError: If the file, its card, the images or the networks do not fit each other, or ``results`` are of
            another evaluation.
    """
    settings, training = settings or EvaluateSettings(), training or RetrainSettings()
    card, shipped = read_card(file), read_beton(file)
    usual = Path(file).with_name(f"{Path(file).stem}-evaluation.json")
    results = Path(results) if results else usual
    if results.suffix != ".json" or results.with_suffix("").is_file():
        raise InputError(f"results is '{results}'; wanted the name of a JSON file such as '{usual}'")
    test, real = fitting_pool(test, "test", file, card), fitting_pool(real, "real", file, card)
    if isinstance(trajectory, (str, Path)):
        trajectory = Trajectory.open(trajectory)
    teacher = trajectory if settings.soft_labels else None
    build = network or (lambda: build_recorded(card.network, card.shape, len(card.classes)))
    name = check_network(build, card.shape, len(card.classes))
    real_fingerprint, held = real.fingerprint(), None
    if settings.learning_rates:
        real, held = real.split(0.1, torch.Generator().manual_seed(1))
    sets = ImageSets(card, real, build, results.with_suffix(""), device, progress_bar, others)
    seeds = range(seed, seed + training.seeds)
    jobs = _jobs(sets, shipped, name, settings, training, teacher, seed)
    about = {
        "file": Path(file).name,
        "sha256": card.sha256,
        "protocol": PROTOCOL,
        "test_images": len(test),
        "test_fingerprint": test.fingerprint(),
        "real_fingerprint": real_fingerprint,
        "network": name,
        "parameters": sum(parameter.numel() for parameter in sets.fresh().parameters()),
        "seeds": list(seeds),
        "settings": asdict(replace(training, at_once=None)),
        "learning_rates": settings.learning_rates and list(settings.learning_rates),
        "teachers": teacher and [run.stages[-1].sha256 for run in teacher.runs.values()],
    }
    done = _earlier(check_writable(results), about)
    scorer = Scorer(test, card.mean, card.std, seeds, len(card.classes), device, training.at_once, progress_bar)
    dist.initialize_dist(device)  # ranks wait for each other, also where nothing is left to train
    rows = []
    for job in jobs:
        key = key_of(job.row)
        if key not in done:
            how = job.settings
            if held is not None:
                how = scorer.at_best_rate(settings.learning_rates or [], held, job.row, job.build, job.images, how)
            networks = scorer.score(job.row, job.build, job.images, how)
            if job.row.name == "full data":
                sets.keep(networks, seeds)
            done[key] = job.row
            if dist.get_global_rank() == 0:
                found = {"device": scorer.where(), "versions": versions("mosaicml", "ffcv", "numpy")}
                every = [row.summary() for row in done.values()]
                write_whole(results, json.dumps({**about, **found, "rows": every}, indent=1, allow_nan=False) + "\n")
        rows.append(done[key])
    if dist.get_global_rank() == 0:
        write_whole(results.with_suffix(".md"), table(rows) + "\n")
        own = [row.summary() for row in rows if row.network == name]
        entry = {key: about[key] for key in ("protocol", "network", "test_images", "seeds", "settings")}
        entry |= {"rows": own, "device": scorer.where(), "versions": versions("mosaicml", "ffcv", "numpy")}
        if entry not in read_card(file).accuracy:  # as it is after the same call
            add_accuracy(file, card, entry)
    dist.barrier()
    return rows


def _jobs(
    sets: ImageSets,
    shipped: Images,
    name: str,
    settings: EvaluateSettings,
    training: RetrainSettings,
    teacher: Trajectory | None,
    seed: int,
) -> list[_Job]:
    """All rows, in the order they are made; what cannot work is found out here."""
    card, short = sets.card, training.training(training.epochs)
    jobs: list[_Job] = []

    def add(
        trained_on: str,
        images: Callable[[int], Images],
        how: TrainSettings = short,
        network: str = name,
        build: Callable[[], nn.Module] = sets.build,
        labels: str = "hard",
    ) -> None:
        jobs.append(_Job(Row(trained_on, network=network, labels=labels), build, images, how))

    def as_shipped(seed: int) -> Images:
        return shipped

    stored, decoded = card.images_per_class, card.images // len(card.classes)
    drawn = functools.partial(sets.random, stored)
    drawn(seed)  # every baseline needs as many
    add("distilled", as_shipped)
    if "random" in settings.baselines:
        add(RANDOM[0], drawn)
        if decoded > stored:
            sets.random(decoded, seed)
            add(RANDOM[1], functools.partial(sets.random, decoded))
    if training.full_epochs:
        add("full data", sets.full, training.training(training.full_epochs))
    if set(settings.baselines) - {"random"}:
        sets.check_features()
    for selection in SELECTIONS:
        if selection in settings.baselines:
            if not training.full_epochs:
                raise InputError(
                    f"baseline '{selection}' chooses by the features of networks trained on the full data, and "
                    f"full_epochs is 0; give full_epochs, or leave that baseline out"
                )
            add(selection, functools.partial(sets.selected, selection))
    if "distribution matching" in settings.baselines:
        sets.matching()
        add("distribution matching", lambda seed: sets.matched())
    if teacher is not None:
        sets.softened(teacher, (shipped[0][:1], shipped[1][:1]))
        add("distilled", lambda seed: sets.softened(teacher, shipped), labels="soft")
        if "random" in settings.baselines:
            add(RANDOM[0], lambda seed: sets.softened(teacher, drawn(seed)), labels="soft")
    for other in settings.networks:
        build = functools.partial(build_network, other, {}, card.shape, len(card.classes))
        check_network(build, card.shape, len(card.classes))
        add("distilled", as_shipped, network=other, build=build)
        if "random" in settings.baselines:
            add(RANDOM[0], drawn, network=other, build=build)
    return jobs


def _earlier(results: Path, about: dict[str, Any]) -> dict[Key, Row]:
    """The rows that are done, if they are of this evaluation. ``about`` gets their teachers if it has none."""
    if not results.is_file():
        return {}
    try:
        content = json.loads(results.read_text())
        rows = [build_checked(Row, row) for row in content["rows"]]
        earlier = {key: content.get(key) for key in about}
    except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"'{results}' is damaged ({error}); name another results file, or delete it") from error
    about["teachers"] = about["teachers"] or earlier["teachers"]  # a trajectory may be left out, or come later
    if other := difference("", {**earlier, "teachers": earlier["teachers"] or about["teachers"]}, about):
        raise InputError(f"'{results}' is of another evaluation ({other}); name another results file, or delete it")
    return {key_of(row): row for row in rows}
