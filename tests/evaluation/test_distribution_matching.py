"""Plain distribution matching: under networks that were never trained, class means come nearer to the real ones."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.common import At, manifest, recorded
from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.evaluation import distribution_matching as module
from tgdd_plugin.evaluation.distribution_matching import fresh_networks, match_distributions
from tgdd_plugin.networks import convnet

K = 3
CLASSES = ["a", "b", "c"]
QUICK = DistillSettings(images_per_class=2, steps=4, real_per_class=10, augmentation="crop", seed=3)
QUIET = {"device": "cpu", "progress_bar": False}


def build():
    return convnet(K, 1, 8, depth=1, width=4)


def make_pool(count=60):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % K
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    images[torch.arange(count), :, 2 * labels] += 100  # a brighter row tells the class
    return ImagePool(images.to(torch.uint8), labels, CLASSES)


REAL = make_pool()
MEAN, STD = REAL.statistics()
NORMALIZATION = Normalization(MEAN, STD)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(module, "NETWORKS", 4)


def match(output, settings=QUICK, **options):
    return match_distributions(REAL, output, settings, build, normalization=NORMALIZATION, **{**QUIET, **options})


def test_networks_are_fresh_and_different(tmp_path):
    torch.manual_seed(1)
    stream = torch.get_rng_state()
    trajectory = fresh_networks(tmp_path, build, CLASSES, NORMALIZATION, seed=5)
    assert torch.equal(torch.get_rng_state(), stream)
    assert (trajectory.run.classes, trajectory.run.mean, trajectory.run.std) == (CLASSES, MEAN, STD)
    torch.manual_seed(5)
    wanted = [build().state_dict() for _ in range(4)]
    (run_folder,) = trajectory.runs
    stages = recorded(run_folder)
    assert len(stages) == 4
    for stage, weights in zip(stages.values(), wanted, strict=True):
        assert all(torch.equal(stage[name], tensor) for name, tensor in weights.items())
    convolutions = [stage["features.0.weight"] for stage in stages.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(convolutions) for b in convolutions[:i])
    assert not any(torch.equal(stages[0][n], t) for n, t in other_seed(tmp_path).items() if n.startswith("features.0"))


def other_seed(folder):
    (run_folder,) = fresh_networks(folder / "other", build, CLASSES, NORMALIZATION, seed=6).runs
    return recorded(run_folder)[0]


def test_the_same_networks_are_written_over_what_is_left(tmp_path):
    first = fresh_networks(tmp_path, build, CLASSES, NORMALIZATION).checksums
    (run_folder,) = tmp_path.iterdir()
    (run_folder / "stage-ep9-ba9.safetensors").write_bytes(b"left")
    assert fresh_networks(tmp_path, build, CLASSES, NORMALIZATION).checksums == first
    assert not (run_folder / "stage-ep9-ba9.safetensors").exists()


@pytest.mark.parametrize(("room", "count"), [(0, 2), (3.5, 3), (100, 4)])
def test_as_many_as_there_is_room_for(tmp_path, monkeypatch, room, count):
    """At least two, at most the given number; a network's parameters have four bytes each."""
    size = 4 * sum(p.numel() for p in build().parameters())
    monkeypatch.setattr(module, "NETWORK_BYTES", int(room * size))
    (run_folder,) = fresh_networks(tmp_path, build, CLASSES, NORMALIZATION).runs
    assert len(manifest(run_folder)["stages"]) == count


@pytest.mark.parametrize(
    "settings",
    [
        QUICK,
        replace(QUICK, source="recorded", alpha=2.5, stages="last"),
        replace(QUICK, start="noise", factor=2, packed=True),
    ],
)
def test_the_file_is_plain_matching_whatever_the_distillation_was(tmp_path, settings):
    path = match(tmp_path / "matched.beton", settings)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["matched.beton", "matched.beton.yaml"]
    images, labels = read_beton(path)
    assert images.shape == (K * 2, 1, 8, 8) and torch.bincount(labels).tolist() == [2] * K
    card = read_card(path)
    assert (card.factor, card.packed, card.images, card.images_per_class) == (1, False, 6, 2)
    wanted = {"alpha": 0.0, "factor": 1, "start": "real", "source": "sampled", "stages": "all", "steps": 4, "seed": 3}
    assert {key: card.method[key] for key in wanted} == wanted
    assert (card.classes, card.mean, card.std) == (CLASSES, MEAN, STD)
    assert len(card.trajectory["stages"]) == 4


def test_what_is_there_of_this_job_is_kept(tmp_path):
    path = match(tmp_path / "matched.beton")
    before, card = path.stat().st_mtime_ns, read_card(path)
    assert match(path) == path and path.stat().st_mtime_ns == before
    more, longer = make_pool(63), replace(QUICK, steps=5)
    match_distributions(more, path, QUICK, build, normalization=NORMALIZATION, **QUIET)
    assert read_card(path).real["images"] == 63 and read_card(path).sha256 != card.sha256
    match_distributions(more, path, longer, build, normalization=NORMALIZATION, **QUIET)
    assert read_card(path).method["steps"] == 5
    wide = convnet(K, 1, 8, depth=1, width=8)  # another network
    match_distributions(more, path, longer, lambda: wide, normalization=NORMALIZATION, **QUIET)
    assert read_card(path).network["parameters"] == sum(p.numel() for p in wide.parameters())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["matched.beton", "matched.beton.yaml"]


def test_a_broken_off_call_goes_on(tmp_path):
    def pull(_):
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled"):
        match(tmp_path / "matched.beton", callbacks=[At(3, pull)], checkpoint_interval="1ba")
    assert not (tmp_path / "matched.beton").exists()
    seen = []
    path = match(tmp_path / "matched.beton", callbacks=[At(3, seen.append), At(4, seen.append)])
    assert len(seen) <= 2 and sorted(p.name for p in tmp_path.iterdir()) == ["matched.beton", "matched.beton.yaml"]
    assert path.read_bytes() == match(tmp_path / "whole.beton").read_bytes()


def test_class_means_come_nearer_to_the_real_ones_under_networks_it_has_not_seen(tmp_path):
    settings = DistillSettings(images_per_class=2, steps=60, real_per_class=20, augmentation="none", seed=3)
    still = replace(settings, steps=1, learning_rate=0.0)
    start, end = (read_beton(match(tmp_path / f"{own.steps}.beton", own)) for own in (still, settings))
    assert torch.equal(start[1], end[1]) and not torch.equal(start[0], end[0])
    real = {image.numpy().tobytes() for image in REAL.images}
    assert all(image.numpy().tobytes() in real for image in start[0])  # it starts from real images
    closer = 0
    for seed in range(100, 110):
        torch.manual_seed(seed)
        network = nn.Sequential(build().features, nn.Flatten())

        def means(images, labels, network=network):
            with torch.no_grad():
                features = network((images / 255 - MEAN[0]) / STD[0])
            return torch.stack([features[labels == label].mean(0) for label in range(K)])

        wanted = means(REAL.images, REAL.labels)
        before, after = (float((means(*own) - wanted).square().sum()) for own in (start, end))
        closer += after < 0.5 * before
    assert closer == 10


def test_of_too_few_real_images_all_are_matched(tmp_path):
    for number in (21, 20):
        match(tmp_path / f"{number}.beton", DistillSettings(images_per_class=2, steps=4, real_per_class=number))
    assert (tmp_path / "21.beton").read_bytes() == (tmp_path / "20.beton").read_bytes()
