"""A trajectory of several networks: which network belongs to which run, and what distilling under all of them is."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from tests.patterned import SETTINGS, Crash, patterned
from tgdd_plugin import InputError, distill, read_card
from tgdd_plugin.augmentation.dsa import augment
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.cli import main
from tgdd_plugin.core.seeding import keyed_generator
from tgdd_plugin.distillation.compatibility import bare_networks
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.evaluation.soft_labels import predict_soft_labels
from tgdd_plugin.networks import convnet, described
from tgdd_plugin.networks.compilation import should_compile
from tgdd_plugin.pipeline.show import describe_beton, describe_trajectory
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.manifest import Run
from tgdd_plugin.trajectory.store import Trajectory

RECORD = RecordSettings(epochs=3, runs=2, batch_size=8, learning_rate=0.05, exemplars=8)
SHAPE = (3, 8, 8)


def small() -> nn.Module:
    return convnet(3, 3, 8, depth=2, width=4)


def large() -> nn.Module:
    return convnet(3, 3, 8, depth=1, width=6, norm="batch", pooling="max", activation="sigmoid")


def curved() -> nn.Module:
    """Its weights have the names and shapes of the small one's."""
    return convnet(3, 3, 8, depth=2, width=4, activation="sigmoid")


class Plain(nn.Module):
    """A network that says nothing of how it was built."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(width, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(images))


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory, pool):
    folder = tmp_path_factory.mktemp("trajectory")
    return record(folder, pool, [small, large], RECORD, device="cpu", progress_bar=False)


def run(trajectory, real, path, settings=SETTINGS, **options):
    return distill(trajectory, real, path, settings, device="cpu", progress_bar=False, **options)


def test_as_many_runs_of_each_network_are_recorded(trajectory):
    numbers = {trajectory.runs[folder].name: number for folder, number in trajectory.architectures.items()}
    assert numbers == {"seed0": 0, "seed1": 0, "seed0-network2": 1, "seed1-network2": 1}
    assert [kind.name for kind in trajectory.representative_runs.values()] == ["seed0", "seed0-network2"]
    weights = [trajectory.load(folder, trajectory.run.stages[0]) for folder in trajectory.representative_runs]
    assert [len(each) for each in weights] == [len(small().state_dict()), len(large().state_dict())]
    text = describe_trajectory(trajectory)
    assert "run         seed0-network2: 4 stages" in text and "activation=relu" in text and "activation=sigmoid" in text


@pytest.mark.parametrize("source", ["sampled", "recorded"])
def test_equals_a_plain_loop_that_takes_each_runs_own_network(trajectory, pool, tmp_path, source):
    """Five steps of the paper's formula, class by class, each network loaded from its run's files."""
    settings = replace(SETTINGS, steps=5, source=source)
    path = run(trajectory, pool if source == "sampled" else None, tmp_path / "a.beton", settings)
    real = pool if source == "sampled" else None
    resolved = settings.resolved(
        8, source="sampled" if real is not None else "recorded", trained_with=trajectory.run.augmentation
    )
    bank = StageBank(trajectory, [small(), large()], recorded=real is None)
    origin = pool if real else each_once(trajectory.exemplars())
    synthetic = SyntheticImages(start_pixels("mix", (3, 2, *SHAPE), 1, origin, keyed_generator(0, 0, 2**31)))
    draws = Draws(resolved, bank, real, synthetic)
    stages = [(folder, stage) for folder, run in trajectory.runs.items() for stage in run.stages]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trajectory.run.mean, trajectory.run.std))
    pixels = synthetic.pixels.detach().clone()
    seen = set()
    for step in range(5):
        batch = draws(step)
        networks = []
        for folder, stage in (stages[batch["early"]], stages[batch["late"]]):
            networks.append((large if "network2" in folder.name else small)().eval())
            networks[-1].load_state_dict(trajectory.load(folder, stage))
            seen.add(folder.name.endswith("network2"))
        early, late = networks
        pixels.requires_grad_()
        total = 0
        for c in range(3):
            omega = {name: values[c] for name, values in batch["draw"].items()}
            if real:  # one draw for all images of the class
                views = augment((pixels[c : c + 1] - mean) / std, omega)[0]
                images = pool.images[batch["real"][c]].float() / 255
                wanted = early.features(augment((images[None] - mean) / std, omega)[0]).flatten(1).mean(0)
            else:  # one for each
                views = augment((pixels[c] - mean) / std, omega)
                wanted = trajectory.class_means(*stages[batch["early"]])[0][c]
            total = total + (early.features(views).flatten(1).mean(0) - wanted).square().sum()
            total = total + 2.5 * F.cross_entropy(late(views), torch.tensor([c, c]))
        (gradient,) = torch.autograd.grad(total, pixels)
        pixels = (pixels.detach() - 0.5 * gradient).clamp(0, 1)
    assert seen == {False, True}, "both networks were drawn"
    written, _ = read_beton(path)
    assert (written.int() - (pixels * 255).round().flatten(0, 1).int()).abs().max() <= 1


def each_once(pool):
    """The images without those that both seeds' runs kept, in their order."""
    seen = [image.numpy().tobytes() for image in pool.images]
    return pool.subset(torch.tensor([n for n, image in enumerate(seen) if image not in seen[:n]]))


