"""Names of files after data: safe for any file system, whatever they come from."""

from __future__ import annotations

import re

from tgdd_plugin.distillation.settings import DistillSettings

LONGEST = 100
"""The bytes of a name, which leave room for what stands behind it and for the name of a temporary file."""


def beton_name(data: str, distill: DistillSettings) -> str:
    """Returns the name of a ``.beton`` for a data set, or for the function ``module:function`` that returns it."""
    size = f"{distill.budget}passes" if distill.budget else f"ipc{distill.sized(1).images_per_class}"
    return f"{safe_name(data.rpartition(':')[2]) or 'distilled'}-{size}.beton"


def safe_name(name: str) -> str:
    """Returns a name with letters, digits and ``._-`` alone, which neither begins nor ends with a dot or dash."""
    safe = re.sub(r"[^\w.-]+", "-", name).encode()[:LONGEST].decode(errors="ignore")
    return safe.strip(".-")
