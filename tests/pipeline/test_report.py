"""The report: everything that the files say, nothing that they could do, and what is missing by name."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tgdd_plugin import InputError, cli
from tgdd_plugin.beton.card import Card, card_path, read_card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.core.atomic_files import sha256
from tgdd_plugin.data.film_strip import write_strip
from tgdd_plugin.pipeline.report import _compared, _told_apart, write_report
from tgdd_plugin.pipeline.report_curves import draw_accuracies
from tgdd_plugin.pipeline.report_parts import gather
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.writing import add_stage

EVIL = "<script>alert(1)</script>"
NAMES = ["cat", EVIL]


def row(name: str, percent: float, **more: Any) -> dict[str, Any]:
    about = {"images": 8, "epochs": 5, "passes": 0, "seconds": [1.0, 2.0], "accuracies": [0.5]}
    return {"name": name, **about, "mean_percent": percent, "std_points": 1.25, **more}


LOG = "step,loss,match,constraint,learning_rate,seconds\n1,9,8,0.5,0.2,0.1\n2,7,6,0.25,0.2,0.2\n3,6,5,"


def job(folder: Path, name: str = "set", classes: list[str] = NAMES) -> Path:
    """A folder as ``tgdd run`` leaves it: a recording of two runs, a set with its card, and what lies beside it."""
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
        where = folder / "trajectory" / each
        kept = {"images": real_images(), "labels": torch.tensor([1, 0, 1])}
        where.mkdir(parents=True)
        save_file(kept, where / "exemplars.safetensors")
        run.exemplars = sha256(where / "exemplars.safetensors")
        for epoch in range(3):
            metrics = {"loss/train/total": 2.0 - epoch, "MulticlassAccuracy": float("nan")} if epoch else {}
            weights = {"w": torch.full((2,), float(epoch))}
            add_stage(where, run, weights, None, epoch=epoch, batch=7 * epoch, sample=0, metrics=metrics)
        run.write(where)
        stages += [stage.sha256 for stage in run.stages]
    rows = [
        row("distilled", 81.25),
        row("random", 62.5, std_points=None),
        row("random, decoded number", 71.5, images=32),
        row("full data, equal passes", 90.0, passes=77),
    ]
    entry = {"network": "ConvNet", "seeds": [0, 1], "test_images": 540, "rows": rows}
    card = Card(classes, 0, 4, [], [0.5] * 3, [0.5] * 3, method={"name": "TGDD", "alpha": 2.5}, accuracy=[entry])
    card.trajectory = {"runs": ["seed0", "seed1"], "stages": stages}
    path = write_beton(folder / f"{name}.beton", images, labels, card)
    write_strip(folder / f"{name}-evolution.png", {0: images[:2] // 2, 60: images[:2]}, [0, 1], images, classes)
    (folder / f"{name}-log.csv").write_text(LOG)
    costs = {"distill": {"seconds": 5400.0, "memory_mib": 1234.5, "gpu_memory_mib": 77.0}}
    (folder / f"{name}-costs.json").write_text(json.dumps(costs))
    costs = {"record": {"seconds": 12.34, "memory_mib": 500.0, "gpu_memory_mib": None}}
    (folder / "trajectory" / "costs.json").write_text(json.dumps(costs))
    (folder / f"{name}-recipe.yaml").write_text(yaml.safe_dump({"output": str(folder), "trajectory": None}))
    return path


def real_images() -> torch.Tensor:
    return torch.arange(3 * 75).to(torch.uint8).view(3, 3, 5, 5)


class Page(HTMLParser):
    """What a browser would make of a page: its words, its tags, and every address that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.styles: list[str] = []
        self._hidden = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag if tag in ("style", "script") else ""
        self.styles += [value or "" for name, value in attrs if name == "style"]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def pictures(self) -> list[np.ndarray]:
        """The pictures within the page, in their order."""
        found = [re.match(r"--film: url\(data:image/png;base64,([^)]*)\)", style) for style in self.styles]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each[1])))) for each in found if each]


