"""Matplotlib's figures without pyplot: no window, no state of the process, and no word about a font cache."""

from __future__ import annotations

import logging
from pathlib import Path

# A user's first picture takes some seconds longer; a message about that would stand among a command's own lines.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

from matplotlib import get_data_path, rc_context  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullFormatter  # noqa: E402

__all__ = ["Axes", "Figure", "Locator", "LogLocator", "MaxNLocator", "NullFormatter", "font_path", "rc_context"]


def font_path() -> Path:
    """Returns where Matplotlib's own font lies, for words that are drawn without a figure."""
    return Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
