"""distill(): the run around the loss, on a trajectory recorded by a real Trainer."""

import random
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from composer import Callback
from composer.loggers import InMemoryLogger, LoggerDestination
from composer.models import ComposerClassifier
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18

from tests.common import refusal, streams
from tests.patterned import SETTINGS, Crash, herding_by_hand, is_kept, patterned, run, tiny
from tgdd_plugin import DistillSettings, ImagePool, InputError, RetrainSettings, read_card, retrain
from tgdd_plugin.beton.card import card_path
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.inputs import check_before_recording
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.logs.log_file import read_log
from tgdd_plugin.networks import convnet
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.pipeline.recipe import read_recipe
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory, pool: ImagePool) -> Trajectory:
    folder = tmp_path_factory.mktemp("trajectory")
    settings = RecordSettings(epochs=4, runs=2, batch_size=8, learning_rate=0.05)
    return record(folder, pool, tiny, settings, device="cpu", progress_bar=False)


def test_writes_a_file_that_says_where_it_comes_from(trajectory, pool, tmp_path):
    path = run(trajectory, pool, tmp_path / "deep" / "set.beton")
    images, labels = read_beton(path)
    card = read_card(path)
    assert images.shape == (6, 3, 8, 8)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert card.classes == ["rows", "columns", "chess"]
    assert (card.images, card.images_per_class, card.factor, card.shape) == (6, 2, 1, [3, 8, 8])
    assert card.mean == pytest.approx(pool.statistics()[0])
    assert card.trajectory["stages"] == trajectory.checksums and len(card.trajectory["stages"]) == 2 * 5
    assert card.method["steps"] == 12 and card.method["alpha"] == 2.5
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["set-log.csv", "set.beton", "set.beton.yaml"], "checkpoints are removed"


def test_the_loss_falls_and_is_logged_term_by_term(trajectory, pool, tmp_path):
    logger = InMemoryLogger()
    run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=100, start="noise"), loggers=[logger])
    match, constraint, total = (
        torch.tensor([float(value) for _, value in logger.data[f"loss/train/{name}"]])
        for name in ("match", "constraint", "total")
    )
    torch.testing.assert_close(total, match + 2.5 * constraint)
    assert match[-20:].mean() < 0.7 * match[:20].mean()
    assert constraint[-20:].mean() < 0.9 * constraint[:20].mean()


def test_the_callers_random_streams_go_on_as_if_there_had_been_no_distillation(trajectory, pool, tmp_path):
    def build():
        np.random.rand(), random.random()  # as a user's own initialization may draw
        return tiny()

    before = streams()
    path = run(trajectory, pool, tmp_path / "set.beton", network=build)
    assert streams() == before
    settings = RetrainSettings(epochs=1, seeds=1, full_epochs=0)
    retrain(path, pool, settings, network=build, device="cpu", progress_bar=False)
    assert streams() == before


def test_in_inference_mode_all_is_as_outside(pool, tmp_path):
    def made(folder):
        options = {"device": "cpu", "progress_bar": False}
        training = {"epochs": 1, "batch_size": 8, "precision": "fp32", "compile": False}
        recorded = record(folder, pool, tiny, RecordSettings(**training), **options)
        path = run(recorded, pool, folder / "a.beton", replace(SETTINGS, steps=2, learning_rate="auto"))
        rows = [
            retrain(
                path, pool, {"protocol": "paper", **training, "seeds": 2, "full_epochs": 0, "at_once": way}, **options
            )
            for way in (False, True)
        ]
        return path.read_bytes(), [row.accuracies for each in rows for row in each]

    with torch.inference_mode():
        inside = made(tmp_path / "inside")
    assert inside == made(tmp_path / "outside")


