"""The report of a job, or of several beside each other: one HTML file that needs no other and no network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from tgdd_plugin.beton.card import ending_of_name, passes_of, scored_network
from tgdd_plugin.core.atomic_files import check_writable, write_whole
from tgdd_plugin.core.errors import printable
from tgdd_plugin.core.usage import in_words
from tgdd_plugin.pipeline.file_checks import find_sets
from tgdd_plugin.pipeline.report_curves import Point, draw_accuracies
from tgdd_plugin.pipeline.report_parts import SetReport, gather

OTHER_CLASSES = "These sets are of different classes: their accuracies cannot be compared."


def write_report(paths: Sequence[str | Path], output: str | Path, trajectory: str | Path | None = None) -> Path:
    """Writes a report of some sets.

    Args:
        paths: Files (``.beton``), or folders of jobs, of which every ``.beton`` is taken; of a job that was cut off
            before it had one, what there is.
        output: The HTML file to write.
        trajectory: The trajectory folder that the sets were distilled from. Default: ``None``, the one that the recipe
            beside a set names, or ``trajectory`` beside it.

    Returns:
        The path of the written file.

    Raises:
        InputError: If a path has nothing of a job, or a card cannot be used, or ``output`` cannot be written. The
            report itself names whatever else is missing.
    """
    output = check_writable(Path(output))
    files = [file for path in paths for file in find_sets(Path(path))]
    sets = [gather(file, trajectory) for file in files]
    for report, name in zip(sets, _told_apart(files), strict=True):
        report.name = name
    environment = Environment(
        loader=PackageLoader("tgdd_plugin.pipeline", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "printable": lambda value: printable(str(value)),
        "passes": passes_of,
        "ending": ending_of_name,
        "network": scored_network,
    }
    environment.filters["time"] = functools.partial(in_words, digits=1)
    warnings = _differences(sets)
    compared = draw_accuracies(_compared(sets)) if len(sets) > 1 and OTHER_CLASSES not in warnings else None
    text = environment.get_template("report.html").render(sets=sets, warnings=warnings, compared=compared)
    write_whole(output, text)
    return output


def _told_apart(files: Sequence[Path]) -> list[str]:
    """The names of files without their suffix; with their folder, or all of the path, where several are alike."""
    names = [file.stem for file in files]
    for longer in (lambda file: f"{file.resolve().parent.name}/{file.stem}", lambda file: str(file.with_suffix(""))):
        names = [name if names.count(name) == 1 else longer(file) for name, file in zip(names, files, strict=True)]
    return names


def _compared(sets: Sequence[SetReport]) -> dict[str, list[Point]]:
    """Accuracy for time of all sets, a line for each set and for each kind of real images."""
    found: dict[str, list[Point]] = {}
    real = {name for report in sets for name in report.series()}
    for report in sets:
        own = printable(report.name)
        own = f"the set {own}" if own in real else own  # a set may be called random
        for name, points in report.series(distilled=own).items():
            found.setdefault(name, []).extend(point for point in points if point not in found[name])
    return found


def _differences(sets: Sequence[SetReport]) -> list[str]:
    """What makes sets hard to compare."""
    found = []
    made = [report for report in sets if report.card]
    if len({tuple(report.card.classes) for report in made if report.card}) > 1:
        found.append(OTHER_CLASSES)
    tested = {(entry["test_images"], entry["network"]) for report in made for entry in report.entries[:1]}
    if len(tested) > 1 and not found:
        found.append("These sets were scored on other test images or by other networks: compare with care.")
    return found
