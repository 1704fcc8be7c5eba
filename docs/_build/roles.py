"""Docstrings name other parts of the code by Sphinx's roles; the site shows such a name as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?(?:tgdd_plugin\.)?([^`]+)`")


class Roles(griffe.Extension):
    """Turns ``:func:`name``` into ```name```, and ``::`` at the end of a line into the colon that it prints."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^\s*::\n", "", re.sub(r"(\S)::$", r"\1:", text, flags=re.M), flags=re.M)
