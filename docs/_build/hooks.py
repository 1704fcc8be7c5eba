"""The pages of the site that no file in docs/ holds: they follow from the code, or from files elsewhere.

Text in docs/ links to those files where they are (``../recipes/digits.yaml``), so that its links also work where a
repository is shown; :func:`on_page_markdown` turns them into links to the pages made here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import tgdd_plugin
from tgdd_plugin import cli
from tgdd_plugin.core.setting_errors import expected
from tgdd_plugin.pipeline.key_help import json_schema
from tgdd_plugin.pipeline.step_table import STEPS

ROOT = Path(__file__).parents[2]
WHOLE = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CITATION.cff": "citation.md",
    "LICENSE": "license.md",
    "docs/digits.ipynb": "digits.md",
}
"""Files that are pages of their own."""
PLAIN = {"LICENSE": "Licence", "CITATION.cff": "Citation"}
"""Those of them that are no Markdown, and their headings."""
GROUPS = {
    "recording": "Recording",
    "trajectory": "Trajectories",
    "distillation": "Distilling",
    "beton": "The file",
    "data": "Data",
    "evaluation": "Retraining and evaluating",
    "replay": "Continual learning",
    "nas": "Architecture search",
    "augmentation": "Augmentation",
    "core": "Errors",
}
DEEPER = {
    "beton": ["importing.import_tensors", "exporting.export_tensors", "exporting.export_folder"],
    "data": ["normalization.Normalization", "set_figure.draw_set"],
    "evaluation": ["tables.retrain_table", "tables.evaluate_table"],
    "nas": ["optuna_search.search"],
    "replay": ["avalanche.AvalancheBuffer", "learner.learn"],
}
"""Names that the documentation uses and that are imported from where they are, by subpackage."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {name: _whole(source) for source, name in WHOLE.items()}
    pages["recipes.md"] = files.get_file_from_path("recipes.md").content_string + _recipes()  # type: ignore[union-attr]
    pages["commands.md"] = files.get_file_from_path("commands.md").content_string + _commands()  # type: ignore[union-attr]
    pages["api.md"] = files.get_file_from_path("api.md").content_string + _api()  # type: ignore[union-attr]
    for name, content in pages.items():
        if old := files.get_file_from_path(name):
            files.remove(old)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links to files elsewhere into links to the pages that show them, and marks limits."""
    source = next((source for source, name in WHOLE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def moved(link: re.Match[str]) -> str:
        target, _, anchor = link[2].partition("#")
        if not target or re.match(r"\w+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("recipes/"):
            path, anchor = "recipes.md", posixpath.basename(path).replace(".", "")
        elif path == "recipes":
            path = "recipes.md"
        path = WHOLE.get(path, path.removeprefix("docs/"))
        return f"{link[1]}({path}{'#' + anchor if anchor else ''})"

    markdown = re.sub(r"(\])\(([^()\s]+)\)", moved, markdown)
    markdown = markdown.replace(" ± ", "\u00a0±\u00a0")  # a figure stays on one line
    return markdown.replace("❗", '<strong class="limit">!</strong>')  # not every font has the sign


def _whole(source: str) -> str:
    text = (ROOT / source).read_text(encoding="utf-8")
    if source in PLAIN:
        return f"# {PLAIN[source]}\n\n```text\n{text}```\n"
    return _notebook(text) if source.endswith(".ipynb") else text


def _notebook(text: str) -> str:
    """A notebook as Markdown, with the outputs that are kept in it."""
    parts = []
    for cell in json.loads(text)["cells"]:
        content = "".join(cell["source"])
        parts.append(content if cell["cell_type"] == "markdown" else f"```python\n{content}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="output" src="data:image/png;base64,{image}">')
            elif printed := "".join(output.get("text") or data.get("text/plain") or []).rstrip():
                parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


def _recipes() -> str:
    parts = []
    for path in sorted((ROOT / "recipes").iterdir()):
        if path.suffix in (".yaml", ".py"):
            language = "yaml" if path.suffix == ".yaml" else "python"
            anchor = path.name.replace(".", "")
            parts.append(f"\n## {path.name} {{#{anchor}}}\n\n```{language}\n{path.read_text(encoding='utf-8')}```\n")
    return "".join(parts)


def _commands() -> str:
    """A section for each command, and a table of the keys of each section of a recipe."""
    schema = json_schema()
    parts = ["\n## Commands\n"]
    for step, (text, read, instead) in STEPS.items():
        sections = ", ".join(f"[{name}](#{name.replace('_', '-')}-keys)" for name in read)
        also = f" Instead of a recipe it takes {instead}." if instead else ""
        parts.append(f"\n### tgdd {step} {{#tgdd-{step}}}\n\n{_sentence(text)}{also}\n\nReads the keys of: {sections}.\n")
    names = re.search(r"\{(.*?)\}", _help())[1].split(",")  # type: ignore[index]
    for name in names:
        if name not in STEPS:
            parts.append(f"\n### tgdd {name} {{#tgdd-{name}}}\n\n```text\n{_help(name)}```\n")
    parts.append("\n## Keys of a recipe\n\n### The job as a whole {#job-keys}\n\n")
    plain = {key: value for key, value in schema["properties"].items() if not _section(value, schema)}
    parts.append(_table("", {key: value for key, value in plain.items() if key != "extra_networks"}))
    for name, value in schema["properties"].items():
        found = _section(value, schema)
        if found or name == "extra_networks":
            described = _sentence(value.get("description", ""))
            parts.append(f"\n### {name} {{#{name.replace('_', '-')}-keys}}\n\n{described}\n\n")
            parts.append(_table(f"{name}.", found["properties"]) if found else "")
    return "".join(parts)


def _section(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a section of the recipe, or ``None`` for a plain key."""
    named = re.search(r'"#/\$defs/(\w+)"', json.dumps(value))
    return schema["$defs"][named[1]] if named and value.get("type") != "array" else None


def _table(prefix: str, keys: dict[str, Any]) -> str:
    rows = ["| key | default | values | meaning |\n|---|---|---|---|\n"]
    for key, value in keys.items():
        default = value.get("default")
        shown = default if isinstance(default, str) else json.dumps(default)
        cells = [f"`{prefix}{key}`", f"`{shown}`" if shown else "", expected(value), value.get("description", "")]
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(rows)


def _help(*names: str) -> str:
    """What ``tgdd ... --help`` prints."""
    printed = io.StringIO()
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*names, "--help"])
    return printed.getvalue()


def _api() -> str:
    order = {package: position for position, package in enumerate(GROUPS)}
    homes = sorted(tgdd_plugin._HOMES.items(), key=lambda item: order.get(item[1].partition(".")[0], len(order)))
    parts, group = [], ""
    for position, (name, home) in enumerate(homes):
        package = home.partition(".")[0]
        if package != group:
            parts.append(f"\n## {GROUPS.get(package, package.capitalize())}\n")
            group = package
        parts.append(f"\n::: tgdd_plugin.{home}.{name}\n")
        if [other.partition(".")[0] for _, other in homes[position + 1 : position + 2]] != [package]:
            parts += [f"\n::: tgdd_plugin.{package}.{deeper}\n" for deeper in DEEPER.get(package, [])]
    return "".join(parts)


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if not text or text.endswith(".") else f"{text[0].upper()}{text[1:]}."
