"""What `tgdd show` prints and draws: every pixel where it belongs, and the numbers of the card and the manifest."""

import numpy as np
import torch

from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.pipeline.show import describe_beton, describe_trajectory
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.writing import add_stage


def made(channels, count=14, side=(5, 7)):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (count, channels, *side), dtype=np.uint8))


def test_a_card_in_words(tmp_path):
    row = {"name": "distilled", "images": 8, "epochs": 5, "mean_percent": 42.5, "std_points": 1.25}
    entry = {"network": "ConvNet", "seeds": [0, 1], "test_images": 540}
    card = Card(
        ["cat", "dog"],
        0,
        4,
        [],
        [0.12345],
        [0.5],
        method={"name": "TGDD", "alpha": 2.5},
        network={"factory": "tgdd_plugin.networks:convnet", "arguments": {"width": 8}},
        trajectory={"runs": ["seed0"], "stages": ["a" * 64] * 1200},
        accuracy=[{**entry, "rows": [row, {**row, "name": "random", "passes": 37, "std_points": None}]}],
    )
    path = write_beton(tmp_path / "x.beton", made(1, 8), torch.arange(8) % 2, card)
    text = describe_beton(path, card)
    for wanted in (
        "x.beton",
        card.sha256,
        "8 of 1x5x7: 4 stored per class",
        "2: cat, dog",
        "mean [0.1235]",
        "alpha 2.5",
    ):
        assert wanted in text
    assert "convnet(width=8)" in text and "seed0: 1200 stages" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["distilled", "8", "40", "42.5", "±", "1.2"] in lines  # noted without passes: images x epochs
    assert ["random", "8", "37", "42.5"] in lines
    assert "accuracy    ConvNet, seeds [0, 1], 540 test images\n" in text  # as an earlier version noted it
    architecture = {"factory": "tgdd_plugin.networks:convnet", "arguments": {"width": 4}}
    card.accuracy[0] |= {"architecture": architecture, "parameters": 1234}
    words = "accuracy    tgdd_plugin.networks:convnet(width=4), 1,234 parameters, seeds [0, 1], 540 test images\n"
    assert words in describe_beton(path, card)
    assert len(text) < 3000  # a trajectory has a thousand checksums
    bare = Card([str(i) for i in range(100)], 8, 4, [1, 5, 7], [0.0], [1.0], sha256="0")
    assert "100: 0, 1" in describe_beton(path, bare) and "network     not recorded\n" in describe_beton(path, bare)


def test_a_packed_file_in_words(tmp_path):
    card = Card(["cat", "dog"], 0, 4, [], [0.5], [0.5], factor=2, packed=True)
    path = write_beton(tmp_path / "x.beton", made(1, 8, (4, 6)), torch.arange(8) % 2, card)
    assert "32 of 1x4x6: 4 stored per class, factor 2, packed: the file holds 8\n" in describe_beton(path, card)


def test_a_trajectory_in_words(tmp_path):
    for name in ("seed0", "seed1"):
        run = Run(
            name=name,
            network={"class": "torch.nn:Linear", "parameters": 1234567, "factory": None},
            head="layer",
            num_classes=2,
            classes=["cat", "dog"],
            mean=[0.25],
            std=[0.5],
            input={"shape": [1.0, 8.0, 8.0], "mean": [0.0], "std": [1.0]},
            complete=name == "seed0",
        )
        for epoch in range(3):
            metrics = {"loss": 1 / (epoch + 1)} if epoch else {}
            weights = {"w": torch.zeros(2**18)}
            add_stage(tmp_path / name, run, weights, None, epoch=epoch, batch=10 * epoch, sample=0, metrics=metrics)
        run.write(tmp_path / name)
    text = describe_trajectory(Trajectory.open(tmp_path))
    for wanted in (
        "torch.nn:Linear()",
        "1,234,567 parameters, head layer",
        "classes     2: cat, dog",
        "1x8x8",
        "mean [0.25]",
    ):
        assert wanted in text
    assert "seed0: 3 stages, 3.0 MiB, complete" in text and "seed1: 3 stages, 3.0 MiB, not complete" in text
    lines = [line.split() for line in text.splitlines()]
    assert lines.count(["epoch", "batch", "loss"]) == 2
    assert lines.count(["0", "0", "-"]) == 2 and lines.count(["2", "20", "0.3333"]) == 2