class DrawingNetwork(nn.Module):
    """Dropout in evaluation mode, too, as Monte Carlo dropout has it."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3 * 8 * 8, 3)

    def forward(self, images):
        return self.classifier(nn.functional.dropout(images.flatten(1), 0.5, training=True))


def test_a_network_that_draws_in_evaluation_makes_the_same_bytes_whatever_was_drawn_before(pool, tmp_path):
    options = {"device": "cpu", "progress_bar": False}
    training = RecordSettings(epochs=1, batch_size=8, precision="fp32", compile=False)
    recorded = record(tmp_path / "t", pool, DrawingNetwork, training, **options)
    settings = replace(SETTINGS, steps=2, start="herding", learning_rate="auto", alpha="auto")
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        files.append(run(recorded, pool, tmp_path / f"{seed}.beton", settings, network=DrawingNetwork).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(("factor", "schedule"), [(1, "constant"), (2, "constant"), (2, "linear")])
def test_equals_a_plain_loop_without_composer(trajectory, pool, tmp_path, factor, schedule):
    """The run itself (Trainer, draws, clamp, decoding, uint8) adds nothing to SGD on the model's loss."""
    settings = replace(SETTINGS, factor=factor, steps=5, schedule=schedule).resolved(8)
    path = run(trajectory, pool, tmp_path / "a.beton", settings)
    network = tiny()
    bank = StageBank(trajectory, [network])
    start = start_pixels("mix", (3, 2, 3, 8, 8), factor, pool, keyed_generator(0, 0, 2**31))
    synthetic = SyntheticImages(start, factor)
    draws = Draws(settings, bank, pool, synthetic)
    normalization = Normalization(*pool.statistics())
    model = DistillationModel(
        synthetic, [FeatureNetwork(network, "classifier")], bank, pool, normalization=normalization, alpha=2.5
    )
    rates = []
    for step in range(5):
        batch = draws(step)
        (gradient,) = torch.autograd.grad(model.loss(model(batch), batch)["total"], synthetic.pixels)
        left = 1 - max(step - 1, 0) / 5 if schedule == "linear" else 1.0  # Composer's schedulers lag a step behind
        rates.append(settings.learning_rate * left)
        synthetic.pixels.data.sub_(rates[-1] * gradient).clamp_(0, 1)
    images, labels = synthetic.to_uint8()
    written, written_labels = read_beton(path)
    assert torch.equal(written_labels, labels)
    assert (written.int() - images.int()).abs().max() <= 1, "as far as the order of float additions goes"
    assert read_log(tmp_path / "a-log.csv")["learning_rate"] == pytest.approx(rates)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(trajectory, pool, tmp_path):
    settings = replace(SETTINGS, ema="3ba", schedule="linear")
    whole = run(trajectory, pool, tmp_path / "whole" / "a.beton", settings)
    path = tmp_path / "killed" / "a.beton"
    options = {"checkpoint_interval": "5ba"}
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, settings, callbacks=[Crash(8)], **options)
    assert not path.exists()
    resumed = Steps()
    run(trajectory, pool, path, settings, callbacks=[resumed], **options)
    assert resumed.seen == list(range(6, 13)), "it goes on from the checkpoint at 5, not from the start"
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("more", [{"progress_bar": True}, {"picture": "a.svg"}, {"loggers": [InMemoryLogger()]}])
def test_a_resumed_run_may_show_more_than_the_first_without_a_warning(trajectory, pool, tmp_path, more):
    path, settings = tmp_path / "a.beton", replace(SETTINGS, steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, settings, callbacks=[Crash(2)], checkpoint_interval="1ba")
    if "picture" in more:
        more = {"picture": tmp_path / more["picture"]}
    resumed = Steps()
    run(trajectory, pool, path, settings, callbacks=[resumed], **more)  # a warning is an error
    assert resumed.seen == [2, 3]


@pytest.mark.parametrize("left", [0, 1000], ids=["empty", "cut"])
def test_a_damaged_checkpoint_is_left_out(trajectory, pool, tmp_path, left):
    whole = run(trajectory, pool, tmp_path / "whole" / "a.beton")
    path = tmp_path / "killed" / "a.beton"
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, callbacks=[Crash(8)], checkpoint_interval="5ba")
    (latest,) = path.parent.glob(".distill-*/latest-rank0.pt")
    latest.resolve().write_bytes(latest.read_bytes()[:left])  # as a power failure may leave it
    steps = Steps()
    with pytest.warns(UserWarning, match="cannot be used, and work begins anew"):
        run(trajectory, pool, path, callbacks=[steps])
    assert steps.seen == list(range(1, 13)) and path.read_bytes() == whole.read_bytes()


def test_nothing_that_a_checkpoint_names_is_run(trajectory, pool, tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    path = tmp_path / "a.beton"
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, callbacks=[Crash(8)], checkpoint_interval="5ba")
    (latest,) = tmp_path.glob(".distill-*/latest-rank0.pt")
    torch.save({**torch.load(latest, weights_only=False), "more": Harmful()}, latest.resolve())
    with pytest.warns(
        UserWarning,
        match="cannot be used, and work begins anew: .state_dict... of a callback must hold plain values "
        "and tensors alone, got .*. Keep it",
    ):
        run(trajectory, pool, path)
    assert not (tmp_path / "harmed").exists() and path.is_file()


def test_the_users_pool_keeps_its_classes(trajectory, pool, tmp_path):
    own = ImagePool(pool.images, pool.labels)
    run(trajectory, own, tmp_path / "a.beton")
    assert read_card(tmp_path / "a.beton").classes == pool.classes and own.classes == ["0", "1", "2"]
    retrain(tmp_path / "a.beton", own, {"epochs": 1, "seeds": 1}, device="cpu", progress_bar=False)
    assert own.classes == ["0", "1", "2"]


