"""Every link of README, docs/ and the other Markdown files leads to a file, and to a heading in it that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]
MADE = {"commands.md", "api.md"}
"""Pages that get headings when the site is built, which checks links to these."""


def _links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    text = re.sub(r"`[^`\n]*`", "`", text)
    return [link for link in re.findall(r"\]\(([^()\s]+)\)", text) if not re.match(r"\w+:", link)]


def _anchors(page: Path) -> set[str]:
    """The headings of a page as anchors, as GitHub and MkDocs both write them for the headings there are."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert target.is_relative_to(ROOT), f"{page.name} links to {link}, outside the repository"
        if anchor and target.name not in MADE:
            assert anchor in _anchors(target), f"{page.name} links to {link}, and there is no such heading"


def test_every_page_and_figure_is_used() -> None:
    """No page is missing from the site's menu, and no picture in docs/ is shown nowhere."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    linked = {Path(link.partition("#")[0]).name for page in PAGES for link in _links(page)}
    for path in (ROOT / "docs").iterdir():
        if path.suffix in (".md", ".ipynb"):
            assert f": {path.stem}.md" in menu, f"{path.name} is not in mkdocs.yml"
        elif path.suffix in (".png", ".svg"):
            assert path.name in linked, f"{path.name} is shown nowhere"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1200
