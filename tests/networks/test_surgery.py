"""Composer's algorithms that change a network: what was trained is what the stages are used under."""

import copy
import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from composer.algorithms import (
    BlurPool,
    Factorize,
    GhostBatchNorm,
    LabelSmoothing,
    SqueezeExcite,
    StochasticDepth,
    WeightStandardization,
)
from composer.core import Event
from composer.models import ComposerClassifier
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from tests.common import CLASSES, fit, manifest
from tgdd_plugin import DistillSettings, TGDDCallback, Trajectory, distill
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.distillation.compatibility import bare_networks
from tgdd_plugin.networks.feature_network import fit_names
from tgdd_plugin.networks.surgery import apply_surgery, note_surgery, unknown_changes

SHAPE = (1, 8, 8)


class Pooled(nn.Module):
    """A network that each of the algorithms finds something to change in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2)
        self.strided = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.hidden = nn.Linear(64, 32)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.strided(self.pool(self.norm(self.conv(images)).relu())).relu()
        return self.fc(self.hidden(maps.flatten(1)).relu())


def bottlenecks() -> nn.Module:
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, width_per_group=4)


def trained(folder, algorithms, network=None, **options):
    """The network after a training under a callback, changed by the algorithms, in evaluation mode."""
    network = Pooled() if network is None else network
    fit(network, callbacks=[TGDDCallback(str(folder), **options)], algorithms=algorithms, max_duration="2ep")
    return network.eval()


def last_stage(folder, network):
    """A network as distillation makes it, with the weights of the last stage."""
    trajectory = Trajectory.open(folder)
    (network,) = bare_networks(network, trajectory, SHAPE)
    weights = trajectory.load(folder / "run", trajectory.run.stages[-1])
    names = fit_names(weights, network, "the last stage")
    network.load_state_dict({name: weights[recorded] for name, recorded in names.items()})
    return network.eval()


@pytest.mark.filterwarnings("ignore:Applying BlurPool did not change any layers")
@pytest.mark.filterwarnings("ignore:No instances of")
def test_what_a_trainer_changed_is_changed_again(tmp_path):
    algorithms = [BlurPool(), SqueezeExcite(min_channels=1), GhostBatchNorm(ghost_batch_size=4), LabelSmoothing(0.1)]
    network = trained(tmp_path, algorithms)
    noted = manifest(tmp_path / "run")["network"]
    assert noted["algorithms"] == ["BlurPool", "SqueezeExcite", "GhostBatchNorm", "LabelSmoothing"]
    assert [each["name"] for each in noted["surgery"]] == noted["algorithms"][:3]
    assert noted["surgery"][1]["arguments"] == {"latent_channels": 64, "min_channels": 1}
    images = torch.rand(8, *SHAPE)
    for given in (
        Pooled(),
        lambda: ComposerClassifier(Pooled(), CLASSES),
        network,
    ):  # also the very one of the training
        found = last_stage(tmp_path, given)
        torch.testing.assert_close(found(images), network(images), rtol=1e-5, atol=1e-6)
        found(images[:1])  # which ghost batch normalization itself would refuse


def test_blurred_pooling_is_distilled_under_the_network_that_was_trained(tmp_path):
    """The stages have one tensor more than the plain network, which nobody looked at."""
    trained(tmp_path, [BlurPool(replace_convs=False)], head="fc")
    settings = DistillSettings(images_per_class=1, factor=1, steps=2, augmentation="none")
    path = distill(tmp_path, None, tmp_path / "a.beton", settings, network=Pooled, device="cpu", progress_bar=False)
    assert path.is_file()


class Changed(SimpleNamespace):
    """As much of a Trainer's state as an algorithm looks at when it changes the network."""

    optimizers = None