class Normed(nn.Module):
    """A network that cannot be copied once it was called, as one of its weights is computed."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(192, 8)), nn.ReLU())
        self.classifier = nn.Linear(8, 3)

    def forward(self, images):
        return self.classifier(self.body(images))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_a_network_that_cannot_be_copied_is_built(pool, tmp_path):
    trajectory = record(tmp_path / "t", pool, Normed, {"epochs": 1, "batch_size": 8}, device="cpu", progress_bar=False)
    run(trajectory, pool, tmp_path / "a.beton", network=Normed)
    with pytest.raises(InputError, match="must be a function that builds it where it cannot be copied .*got a Normed"):
        run(trajectory, pool, tmp_path / "b.beton", network=Normed())


class Steps(Callback):
    """Keeps the numbers of the steps and the pixels after each."""

    def __init__(self) -> None:
        self.seen, self.pixels = [], []

    def batch_end(self, state, logger):
        self.seen.append(state.timestamp.batch.value)
        self.pixels.append(state.model.synthetic.pixels.detach().clone())


def test_packed_ships_the_last_pixels_as_they_are_stored(trajectory, pool, tmp_path):
    settings, steps = replace(SETTINGS, factor=2), Steps()
    plain = run(trajectory, pool, tmp_path / "plain.beton", settings)
    packed = run(trajectory, pool, tmp_path / "packed.beton", replace(settings, packed=True), callbacks=[steps])
    card = read_card(packed)
    assert (card.packed, card.images, card.images_per_class, card.shape) == (True, 24, 2, [3, 8, 8])
    assert replace(card, packed=False, method={}, sha256="") == replace(read_card(plain), method={}, sha256="")
    stored = np.rint(steps.pixels[-1].flatten(0, 1).numpy() * np.float32(255)).astype(np.uint8)
    assert all(image.transpose(1, 2, 0).tobytes() in packed.read_bytes() for image in stored)
    (images, labels), (others, other_labels) = read_beton(packed), read_beton(plain)
    assert images.shape == (24, 3, 8, 8) and torch.equal(labels, other_labels)
    assert (images.int() - others.int()).abs().max() <= 1, "rounded before decoding, or after"
    quick = RetrainSettings(epochs=1, seeds=1, full_epochs=0)
    rows = retrain(packed, pool, quick, real=pool, device="cpu", progress_bar=False)
    assert rows.pop().name == "full data, equal passes"
    assert [(row.name, row.images) for row in rows] == [
        ("distilled", 24),
        ("random", 6),
        ("random, decoded number", 24),
    ]


def test_a_job_is_told_by_its_form_too(trajectory, pool, tmp_path):
    settings = replace(SETTINGS, factor=2, steps=2)
    packing = replace(settings, packed=True)
    plain = run(trajectory, pool, tmp_path / "plain.beton", settings)
    packed = run(trajectory, pool, tmp_path / "packed.beton", packing)
    asked = [is_kept(trajectory, pool, path, job) for path in (plain, packed) for job in (settings, packing)]
    assert asked == [True, False, False, True]
    # Files of a version that could not pack.
    for path in (plain, packed):
        content = yaml.safe_load(card_path(path).read_text())
        del content["method"]["packed"]
        card_path(path).write_text(yaml.safe_dump(content))
    assert is_kept(trajectory, pool, plain, settings)
    assert not any(is_kept(trajectory, pool, path, packing) for path in (plain, packed))
    assert not is_kept(trajectory, pool, plain, replace(settings, seed=1))


def test_the_form_may_change_while_a_job_is_stopped(trajectory, pool, tmp_path):
    """The pixels are the same, whatever they ship as."""
    settings = replace(SETTINGS, factor=2)
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", settings, callbacks=[Crash(8)], checkpoint_interval="5ba")
    steps = Steps()
    path = run(trajectory, pool, tmp_path / "a.beton", replace(settings, packed=True), callbacks=[steps])
    assert steps.seen == list(range(6, 13)) and read_card(path).packed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-log.csv", "a.beton", "a.beton.yaml"]


def test_fewer_classes_at_a_time_are_the_same_job(trajectory, pool, tmp_path):
    """As memory that ran out asks for: what was done stays done."""
    few = replace(SETTINGS, classes_per_chunk=1)
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", callbacks=[Crash(8)], checkpoint_interval="5ba")
    steps = Steps()
    path = run(trajectory, pool, tmp_path / "a.beton", few, callbacks=[steps])
    assert steps.seen == list(range(6, 13))
    assert is_kept(trajectory, pool, path, few) and is_kept(trajectory, pool, path, SETTINGS)
    before = path.read_bytes()
    assert run(trajectory, pool, path, callbacks=[Crash(1)]).read_bytes() == before


def test_checkpoints_that_are_named_as_by_an_earlier_version_serve(trajectory, pool, tmp_path, monkeypatch):
    """By the number of classes at a time, too; and their monitor has no state."""
    few = replace(SETTINGS, classes_per_chunk=1)
    with monkeypatch.context() as earlier, pytest.raises(KeyboardInterrupt):
        earlier.setattr("tgdd_plugin.distillation.checkpoints.SAME_IMAGES", ())
        earlier.setattr("tgdd_plugin.distillation.monitoring.DistillationMonitor.state_dict", lambda self: {})
        run(trajectory, pool, tmp_path / "a.beton", few, callbacks=[Crash(8)], checkpoint_interval="5ba")
    steps = Steps()
    run(trajectory, pool, tmp_path / "a.beton", few, callbacks=[steps])
    assert steps.seen == list(range(6, 13))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-log.csv", "a.beton", "a.beton.yaml"]


def test_gradients_that_are_not_finite_are_counted_over_a_crash(trajectory, pool, tmp_path):
    """Finite up to the checkpoint and not after it: it ends as an uninterrupted run does, with a file and a warning."""

    class Broken(Callback):
        def after_backward(self, state, logger):
            if state.timestamp.batch.value >= 5:
                state.model.synthetic.pixels.grad.fill_(float("nan"))

    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", callbacks=[Broken(), Crash(6)], checkpoint_interval="5ba")
    with pytest.warns(UserWarning, match="7 of 12 steps had a gradient that is not finite"):
        run(trajectory, pool, tmp_path / "a.beton", callbacks=[Broken()], checkpoint_interval="5ba")


def test_another_job_does_not_resume_from_these_checkpoints(trajectory, pool, tmp_path):
    path = tmp_path / "a.beton"
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, callbacks=[Crash(8)], checkpoint_interval="5ba")
    steps = Steps()
    run(trajectory, pool, path, replace(SETTINGS, alpha=0.1), callbacks=[steps], overwrite=True)
    other = ImagePool(pool.images.flip(0), pool.labels.flip(0), pool.classes).subset(torch.arange(57))
    run(trajectory, other, path, callbacks=[steps], overwrite=True)
    assert steps.seen == list(range(1, 13)) * 2


def test_herding_needs_no_compiled_pass_of_its_own(trajectory, pool, tmp_path, monkeypatch):
    """Its 20 images of each class are computed as the 7 real ones of a step are, and chosen as without compiling."""
    shapes = set()

    def compiled(function, **_):
        def call(*arguments):
            shapes.add((torch.is_grad_enabled(), tuple(arguments[-1].shape)))
            return function(*arguments)

        return call

    settings = replace(SETTINGS, start="herding", real_per_class=7, classes_per_chunk=1, steps=1, learning_rate=0.0)
    plain = run(trajectory, pool, tmp_path / "plain.beton", replace(settings, compile=False))
    monkeypatch.setattr(torch, "compile", compiled)
    built = run(trajectory, pool, tmp_path / "built.beton", replace(settings, compile=True))
    assert {shape for with_gradient, shape in shapes if not with_gradient} == {(7, *pool.shape)}
    assert all(torch.equal(a, b) for a, b in zip(read_beton(plain.path), read_beton(built.path), strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_a_disk_without_room_for_the_file_is_told_before_any_step(trajectory, pool, tmp_path, monkeypatch, packed):
    settings, steps = replace(SETTINGS, factor=2, packed=packed), Steps()
    needed = run(trajectory, pool, tmp_path / "a.beton", settings).path.stat().st_size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    line = refusal(run, trajectory, pool, tmp_path / "b.beton", settings, callbacks=[steps])
    assert "MiB left" in line and not steps.seen
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed + 2**22))
    assert run(trajectory, pool, tmp_path / "b.beton", settings, callbacks=[steps]).path.stat().st_size == needed


def test_a_crash_costs_at_most_a_minute_of_steps(trajectory, pool, tmp_path):
    class Slow(Callback):
        """As if each step took 25 s; the third is the first one beyond a minute."""

        def batch_end(self, state, logger):
            spent = state.timestamp.total_wct + timedelta(seconds=25)
            state.timestamp = state.timestamp.copy(total_wct=spent)

    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", callbacks=[Slow(), Crash(5)])
    steps = Steps()
    run(trajectory, pool, tmp_path / "a.beton", callbacks=[steps])
    assert steps.seen == list(range(4, 13))


@pytest.mark.parametrize("augmentation", [None, "none"])
def test_chunks_of_classes_give_the_same_images(trajectory, pool, tmp_path, augmentation):
    settings = replace(SETTINGS, factor=2, augmentation=augmentation)
    whole = run(trajectory, pool, tmp_path / "whole.beton", settings)
    parts = run(trajectory, pool, tmp_path / "parts.beton", replace(settings, classes_per_chunk=2))
    assert (read_beton(whole)[0].int() - read_beton(parts)[0].int()).abs().max() <= 1


def test_what_ships_is_the_moving_average_when_asked(trajectory, pool, tmp_path):
    steps = Steps()
    path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, ema="4ba"), callbacks=[steps])
    # After 4 batches the older average weighs one half. Composer begins it with the first step's pixels.
    smoothing, average = 2 ** (-1 / 4), steps.pixels[0]
    for pixels in steps.pixels:
        average = smoothing * average + (1 - smoothing) * pixels
    wanted = (average.flatten(0, 1) * 255).round()
    assert (read_beton(path)[0] - wanted).abs().max() <= 1
    assert (steps.pixels[-1].flatten(0, 1) * 255 - wanted).abs().max() > 3, "the last iterate is another"


def test_pixels_stay_between_black_and_white_after_every_step(trajectory, pool, tmp_path):
    steps = Steps()
    with pytest.warns(UserWarning, match="learning_rate should move the pixels within their range"):
        run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, learning_rate=50.0), callbacks=[steps])
    for pixels in steps.pixels:
        assert pixels.min() >= 0 and pixels.max() <= 1
    assert steps.pixels[-1].min() == 0 and steps.pixels[-1].max() == 1, "the step was large enough to need the clamp"


def test_no_more_than_max_decoded_images_enter_a_step(trajectory, pool, tmp_path):
    synthetic = SyntheticImages(torch.rand(3, 2, 3, 8, 8), 2)
    draws = Draws(
        replace(SETTINGS, factor=2, max_decoded=5).resolved(8), StageBank(trajectory, [tiny()]), pool, synthetic
    )
    chosen = draws(0)["chosen"]
    assert chosen.shape == (3, 5)
    assert all(len(set(row.tolist())) == 5 and max(row) < 8 for row in chosen)
    everything = synthetic.decode(torch.arange(3))
    assert torch.equal(
        synthetic.decode(torch.arange(3), chosen), torch.stack([everything[c][chosen[c]] for c in range(3)])
    )


def test_bfloat16_moves_the_pixels_nearly_as_float32_does(trajectory, pool, tmp_path):
    moved = []
    start = start_pixels("mix", (3, 2, 3, 8, 8), 1, pool, keyed_generator(0, 0, 2**31))
    for precision in ("fp32", "bf16"):
        steps = Steps()
        settings = replace(SETTINGS, steps=1, precision=precision)
        run(trajectory, pool, tmp_path / f"{precision}.beton", settings, callbacks=[steps])
        moved.append((steps.pixels[0] - start).flatten())
    assert not torch.equal(*moved)
    assert torch.cosine_similarity(*moved, dim=0) > 0.99


def test_under_bfloat16_real_and_synthetic_images_are_augmented_alike(trajectory, pool):
    """In float32, before the networks' autocast: else rotated real images are blurred, and synthetic ones are not."""
    seen = []

    class Looking(FeatureNetwork):
        def __call__(self, weights, images):
            seen.append(images.detach().clone())
            return super().__call__(weights, images)

    network, normalization = tiny(), Normalization(*pool.statistics())
    settings = replace(SETTINGS, augmentation="scale_rotate", real_per_class=2).resolved(8)
    chosen = torch.tensor([[3, 7], [23, 27], [43, 47]])
    synthetic = SyntheticImages(pool.images[chosen].float() / 255)
    bank = StageBank(trajectory, [network])
    model = DistillationModel(
        synthetic, [Looking(network, "classifier")], bank, pool, normalization=normalization, alpha=0.0, bf16=True
    )
    model({**Draws(settings, bank, pool, synthetic)(0), "real": chosen})
    torch.testing.assert_close(seen[0], seen[1])


