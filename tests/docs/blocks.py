"""The code blocks of a Markdown page, found as they are written; and the pages."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w+)(?P<title>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what follows that on the first line, its text, and the line that it begins on."""

    language: str
    title: str
    code: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"], found["title"], textwrap.dedent(found["code"]), text[: found.start("code")].count("\n")
        )
        for found in _BLOCK.finditer(text)
    ]
