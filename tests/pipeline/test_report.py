"""The report: everything that the files say, nothing that they could do, and what is missing by name."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tgdd_plugin import InputError, cli
from tgdd_plugin.beton.card import Card, read_card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.data.set_figure import draw_set
from tgdd_plugin.pipeline.report import write_report
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.writing import add_stage

EVIL = "<script>alert(1)</script>"
NAMES = ["cat", EVIL]


def row(name: str, percent: float, **more: Any) -> dict[str, Any]:
    about = {"images": 8, "epochs": 5, "passes": 0, "seconds": [1.0, 2.0], "accuracies": [0.5]}
    return {"name": name, **about, "mean_percent": percent, "std_points": 1.25, **more}


def job(folder: Path, name: str = "set", classes: list[str] = NAMES) -> Path:
    """A folder as ``tgdd run`` leaves it: a recording of two runs, a set with its card, its picture and its recipe."""
    images, labels = (torch.arange(8 * 75) % 251).to(torch.uint8).view(8, 3, 5, 5), torch.arange(8) % 2
    stages = []
    for each in ("seed0", "seed1"):
        run = Run(
            name=each,
            network={"class": "a:B", "parameters": 2},
            head="h",
            num_classes=2,
            classes=classes,
            complete=True,
        )
        for epoch in range(3):
            metrics = {"loss/train/total": 2.0 - epoch, "MulticlassAccuracy": float("nan")} if epoch else {}
            weights = {"w": torch.full((2,), float(epoch))}
            where = folder / "trajectory" / each
            add_stage(where, run, weights, None, epoch=epoch, batch=7 * epoch, sample=0, metrics=metrics)
        run.write(where)
        stages += [stage.sha256 for stage in run.stages]
    rows = [
        row("distilled", 81.25),
        row("random", 62.5, std_points=None),
        row("full data, equal passes", 90.0, passes=77),
    ]
    entry = {"network": "ConvNet", "seeds": [0, 1], "test_images": 540, "rows": rows}
    card = Card(classes, 0, 4, [], [0.5] * 3, [0.5] * 3, method={"name": "TGDD", "alpha": 2.5}, accuracy=[entry])
    card.trajectory = {"runs": ["seed0", "seed1"], "stages": stages}
    path = write_beton(folder / f"{name}.beton", images, labels, card)
    draw_set(folder / f"{name}.png", images, labels, classes)
    (folder / f"{name}-recipe.yaml").write_text(yaml.safe_dump({"output": str(folder), "trajectory": None}))
    return path


class Page(HTMLParser):
    """What a browser would make of a page: its words, its tags, and every address that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._hidden = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag if tag in ("style", "script") else ""
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_a_job_in_one_file(tmp_path: Path) -> None:
    path = job(tmp_path)
    page = Page(write_report([path], tmp_path / "report.html"))
    for wanted in (
        "8 distilled images of 2 classes, 3 × 5 × 5; 4 stored for each class at factor 1",
        "distilled 81.2 ± 1.2 8 40 1.5",
        "random 62.5 8 40 1.5",
        "full data, equal passes 90.0 ± 1.2 8 77 1.5",
        "540 test images",
        "alpha 2.5",
        f"tgdd run {tmp_path / 'set-recipe.yaml'}",
        "6 checksums",
        "seed0",
        "loss/train/total",
    ):
        assert wanted in page.text, wanted
    assert "script" not in page.tags and EVIL in page.text, "a class name is text"
    assert page.tags.count("img") == 2 and "svg" in page.tags
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses), "no other file"
    assert "not shown" not in page.text and "There is no" not in page.text


def test_what_is_missing_is_said_and_the_rest_shown(tmp_path: Path) -> None:
    path = job(tmp_path)
    (tmp_path / "set.png").unlink()
    (tmp_path / "set-recipe.yaml").write_text("a: [")
    shutil.rmtree(tmp_path / "trajectory")
    text = Page(write_report([tmp_path], tmp_path / "report.html")).text
    for wanted in (
        "There is no picture 'set.png'",
        "The recipe 'set-recipe.yaml' is damaged",
        "not shown: There is no trajectory",
    ):
        assert wanted in text
    assert "distilled 81.2" in text
    card = read_card(path)
    card.accuracy = []
    card.write(path)
    (tmp_path / "set-recipe.yaml").unlink()
    job(tmp_path / "other")
    shutil.move(tmp_path / "other" / "trajectory", tmp_path / "trajectory")
    manifest = next((tmp_path / "trajectory").glob("seed1/*.json"))
    shutil.rmtree(manifest.parent)
    text = Page(write_report([path], tmp_path / "report.html")).text
    assert "No accuracy was measured" in text and "There is no recipe" in text and "is of another job" in text


def test_several_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path / "a", "first")
    job(tmp_path / "b", "second")
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b" / "second.beton")]) == 0
    assert capsys.readouterr().out == f"report    {tmp_path}/a/report.html\n"
    page = Page(tmp_path / "a" / "report.html")
    assert "2 sets beside each other" in page.text and "cannot be compared" not in page.text
    assert "first 8 4" in page.text and "second 8 4" in page.text and "81.2 ± 1.2 62.5 90.0 ± 1.2" in page.text
    assert page.addresses[:2] == ["#1", "#2"]
    job(tmp_path / "c", "third", ["cat", "dog"])
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "c"), "--output", str(tmp_path / "x.html")]) == 0
    assert "These sets are of different classes" in Page(tmp_path / "x.html").text


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    job(tmp_path)
    first, second = (write_report([tmp_path], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_no_set_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "x.beton"):
        with pytest.raises(InputError, match="There is no .*beton.* Name what tgdd run or tgdd distill wrote"):
            write_report([path], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return job(tmp_path_factory.mktemp("made"))


@settings(deadline=None, max_examples=25)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_no_text_of_a_card_becomes_a_tag(made: Path, text: str) -> None:
    card = read_card(made)
    before = Page(write_report([made], made.with_name("before.html"))).tags
    card.method = {"name": f"TGDD{text}"}
    card.accuracy[0]["network"] = f"</table>{text}<b>"
    card.accuracy[0]["rows"][1]["name"] = f"random{text}"
    card.write(made)
    after = Page(write_report([made], made.with_name("after.html"))).tags
    assert [tag for tag in after if tag not in ("tr", "td")] == [tag for tag in before if tag not in ("tr", "td")]


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_complaint(tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    job(tmp_path)
    page = write_report([tmp_path], tmp_path / "report.html")
    probe = "<script>document.title=`${document.documentElement.scrollWidth} ${window.innerWidth}`</script></body>"
    (tmp_path / "probe.html").write_text(page.read_text().replace("</body>", probe))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [browser, *options, "--enable-logging=stderr", f"--window-size={width},900", "--dump-dom", "probe.html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert found and int(found[1]) <= int(found[2]), "nothing stands out to the side"
    assert "CONSOLE" not in done.stderr
    assert page.stat().st_size < 3 * 2**20