def test_grey_images_and_a_card_that_says_so(tmp_path):
    grayscale = patterned(channels=1)
    trajectory = record(
        tmp_path / "t", grayscale, lambda: tiny(1), RecordSettings(epochs=2), device="cpu", progress_bar=False
    )
    path = run(trajectory, grayscale, tmp_path / "a.beton", replace(SETTINGS, factor=2))
    assert read_card(path).shape == [1, 8, 8]
    assert read_beton(path)[0].shape == (24, 1, 8, 8)


def test_pictures_and_metrics_reach_the_users_loggers(trajectory, pool, tmp_path):
    class Pictures(InMemoryLogger):
        def __init__(self) -> None:
            super().__init__()
            self.pictures = []

        def log_images(self, images, name="Images", *args, **kwargs):
            self.pictures.append((name, tuple(images.shape)))
            self.last = images

    logger = Pictures()
    path = run(trajectory, pool, tmp_path / "a.beton", loggers=[logger], image_interval=6, picture=tmp_path / "a.png")
    assert [name for name, _ in logger.pictures] == ["tgdd/synthetic"] * 3, "at the start, at step 6 and at the last"
    # As numbers in [0, 1], which is what TensorBoard's writer takes floats for; bytes it would show as white.
    assert logger.last.is_floating_point() and logger.last.max() == 1 and logger.last.unique().numel() > 50
    # The images beside those at the start, by the names of their classes, as in the figure of the set.
    with Image.open(path.with_suffix(".png")) as picture:
        drawn = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal((logger.last * 255).round().to(torch.uint8), drawn)
    assert logger.hyperparameters["steps"] == 12 and logger.hyperparameters["learning_rate"] == 0.5


