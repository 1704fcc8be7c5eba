"""The report of a set, or of several beside each other: one HTML file that needs no other and no network."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tgdd_plugin.beton.card import Card, card_path, passes_of, read_card
from tgdd_plugin.core.atomic_files import write_whole
from tgdd_plugin.core.bounded_reading import MIB, RECIPE_SIZE, read_bounded
from tgdd_plugin.core.bounded_yaml import parse_yaml
from tgdd_plugin.core.errors import InputError, printable
from tgdd_plugin.core.network_record import network_in_words
from tgdd_plugin.pipeline.report_curves import draw_training
from tgdd_plugin.trajectory.manifest import Run, run_folders

PICTURE_SIZE = 3 * MIB
"""The largest picture that is put into a report."""


@dataclass
class SetReport:
    """What a report says of one set.

    Args:
        name: The name of the file without its suffix.
        card: Its card.
        size: The file's bytes.
        picture: The figure of the set as a data URI, if there is one.
        training: The curves of the training that was recorded, as SVG, if the trajectory is at hand.
        recipe: The recipe of the job, if it is at hand.
        command: The command that does the job again, if it is known.
        missing: What is not shown, and why, a sentence each.
    """

    name: str
    card: Card
    size: int
    picture: str | None = None
    training: str | None = None
    recipe: str | None = None
    command: str | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The comparisons that the card notes, the latest first."""
        return list(reversed(self.card.accuracy))

    @property
    def headline(self) -> dict[str, dict[str, Any]]:
        """The rows of the latest comparison by name."""
        return {row["name"]: row for row in self.entries[0]["rows"]} if self.entries else {}

    @property
    def network(self) -> str:
        """The network that the set was made for, in words."""
        return printable(network_in_words(self.card.network))

    @property
    def card_text(self) -> str:
        """What the card says beyond what the report shows otherwise, as YAML."""
        content = yaml.safe_load(self.card.text())
        content = {name: value for name, value in content.items() if name not in ("accuracy", "method")}
        if "stages" in (trajectory := content.get("trajectory") or {}):
            trajectory["stages"] = f"{len(trajectory['stages'])} checksums"
        return _plain_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @property
    def method(self) -> list[tuple[str, str]]:
        """The settings of the distillation."""
        return [(printable(str(name)), printable(str(value))) for name, value in self.card.method.items()]


def write_report(paths: Sequence[str | Path], output: str | Path) -> Path:
    """Writes a report of some sets.

    Args:
        paths: Files (``.beton``), or folders of jobs, of which every ``.beton`` is taken.
        output: The HTML file to write.

    Returns:
        The path of the written file.

    Raises:
        InputError: If a path has no set, or a card cannot be used. The report itself names whatever else is missing.
    """
    sets = [_gather(file) for path in paths for file in _files(Path(path))]
    environment = Environment(
        loader=PackageLoader("tgdd_plugin.pipeline", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"printable": lambda value: printable(str(value)), "passes": passes_of}
    text = environment.get_template("report.html").render(sets=sets, warnings=_differences(sets))
    write_whole(Path(output), text)
    return Path(output)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(file for file in path.glob("*.beton") if card_path(file).is_file() and not file.name.startswith("."))
    if not found:
        what = "folder with a .beton and its card" if path.is_dir() else ".beton or folder"
        raise InputError(f"There is no {what} '{path}'. Name what tgdd run or tgdd distill wrote.")
    return found


def _gather(file: Path) -> SetReport:
    report = SetReport(file.stem, read_card(file), file.stat().st_size)
    picture = file.with_suffix(".png")
    if picture.is_file() and picture.stat().st_size <= PICTURE_SIZE:
        report.picture = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    else:
        report.missing.append(f"There is no picture '{picture.name}'; tgdd show draws it.")
    if not report.card.accuracy:
        report.missing.append("No accuracy was measured; tgdd retrain does.")
    recipe = file.with_name(f"{file.stem}-recipe.yaml")
    content: Any = {}
    if recipe.is_file():
        text = read_bounded(recipe, RECIPE_SIZE, "recipe")
        report.recipe = _plain_text(text.decode(errors="replace"))
        report.command = f"tgdd run {shlex.quote(str(recipe))}"
        try:
            content = parse_yaml(text)
        except ValueError:
            report.missing.append(f"The recipe '{recipe.name}' is damaged.")
    else:
        report.missing.append(f"There is no recipe '{recipe.name}', which tgdd run writes.")
    named = content.get("trajectory") if isinstance(content, dict) else None
    report.training = _training(report, Path(named) if isinstance(named, str) else file.parent / "trajectory")
    return report


def _training(report: SetReport, folder: Path) -> str | None:
    """The curves of the trajectory that the set was distilled from, if it is in that folder."""
    try:
        runs = [Run.read(path) for path in run_folders(folder)]
    except InputError as error:
        report.missing.append(f"The training that was recorded is not shown: {error}")
        return None
    if [stage.sha256 for run in runs for stage in run.stages] != report.card.trajectory.get("stages"):
        report.missing.append(f"The trajectory in '{folder}' is of another job, so its training is not shown.")
        return None
    curves = draw_training(runs)
    if curves is None:
        report.missing.append("The trajectory has no metrics, so its training is not shown.")
    return curves


def _plain_text(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())


def _differences(sets: Sequence[SetReport]) -> list[str]:
    """What makes sets hard to compare."""
    found = []
    if len({tuple(report.card.classes) for report in sets}) > 1:
        found.append("These sets are of different classes: their accuracies cannot be compared.")
    tested = {(entry["test_images"], entry["network"]) for report in sets for entry in report.entries[:1]}
    if len(tested) > 1 and not found:
        found.append("These sets were scored on other test images or by other networks: compare with care.")
    return found
