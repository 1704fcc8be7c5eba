"""What a report shows of a job, gathered from its files: every part that is there, a sentence for one that is not."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tgdd_plugin.beton.card import Card, ending_of_name, entries_agree, passes_of, read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.bounded_reading import RECIPE_SIZE, read_bounded
from tgdd_plugin.core.bounded_yaml import parse_yaml
from tgdd_plugin.core.errors import InputError, printable, without_password
from tgdd_plugin.core.network_record import network_in_words
from tgdd_plugin.data.film_strip import FilmStrip, read_strip
from tgdd_plugin.data.picture_note import note_of
from tgdd_plugin.distillation.checkpoints import checkpoint_folders
from tgdd_plugin.logs.log_file import STEP, log_path, read_log
from tgdd_plugin.pipeline.costs import Cost, costs_path, read_costs, recording_costs_path
from tgdd_plugin.pipeline.report_curves import Point, draw_accuracies, draw_log, draw_training
from tgdd_plugin.pipeline.report_images import ClassRow, Labelled, class_rows, data_uri
from tgdd_plugin.trajectory.folders import run_folders
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.tensor_files import read_exemplars

COMPARABLE = ("network", "architecture", "parameters", "protocol", "test_images")
"""What the comparisons of a card must have in common for their accuracies to be points of one line."""


@dataclass
class SetReport:
    """What a report says of one set, or of a job that was cut off before there was one.

    Args:
        name: The name of the file without its suffix.
        card: Its card; ``None`` if there is no such file yet.
        size: The file's bytes.
        rows: The images by class.
        evolution: A few of the images after some steps.
        training: The curves of the training that was recorded, as SVG.
        losses: The curves of the distillation, as SVG.
        accuracies: Accuracy for time, as SVG.
        costs: The time and memory of each step.
        recipe: The recipe of the job.
        command: The command that does the job again.
        missing: What is not shown, and why, a sentence each.
    """

    name: str
    card: Card | None = None
    size: int = 0
    rows: list[ClassRow] = field(default_factory=list)
    evolution: FilmStrip | None = None
    training: str | None = None
    losses: str | None = None
    accuracies: str | None = None
    costs: dict[str, Cost] = field(default_factory=dict)
    recipe: str | None = None
    command: str | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The comparisons that the card notes, the latest first."""
        return list(reversed(self.card.accuracy)) if self.card else []

    @property
    def headline(self) -> dict[str, dict[str, Any]]:
        """The rows of the latest comparison by name, without those of soft labels, which have the same names."""
        rows = self.entries[0]["rows"] if self.entries else []
        return {row["name"]: row for row in rows if row.get("labels") != "soft"}

    def series(self, distilled: str = "distilled") -> dict[str, list[Point]]:
        """Passes, seconds, accuracy and spread of the rows of comparisons of one network, by the names of the rows.

        Comparisons that differ from the latest in network, protocol or the number of test images are left out. Of the
        rows with one name and equally many passes, the latest counts.

        Args:
            distilled: What the set itself is called in the names of rows.
        """
        found: dict[str, dict[int, Point]] = {}
        for entry in self.entries:
            if not entries_agree(entry, self.entries[0], COMPARABLE):
                continue
            for row in entry["rows"]:
                seconds = row.get("seconds")
                if isinstance(seconds, list) and seconds and all(isinstance(each, int | float) for each in seconds):
                    name = printable(row["name"] + ending_of_name(row)).replace("distilled", distilled)
                    std = math.nan if row["std_points"] is None else row["std_points"]
                    point = (passes_of(row), sum(seconds) / len(seconds), row["mean_percent"], std)
                    found.setdefault(name, {}).setdefault(point[0], point)
        return {name: list(points.values()) for name, points in found.items()}

    @property
    def network(self) -> str:
        """The network that the set was made for, in words; empty if the card names none, as of an imported set."""
        record = self.card.network if self.card else {}
        return printable(network_in_words(record)) if record.get("factory") or record.get("class") else ""

    @property
    def most(self) -> tuple[int, int]:
        """The most images of a class that are shown, real ones and distilled ones."""
        real, distilled = ([row.real for row in self.rows], [row.distilled for row in self.rows])
        return max((s.count for s in real if s), default=0), max((s.count for s in distilled if s), default=0)

    @property
    def strip(self) -> str:
        """The film strip as a data URI."""
        return data_uri(self.evolution.png) if self.evolution else ""

    @property
    def card_text(self) -> str:
        """What the card says beyond what the report shows otherwise, as YAML."""
        content = asdict(self.card) if self.card else {}
        content = {name: value for name, value in content.items() if name not in ("accuracy", "method")}
        if "stages" in (trajectory := content.get("trajectory") or {}):
            trajectory["stages"] = f"{len(trajectory['stages'])} checksums"
        return _plain_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @property
    def method(self) -> list[tuple[str, str]]:
        """The settings of the distillation."""
        method = self.card.method if self.card else {}
        return [(printable(str(name)), printable(str(value))) for name, value in method.items()]