class Remote(LoggerDestination):
    """As WandBLogger: it could fetch a file, and dies when it is asked for one that is not there."""

    def can_download_files(self) -> bool:
        return True

    def download_file(self, *args, **kwargs):
        raise RuntimeError("asked for a checkpoint that was never made")


def test_a_logger_is_not_asked_for_a_checkpoint(trajectory, pool, tmp_path):
    whole = read_beton(run(trajectory, pool, tmp_path / "whole.beton", loggers=[Remote()]))[0]
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, tmp_path / "a.beton", loggers=[Remote()], callbacks=[Crash(7)], checkpoint_interval="3ba")
    assert torch.equal(read_beton(run(trajectory, pool, tmp_path / "a.beton", loggers=[Remote()]))[0], whole)


@pytest.mark.parametrize(
    "network",
    [tiny, lambda: ComposerClassifier(tiny(), 3), tiny(), ComposerClassifier(tiny(), 3)],
    ids=["factory", "factory of a ComposerClassifier", "module", "ComposerClassifier"],
)
def test_the_users_own_network_in_any_form(trajectory, pool, tmp_path, network):
    before = [p.requires_grad for p in network.parameters()] if isinstance(network, nn.Module) else None
    given = run(trajectory, pool, tmp_path / "a.beton", network=network)
    known = run(trajectory, pool, tmp_path / "b.beton")
    assert given.read_bytes() == known.read_bytes()
    if before is not None:
        assert [p.requires_grad for p in network.parameters()] == before and network.training, "it is left as it was"


