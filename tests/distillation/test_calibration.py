"""Rates of the network's own: what 'auto' finds, and that it makes up for the size of a network's features."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.patterned import SETTINGS, Crash, run, tiny
from tgdd_plugin import DistillSettings, ImagePool, InputError, TrajectoryRecorder, describe_run, read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.atomic_files import sha256
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.calibration import BALANCE, MOVE
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory

STILL = RecordSettings(epochs=2, batch_size=8, learning_rate=0.0, weight_decay=0.0)  # all stages are alike
AUTO = replace(SETTINGS, learning_rate="auto", alpha="auto")


class Scaled(nn.Module):
    """A network whose features are of any size, while its outputs at the start, and their gradients, stay."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(54, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images) * self.size)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory, pool: ImagePool) -> Trajectory:
    settings = RecordSettings(epochs=3, batch_size=8, learning_rate=0.05)
    return record(tmp_path_factory.mktemp("trajectory"), pool, tiny, settings, device="cpu", progress_bar=False)


def test_the_rates_follow_from_the_gradients_of_the_first_steps(trajectory, pool, tmp_path):
    path = run(trajectory, pool, tmp_path / "a.beton", replace(AUTO, classes_per_chunk=2))
    network, normalization = tiny(), Normalization(*pool.statistics())
    bank = StageBank(trajectory, [network])
    synthetic = SyntheticImages(start_pixels("mix", (3, 2, 3, 8, 8), 1, pool, keyed_generator(0, 0, 2**31)))
    draws = Draws(AUTO.resolved(8), bank, pool, synthetic)
    found = {"match": 0.0, "constraint": 0.0}
    for step in range(4):
        for name, alpha in (("match", 0.0), ("constraint", 1.0)):
            model = DistillationModel(
                synthetic, [FeatureNetwork(network, "classifier")], bank, pool, normalization=normalization, alpha=alpha
            )
            batch = draws(step)
            (gradient,) = torch.autograd.grad(model.loss(model(batch), batch)[name], synthetic.pixels)
            found[name] += gradient.square().mean().sqrt().item() / 4
    calibrated = read_card(path).method["calibrated"]
    alpha = BALANCE * found["match"] / found["constraint"]
    assert calibrated["alpha"] == pytest.approx(alpha, rel=1e-4)
    moved = (found["match"] ** 2 + (alpha * found["constraint"]) ** 2) ** 0.5
    assert calibrated["learning_rate"] * moved == pytest.approx(MOVE, rel=1e-4)
    path = run(trajectory, pool, tmp_path / "b.beton", replace(AUTO, classes_per_chunk=2, schedule="linear", steps=1))
    assert read_card(path).method["calibrated"]["learning_rate"] == pytest.approx(5 * calibrated["learning_rate"])


def test_without_the_constraint_the_matching_alone_counts(trajectory, pool, tmp_path):
    """As in plain distribution matching on fresh networks: a head of zeros, as a fresh ViT's, passes no gradient on."""
    both = run(trajectory, pool, tmp_path / "a.beton", replace(AUTO, alpha=0.0, steps=1))
    zeroed = shutil.copytree(trajectory.folder, tmp_path / "t")
    for path in zeroed.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        for stage in manifest["stages"]:
            file = path.parent / stage["file"]
            tensors = load_file(file)
            for name in [name for name in tensors if "classifier" in name]:
                tensors[name].zero_()
            save_file(tensors, file)
            stage["sha256"] = sha256(file)
        path.write_text(json.dumps(manifest))
    none = run(zeroed, pool, tmp_path / "b.beton", replace(AUTO, alpha=0.0, steps=1))
    rates = [read_card(path).method["calibrated"] for path in (both, none)]
    assert rates[0]["learning_rate"] == pytest.approx(rates[1]["learning_rate"]) and rates[0]["alpha"] == 0
    with pytest.raises(InputError, match="`learning_rate` and `alpha` must be given in .* 0 .constraint."):
        run(zeroed, pool, tmp_path / "c.beton", AUTO)


def test_a_single_class_has_no_constraint(pool, tmp_path):
    """Its cross-entropy is 0 whatever the images; the rate is that without the constraint."""

    def build() -> nn.Module:
        network = Scaled(1.0)
        network.head = nn.Linear(54, 1)
        return network

    single = ImagePool(pool.images[pool.labels == 0], torch.zeros(20, dtype=torch.int64), ["rows"])
    network, recorder = build(), TrajectoryRecorder(tmp_path / "t", statistics=False)
    recorder.start(describe_run("run0", network, num_classes=1, mean=[0.5] * 3, std=[0.5] * 3), network)
    for epoch in (1, 2):
        images = (single.images.float() / 255 - 0.5) / 0.5
        network(images)
        recorder.batch(images, single.labels)
        recorder.stage(epoch)
    recorder.finish()
    recorded = Trajectory.open(tmp_path / "t")
    paths = [
        run(recorded, single, tmp_path / f"{alpha}.beton", replace(AUTO, alpha=alpha, steps=1), network=build)
        for alpha in ("auto", 0.0)
    ]
    found, without = (read_card(path).method["calibrated"] for path in paths)
    assert found == without and found["alpha"] == 0