def test_every_run_is_drawn_equally_often_whatever_its_network(trajectory):
    bank = StageBank(trajectory, [small(), large()])
    generator = torch.Generator().manual_seed(0)
    pairs = [bank.draw(7, generator) for _ in range(4000)]
    for number in range(4):
        share = sum(4 * number <= pair.early < 4 * number + 4 for pair in pairs) / 4000
        assert share == pytest.approx(0.25, abs=0.035)
    assert all(bank.architecture[pair.early] == bank.architecture[pair.late] for pair in pairs)


def test_the_card_names_every_network(trajectory, pool, tmp_path):
    path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=1))
    card = read_card(path)
    assert card.network["arguments"]["width"] == 4
    assert [network["arguments"]["width"] for network in card.trajectory["networks"]] == [4, 6]
    assert "seed1-network2: 16 stages of 2 networks" in describe_beton(path, card)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(trajectory, pool, tmp_path):
    whole = run(trajectory, pool, tmp_path / "whole" / "a.beton")
    path = tmp_path / "killed" / "a.beton"
    with pytest.raises(KeyboardInterrupt):
        run(trajectory, pool, path, callbacks=[Crash(8)], checkpoint_interval="5ba")
    run(trajectory, pool, path)
    assert torch.equal(read_beton(whole)[0], read_beton(path)[0])


def test_the_cost_is_told_of_all_networks(trajectory, pool, tmp_path, capsys):
    distill(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=6), device="cpu")
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("distilling 6 steps"))
    assert "16 stages of 2 networks take" in line


# Which network a run belongs to.


@pytest.mark.parametrize("given", [None, [large, small], [small(), large()], large, [small]])
def test_each_architecture_gets_its_own_network(trajectory, given):
    found = bare_networks(given, trajectory, SHAPE)
    assert [network.tgdd_network["arguments"]["width"] for network in found] == [4, 6]


@pytest.mark.parametrize("given", [None, [curved, small], [curved]])
def test_networks_of_equal_shapes_are_told_apart_by_how_they_were_built(pool, tmp_path, given):
    once = replace(RECORD, epochs=1, runs=1)
    trajectory = record(tmp_path, pool, [small, curved], once, device="cpu", progress_bar=False)
    found = bare_networks(given, trajectory, SHAPE)
    assert [network.tgdd_network["arguments"]["activation"] for network in found] == ["relu", "sigmoid"]


def test_one_network_alone_must_be_built_as_the_runs_was(pool, tmp_path):
    once = replace(RECORD, epochs=1, runs=1)
    trajectory = record(tmp_path / "t", pool, small, once, device="cpu", progress_bar=False)
    words = "run 'seed0' was trained with, .*activation=relu.*, got .*activation=sigmoid.* Leave it out, or give that"
    with pytest.raises(InputError, match=words):
        run(trajectory, pool, tmp_path / "a.beton", network=curved)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=1), network=small)


def test_one_network_of_the_users_own_may_be_built_by_other_arguments(pool, tmp_path):
    """Only its factory knows whether they matter to what it computes, as whether it loads weights does not."""
    once = replace(RECORD, epochs=1, runs=1)
    trajectory = record(tmp_path, pool, lambda: described(_noted)(0.5), once, device="cpu", progress_bar=False)
    assert bare_networks(lambda: described(_noted)(2.0), trajectory, SHAPE)