def test_resnet18_of_torchvision_goes_all_the_way(tmp_path):
    """A mid-size network with batch normalisation, unchanged: record, distill, retrain."""
    pool = patterned(side=32)

    def build() -> nn.Module:
        return resnet18(num_classes=3)

    trajectory = record(
        tmp_path / "t", pool, build, RecordSettings(epochs=2, interval="1ep"), device="cpu", progress_bar=False
    )
    assert trajectory.run.head == "fc"
    settings = replace(SETTINGS, steps=3, factor=2, images_per_class=1, learning_rate=0.02)
    path = run(trajectory, pool, tmp_path / "a.beton", settings, network=build)
    start = start_pixels("mix", (3, 1, 3, 32, 32), 2, pool, keyed_generator(0, 0, 2**31))
    assert not torch.equal(read_beton(path)[0], SyntheticImages(start, 2).to_uint8()[0])
    rows = retrain(
        path, pool, RetrainSettings(epochs=2, seeds=1, full_epochs=0), network=build, device="cpu", progress_bar=False
    )
    assert 0 <= rows[0].accuracies[0] <= 1


def test_draws_depend_on_seed_step_and_rank_alone(trajectory, pool):
    draws = Draws(
        SETTINGS.resolved(8), StageBank(trajectory, [tiny()]), pool, SyntheticImages(torch.rand(3, 2, 3, 8, 8))
    )
    first = draws(5)
    draws(6)
    again = draws(5)
    assert torch.equal(first["real"], again["real"]) and first["early"] == again["early"]
    numbers = {float(torch.rand((), generator=keyed_generator(*key))) for key in [(0, 5), (0, 6), (1, 5), (0, 5, 1)]}
    assert len(numbers) == 4


def bad(match, **options):
    return pytest.param(options, match, id=match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        bad("to start from", settings=replace(SETTINGS, images_per_class=21, real_per_class=5)),
        bad("both sides of the images, 8x8 pixels, got 3. Choose 1, 2, 4 or 8.", settings=replace(SETTINGS, factor=3)),
        bad("must be a network, or a function that builds one, got 'resnet10'", network="resnet10"),
        bad("does not fit stage", network=lambda: convnet(3, 3, 8, depth=2, width=8)),
        bad("does not fit stage", network=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3))),
        bad("no linear layer", network=lambda: nn.Conv2d(3, 3, 1)),
        bad("must be the name of an nn.Linear of the network, got 'nowhere'", head="nowhere"),
        bad(r"channel of the images, which have 3, got mean \[0.5, 0.5\]", mean=[0.5] * 2, std=[0.5] * 2),
        bad("was recorded with, mean", mean=[0.0] * 3, std=[0.05] * 3),
        bad("`mean` and `std` must be given together", mean=[0.5] * 3),
        bad("`checkpoint_interval` must be a Composer time string, got 'soon'", checkpoint_interval="soon"),
        bad("is a folder", output="."),
        bad("Cannot write", output="file/below.beton"),
    ],
)
def test_what_does_not_fit_ends_in_one_line_and_loses_nothing(trajectory, pool, tmp_path, options, match):
    (tmp_path / "file").write_text("a file, not a folder")
    earlier = tmp_path / "a.beton"
    earlier.write_bytes(b"an earlier result")
    settings = options.pop("settings", SETTINGS)
    output = tmp_path / options.pop("output", "a.beton")
    with pytest.raises(InputError, match=match) as error:
        run(trajectory, pool, output, settings, overwrite=True, **options)
    assert "\n" not in str(error.value)
    assert earlier.read_bytes() == b"an earlier result"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.beton", "file"]


