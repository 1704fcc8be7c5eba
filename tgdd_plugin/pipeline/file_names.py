"""Names of files after data: safe for any file system, whatever they come from."""

from __future__ import annotations

import re

LONGEST = 100
"""The bytes of a name, which leave room for what stands behind it and for the name of a temporary file."""


def beton_name(data: str, images_per_class: int) -> str:
    """Returns the name of a ``.beton`` for a data set, or for the function ``module:function`` that returns it."""
    return f"{safe_name(data.rpartition(':')[2]) or 'distilled'}-ipc{images_per_class}.beton"


def safe_name(name: str) -> str:
    """Returns a name with letters, digits and ``._-`` alone, which neither begins nor ends with a dot or dash."""
    safe = re.sub(r"[^\w.-]+", "-", name).encode()[:LONGEST].decode(errors="ignore")
    return safe.strip(".-")
