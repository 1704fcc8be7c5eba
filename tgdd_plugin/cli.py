"""The ``tgdd`` command: its arguments, and one function for each kind of subcommand."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tgdd_plugin import __version__
from tgdd_plugin.core.errors import InputError, printable

STEPS = {
    "run": "record, distill and retrain",
    "record": "train networks and record their trajectories",
    "distill": "distill a trajectory into a .beton",
    "retrain": "train networks on a .beton and score them beside random and full data",
    "evaluate": "score a .beton beside herding, plain distribution matching and more, and on other networks",
    "replay": "learn the classes task by task, with distilled images of the earlier ones as memory",
    "nas": "search a space of networks, each trained on a .beton in place of the full data",
}
SECTIONS = {
    "run": ("data", "network", "extra_networks", "record", "distill", "retrain", "loggers"),
    "record": ("data", "network", "extra_networks", "record", "loggers"),
    "distill": ("data", "network", "extra_networks", "distill", "loggers"),
    "retrain": ("data", "network", "retrain", "loggers"),
    "evaluate": ("data", "network", "extra_networks", "evaluate", "retrain", "loggers"),
    "replay": ("data", "network", "record", "distill", "replay"),
    "nas": ("data", "nas", "retrain"),
}
"""The sections of a recipe that a step reads."""
SHORTCUTS = {"distill": "a trajectory folder", "retrain": "a .beton", "evaluate": "a .beton", "nas": "a .beton"}
"""What a step takes in place of a recipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0, or 2 after one line on standard error for input that cannot be used; 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack the letters of a class name
            stream.reconfigure(errors="backslashreplace")
    try:
        options.call(options)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"tgdd: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tgdd: interrupted; the same command keeps what is finished and the last checkpoint", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that names the subcommand which was meant."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            names = [name.strip("' ") for name in found[2].split(",")]
            if close := difflib.get_close_matches(found[1], names, n=1):
                message = f"there is no '{printable(found[1])}'. Did you mean '{close[0]}'?"
        super().error(message)


class _StepParser(_Parser):
    """A parser whose help lists the keys of the step's sections; they are gathered when help is asked for."""

    def format_help(self) -> str:
        step = self.prog.rpartition(" ")[2]
        if step in SECTIONS:
            from tgdd_plugin.pipeline.key_help import describe_keys

            self.epilog = describe_keys(SECTIONS[step])
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tgdd",
        description="Records the trajectory of a training run and distills it into a tiny FFCV data set (a .beton).",
        epilog="tgdd STEP --help lists every key of a step's recipe with its default and meaning.",
    )
    parser.add_argument("--version", action="version", version=f"tgdd_plugin {__version__}")
    steps = parser.add_subparsers(dest="step", required=True, parser_class=_StepParser)
    for name, text in STEPS.items():
        step = steps.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        shortcut = f", or {SHORTCUTS[name]}" if name in SHORTCUTS else ""
        step.add_argument("path", help=f"recipe (YAML), or the name of one that comes with the package{shortcut}")
        step.add_argument("overrides", nargs="*", metavar="key=value", help="such as distill.steps=500")
        step.set_defaults(call=_work)
    _add_exchange(steps)
    text = "print a trajectory folder or the card of a .beton, and draw the latter's images"
    show = steps.add_parser("show", help=text, description=text)
    show.add_argument("path", help="trajectory folder or .beton")
    show.add_argument("--picture", metavar="FILE", help="where to draw a .beton, as .png or .svg (default: beside it)")
    show.set_defaults(call=_show)
    text = "write a recipe with every key and a comment on each, to start from"
    init = steps.add_parser("init", help=text, description=text)
    init.add_argument("path", help="the file to write, such as my.yaml")
    init.set_defaults(call=_init)
    text = "write a report of a job, or of several beside each other, as one HTML file"
    report = steps.add_parser("report", help=text, description=text)
    report.add_argument("path", nargs="+", help="folder of a job, or .beton")
    report.add_argument("--output", metavar="HTML", help="where to (default: report.html in the first folder)")
    report.set_defaults(call=_report)
    text = "print the JSON schema of recipes, with which editors complete and check their keys"
    steps.add_parser("schema", help=text, description=text).set_defaults(call=_schema)
    return parser