def test_a_network_that_belongs_to_no_run_is_refused(trajectory, pool, tmp_path):
    with pytest.raises(
        InputError, match=r"runs \('seed0', 'seed0-network2'\), got as network 2 ConvNet, which is not that of any"
    ):
        run(trajectory, pool, tmp_path / "a.beton", network=[small, lambda: convnet(3, 3, 8, depth=2, width=5)])
    assert not list(tmp_path.iterdir())


def test_networks_of_the_users_own_are_asked_for(pool, tmp_path):
    builders = [lambda: Plain(4), lambda: Plain(5)]
    once = replace(RECORD, epochs=1, runs=1)
    trajectory = record(tmp_path / "t", pool, builders, once, device="cpu", progress_bar=False)
    with pytest.raises(InputError, match="not one of this package's.*Pass network="):
        run(trajectory, pool, tmp_path / "a.beton")
    with pytest.raises(
        InputError, match=r"the network of run 'seed0-network2', .*:Plain of .*, got Plain[.] Give it, too"
    ):
        run(trajectory, pool, tmp_path / "a.beton", network=builders[:1])
    path = run(trajectory, pool, tmp_path / "a.beton", replace(SETTINGS, steps=3), network=builders[::-1])
    assert len(read_card(path).trajectory["networks"]) == 2


def test_a_note_of_a_users_factory_decides_between_equal_shapes(tmp_path, pool):
    build = described(_noted)
    once = replace(RECORD, epochs=1, runs=1)
    builders = [lambda: build(0.5), lambda: build(2.0)]
    trajectory = record(tmp_path, pool, builders, once, device="cpu", progress_bar=False)
    found = bare_networks(builders[::-1], trajectory, SHAPE)
    assert [network.tgdd_network["arguments"]["slope"] for network in found] == [0.5, 2.0]


def _noted(slope: float) -> nn.Module:
    network = Plain(4)
    network.layers[1] = nn.LeakyReLU(slope)
    return network