class Unread(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        raise AssertionError("an image was read")


@pytest.mark.parametrize("real", [None, Unread()], ids=["recorded", "sampled"])
def test_a_factor_that_does_not_fit_is_told_before_images_are_read_and_networks_built(trajectory, tmp_path, real):
    def build():
        raise AssertionError("a network was built")

    with pytest.raises(InputError, match="both sides of the images, 8x8 pixels, got 3"):
        run(trajectory, real, tmp_path / "a.beton", replace(SETTINGS, factor=3, source=None), network=build)


def test_images_of_which_one_channel_is_the_same_everywhere(tmp_path):
    """Two stains of a microscope stored as RGB: the third channel has no spread that could be compared."""
    pool = patterned()
    pool.images[:, 2] = 0
    settings = RecordSettings(epochs=2, batch_size=8, augmentation="none", cutmix=0.0)
    made = record(tmp_path / "t", pool, tiny, settings, device="cpu", progress_bar=False)
    assert run(made, pool, tmp_path / "a.beton", replace(SETTINGS, steps=2)).is_file()
    for scale in (8, 255):  # black images, as of a data set that was divided by 255 twice, have no spread at all
        dark = ImagePool(pool.images // scale, pool.labels)
        with pytest.raises(InputError, match="must turn the real images into what training saw"):
            run(made, dark, tmp_path / "b.beton", replace(SETTINGS, steps=2))


def test_a_recorded_head_that_the_network_lacks_is_refused(trajectory, pool, tmp_path):
    folder = shutil.copytree(trajectory.folder, tmp_path / "trajectory")
    for path in folder.glob("*/manifest.json"):
        path.write_text(path.read_text().replace('"head": "classifier"', '"head": "nope"'))
    with pytest.raises(InputError, match=r"`head` must be given .* names 'nope', .* linear layers \['classifier'\]"):
        run(folder, pool, tmp_path / "a.beton")
    run(folder, pool, tmp_path / "a.beton", replace(SETTINGS, steps=1), head="classifier")


def test_labels_beyond_the_head_are_refused(trajectory, pool, tmp_path):
    more = ImagePool(pool.images, pool.labels + 1)
    with pytest.raises(InputError, match=r"`labels` must be 0\.\.2 for 3 classes, got labels from 1 to 3"):
        run(trajectory, more, tmp_path / "a.beton")


def test_images_that_training_cannot_have_seen_are_refused(trajectory, pool, tmp_path):
    darker = ImagePool(pool.images // 5, pool.labels, pool.classes)
    with pytest.raises(InputError, match="what training saw, inputs of mean"):
        run(trajectory, darker, tmp_path / "a.beton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(trajectory, pool, tmp_path):
    with pytest.raises(InputError, match="`device` must be 'cpu' where torch finds no GPU, got 'gpu'"):
        run(trajectory, pool, tmp_path / "a.beton", device="gpu")


def test_classes_must_be_the_trajectorys_in_its_order(trajectory, pool, tmp_path):
    turned = ImagePool(pool.images, 2 - pool.labels, pool.classes[::-1])
    with pytest.raises(
        InputError, match="must be those of the trajectory, rows, columns, chess, got chess, columns, rows"
    ):
        run(trajectory, turned, tmp_path / "a.beton")
    nameless = ImagePool(pool.images, pool.labels)
    assert read_card(run(trajectory, nameless, tmp_path / "a.beton")).classes == ["rows", "columns", "chess"]


@pytest.mark.parametrize("ema", [None, "4ba"])
def test_a_run_that_broke_off_after_its_last_step_is_written_out(trajectory, pool, tmp_path, ema):
    settings = replace(SETTINGS, ema=ema)
    whole = run(trajectory, pool, tmp_path / "whole" / "a.beton", settings)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("tgdd_plugin.distillation.result.write_beton", full)
        run(trajectory, pool, tmp_path / "a.beton", settings, checkpoint_interval="12ba")
    path = run(trajectory, pool, tmp_path / "a.beton", settings, checkpoint_interval="12ba")
    assert torch.equal(read_beton(path)[0], read_beton(whole)[0])


def test_a_start_that_takes_too_many_images_says_how_many_are_right(trajectory, pool, tmp_path):
    with pytest.raises(InputError, match=r"= 24 of each[.] Lower images_per_class to 5, or choose start 'real'"):
        run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, images_per_class=6, factor=2))
    run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, images_per_class=5, factor=2, steps=1))


@pytest.mark.parametrize("source", ["sampled", "recorded"])
def test_a_start_by_herding_is_of_typical_images(trajectory, pool, tmp_path, source):
    settings = replace(SETTINGS, steps=1, learning_rate=0.0, start="herding", source=source)
    path = run(trajectory, pool if source == "sampled" else None, tmp_path / "a.beton", settings)
    real = pool if source == "sampled" else trajectory.exemplars()
    folder, recorded = next(iter(trajectory.runs.items()))
    network = tiny().eval()
    stage = load_file(folder / recorded.stages[-1].file)
    weights = {name.removeprefix("module."): tensor for name, tensor in stage.items() if not name.startswith("tgdd/")}
    network.load_state_dict(weights)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (recorded.mean, recorded.std))
    features = network.features((real.images.float() / 255 - mean) / std).flatten(1).detach()
    features = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    expected = real.images[herding_by_hand(features, real.labels.tolist(), 2)]
    found, labels = read_beton(path)
    for label in range(3):
        images = {image.numpy().tobytes() for image in found[labels == label]}
        assert images == {image.numpy().tobytes() for image in expected[2 * label : 2 * label + 2]}


