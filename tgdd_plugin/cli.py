"""The ``tgdd`` command: run | record | distill | retrain | evaluate | replay | nas | export | import | show."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tgdd_plugin import __version__
from tgdd_plugin.core.errors import InputError

STEPS = {
    "run": "record, distill and retrain",
    "record": "train networks and record their trajectories",
    "distill": "distill a trajectory into a .beton",
    "retrain": "train networks on a .beton and score them beside random and full data",
    "evaluate": "score a .beton beside herding, plain distribution matching and more, and on other networks",
    "replay": "learn the classes task by task, with distilled images of the earlier ones as memory",
    "nas": "search a space of networks, each trained on a .beton in place of the full data",
    "export": "write a .beton as tensors or an image folder, as other code reads them",
    "import": "write the tensors (.pt) of other code as a .beton",
    "show": "print a trajectory folder or the card of a .beton, and draw the latter's images",
}
SHORTCUTS = {"distill": "a trajectory folder", "retrain": "a .beton", "evaluate": "a .beton", "nas": "a .beton"}
"""What a step takes in place of a recipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0, or 2 after one line on standard error for input that cannot be used; 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    # Modules that recipes name as module:function may lie in the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if options.step == "show":
            _show(Path(options.path), options.picture)
        elif options.step == "export":
            _export(options)
        elif options.step == "import":
            _import(options)
        else:
            # Imported here: `tgdd show` and `tgdd --help` need not wait seconds for Composer.
            warnings.filterwarnings("ignore", category=FutureWarning, module="composer|torchmetrics")
            from tgdd_plugin.pipeline.steps import work

            with contextlib.suppress(ValueError):  # outside the main thread, where no Ctrl-C comes
                # Composer, once imported, has Ctrl-C end the process without a word.
                signal.signal(signal.SIGINT, signal.default_int_handler)
            work(options.step, options.path, options.overrides)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"tgdd: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tgdd: interrupted; the same command keeps what is finished and the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tgdd",
        description="Records the trajectory of a training run and distills it into a tiny FFCV data set (a .beton).",
    )
    parser.add_argument("--version", action="version", version=f"tgdd_plugin {__version__}")
    steps = parser.add_subparsers(dest="step", required=True)
    for name, text in STEPS.items():
        step = steps.add_parser(name, help=text, description=text)
        if name == "show":
            step.add_argument("path", help="trajectory folder or .beton")
            step.add_argument("--picture", metavar="PNG", help="where to draw a .beton (default: beside it)")
            continue
        if name == "export":
            step.add_argument("path", help=".beton")
            step.add_argument("folder", help="new or empty")
            step.add_argument("--png", action="store_true", help="an image folder in place of tensors")
            for option in ("--mean", "--std"):
                step.add_argument(option, nargs="+", type=float, help="to normalise tensors by (default: the card's)")
            continue
        if name == "import":
            step.add_argument("path", nargs="+", help=".pt of images and labels, or one of each")
            step.add_argument("output", help=".beton to write")
            for option in ("--mean", "--std"):
                step.add_argument(option, nargs="+", type=float, required=True, help="by channel, for pixels in [0, 1]")
            step.add_argument("--classes", nargs="+", metavar="NAME", help="(default: numbers)")
            step.add_argument("--factor", type=int, default=1, help="of multi-formation, if not decoded (default: 1)")
            step.add_argument(
                "--normalised",
                action=argparse.BooleanOptionalAction,
                help="whether the images are (default: as their values tell)",
            )
            step.add_argument("--experiment", type=int, default=-1, help="which of several sets (default: the last)")
            step.add_argument("--tolerance", type=float, help="of what clamping to [0, 1] changes")
            continue
        shortcut = f", or {SHORTCUTS[name]}" if name in SHORTCUTS else ""
        step.add_argument("path", help=f"recipe (YAML){shortcut}")
        step.add_argument("overrides", nargs="*", metavar="key=value", help="such as distill.steps=500")
    return parser


def _export(options: argparse.Namespace) -> None:
    from tgdd_plugin.beton.exchange import export_folder, export_tensors

    if options.png and (options.mean or options.std):
        raise InputError("--mean and --std have no effect with --png, whose images are not normalised; leave them out")
    if options.png:
        folder = export_folder(options.path, options.folder)
    else:
        folder = export_tensors(options.path, options.folder, mean=options.mean, std=options.std)
    print(f"exported  {folder}: {', '.join(sorted(path.name for path in folder.iterdir())[:5])}")


def _import(options: argparse.Namespace) -> None:
    from tgdd_plugin.beton.exchange import TOLERANCE, import_tensors

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
        )
    print(f"imported  {path}")
    for warning in caught:
        print(f"tgdd: {warning.message}", file=sys.stderr)


def _show(path: Path, picture: str | None) -> None:
    from tgdd_plugin.beton.card import read_card
    from tgdd_plugin.beton.format import read_beton
    from tgdd_plugin.data.image_grid import image_grid, write_picture
    from tgdd_plugin.pipeline.show import describe_beton, describe_trajectory
    from tgdd_plugin.trajectory.store import Trajectory

    if path.is_dir():
        print(describe_trajectory(Trajectory.open(path)))
    elif path.is_file():
        print(describe_beton(path, read_card(path)))
        grid = image_grid(*read_beton(path))
        print(f"\npicture     {write_picture(Path(picture) if picture else path.with_suffix('.png'), grid)}")
    else:
        raise InputError(f"there is no '{path}'; wanted a trajectory folder or a .beton")


if __name__ == "__main__":
    sys.exit(main())