class Larger(Plain):
    """Has all weights of the other, of the same names and shapes, and one layer more."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.more = nn.Linear(3, 2)


class Other(Plain):
    """Has the very same weights."""


@pytest.mark.parametrize("second", [Larger, Other])
@pytest.mark.parametrize("turned", [False, True])
def test_networks_whose_weights_look_alike_are_not_confused(pool, tmp_path, second, turned):
    builders = [lambda: Plain(4), lambda: second(4)]
    once = replace(RECORD, epochs=1, runs=1)
    trajectory = record(tmp_path, pool, builders, once, device="cpu", progress_bar=False)
    found = bare_networks(builders[::-1] if turned else builders, trajectory, SHAPE)
    assert [type(network) for network in found] == [Plain, second]
    for alone in builders:
        with pytest.raises(InputError, match="Give it, too"):
            bare_networks(alone, trajectory, SHAPE)


def test_what_could_not_be_told_apart_is_refused_before_any_training(pool, tmp_path):
    builders = [small, lambda: Plain(4), lambda: Plain(4)]
    with pytest.raises(InputError, match="got networks 2 and 3, which are both Plain of .*described"):
        record(tmp_path, pool, builders, RECORD, device="cpu", progress_bar=False)
    with pytest.raises(InputError, match="must be the name of an nn.Linear of the network, got 'fc'"):
        record(tmp_path, pool, [lambda: Plain(4), small], RECORD, head="fc", device="cpu", progress_bar=False)
    assert not list(tmp_path.glob("seed*"))


def test_images_that_several_runs_kept_alike_are_there_once(trajectory):
    """Runs of one seed see the images in the same order, whatever their network."""
    whole = trajectory.exemplars()
    alone = [Trajectory(folder, {folder: trajectory.runs[folder]}).exemplars() for folder in trajectory.runs]
    assert len(whole) == sum(len(each) for each in alone) // 2 == 48
    held = {image.numpy().tobytes() for each in alone for image in each.images}
    assert held == {image.numpy().tobytes() for image in whole.images}


def test_runs_under_unlike_augmentations(pool, tmp_path):
    once = replace(RECORD, epochs=1, runs=1)
    record(tmp_path / "t", pool, small, once, device="cpu", progress_bar=False)
    record(tmp_path / "u", pool, large, replace(once, augmentation="crop"), device="cpu", progress_bar=False)
    shutil.move(tmp_path / "u/seed0", tmp_path / "t/other")
    with pytest.raises(
        InputError,
        match=r"`distill.augmentation` must .* different augmentations.*, got runs under color_crop_flip, crop[.]",
    ):
        run(tmp_path / "t", None, tmp_path / "a.beton", replace(SETTINGS, source="recorded"))
    means = replace(SETTINGS, source="recorded", steps=2, augmentation="crop")
    run(tmp_path / "t", None, tmp_path / "a.beton", means)
    run(tmp_path / "t", pool, tmp_path / "b.beton", replace(SETTINGS, steps=2))


def test_every_run_must_have_seen_such_images(pool, tmp_path):
    once = replace(RECORD, epochs=1, runs=1)
    record(tmp_path / "t", pool, small, once, device="cpu", progress_bar=False)
    record(tmp_path / "u", patterned(side=16), lambda: Plain(4), once, device="cpu", progress_bar=False)
    manifest = json.loads((tmp_path / "t/seed0/manifest.json").read_text())
    other = json.loads((tmp_path / "u/seed0/manifest.json").read_text())
    (tmp_path / "u/seed0/manifest.json").write_text(json.dumps(other | {k: manifest[k] for k in ("mean", "std")}))
    shutil.move(tmp_path / "u/seed0", tmp_path / "t/other")
    with pytest.raises(InputError, match=r"of shape \[3, 16, 16\] .*which training saw, got \[3, 8, 8\]"):
        run(tmp_path / "t", pool, tmp_path / "a.beton", network=[small, lambda: Plain(4)])


def test_runs_alike_but_for_their_seeds_are_one_architecture(tmp_path):
    runs = {}
    for name in ("a", "b", "c"):
        width = 5 if name == "b" else 4
        network = {"class": "m:Net", "parameters": 12, "arguments": {"width": width}, "factory": "m:net"}
        network["algorithms"] = ["EMA"] if name == "c" else []
        runs[tmp_path / name] = Run(name=name, network=network, head="fc", num_classes=3)
    trajectory = Trajectory(tmp_path, runs)
    assert {folder.name: number for folder, number in trajectory.architectures.items()} == {"a": 0, "b": 1, "c": 0}
    assert [folder.name for folder in trajectory.representative_runs] == ["a", "b"]


def test_soft_labels_are_the_mean_over_all_runs(trajectory, pool):
    images = pool.images[:7]
    labels = predict_soft_labels(trajectory, [small(), large()], images, trajectory.run.normalization)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trajectory.run.mean, trajectory.run.std))
    answers = []
    for folder, recorded in trajectory.runs.items():
        network = (large if "network2" in folder.name else small)().eval()
        network.load_state_dict(trajectory.load(folder, recorded.stages[-1]))
        with torch.no_grad():
            answers.append(network((images.float() / 255 - mean) / std).softmax(1))
    torch.testing.assert_close(labels, sum(answers) / 4, rtol=1e-4, atol=1e-5)


def test_each_network_may_be_compiled_in_as_many_forms_as_one_alone(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    with torch._dynamo.config.patch(recompile_limit=8):
        assert should_compile(True, 1, 8, torch.device("cpu"), networks=3)
        assert torch._dynamo.config.recompile_limit == 24


def test_compiled_networks_give_the_same_images(trajectory, pool, tmp_path):
    plain = run(trajectory, pool, tmp_path / "plain.beton", replace(SETTINGS, steps=4, compile=False))
    compiled = run(trajectory, pool, tmp_path / "compiled.beton", replace(SETTINGS, steps=4, compile=True))
    assert (read_beton(plain)[0].int() - read_beton(compiled)[0].int()).abs().max() <= 1


# On the command line.


RECIPE = """
device: cpu
output: out
data: {name: digits, per_class: 20}
network: {name: convnet, depth: 1, width: 4}
extra_networks: [{name: convnet, depth: 2, width: 4, norm: batch}]
record: {epochs: 1, batch_size: 50}
distill: {images_per_class: 1, factor: 1, steps: 2, real_per_class: 4}
retrain: {epochs: 2, full_epochs: 0, seeds: 1}
"""


def test_a_recipe_records_and_distills_several_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert main(["run", "recipe.yaml"]) == 0
    assert "out/trajectory: 2 run(s), 4 stages" in capsys.readouterr().out
    depths = [n["arguments"]["depth"] for n in read_card("out/digits-ipc1.beton").trajectory["networks"]]
    assert depths == [1, 2]
    again = yaml.safe_load((tmp_path / "out/digits-ipc1-recipe.yaml").read_text())
    assert again["extra_networks"] == [{"name": "convnet", "depth": 2, "width": 4, "norm": "batch"}]
    # The same job is kept; one of other networks is another.
    assert main(["run", "recipe.yaml"]) == 0
    assert "distilled out/digits-ipc1.beton: already done" in capsys.readouterr().out
    for other in ("extra_networks=[]", "extra_networks=[{depth: 3, width: 4}]"):
        assert main(["record", "recipe.yaml", other]) == 2
        assert "was recorded by another job (extra_networks" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out/trajectory/seed0-network2")
    assert main(["distill", "recipe.yaml", "file=other.beton"]) == 2
    assert "runs ('seed0'), got as network 2 ConvNet, which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        (
            "extra_networks={name: convnet}",
            "`extra_networks` must be a list of sections of keys and values, got",
        ),
        ("extra_networks=[convnet]", r"`extra_networks\[0\]` must be a section of keys and values, got 'convnet'"),
        (
            "extra_networks=[{name: convnet, widht: 4}]",
            r"Unknown key `extra_networks\[0\].widht`. Did you mean `extra_networks\[0\].width`",
        ),
        ("extra_networks=[{name: nothing}]", r"`extra_networks\[0\]` must be one of convnet, .* got 'nothing'"),
    ],
)
def test_sections_that_are_none_are_refused(tmp_path, capsys, given, pattern):
    assert main(["record", "nothing.yaml", given]) == 2
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert main(["record", str(tmp_path / "recipe.yaml"), given]) == 2
    assert re.search(pattern, capsys.readouterr().err.splitlines()[-1])


def test_a_folder_recorded_before_there_were_several_is_of_the_same_job(tmp_path, monkeypatch):
    """The note of such a folder has no word of further networks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert main(["record", "recipe.yaml", "extra_networks="]) == 0
    note = Path("out/trajectory/job.json")
    assert sorted(json.loads(note.read_text())) == ["data", "head", "network", "seed", "settings"]
    assert main(["record", "recipe.yaml", "extra_networks=[]"]) == 0