def test_a_start_by_herding_that_takes_too_many_images_is_refused(trajectory, pool, tmp_path):
    with pytest.raises(InputError, match=r"= 24 of each[.] Lower images_per_class to 5"):
        run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, images_per_class=6, factor=2, start="herding"))


def test_images_of_another_size_are_refused(trajectory, tmp_path):
    with pytest.raises(InputError, match=r"of shape \[3, 8, 8\] .*which training saw, got \[3, 16, 16\]"):
        run(trajectory, patterned(side=16), tmp_path / "a.beton", network=tiny)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_stages(trajectory, pool, tmp_path):
    folder = tmp_path / "t"
    shutil.copytree(trajectory.folder, folder)
    bank = StageBank.__getitem__

    def poisoned(self, position):
        return {name: tensor * float("nan") for name, tensor in bank(self, position).items()}

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="no longer finite at step 0.*epoch"):
        patch.setattr(StageBank, "__getitem__", poisoned)
        run(folder, pool, tmp_path / "a.beton")


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"factor": 0}, {"classes_per_chunk": 0},
     {"alpha": -1.0}, {"start": "zeros"}, {"precision": "fp8"}, {"ema": "soon"},
     {"packed": True, "factor": 1},
     {"ema": "1ep"}, {"augmentation": "colour"}, {"learning_rate": float("nan")}, {"seed": -1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=str(next(iter(change)))):
        DistillSettings(**change)


@pytest.mark.parametrize("source", ["sampled", "recorded"])
def test_some_classes_alone_have_the_gradients_they_have_among_all(trajectory, pool, source):
    ids = [2, 0]
    network, real = tiny(), pool if source == "sampled" else None
    bank = StageBank(trajectory, [network], recorded=real is None)
    pixels = torch.rand(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"normalization": Normalization(*pool.statistics()), "alpha": 2.5}
    both = [SyntheticImages(chosen.clone()) for chosen in (pixels, pixels[ids])]
    models = [DistillationModel(each, [FeatureNetwork(network, "classifier")], bank, real, **options) for each in both]
    batch = next(b for b in map(Draws(SETTINGS.resolved(8), bank, real, both[0]), range(9)) if b["early"] != b["late"])
    some = {name: value[ids] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    some["draw"] = {name: value[ids] for name, value in batch["draw"].items()}
    some["positions"] = torch.arange(2)
    for model, each in zip(models, (batch, some), strict=True):
        model.loss(model(each), each)["total"].backward()
    torch.testing.assert_close(both[1].pixels.grad, both[0].pixels.grad[ids])


@pytest.mark.parametrize("source", ["sampled", "recorded"])
def test_some_classes_alone_need_nothing_of_the_others(trajectory, pool, source, tmp_path):
    settings = replace(SETTINGS, classes=["chess", "rows"], source=source, augmentation="none")
    kept = trajectory.exemplars() if source == "recorded" else pool
    few = pool.subset(pool.labels.ne(1).nonzero()[:, 0])  # as a learner that has met these alone
    path = run(
        trajectory, few if source == "sampled" else None, tmp_path / "a.beton", replace(settings, learning_rate=0.0)
    )
    images, labels = read_beton(path)
    card = read_card(path)
    assert card.classes == ["chess", "rows"] and labels.tolist() == [0, 0, 1, 1]
    for image, label in zip(images, labels, strict=True):
        assert kept.images[kept.labels == (2, 0)[label]].eq(image).flatten(1).all(1).any()
    moved = read_beton(run(trajectory, few if source == "sampled" else None, tmp_path / "b.beton", settings))[0]
    assert not torch.equal(moved, images)


@pytest.mark.parametrize(
    "classes, pattern",
    [(["rows", "dots"], "`distill.classes` must be names of the trajectory's classes, got 'dots'"), ([], "")],
)
def test_unknown_classes_are_refused(trajectory, pool, tmp_path, classes, pattern):
    with pytest.raises(InputError, match=pattern or r"`classes` must be a non-empty list of .*, got \[\]"):
        run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, classes=classes))
    assert not list(tmp_path.iterdir())


def test_a_name_that_was_read_as_a_number_is_told():
    pool = ImagePool(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ["007", "cat"])
    (name,) = read_recipe(None, ["distill.classes=[007]"]).distill.classes
    line = refusal(check_before_recording, replace(SETTINGS, classes=[name]), pool, None, runs=1, exemplars=1)
    assert "got '7'. Its classes are 007, cat. Write a name like 007 in quotes" in line
    plain = ImagePool(pool.images, pool.labels, ["7", "cat"])
    line = refusal(check_before_recording, replace(SETTINGS, classes=["8"]), plain, None, runs=1, exemplars=1)
    assert line.endswith("got '8'. Its classes are 7, cat.")


def test_a_name_that_two_classes_have_chooses_neither():
    pool = ImagePool(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3), ["crane", "cat", "crane"])
    chosen = replace(SETTINGS, classes=["cat", "crane"])
    line = refusal(check_before_recording, chosen, pool, None, runs=1, exemplars=1)
    assert line.startswith("`distill.classes` must each be the name of one class, got 'crane', the name of 2.")