def test_a_job_in_one_file(tmp_path: Path) -> None:
    path = job(tmp_path)
    page = Page(write_report([path], tmp_path / "report.html"))
    for wanted in (
        "8 distilled images of 2 classes, 3 × 5 × 5; 4 stored for each class at factor 1",
        "81.2 ± 1.2 % distilled: 8 images, 40 passes 62.5 % random: 8 images, 40 passes",
        "71.5 ± 1.2 % random, decoded number: 32 images, 160 passes 90.0 ± 1.2 % full data, equal passes",
        "distilled 81.2 ± 1.2 8 40 1.5",
        "random 62.5 8 40 1.5",
        "full data, equal passes 90.0 ± 1.2 8 77 1.5",
        "540 test images",
        "alpha 2.5",
        f"tgdd run {tmp_path / 'set-recipe.yaml'}",
        "6 checksums",
        "seed0",
        "loss/train/total",
        "constraint",
        "record 12.3 s 500 –",
        "distill 90.0 min 1,234 77",
        "step 60",
    ):
        assert wanted in page.text, wanted
    assert page.tags.count("script") == 1 and EVIL in page.text, "a class name is text"
    assert page.tags.count("svg") == 2 + 3 + 1 and "img" not in page.tags
    assert all(address.startswith("#") for address in page.addresses), "no other file"
    assert "not shown" not in page.text and "There is no" not in page.text


def test_the_card_is_shown_but_for_what_stands_elsewhere(tmp_path: Path) -> None:
    path = job(tmp_path)
    content = yaml.safe_load(card_path(path).read_text())
    for elsewhere in ("format", "accuracy", "method"):
        del content[elsewhere]
    content["trajectory"]["stages"] = "6 checksums"
    found = gather(path, tmp_path / "trajectory")
    assert yaml.safe_load(found.card_text) == content == yaml.safe_load(found.card_text)
    assert found.card == read_card(path), "the card itself stays as it was"


