"""Distillation from the trajectory alone: recorded class means, and the few images kept with them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from composer import Callback, Logger, State
from safetensors.torch import load_file, save_file
from torch import nn

from tests.patterned import is_kept, patterned, tiny
from tgdd_plugin import DistillSettings, InputError, distill, read_card
from tgdd_plugin.augmentation.dsa import augment
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.cli import main
from tgdd_plugin.core.atomic_files import sha256
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory

pytestmark = pytest.mark.numerical

SETTINGS = DistillSettings(
    source="recorded", images_per_class=2, factor=2, steps=10, start="mix", schedule="constant", learning_rate=0.5
)
RECORD = RecordSettings(epochs=4, runs=2, batch_size=8, learning_rate=0.05, cutmix=0.2, exemplars=8)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    folder = tmp_path_factory.mktemp("trajectory")
    return record(folder, patterned(), tiny, RECORD, device="cpu", progress_bar=False)


def run(trajectory, path, settings=SETTINGS, real=None, **options):
    return distill(trajectory, real, path, settings, device="cpu", progress_bar=False, **options)


def changed(trajectory: Trajectory, folder: Path, change) -> Path:
    """A copy of the trajectory whose stages' tensors ``change(run, stage number, tensors)`` has changed."""
    shutil.copytree(trajectory.folder, folder)
    for number, path in enumerate(sorted(folder.glob("*/manifest.json"))):
        manifest = json.loads(path.read_text())
        for index, stage in enumerate(manifest["stages"]):
            file = path.parent / stage["file"]
            tensors = load_file(file)
            change(number, index, tensors)
            save_file(tensors, file)
            stage["sha256"] = sha256(file)
        path.write_text(json.dumps(manifest))
    return folder


def without_means(number, index, tensors):
    for name in ("tgdd/class_means", "tgdd/class_counts"):
        tensors.pop(name, None)


def test_needs_the_trajectory_alone(trajectory, tmp_path):
    path = run(trajectory, tmp_path / "a.beton")
    images, labels = read_beton(path)
    card = read_card(path)
    assert images.shape == (24, 3, 8, 8) and labels.bincount().tolist() == [8, 8, 8]
    assert card.method["source"] == "recorded" and card.method["augmentation"] == "color_crop_flip"
    assert card.classes == ["rows", "columns", "chess"] and card.real["images"] == 0
    assert is_kept(trajectory, None, path, SETTINGS)
    assert not is_kept(trajectory, None, path, replace(SETTINGS, seed=1))
    free = replace(SETTINGS, source=None)
    assert not is_kept(trajectory, patterned(), path, free), "with real images at hand they are sampled"