def test_the_size_of_the_features_is_of_no_matter(pool, tmp_path):
    """Features a hundred times as large, under a head a hundred times as small: the same network, the same images."""
    found = []
    settings = replace(SETTINGS, learning_rate=None)
    for size in (1.0, 100.0):

        def build(size: float = size) -> nn.Module:
            torch.manual_seed(0)
            network = Scaled(size)
            network.head.weight.data /= size
            return network

        recorded = record(tmp_path / f"{size:g}", pool, build, STILL, device="cpu", progress_bar=False)
        path = run(recorded, pool, tmp_path / f"{size:g}.beton", settings, network=build)
        found.append(read_beton(path)[0].int())
    start = start_pixels("mix", (3, 2, 3, 8, 8), 1, pool, keyed_generator(0, 0, 2**31)).flatten(0, 1) * 255
    assert (found[0] - start).abs().mean() > 2, "the images have moved"
    assert (found[0] - found[1]).abs().max() <= 1, "as far as rounding goes"
    with pytest.raises(InputError, match="`learning_rate` must move the pixels within their range"):
        run(recorded, pool, tmp_path / "a.beton", replace(SETTINGS, learning_rate=0.04, alpha=2.5), network=build)


def test_published_rates_are_the_default_of_convnets_alone(trajectory, pool, tmp_path):
    settings = replace(SETTINGS, steps=1, learning_rate=None)
    card = read_card(run(trajectory, pool, tmp_path / "a.beton", settings))
    assert (card.method["learning_rate"], card.method["alpha"]) == (0.02 * settings.images_per_class, 2.5)
    assert "calibrated" not in card.method
    other = DistillSettings(budget=4_000).resolved(8, convnets=False)
    assert (other.learning_rate, other.alpha) == ("auto", "auto")
    given = DistillSettings(budget=4_000, alpha=1.0).resolved(8, convnets=False)
    assert (given.learning_rate, given.alpha) == ("auto", 1.0)


def test_a_killed_run_finds_the_same_rates_again(trajectory, pool, tmp_path):
    whole = run(trajectory, pool, tmp_path / "whole" / "a.beton", AUTO)
    path = tmp_path / "killed" / "a.beton"
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, AUTO, callbacks=[Crash(8)], checkpoint_interval="5ba")
    run(trajectory, pool, path, AUTO, checkpoint_interval="5ba")
    assert path.read_bytes() == whole.read_bytes()
    written = path.stat().st_mtime_ns
    run(trajectory, pool, path, AUTO)
    assert path.stat().st_mtime_ns == written, "the same job is already done"


def test_bad_values():
    with pytest.raises(InputError, match="^`alpha` must be a finite number of at least 0, or auto, or null, got 'big'"):
        DistillSettings(alpha="big")


def test_gradients_that_are_not_finite_are_told(pool, tmp_path):
    def build() -> nn.Module:
        return Scaled(1e30)

    recorded = record(tmp_path / "run", pool, build, STILL, device="cpu", progress_bar=False)
    with pytest.raises(InputError, match=r"`learning_rate` and `alpha` must be given in .* Give numbers") as e:
        run(recorded, pool, tmp_path / "a.beton", AUTO, network=build)
    assert "\n" not in str(e.value) and not (tmp_path / "a.beton").exists()


@pytest.mark.parametrize("size", [1e-7, 1e-5])
def test_features_that_are_the_same_for_all_images_are_refused(pool, tmp_path, size):
    """A set would be of noise: batch norms that follow slowly are still far from the images' statistics."""

    class Constant(Scaled):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(size * self.body(images) + 1) if not self.training else super().forward(images)

    made = record(tmp_path / "t", pool, lambda: Constant(1.0), STILL, device="cpu", progress_bar=False)
    with pytest.raises(InputError, match="must differ between images in evaluation mode, got ones .* Record longer"):
        run(made, pool, tmp_path / "a.beton", AUTO, network=lambda: Constant(1.0))


def test_images_that_start_as_all_real_ones_leave_nothing_to_match(trajectory, pool, tmp_path):
    """What is left of the matching then is rounding, and rates by it would be of any size."""
    settings = replace(AUTO, images_per_class=20, start="real", augmentation="none", real_per_class=20)
    with pytest.raises(InputError, match="`images_per_class` must leave something to match, .* start 'noise'"):
        run(trajectory, pool, tmp_path / "a.beton", settings)
    run(trajectory, pool, tmp_path / "b.beton", replace(settings, images_per_class=19))
