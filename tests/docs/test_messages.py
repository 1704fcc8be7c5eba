"""The messages that the page on troubleshooting quotes are strings of the code, with values filled in."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tgdd_plugin
from tests.docs.blocks import ROOT

PACKAGE = Path(tgdd_plugin.__file__).parent
LEAST = 25  # characters of a message that the code itself says


def _quoted() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return [" ".join(found.replace("> ", " ").split()) for found in re.findall(r"(?:^> .*\n)+", text, re.M)]


def _parts(node: ast.expr) -> list[str]:
    """What a string expression says itself, between the values that are filled in."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    pieces: list[list[str]] = [["", ""]]  # a value
    if isinstance(node, ast.JoinedStr):
        pieces = [_parts(value) for value in node.values]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        pieces = [_parts(node.left), _parts(node.right)]
    parts = [""]
    for piece in pieces:
        parts = [*parts[:-1], parts[-1] + piece[0], *piece[1:]]
    return parts


def _is_made_of(message: str, parts: list[str]) -> bool:
    """Whether a message is these parts with anything between them."""
    if len(parts) == 1:
        return message == parts[0]
    position = len(parts[0])
    for part in parts[1:-1]:
        found = message.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return message.startswith(parts[0]) and message[position:].endswith(parts[-1])


@pytest.fixture(scope="module")
def strings() -> list[list[str]]:
    """The code's strings, but for those that are mostly values."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and sum(map(len, _parts(node))) > LEAST:
                found.append(_parts(node))
    return found


@pytest.mark.parametrize("message", _quoted(), ids=lambda message: message[:50])
def test_a_quoted_message_is_the_codes(message: str, strings: list[list[str]]) -> None:
    assert any(_is_made_of(message, parts) for parts in strings), message