class TwoHeads(nn.Module):
    """The outputs are those of the head ``fc``; the other one takes features of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc, self.aux = nn.Flatten(), nn.Linear(3 * 8 * 8, 3), nn.Linear(7, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        return self.fc(features) + 0 * self.aux(features[:, :7])


def test_another_layer_than_the_recorded_one_is_refused(tmp_path):
    """The means are of what the recorded one takes in."""
    made = record(
        tmp_path / "t", patterned(), TwoHeads, replace(RECORD, runs=1), head="fc", device="cpu", progress_bar=False
    )
    gentle = replace(SETTINGS, learning_rate=1e-3)
    assert run(made, tmp_path / "a.beton", gentle, network=TwoHeads, head="fc").is_file()
    with pytest.raises(InputError, match="`head` must be 'fc' where the source is 'recorded', .* got 'aux'. Leave it"):
        run(made, tmp_path / "b.beton", gentle, network=TwoHeads, head="aux")


def test_means_of_another_width_are_refused(trajectory, tmp_path):
    def narrowed(number, index, tensors):
        if "tgdd/class_means" in tensors:
            tensors["tgdd/class_means"] = tensors["tgdd/class_means"][:, :-1].contiguous()

    with pytest.raises(InputError, match="means of .* must be of 16 features, as 'classifier' takes, got 15. Record"):
        run(changed(trajectory, tmp_path / "t", narrowed), tmp_path / "a.beton")


def test_kept_images_of_another_shape_are_refused(trajectory, tmp_path):
    folder = shutil.copytree(trajectory.folder, tmp_path / "t")
    for path in folder.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["input"]["shape"] = [3, 16, 16]
        path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"must be of shape \[3, 16, 16\] .* got \[3, 8, 8\]"):
        run(folder, tmp_path / "a.beton")


def test_loss_and_gradient_equal_the_formula(trajectory):
    """‖ recorded mean − mean φ_j(ω_i s_i) ‖² summed over classes, + α · cross-entropy, image by image in float64."""
    torch.manual_seed(0)
    network = tiny()
    bank = StageBank(trajectory, [network], recorded=True)
    synthetic = SyntheticImages(torch.rand(3, 2, 3, 8, 8), 2)
    mean, std = trajectory.run.mean, trajectory.run.std
    model = DistillationModel(
        synthetic,
        [FeatureNetwork(network, "classifier")],
        bank,
        None,
        normalization=Normalization(mean, std),
        alpha=0.7,
    )
    draws = Draws(SETTINGS.resolved(8, source="recorded"), bank, None, synthetic)
    batch = next(b for b in map(draws, range(100)) if b["early"] != b["late"])
    losses = model.loss(model(batch), batch)
    losses["total"].backward()

    stages = [(folder, stage) for folder, run in trajectory.runs.items() for stage in run.stages]
    early, late = (tiny().double() for _ in range(2))
    early.load_state_dict(trajectory.load(*stages[batch["early"]]))
    late.load_state_dict(trajectory.load(*stages[batch["late"]]))
    wanted_means = trajectory.class_means(*stages[batch["early"]])[0].double()
    pixels = synthetic.pixels.detach().double().requires_grad_()
    scale = [torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std)]
    total = 0
    for c in range(3):
        features = []
        for i in range(8):
            row, column = i % 4 // 2, i % 2
            part = pixels[c, i // 4, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            image = F.interpolate(part[None], size=8, mode="bilinear", align_corners=False)
            omega = {
                name: (values.double() if values.is_floating_point() else values)[c, i : i + 1]
                for name, values in batch["draw"].items()
            }
            seen = augment((image - scale[0]) / scale[1], omega)
            features.append(early.features(seen).flatten())
            total = total + 0.7 * F.cross_entropy(late(seen), torch.tensor([c])) / 8
        total = total + ((wanted_means[c] - sum(features) / 8) ** 2).sum()
    total.backward()
    torch.testing.assert_close(losses["total"].double(), total.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(synthetic.pixels.grad.double(), pixels.grad, rtol=1e-3, atol=1e-5)


def test_only_stages_with_means_of_every_class_are_matched(trajectory, tmp_path):
    def change(number, index, tensors):
        if (number, index) == (0, 2):
            without_means(number, index, tensors)
        if (number, index) == (1, 3):
            tensors["tgdd/class_counts"][1] = 0

    bank = StageBank(Trajectory.open(changed(trajectory, tmp_path / "t", change)), [tiny()], recorded=True)
    generator = torch.Generator().manual_seed(0)
    pairs = [bank.draw(7, generator) for _ in range(500)]
    # Two runs of five stages; the initial ones (0 and 5) have seen no image.
    assert {pair.early for pair in pairs} == {1, 3, 4, 6, 7, 9}
    assert {pair.late for pair in pairs} >= {2, 8}, "as late stages all serve"
    assert all(pair.early <= pair.late < (5 if pair.early < 5 else 10) for pair in pairs)


def test_a_trajectory_without_statistics_is_refused_in_one_line(trajectory, tmp_path, capsys):
    folder = changed(trajectory, tmp_path / "t", without_means)
    with pytest.raises(InputError, match="no stage with means of all 3 classes.*[.] Give the real images"):
        run(folder, tmp_path / "a.beton")
    sampled = replace(SETTINGS, source="sampled", steps=1, real_per_class=4)
    run(folder, tmp_path / "a.beton", sampled, real=patterned())
    arguments = ["distill", str(folder), f"output={tmp_path / 'out'}", "distill.source=recorded", "device=cpu"]
    assert main(arguments) == 2
    assert "no stage with means" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("out/*")), "nothing is left behind"


def test_sampling_without_real_images_is_refused(trajectory, tmp_path):
    with pytest.raises(
        InputError,
        match="`source` must be 'exemplars' or 'recorded' where there are no real images, got 'sampled'.*Give",
    ):
        run(trajectory, tmp_path / "a.beton", replace(SETTINGS, source="sampled"))


def test_a_start_that_wants_more_images_than_were_kept(trajectory, tmp_path):
    more = replace(SETTINGS, images_per_class=5)
    with pytest.raises(InputError, match=r"has 16 real images to start from.*start 'noise'"):
        run(trajectory, tmp_path / "a.beton", more)
    for start in ("noise", "real"):
        run(trajectory, tmp_path / f"{start}.beton", replace(more, start=start, steps=1))


def test_where_no_image_may_be_kept_it_starts_from_noise(tmp_path):
    settings = replace(RECORD, exemplars=0, runs=1)
    bare = record(tmp_path / "t", patterned(), tiny, settings, device="cpu", progress_bar=False)
    with pytest.raises(
        InputError, match="`start` must be 'noise' where there are no real images, got 'mix'.*start='noise'"
    ):
        run(bare, tmp_path / "a.beton")
    path = run(bare, tmp_path / "a.beton", replace(SETTINGS, start="noise"))
    assert read_card(path).real == {"images": 0, "fingerprint": None}
    assert is_kept(bare, None, path, replace(SETTINGS, start="noise"))


def test_real_images_may_serve_for_the_start_alone(trajectory, tmp_path):
    pool = patterned(per_class=8)
    few = ImagePool(pool.images, pool.labels, pool.classes)
    path = run(trajectory, tmp_path / "a.beton", replace(SETTINGS, source="recorded", steps=2), real=few)
    assert read_card(path).method["source"] == "recorded"


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(trajectory, tmp_path):
    class Killed(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            if state.timestamp.batch.value == 7:
                raise KeyboardInterrupt

    whole = run(trajectory, tmp_path / "whole.beton")
    (tmp_path / "part").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, tmp_path / "part" / "whole.beton", checkpoint_interval="5ba", callbacks=[Killed()])
    resumed = run(trajectory, tmp_path / "part" / "whole.beton", checkpoint_interval="5ba")
    assert torch.equal(read_beton(resumed)[0], read_beton(whole)[0])


def test_the_command_line_reads_no_data_set(trajectory, tmp_path, capsys):
    arguments = ["distill", str(trajectory.folder), f"output={tmp_path / 'out'}"]
    arguments += ["distill.images_per_class=1", "distill.steps=2"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert read_card(tmp_path / "out" / f"{trajectory.folder.name}-ipc1.beton").images == 3
    arguments += ["data.name=cifar10", f"data.root={tmp_path / 'nowhere'}"]
    assert main(arguments) == 2, "named data is wanted for sampling"
    assert main([*arguments, "distill.source=recorded"]) == 0


@pytest.mark.parametrize("stages", ["first", "last"])
def test_matching_under_one_stage_of_each_run(trajectory, stages):
    bank = StageBank(trajectory, [tiny()], matched=stages)
    pairs = [bank.draw(3, torch.Generator().manual_seed(i)) for i in range(200)]
    wanted = {0: {0, 1, 2}, 5: {5, 6, 7}} if stages == "first" else {4: {4}, 9: {9}}
    assert {early: {p.late for p in pairs if p.early == early} for early in {p.early for p in pairs}} == wanted


def test_without_the_constraint_the_late_stage_is_not_called(trajectory, tmp_path):
    calls = []

    class Counting(FeatureNetwork):
        def __call__(self, weights, images):
            calls.append(len(images))
            return super().__call__(weights, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tgdd_plugin.distillation.frozen_networks.FeatureNetwork", Counting)
        run(trajectory, tmp_path / "a.beton", replace(SETTINGS, alpha=0.0, steps=6))
    assert calls == [24] * 6