def gather(file: Path, trajectory: str | Path | None = None) -> SetReport:
    """Gathers what there is of a set.

    Args:
        file: The ``.beton``, which need not be there yet.
        trajectory: The trajectory folder that it was distilled from. Default: ``None``, it is looked for.

    Raises:
        InputError: If the file is there and its card cannot be used.
    """
    report = SetReport(file.stem)
    if file.is_file():
        report.card, report.size = read_card(file), file.stat().st_size
        if not report.card.accuracy:
            text = "No comparison on test images has ended, so no accuracy is shown; tgdd retrain makes one."
            report.missing.append(text)
    else:
        unfinished = bool(checkpoint_folders(file))
        how = "and goes on from the last checkpoint of the distillation" if unfinished else "and goes on where it was"
        report.missing.append(f"There is no '{file.name}' yet. The same command as before ends the job, {how}.")
    named = _recipe(report, file.with_name(f"{file.stem}-recipe.yaml"))
    found = next((folder for folder in named if folder.is_dir()), file.parent / "trajectory")
    folder = Path(trajectory) if trajectory else found
    runs = _runs(report, folder)
    if runs:
        report.training = draw_training(list(runs.values()))
        report.costs |= read_costs(recording_costs_path(folder))
        if report.training is None:
            report.missing.append("The trajectory has no metrics, so its training is not shown.")
    if report.card:
        report.rows, note = _images(report, file, runs)
        report.evolution = _evolution(report, file.with_name(f"{file.stem}-evolution.png"), note)
    report.losses = _losses(report, log_path(file))
    report.accuracies = draw_accuracies(report.series())
    report.costs |= read_costs(costs_path(file))
    if not report.costs:
        report.missing.append("What the job took in time and memory was not noted.")
    return report


def _recipe(report: SetReport, path: Path) -> list[Path]:
    """Notes the recipe of the job, and returns where its trajectory may be."""
    if not path.is_file():
        report.missing.append(f"There is no recipe '{path.name}', which tgdd run writes at its end.")
        return []
    text = read_bounded(path, RECIPE_SIZE, "recipe")
    report.recipe = without_password(_plain_text(text.decode(errors="replace")))
    report.command = f"tgdd run {shlex.quote(str(path))}"
    try:
        content = parse_yaml(text)
    except ValueError:
        report.missing.append(f"The recipe '{path.name}' is damaged.")
        return []
    content = content if isinstance(content, dict) else {}
    if isinstance(named := content.get("trajectory"), str):
        return [Path(named)]
    output = content.get("output")
    return [path.parent / "trajectory", *([Path(output) / "trajectory"] if isinstance(output, str) else [])]


def _runs(report: SetReport, folder: Path) -> dict[Path, Run]:
    """The runs of the trajectory that the set was distilled from, if they are in that folder."""
    if report.card and not report.card.trajectory.get("stages"):
        return {}  # a set that was imported, or is of one's own, was distilled from none
    if not folder.is_dir():
        report.missing.append(
            f"There is no '{folder}', so the recorded training is not shown. Name the folder of the recording by "
            f"--trajectory."
        )
        return {}
    try:
        runs = {path: Run.read(path) for path in run_folders(folder)}
    except InputError as error:
        report.missing.append(f"The training that was recorded is not shown: {error}")
        return {}
    if report.card and [s.sha256 for run in runs.values() for s in run.stages] != report.card.trajectory.get("stages"):
        report.missing.append(
            f"The trajectory in '{folder}' is of another job, so its training is not shown. Name that of this one by "
            f"--trajectory."
        )
        return {}
    for run in runs.values():
        if not run.complete:
            last = f"epoch {run.stages[-1].epoch}, batch {run.stages[-1].batch}" if run.stages else "before its start"
            report.missing.append(f"The recording of '{run.name}' was cut off; its last stage is of {last}.")
    return runs


def _images(report: SetReport, file: Path, runs: dict[Path, Run]) -> tuple[list[ClassRow], str]:
    """The images of the set beside the real ones that the recording kept, and the note that pictures of it have."""
    assert report.card is not None
    try:
        images, labels = read_beton(file)
    except InputError as error:
        report.missing.append(f"The images are not shown: {error}")
        return [], ""
    real = None
    if runs:
        try:
            real = _real(report.card, runs)
        except InputError as error:
            report.missing.append(f"Real images are not shown: {error}")
        else:
            if real is None:
                report.missing.append("The recording kept no real images, so none stand beside those of the set.")
    return class_rows([printable(name) for name in report.card.classes], (images, labels), real), note_of(images)


def _real(card: Card, runs: dict[Path, Run]) -> Labelled | None:
    """The real images that the first run kept which kept any, with the class ids of the set."""
    for folder, run in runs.items():
        if run.exemplars:
            images, labels = read_exemplars(folder, run.num_classes)
            names = run.class_names
            ids = [card.classes.index(name) if name in card.classes else -1 for name in names]
            return images, labels.new_tensor(ids)[labels]
    return None


def _evolution(report: SetReport, path: Path, note: str) -> FilmStrip | None:
    assert report.card is not None
    if report.card.method.get("name") != "TGDD":
        return None
    if not path.is_file():
        report.missing.append(f"There is no '{path.name}', so how the images changed is not shown.")
        return None
    try:
        strip = read_strip(path)
    except (OSError, ValueError) as error:
        report.missing.append(f"How the images changed is not shown: '{path.name}' is damaged ({error}).")
        return None
    if strip.of != note or not all(0 <= label < len(report.card.classes) for label in strip.labels):
        report.missing.append(f"How the images changed is not shown: '{path.name}' is of another set.")
        return None
    return strip


def _losses(report: SetReport, path: Path) -> str | None:
    if report.card and report.card.method.get("name") != "TGDD":
        return None
    if not path.is_file():
        report.missing.append(f"There is no log '{path.name}', so the losses of the distillation are not shown.")
        return None
    try:
        columns = read_log(path)
    except (InputError, OSError) as error:
        report.missing.append(f"The losses of the distillation are not shown: the log cannot be read ({error}).")
        return None
    curves = draw_log(columns) if columns.get(STEP) else None
    if curves is None:
        report.missing.append(f"The log '{path.name}' has no losses, so none are shown.")
    return curves


def _plain_text(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())
