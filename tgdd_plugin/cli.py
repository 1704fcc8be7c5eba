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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from tgdd_plugin import __version__
from tgdd_plugin.core.console import error_text, plain_warnings, tell
from tgdd_plugin.core.errors import InputError, printable
from tgdd_plugin.pipeline.exchange import add_exchange
from tgdd_plugin.pipeline.step_table import STEPS

COMPLETION = 'For bash, put this into ~/.bashrc: eval "$(tgdd completion bash)"'
INTERRUPTED = (
    "tgdd: interrupted; the same command keeps what is finished, and goes on from the last checkpoint, "
    "if a minute of work made one"
)
STATUS = f"""\
tgdd STEP --help lists every key of a step's recipe with its default and meaning.

exit status:
  0    done, or nothing was left to do
  1    an error of the program, with a traceback
  2    something given cannot be used; one line on standard error says what, and nothing is lost
  130  {INTERRUPTED.removeprefix("tgdd: ")}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0, or 2 after one line on standard error for input that cannot be used; 130 when interrupted.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks
        from tgdd_plugin.pipeline.completion import complete

        complete(parser)
    options = _parsed(parser, arguments)
    if "torch" not in sys.modules:  # which reads it as it is loaded
        # Threads that wait for each other sleep. By default they spin: where another process has one of two cores, each
        # layer waits for a thread that does not run, and the demo took five times as long and more.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack the letters of a class name
            stream.reconfigure(errors="backslashreplace")
    try:
        with plain_warnings():
            options.call(options)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        tell(f"tgdd: {printable(' '.join(error_text(error).split()))}")
        return 2
    except KeyboardInterrupt:
        tell(INTERRUPTED)
        return 130
    return 0


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line; key=value may stand behind an option, too, where argparse takes none for itself."""
    options, rest = parser.parse_known_args(arguments)
    if any(each.startswith("-") for each in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {printable(' '.join(rest))}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


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
        if step in STEPS:
            from tgdd_plugin.pipeline.key_help import describe_keys

            self.epilog = describe_keys(STEPS[step].sections)
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tgdd",
        description="Records the trajectory of a training run and distills it into a tiny FFCV data set (a .beton).",
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tgdd_plugin {__version__}")
    steps = parser.add_subparsers(dest="step", required=True, parser_class=_StepParser)
    for name, (text, sections, instead) in STEPS.items():
        step = steps.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        shortcut = f", or {instead}" if instead else ""
        path = step.add_argument(
            "path", help=f"recipe (YAML), or the name of one that comes with the package{shortcut}"
        )
        keys = step.add_argument(  # without a default argparse calls them required where the path is left out
            "overrides", nargs="*", default=[], metavar="key=value", help="such as distill.steps=500"
        )
        _complete(path, lambda prefix, **_: _completion().recipe_names(prefix))
        _complete(keys, lambda prefix, sections=sections, **_: _completion().recipe_keys(sections, prefix))
        _add_json(step, "what was made")
        step.set_defaults(call=_work)
    add_exchange(steps)
    text = "print a trajectory folder or the card of a .beton, and draw the latter's images"
    show = steps.add_parser("show", help=text, description=text)
    show.add_argument("path", help="trajectory folder or .beton")
    show.add_argument("--picture", metavar="FILE", help="where to draw a .beton, as .png or .svg (default: beside it)")
    _add_json(show, "all that is known", " (and draw nothing unless --picture asks for it)")
    show.set_defaults(call=_show)
    text = "write a recipe with every key and a comment on each, to start from"
    init = steps.add_parser("init", help=text, description=text)
    init.add_argument("path", help="the file to write, such as my.yaml")
    init.set_defaults(call=_init)
    text = "write a report of a job, or of several beside each other, as one HTML file"
    report = steps.add_parser("report", help=text, description=text)
    report.add_argument(
        "--trajectory", metavar="FOLDER", help="the recording (default: as the recipe says, or trajectory beside a set)"
    )
    report.add_argument("path", nargs="+", help="folder of a job, or .beton")
    where = "<its name>-report.html beside a single .beton, else report.html in the first folder"
    report.add_argument("--output", metavar="HTML", help=f"a name in .html (default: {where})")
    report.set_defaults(call=_report)
    text = "print the lines that make a shell complete subcommands, recipes and keys"
    completion = steps.add_parser("completion", help=text, description=f"{text}. {COMPLETION}")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(call=lambda options: print(_completion().script(options.shell)))
    text = "print the JSON schema of recipes, with which editors complete and check their keys"
    steps.add_parser("schema", help=text, description=text).set_defaults(call=_schema)
    return parser


def _add_json(parser: argparse.ArgumentParser, what: str, more: str = "") -> None:
    text = f"print {what} as one JSON object on standard output, and everything else on standard error{more}"
    parser.add_argument("--json", action="store_true", help=text)


def _complete(argument: argparse.Action, completer: Callable[..., list[str]]) -> None:
    argument.completer = completer  # type: ignore[attr-defined]  # where argcomplete looks


def _completion() -> ModuleType:
    from tgdd_plugin.pipeline import completion  # takes no part in any other call

    return completion


def _work(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.job import read_job

    recipe = read_job(options.step, options.path, options.overrides)
    # Imported only now, since it takes seconds for Composer to load.
    warnings.filterwarnings("ignore", category=FutureWarning, module="composer|torchmetrics")
    with contextlib.suppress(ValueError):  # outside the main thread, where no Ctrl-C comes
        # A package whose import is broken off fails in ways of its own, not as an interrupt.
        signal.signal(signal.SIGINT, _end_now)
    from tgdd_plugin.pipeline.steps import work

    with contextlib.suppress(ValueError):
        # Composer, once imported, has Ctrl-C end the process without a word.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        made = work(options.step, recipe)
    if options.json:
        _print_json({"step": options.step, **made})


def _end_now(*_: object) -> None:
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


def _print_json(content: dict[str, Any]) -> None:
    from tgdd_plugin.pipeline.json_output import json_text

    print(json_text(content))


def _init(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.shipped_recipes import start_recipe

    path = start_recipe(options.path)
    print(f"written   {printable(str(path))}: keep what you change, then tgdd run {printable(str(path))}")


def _report(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.file_checks import check_ending, find_sets

    if options.output:
        check_ending("--output", options.output, (".html", ".htm"))
    for path in options.path:
        find_sets(Path(path))  # before torch and matplotlib are loaded, which takes seconds
    if options.trajectory:
        from tgdd_plugin.trajectory.folders import run_folders

        run_folders(Path(options.trajectory))
    from tgdd_plugin.pipeline.report import write_report

    first = Path(options.path[0])
    name = f"{first.stem}-report.html" if len(options.path) == 1 and not first.is_dir() else "report.html"
    output = Path(options.output) if options.output else (first if first.is_dir() else first.parent) / name
    print(f"report    {printable(str(write_report(options.path, output, options.trajectory)))}")


def _schema(options: argparse.Namespace) -> None:
    from tgdd_plugin.pipeline.key_help import schema_text

    print(schema_text(), end="")


def _show(options: argparse.Namespace) -> None:
    from tgdd_plugin.beton.card import read_card
    from tgdd_plugin.pipeline import show
    from tgdd_plugin.pipeline.file_checks import check_ending
    from tgdd_plugin.trajectory.store import Trajectory

    if options.picture:
        check_ending("--picture", options.picture, (".png", ".svg"))
    path = Path(options.path)
    if path.is_dir():
        trajectory = Trajectory.open(path, least=0)  # also at the start of a recording, or after one that failed
        if options.json:
            _print_json(show.trajectory_content(trajectory))
        else:
            print(show.describe_trajectory(trajectory))
    elif path.is_file():
        card = read_card(path)
        if not options.json:
            print(show.describe_beton(path, card), flush=True)
        picture = None
        if options.picture or not options.json:
            picture = show.draw_beton(path, card, options.picture)
        if options.json:
            _print_json({**show.beton_content(path, card), "picture": picture})
        else:
            print(f"\npicture     {printable(str(picture))}")
    else:
        raise InputError(f"There is no '{path}'. Name a trajectory folder or a .beton.")


if __name__ == "__main__":
    # For python -m, the current folder stands first: a torch.py in it would take the place of torch.
    if sys.path[0] == os.getcwd():
        del sys.path[0]
    sys.exit(main())