def test_extra_networks_have_no_place_in_a_replay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert main(["replay", "recipe.yaml"]) == 2
    assert "`extra_networks` must be left out in a replay" in capsys.readouterr().err


def test_own_networks_of_a_recipe_are_named_by_it_alone(tmp_path, monkeypatch, capsys):
    """Recorded, distilled and evaluated with its soft labels; without a word, the first is a ConvNet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_several.py").write_text(OWN)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    others = "extra_networks=[{name: own_several:build, width: 3}, {name: own_several:build, width: 5}]"
    small = ["network={depth: 1, width: 4}", "evaluate={networks: [], baselines: []}", others]
    assert main(["run", "recipe.yaml", *small]) == 0
    assert len(read_card("out/digits-ipc1.beton").trajectory["networks"]) == 3
    assert main(["evaluate", "recipe.yaml", *small]) == 0
    assert re.search(r"  soft +10 +20 ", capsys.readouterr().out)
    shutil.rmtree("out")
    assert main(["run", "recipe.yaml", "network=", *small[1:]]) == 0
    networks = read_card("out/digits-ipc1.beton").trajectory["networks"]
    assert [network["class"].rpartition(":")[2] for network in networks] == ["ConvNet", "Own", "Own"]


OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self, width, in_channels, num_classes):
        super().__init__()
        self.body = nn.Conv2d(in_channels, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.body(images).relu().mean((2, 3)))

def build(width, in_channels, num_classes):
    return Own(width, in_channels, num_classes)
"""
