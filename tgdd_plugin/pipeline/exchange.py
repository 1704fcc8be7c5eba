"""``tgdd export`` and ``tgdd import``: their arguments, and what they print. Nothing is loaded before a call."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tgdd_plugin.core.errors import InputError, printable


def add_exchange(steps: argparse._SubParsersAction[Any]) -> None:
    """The parsers of ``tgdd export`` and ``tgdd import``."""
    text = "write a .beton as tensors or an image folder, as other code reads them"
    export = steps.add_parser("export", help=text, description=text)
    export.add_argument("path", help=".beton")
    export.add_argument("folder", help="new or empty")
    form = export.add_mutually_exclusive_group()
    form.add_argument("--png", action="store_true", help="an image folder")
    form.add_argument("--hub", action="store_true", help="a data set folder of the Hugging Face Hub")
    export.add_argument("--class-names", action="store_true", help="with --png, folders named after the classes")
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


def _export(options: argparse.Namespace) -> None:
    from tgdd_plugin.beton.card import read_card

    # Found out before torch is loaded, which takes a second.
    read_card(options.path)
    if (options.png or options.hub) and (options.mean or options.std):
        raise InputError(
            "`--mean` and `--std` must be left out with --png and --hub, whose images are not normalized, got both "
            "options. Leave them out."
        )
    if options.class_names and not options.png:
        raise InputError("`--class-names` must come with --png, got it alone. Add --png, or leave it out.")
    from tgdd_plugin.beton.exporting import export_folder, export_tensors

    if options.png:
        folder = export_folder(options.path, options.folder, class_names=options.class_names)
    elif options.hub:
        from tgdd_plugin.beton.hub import export_hub

        folder = export_hub(options.path, options.folder)
    else:
        folder = export_tensors(options.path, options.folder, mean=options.mean, std=options.std)
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    print(f"exported  {printable(str(folder))}: {', '.join(names[:5])}{more}")
    if options.hub:
        print("licence   not chosen: name it in README.md before you publish the folder")


@contextlib.contextmanager
def _option_named() -> Iterator[None]:
    """Errors name the option of this command where ``import_tensors`` has an argument."""
    try:
        yield
    except InputError as error:
        from tgdd_plugin.beton.existing import REPLACE

        raise InputError(str(error).replace(REPLACE, "add --overwrite")) from error


def _import(options: argparse.Namespace) -> None:
    for path in options.path:
        if not Path(path).is_file():
            raise InputError(f"There is no file '{path}'. Name a .pt that torch.save wrote.")
    from tgdd_plugin.beton.importing import AS_NORMALIZED, AS_PIXELS, TOLERANCE, import_tensors

    with warnings.catch_warnings(record=True) as caught, _option_named():
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
    options_of = {AS_NORMALIZED: "add --normalised if they are", AS_PIXELS: "add --no-normalised if they are not"}
    for warning in caught:
        text = str(warning.message)
        for argument, option in options_of.items():
            text = text.replace(argument, option)
        print(f"tgdd: {printable(text)}", file=sys.stderr)