@pytest.mark.parametrize(
    ("algorithm", "build"),
    [
        (BlurPool(blur_first=False, min_channels=8), Pooled),
        (SqueezeExcite(latent_channels=0.25, min_channels=16), Pooled),
        (GhostBatchNorm(ghost_batch_size=3), Pooled),
        (Factorize(min_channels=16, latent_channels=0.25, min_features=16, latent_features=4), Pooled),
        (WeightStandardization(n_last_layers_ignore=1), Pooled),
        (StochasticDepth("ResNetBottleneck", drop_rate=0.5), bottlenecks),
        (StochasticDepth("ResNetBottleneck", "sample", 0.3, "uniform"), bottlenecks),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_each_algorithm_makes_the_same_function(algorithm, build):
    network = build()
    state = Changed(model=ComposerClassifier(copy.deepcopy(network), CLASSES))
    algorithm.apply(Event.INIT, state, Mock())
    model = state.model.module.eval()
    noted = json.loads(json.dumps(note_surgery([algorithm])))
    random = torch.get_rng_state()
    again = apply_surgery(copy.deepcopy(network), noted)
    assert torch.equal(torch.get_rng_state(), random)
    again.load_state_dict(model.state_dict())
    images = torch.rand(4, *(SHAPE if build is Pooled else (3, 32, 32)))
    torch.testing.assert_close(again.eval()(images), model(images))
    with torch.no_grad():
        network.load_state_dict(model.state_dict(), strict=False)
        assert algorithm.__class__ is GhostBatchNorm or not torch.allclose(network.eval()(images), model(images))
    twice = apply_surgery(copy.deepcopy(again), noted)
    assert list(twice.state_dict()) == list(again.state_dict())
    torch.testing.assert_close(twice(images), model(images))


def test_a_tensor_that_the_network_lacks_is_refused():
    recorded = {**Pooled().state_dict(), "pool.filt2d": torch.zeros(1, 1, 3, 3)}
    with pytest.raises(InputError, match="does not fit stage 7: the network has no 'pool.filt2d', which the stage has"):
        fit_names(recorded, Pooled(), "stage 7")
    wrapped = {f"net.{name}": tensor for name, tensor in recorded.items()}
    with pytest.raises(InputError, match="has no 'net.pool.filt2d'"):
        fit_names(wrapped, Pooled(), "stage 7")


class Own(BlurPool):
    """An algorithm of a user's, which changes the network in a way of its own."""


@pytest.mark.parametrize("algorithm", [Own(replace_convs=False), BlurPool(replace_convs=False)])
def test_what_is_not_known_is_named(tmp_path, algorithm):
    trained(tmp_path, [algorithm], head="fc")
    path = tmp_path / "run" / "manifest.json"
    content = json.loads(path.read_text())
    content["network"].pop("surgery", None)  # as an earlier version wrote it
    path.write_text(json.dumps(content))
    name = type(algorithm).__name__
    with pytest.raises(InputError, match=f"no 'pool.filt2d'.*trained with {name}, which may have changed it") as caught:
        bare_networks(Pooled, Trajectory.open(tmp_path), SHAPE)
    assert "\n" not in str(caught.value)
    changed = Pooled()
    changed.pool = apply_surgery(Pooled(), note_surgery([BlurPool(replace_convs=False)])).pool
    assert bare_networks(changed, Trajectory.open(tmp_path), SHAPE)
    assert unknown_changes({"algorithms": ["EMA", name]}) == [name]


GOOD = {"replace_convs": True, "replace_maxpools": True, "blur_first": True, "min_channels": 16}


@pytest.mark.parametrize(
    ("noted", "message"),
    [
        ({"name": "os.system", "arguments": {}}, "must be among BlurPool, .*, got 'os.system'"),
        ({"arguments": GOOD}, "must be among BlurPool, .*, got 'None'"),
        ({"name": "BlurPool"}, "arguments of BlurPool in the manifest must be those of Composer's algorithm"),
        (
            {"name": "BlurPool", "arguments": {**GOOD, "min_channels": "16"}},
            "`min_channels` must be a whole number",
        ),
        ({"name": "BlurPool", "arguments": {**GOOD, "model": 1}}, "but `model` is not known[.]"),
        (
            {"name": "SqueezeExcite", "arguments": {"latent_channels": 1e12, "min_channels": 1}},
            "`latent_channels` must be less than",
        ),
        (
            {"name": "SqueezeExcite", "arguments": {"latent_channels": float("nan"), "min_channels": 1}},
            "`latent_channels` must be a finite number",
        ),
        ({"name": "GhostBatchNorm", "arguments": {"ghost_batch_size": 0}}, "`ghost_batch_size` must be greater"),
    ],
)
def test_a_note_from_elsewhere_chooses_from_the_table_alone(noted, message):
    with pytest.raises(InputError, match=message) as caught:
        apply_surgery(Pooled(), [noted])
    assert "\n" not in str(caught.value)