def _add_exchange(steps: argparse._SubParsersAction[_StepParser]) -> None:
    """The parsers of ``tgdd export`` and ``tgdd import``."""
    text = "write a .beton as tensors or an image folder, as other code reads them"
    export = steps.add_parser("export", help=text, description=text)
    export.add_argument("path", help=".beton")
    export.add_argument("folder", help="new or empty")
    export.add_argument("--png", action="store_true", help="an image folder in place of tensors")
    for option in ("--mean", "--std"):
        export.add_argument(option, nargs="+", type=float, help="to normalize tensors by (default: the card's)")
    export.set_defaults(call=_export)
    text = "write the tensors (.pt) of other code as a .beton"
    imported = steps.add_parser("import", help=text, description=text)
    imported.add_argument("path", nargs="+", help=".pt of images and labels, or one of each")
    imported.add_argument("output", help=".beton to write")
    for option in ("--mean", "--std"):
        imported.add_argument(option, nargs="+", type=float, required=True, help="per channel, for pixels in [0, 1]")
    imported.add_argument("--classes", nargs="+", metavar="NAME", help="(default: numbers)")
    imported.add_argument("--factor", type=int, default=1, help="of multi-formation, if not decoded (default: 1)")
    imported.add_argument(
        "--normalised",
        action=argparse.BooleanOptionalAction,
        help="whether the images are normalized (default: as their values tell)",
    )
    imported.add_argument("--experiment", type=int, default=-1, help="which of several sets (default: the last)")
    imported.add_argument("--tolerance", type=float, help="how much clamping to [0, 1] may change a value on average")
    imported.add_argument("--overwrite", action="store_true", help="replace a .beton of another set")
    imported.set_defaults(call=_import)


def _work(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.job import read_job

    recipe = read_job(options.step, options.path, options.overrides)
    # Imported only now, since it takes seconds for Composer to load.
    warnings.filterwarnings("ignore", category=FutureWarning, module="composer|torchmetrics")
    from tgdd_plugin.pipeline.steps import work

    with contextlib.suppress(ValueError):  # outside the main thread, where no Ctrl-C comes
        # Composer, once imported, has Ctrl-C end the process without a word.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    work(options.step, recipe)


def _init(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.shipped_recipes import start_recipe

    path = start_recipe(options.path)
    print(f"written   {printable(str(path))}: keep what you change, then tgdd run {printable(str(path))}")


def _report(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.report import write_report

    first = Path(options.path[0])
    output = Path(options.output) if options.output else (first if first.is_dir() else first.parent) / "report.html"
    print(f"report    {printable(str(write_report(options.path, output)))}")


def _schema(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.key_help import schema_text

    print(schema_text(), end="")


def _export(options: argparse.Namespace) -> None:
    from tgdd_plugin.beton.exporting import export_folder, export_tensors

    if options.png and (options.mean or options.std):
        raise InputError(
            "`--mean` and `--std` must be left out with --png, whose images are not normalized, got both options. "
            "Leave them out."
        )
    if options.png:
        folder = export_folder(options.path, options.folder)
    else:
        folder = export_tensors(options.path, options.folder, mean=options.mean, std=options.std)
    print(f"exported  {printable(str(folder))}: {', '.join(sorted(path.name for path in folder.iterdir())[:5])}")


def _import(options: argparse.Namespace) -> None:
    from tgdd_plugin.beton.importing import TOLERANCE, import_tensors

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        path = import_tensors(
            options.path,
            options.output,
            classes=options.classes,
            mean=options.mean,
            std=options.std,
            factor=options.factor,
            normalised=options.normalised,
            experiment=options.experiment,
            tolerance=TOLERANCE if options.tolerance is None else options.tolerance,
            overwrite=options.overwrite,
        )
    print(f"imported  {printable(str(path))}")
    for warning in caught:
        print(f"tgdd: {printable(str(warning.message))}", file=sys.stderr)


def _show(options: argparse.Namespace) -> None:
    from tgdd_plugin.beton.card import read_card
    from tgdd_plugin.pipeline.show import describe_beton, describe_trajectory
    from tgdd_plugin.trajectory.store import Trajectory

    path = Path(options.path)
    if path.is_dir():
        print(describe_trajectory(Trajectory.open(path)))
    elif path.is_file():
        card = read_card(path)
        print(describe_beton(path, card), flush=True)
        # Reading the images takes torch and FFCV seconds to load, so the words come first.
        from tgdd_plugin.beton.format import read_beton
        from tgdd_plugin.data.set_figure import draw_set, is_drawing_of

        images, labels = read_beton(path)
        picture = Path(options.picture) if options.picture else path.with_suffix(".png")
        # The distillation's own, which has the images at the start beside them, is kept.
        if options.picture or not is_drawing_of(picture, images):
            draw_set(picture, images, labels, card.classes)
        print(f"\npicture     {printable(str(picture))}")
    else:
        raise InputError(f"There is no '{path}'. Name a trajectory folder or a .beton.")


if __name__ == "__main__":
    # For python -m, the current folder stands first: a torch.py in it would take the place of torch.
    if sys.path[0] == os.getcwd():
        del sys.path[0]
    sys.exit(main())