def test_real_images_stand_beside_the_distilled_ones_of_their_class(tmp_path: Path) -> None:
    page = Page(write_report([job(tmp_path)], tmp_path / "report.html"))
    images, real = (torch.arange(8 * 75) % 251).to(torch.uint8).view(8, 3, 5, 5), real_images()
    wanted = [real[1:2], images[0::2], real[0::2], images[1::2]]  # of cat, then of the other class
    assert len(page.pictures) == 5
    for picture, strip in zip(page.pictures, wanted, strict=False):
        np.testing.assert_array_equal(picture, torch.cat(list(strip), dim=2).permute(1, 2, 0).numpy())
    film = torch.cat([torch.cat(list(frame), dim=2) for frame in (images[:2] // 2, images[:2])], dim=1)
    np.testing.assert_array_equal(page.pictures[4], film.permute(1, 2, 0).numpy())


def test_classes_are_found_by_name_where_some_were_distilled(tmp_path: Path) -> None:
    """The recording has them in another order, and one more."""
    path = job(tmp_path, classes=["dog", "cat"])
    manifest = [Run.read(folder) for folder in sorted((tmp_path / "trajectory").glob("seed*"))]
    for run in manifest:
        run.classes = ["cat", "dog"]
        run.write(tmp_path / "trajectory" / run.name)
    page = Page(write_report([path], tmp_path / "report.html"))
    np.testing.assert_array_equal(page.pictures[0], torch.cat([*real_images()[0::2]], 2).permute(1, 2, 0).numpy())


def test_many_large_images_make_no_large_file(tmp_path: Path) -> None:
    """As many bytes as of Fashion-MNIST, and of a hundred classes of photographs; both of noise, which is worst."""
    for name, (classes, count, *shape) in {
        "fashion": (10, 40, 1, 28, 28),
        "photographs": (100, 2, 3, 224, 224),
    }.items():
        images = torch.randint(256, (classes * count, *shape), dtype=torch.uint8)
        labels = torch.arange(len(images)) % classes
        card = Card([f"class {i}" for i in range(classes)], 0, count, [], [0.5] * shape[0], [0.5] * shape[0])
        write_beton(tmp_path / f"{name}.beton", images, labels, card)
        page = write_report([tmp_path / f"{name}.beton"], tmp_path / f"{name}.html")
        assert page.stat().st_size < 2 * 2**20, name
        assert ("The first" in Page(page).text) == (name == "photographs")


def test_accuracy_for_time_has_a_line_where_there_are_several_lengths(tmp_path: Path) -> None:
    path = job(tmp_path)
    card = read_card(path)
    entry = card.accuracy[0]
    longer = {**entry, "rows": [{**each, "seconds": [9.0], "passes": 900} for each in entry["rows"]]}
    card.accuracy = [entry, longer]
    card.write(path)
    text = Page(write_report([path], tmp_path / "report.html")).text
    assert "Accuracy for time" in text and "Earlier comparisons (1)" in text
    for each in (*entry["rows"], *longer["rows"]):
        del each["seconds"]
    card.write(path)
    assert "Accuracy for time" not in Page(write_report([path], tmp_path / "report.html")).text


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ((6.1, 7.2, 9.3), ["6", "7", "8", "9"]),
        ((110, 150, 190), ["120", "140", "160", "180"]),
        ((0.5, 0.6, 4.4), ["1", "2", "3", "4"]),
        ((3, 9, 150), ["5", "10", "20", "50", "100"]),
        ((0.2, 4, 900), ["1", "10", "100", "1000"]),
    ],
)
def test_the_axis_of_time_has_numbers_wherever_the_times_lie(seconds: tuple[float, ...], wanted: list[str]) -> None:
    svg = draw_accuracies({str(each): [(100, each, 80.0, 1.0)] for each in seconds}) or ""
    below = svg[svg.index('id="matplotlib.axis_1"') : svg.index('id="matplotlib.axis_2"')]
    assert re.findall("<text[^>]*>([^<]+)</text>", below) == [*wanted, "seconds of a training"]


def test_a_line_runs_from_few_passes_to_many_and_not_between_equal_ones(tmp_path: Path) -> None:
    """Three comparisons: 500 passes in 9 s, then 400 in 10 s, then 400 again; all of the same full data."""
    path = job(tmp_path)
    card = read_card(path)
    rows = [
        [row("distilled", 70, passes=500, seconds=[9.0]), row("full data", 90, passes=6000, seconds=[30.0])],
        [row("distilled", 60, passes=400, seconds=[10.0]), row("full data", 91, passes=6000, seconds=[29.0])],
        [row("distilled", 61, passes=400, seconds=[8.0]), row("full data", 92, passes=6000, seconds=[28.0])],
    ]
    card.accuracy = [{**card.accuracy[0], "rows": each} for each in rows]
    card.write(path)
    series = gather(path).series()
    assert [point[:3] for point in sorted(series["distilled"])] == [(400, 8.0, 61), (500, 9.0, 70)]
    assert [point[:3] for point in series["full data"]] == [(6000, 28.0, 92)]

    def lines(points: list[tuple[int, float, float, float]]) -> list[list[float]]:
        """How far to the right the corners of the line between points lie, if there is one."""
        svg = draw_accuracies({"a": points, "b": [(1, 1.0, 10.0, 1.0), (1, 100.0, 10.0, 1.0)]}) or ""
        found = re.findall('<path d="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: #1f77b4[^"]*square"', svg)
        return [[float(x) for x in re.findall(r"[ML] ([\d.]+)", each)] for each in found]

    ((first, second),) = lines([(500, 9.0, 70.0, 1.0), (400, 10.0, 60.0, 1.0)])
    assert second < first, "from 400 passes to 500, which took less time"
    assert not lines([(400, 10.0, 60.0, 1.0), (400, 9.0, 70.0, 1.0)])


def test_other_networks_and_scorings_have_no_points_in_the_line_of_the_latest(tmp_path: Path) -> None:
    path = job(tmp_path)
    card = read_card(path)

    def entry(percent: float, width: int | None = 8, **about: Any) -> dict[str, Any]:
        rows = [row("distilled", percent, passes=int(10 * percent))]
        architecture = {"factory": "tgdd_plugin.networks:convnet", "arguments": {"width": width}}
        named = {"architecture": architecture, "parameters": 100 * width} if width else {}
        return {**card.accuracy[0], **named, "protocol": "last epoch", "rows": rows, **about}

    others = [entry(11, 4), entry(12, network="MLP"), entry(13, test_images=54), entry(14, protocol="best epoch")]
    card.accuracy = [
        *others,
        entry(60, None),
        entry(70),
        entry(80),
    ]  # the first of these as an earlier version wrote it
    card.write(path)
    assert sorted(point[2] for point in gather(path).series()["distilled"]) == [60, 70, 80]
    text = Page(write_report([path], tmp_path / "report.html")).text
    assert "convnet(width=8), 800 parameters, mean" in text and "convnet(width=4), 400 parameters, mean" in text
    assert "ConvNet, mean" in text


def test_rows_of_soft_labels_do_not_stand_for_those_of_hard_ones(tmp_path: Path) -> None:
    path = job(tmp_path)
    card = read_card(path)
    card.accuracy[0]["rows"] += [row("distilled", 44.5, labels="soft"), row("random", 33.5, labels="soft")]
    card.write(path)
    text = Page(write_report([path], tmp_path / "report.html")).text
    assert "81.2 ± 1.2 % distilled: 8 images" in text and "62.5 % random: 8 images" in text
    assert "distilled, soft labels 44.5 ± 1.2 8" in text and "44.5 ± 1.2 %" not in text
    # In the plot they have points of their own.
    points = gather(path).series()
    assert [mean for *_, mean, _ in points["distilled"]] == [81.25]
    assert [mean for *_, mean, _ in points["random, soft labels"]] == [33.5]


def test_what_is_missing_is_said_and_the_rest_shown(tmp_path: Path) -> None:
    path = job(tmp_path)
    for name in ("set-evolution.png", "set-log.csv", "set-costs.json"):
        (tmp_path / name).unlink()
    (tmp_path / "set-recipe.yaml").write_text("a: [")
    shutil.rmtree(tmp_path / "trajectory")
    text = Page(write_report([tmp_path], tmp_path / "report.html")).text
    for wanted in (
        "There is no 'set-evolution.png'",
        "There is no log 'set-log.csv'",
        "time and memory was not noted",
        "The recipe 'set-recipe.yaml' is damaged",
        "so the recorded training is not shown",
    ):
        assert wanted in text
    assert "distilled 81.2" in text and "Images" in text
    card = read_card(path)
    card.accuracy = []
    card.write(path)
    (tmp_path / "set-recipe.yaml").unlink()
    job(tmp_path / "other")
    shutil.move(tmp_path / "other" / "trajectory", tmp_path / "trajectory")
    shutil.rmtree(tmp_path / "trajectory" / "seed1")
    text = Page(write_report([path], tmp_path / "report.html")).text
    for wanted in ("No comparison on test images has ended", "There is no recipe", "is of another job"):
        assert wanted in text


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("set-evolution.png", b"no picture", "'set-evolution.png' is damaged"),
        ("set-log.csv", b"", "has no losses"),
        ("set-log.csv", b"\xff\x00\n,\n", "has no losses"),
        ("set-log.csv", b"step,loss\n1,nan\n2\n", "has no losses"),
        ("set-costs.json", b"[", "distill"),
        ("trajectory/seed0/exemplars.safetensors", b"?", "Real images are not shown"),
    ],
)
def test_a_damaged_file_is_said_and_the_rest_shown(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    path = job(tmp_path)
    (tmp_path / name).write_bytes(content)
    text = Page(write_report([path], tmp_path / "report.html")).text
    assert wanted in text and "distilled 81.2" in text and "Every point is a stage" in text


def test_a_picture_of_another_set_is_not_shown(tmp_path: Path) -> None:
    path = job(tmp_path)
    images = torch.zeros(8, 3, 5, 5, dtype=torch.uint8)
    write_strip(tmp_path / "set-evolution.png", {0: images[:2]}, [0, 1], images, NAMES)
    assert "'set-evolution.png' is of another set" in Page(write_report([path], tmp_path / "report.html")).text


def test_a_job_that_was_cut_off_has_a_report_of_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While distilling, with a log and a checkpoint; and while recording."""
    path = job(tmp_path)
    path.unlink()
    (tmp_path / ".distill-set-0123").mkdir()
    assert cli.main(["report", str(tmp_path)]) == 0
    text = Page(tmp_path / "report.html").text
    assert "There is no 'set.beton' yet" in text and "the last checkpoint of the distillation" in text
    assert "The distillation" in text and "Every point is a stage" in text and "record 12.3 s" in text
    for name in ("set-log.csv", "set-recipe.yaml"):
        (tmp_path / name).unlink()
    (tmp_path / ".distill-set-0123").rmdir()
    run = Run.read(tmp_path / "trajectory" / "seed1")
    run.complete, run.stages = False, run.stages[:2]
    run.write(tmp_path / "trajectory" / "seed1")
    assert cli.main(["report", str(tmp_path)]) == 0
    text = Page(tmp_path / "report.html").text
    assert "The recording of 'seed1' was cut off; its last stage is of epoch 1, batch 7" in text
    assert "goes on where it was" in text and "Every point is a stage" in text
    job(tmp_path / "other", "other")
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), str(tmp_path / "other"), "--output", str(tmp_path / "x.html")]) == 0
    assert "2 sets beside each other" in Page(tmp_path / "x.html").text


def test_a_recording_elsewhere_is_shown_once_it_is_named_as_the_report_says(tmp_path: Path, capsys) -> None:
    """As where a Trainer of the user's own recorded, and ``tgdd distill`` wrote the set elsewhere."""
    path = job(tmp_path / "outputs")
    (tmp_path / "outputs" / "trajectory").rename(tmp_path / "recording")
    (tmp_path / "outputs" / "set-recipe.yaml").unlink()
    command = ["report", str(path), "--output", str(tmp_path / "report.html")]
    assert cli.main(command) == 0
    text = Page(tmp_path / "report.html").text
    assert f"There is no '{tmp_path}/outputs/trajectory', so the recorded training is not shown. Name the" in text
    assert "by --trajectory." in text and "Real images" not in text
    assert cli.main([*command, "--trajectory", str(tmp_path / "recording")]) == 0
    page = Page(tmp_path / "report.html")
    assert "Every point is a stage" in page.text and "record 12.3 s" in page.text and "is not shown" not in page.text
    assert len(page.pictures) == 2 + 2 + 1, "of each class real and distilled ones, and how they changed"
    job(tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "trajectory" / "seed1")
    assert cli.main([*command, "--trajectory", str(tmp_path / "other" / "trajectory")]) == 0
    assert "is of another job, so its training is not shown" in Page(tmp_path / "report.html").text
    capsys.readouterr()
    assert cli.main([*command, "--trajectory", str(tmp_path / "nowhere")]) == 2
    assert "There is no trajectory folder" in capsys.readouterr().err


def test_the_reports_of_two_sets_in_one_folder_do_not_replace_each_other(tmp_path: Path, capsys) -> None:
    job(tmp_path, "a")
    shutil.rmtree(tmp_path / "trajectory")
    job(tmp_path, "b")
    for name in ("a", "b"):
        assert cli.main(["report", str(tmp_path / f"{name}.beton")]) == 0
    both = {path.name: Page(path).words[:2] for path in tmp_path.glob("*.html")}
    assert both == {"a-report.html": ["a:", "report"], "b-report.html": ["b:", "report"]}


def test_a_report_or_picture_that_cannot_be_written_is_told_by_its_name(tmp_path: Path, capsys) -> None:
    path, where = job(tmp_path), tmp_path / "plain" / "x.html"
    (tmp_path / "plain").touch()
    for command in (["report", f"{path}", "--output", f"{where}"], ["show", f"{path}", "--picture", f"{where}.png"]):
        assert cli.main(command) == 2
        assert f"tgdd: Cannot write '{where}" in (told := capsys.readouterr().err) and "Choose an output path" in told
    assert cli.main(["report", str(path), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"tgdd: '{tmp_path}' is a folder. Name a file in it.\n"


@pytest.mark.parametrize("step", ["report", "show"])
def test_no_set_is_replaced_by_its_report_or_picture(tmp_path: Path, capsys, step: str) -> None:
    path = job(tmp_path)
    before = {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
    option, endings = {"report": ("--output", ".html or .htm"), "show": ("--picture", ".png or .svg")}[step]
    for name in (path, card_path(path), tmp_path / "set"):
        assert cli.main([step, str(path), option, str(name)]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith(f"tgdd: `{option}` must end in {endings}, got '{name}'. Give a ")
    assert {each: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == before
    other = tmp_path / ("b.HTM" if step == "report" else "b.PNG")
    assert cli.main([step, str(path), option, str(other)]) == 0 and other.is_file()


def test_several_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path / "a", "first")
    job(tmp_path / "b", "second")
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b" / "second.beton")]) == 0
    assert capsys.readouterr().out == f"report    {tmp_path}/a/report.html\n"
    page = Page(tmp_path / "a" / "report.html")
    assert "2 sets beside each other" in page.text and "cannot be compared" not in page.text
    assert "first 8 4" in page.text and "second 8 4" in page.text and "81.2 ± 1.2 62.5 90.0 ± 1.2" in page.text
    assert page.addresses[:2] == ["#1", "#2"] and page.tags.count("svg") == 2 * 6 + 1, "one of them compares the two"
    job(tmp_path / "c", "third", ["cat", "dog"])
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path / "c"), "--output", str(tmp_path / "x.html")]) == 0
    assert "These sets are of different classes" in Page(tmp_path / "x.html").text


def test_what_a_set_reached_is_drawn_apart_from_a_baseline_of_its_name(tmp_path: Path) -> None:
    rows = [row("distilled", 80.0), row("random", 60.0), row("50% distilled, rest real", 85.0)]
    for name in ("random", "plain"):
        path = job(tmp_path / name, name)
        card = read_card(path)
        card.accuracy = [{**card.accuracy[0], "rows": rows}]
        card.write(path)
    found = _compared([gather(tmp_path / name / f"{name}.beton") for name in ("random", "plain")])
    means = {name: {mean for _, _, mean, _ in points} for name, points in found.items()}
    mixed = {"50% the set random, rest real": {85.0}, "50% plain, rest real": {85.0}}
    assert means == {"the set random": {80.0}, "random": {60.0}, "plain": {80.0}, **mixed}


def test_long_names_are_shortened_in_a_legend_and_told_apart() -> None:
    names = [f"my_network_run-cifar10-width128-ipc{n}-{which}" for n, which in ((1, "first_try"), (10, "second_try"))]
    svg = draw_accuracies({name: [(100, 1.0 + place, 80.0, 1.0)] for place, name in enumerate(names)}) or ""
    labels = re.findall("<text[^>]*>([^<]*_try)</text>", svg)
    assert len(set(labels)) == 2 and all(len(label) <= 34 for label in labels)
    assert all(label.endswith(name[-15:]) for label, name in zip(labels, names, strict=True))


def test_a_set_of_ones_own_has_no_word_of_a_network_or_a_recording(tmp_path: Path) -> None:
    """Nor has one that was imported: neither has any."""
    card = Card(["cat", "dog"], 0, 2, [], [0.5], [0.5])
    path = write_beton(tmp_path / "own.beton", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, card)
    text = Page(write_report([path], tmp_path / "report.html")).text
    assert "4 distilled images of 2 classes" in text and "KiB on the disk. " in text
    assert "Made for" not in text and "recorded training" not in text and "symbolic link" not in text


def test_sets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        job(tmp_path / folder, "set")
    page = Page(write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "x.html"))
    assert "a/set" in page.text and "b/set" in page.text
    text = (tmp_path / "x.html").read_text()
    assert "a/set" in text[text.rindex("<svg") :] or "a/set" in text, "each has a line of its own"
    alike = [tmp_path / one / "same" / "set.beton" for one in ("c", "d")]
    assert _told_apart(alike) == [str(tmp_path / one / "same" / "set") for one in ("c", "d")]


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
    path = job(tmp_path_factory.mktemp("made"))
    shutil.rmtree(path.with_name("trajectory"))
    path.with_name(f"{path.stem}-log.csv").unlink()  # plots without a text of the card
    card = read_card(path)
    card.accuracy[0]["rows"].append(row("another", 50.0))
    card.write(path)
    write_report([path], path.with_name("before.html"))
    return path


@settings(deadline=None, max_examples=10)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_no_text_of_a_card_becomes_a_tag(made: Path, text: str) -> None:
    before = Page(made.with_name("before.html")).tags
    card = read_card(made)
    card.method = {"name": "TGDD", f"key{text}": f"</pre>{text}"}
    card.accuracy[0]["network"] = f"</table>{text}<b>"
    card.accuracy[0]["rows"][-1]["name"] = f"</svg>{text}"
    card.write(made)
    after = Page(write_report([made], made.with_name("after.html"))).tags
    # A letter that no font has is drawn as text, another name of the lines alters how the legend is grouped.
    varying = ("tr", "td", "g", "path", "use", "text", "defs", "tspan")
    assert [tag for tag in after if tag not in varying] == [tag for tag in before if tag not in varying]


PROBE = """<script>
const root = document.documentElement;
const found = [root.scrollWidth, window.innerWidth, getComputedStyle(document.body).backgroundColor];
const slider = document.querySelector(".evolution input"), tile = document.querySelector(".evolution i");
const place = () => getComputedStyle(tile).backgroundPositionY;
found.push(place());
slider.value = 0;
slider.dispatchEvent(new Event("input"));
found.push(place(), document.querySelector(".evolution output").textContent);
document.querySelectorAll(".strip")[1].click();
const box = document.querySelector("dialog"), large = box.querySelector("i");
found.push(box.open, box.querySelectorAll("i").length, box.querySelector("span").textContent);
found.push(large.offsetWidth > 2 * document.querySelector(".strip i").offsetWidth);
found.push(getComputedStyle(large).backgroundImage.startsWith('url("data:image/png'));
box.click();
found.push(box.open);
document.title = JSON.stringify(found);
</script></body>"""


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_browser_shows_it_without_complaint(tmp_path: Path, width: int, dark: bool) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    job(tmp_path, classes=["cat", "dog"])
    page = write_report([tmp_path], tmp_path / "report.html")
    (tmp_path / "probe.html").write_text(page.read_text().replace("</body>", PROBE))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run(
        [browser, *options, f"--window-size={width},900", "--dump-dom", "probe.html"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*)</title>", done.stdout)
    assert title
    wide, window, ground, last, first, step, opened, tiles, name, large, drawn, still = json.loads(unescape(title[1]))
    assert wide <= window, "nothing stands out to the side"
    assert ground == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
    assert (last, first, step) == ("100%", "0%", "step 0"), "the slider shows the start"
    assert (opened, tiles, name, large, drawn) == (True, 4, "Distilled images of cat", True, True), "the zoom"
    assert not still, "a click beside the images closes it"
    assert page.stat().st_size < 3 * 2**20


def test_a_report_of_what_is_no_set_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("distill: {steps: 5}\n")
    script = (
        "import sys; from tgdd_plugin import cli; code = cli.main(['report', 'job.yaml']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "2 False\n" and "its name does not end in .beton. Name a .beton file." in done.stderr
