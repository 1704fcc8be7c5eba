"""Which layer is the head: the one that makes the logits, wherever it stands in the listing."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composer import Callback, Logger, State
from torch import nn

from tests.common import CLASSES, Crash, OwnModel, fit, manifest, statistics, streams
from tgdd_plugin import TGDDCallback, TrajectoryRecorder, describe_run
from tgdd_plugin.core.errors import InputError
from tgdd_plugin.core.seeding import forked_streams
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.networks.heads import find_head, last_called


class SeveralHeads(nn.Module):
    """Layers of K outputs behind the head in the listing: one of training alone, one that is never called."""

    def __init__(self, unused: bool = True) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(64, 8), nn.Dropout(0.5)
        self.fc, self.auxiliary = nn.Linear(8, CLASSES), nn.Linear(64, CLASSES)
        if unused:
            self.unused = nn.Linear(5, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.flatten(1)
        logits = self.fc(self.drop(self.body(pixels)).relu())
        return logits + 0.1 * self.auxiliary(pixels) if self.training else logits


def test_the_last_one_called_is_found_and_the_network_left_as_it_was():
    network = SeveralHeads()
    network.drop.eval()
    before, drawn = copy.deepcopy(network.state_dict()), streams()
    assert find_head(network, CLASSES, shape=(1, 8, 8)) == "fc"
    assert streams() == drawn and network.training and not network.drop.training
    assert not network.fc._forward_pre_hooks
    torch.testing.assert_close(network.state_dict(), before)
    assert find_head(network, CLASSES, "unused", (1, 8, 8)) == "unused"  # named by the user
    assert find_head(network, CLASSES, shape=(3, 9, 9)) == "unused"  # images that it does not take: as without them
    assert last_called(network, {"unused": network.unused}, lambda copied: copied(torch.zeros(1, 1, 8, 8))) is None
    assert describe_run("run", network, CLASSES, shape=(1, 8, 8)).head == "fc"


def test_the_callback_records_the_head_and_its_statistics(tmp_path):
    network = SeveralHeads()
    fit(network, callbacks=[TGDDCallback(str(tmp_path))], device_train_microbatch_size=4, max_duration="2ep")
    assert manifest(tmp_path / "run")["head"] == "fc"
    assert [found["means"].shape for found in statistics(tmp_path / "run").values() if found] == [(CLASSES, 8)] * 2
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("options", [{}, {"statistics": False}])
def test_looking_for_it_leaves_training_as_it_is(tmp_path, options):
    torch.manual_seed(0)
    network = SeveralHeads()
    alone = copy.deepcopy(network)
    fit(alone)
    fit(network, callbacks=[TGDDCallback(str(tmp_path), **options)])
    assert manifest(tmp_path / "run")["head"] == "fc"
    torch.testing.assert_close(network.state_dict(), alone.state_dict(), rtol=0, atol=0)


class KeepsWhatItsLossNeeds(nn.Module):
    """Two layers of K outputs, of which a forward pass leaves more than its answer, in training and in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.exit = nn.Linear(64, CLASSES), nn.Linear(64, CLASSES)
        self.register_buffer("calls", torch.zeros(()))
        self.exits: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.flatten(1) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
        self.calls += 1
        logits = self.fc(pixels)
        self.exits = [self.exit(pixels)]
        return logits

    def eval(self) -> nn.Module:
        self.merged = True  # as where an adapter adds its weights to those that it adapts
        return super().eval()


class WithExits(OwnModel):
    def loss(self, outputs: torch.Tensor, batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().loss(outputs, batch) + sum(
            nn.functional.cross_entropy(exit, batch[1]) for exit in self.net.exits
        )


class Averaged(KeepsWhatItsLossNeeds):
    """No layer's output is the answer, so that a copy must tell which one is called last in evaluation mode."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + (self.exits.pop() if self.training else 0)


@pytest.mark.parametrize("make", [KeepsWhatItsLossNeeds, Averaged])
def test_the_network_is_not_called_once_more_between_its_forward_pass_and_its_loss(tmp_path, make):
    def train(**options):
        with forked_streams(5):
            model = WithExits(make())
            fit(model, max_duration="2ep", **options)
            return model, streams()

    (alone, drawn), (recorded, drawn_too) = train(), train(callbacks=[TGDDCallback(str(tmp_path))])
    torch.testing.assert_close(recorded.state_dict(), alone.state_dict(), rtol=0, atol=0)
    assert drawn == drawn_too and not hasattr(recorded.net, "merged")
    # In the second, the exit is called last in evaluation mode, too, and it is listed last.
    assert manifest(tmp_path / "run")["head"] == ("net.fc" if make is KeepsWhatItsLossNeeds else "net.exit")


class Copies(Callback):
    """Saves and scripts the whole network between two batches."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        self.network, self.path = network, path

    def batch_end(self, state: State, logger: Logger) -> None:
        torch.save(self.network, self.path)
        torch.jit.script(self.network)


@pytest.mark.parametrize("options", [{}, {"compile_config": {"backend": "eager"}}])
def test_between_forward_passes_the_network_is_as_without_the_callback(tmp_path, options):
    """So the file of the whole network needs nothing of this package where it is loaded."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    callbacks = [Copies(network, tmp_path / "whole.pt"), TGDDCallback(str(tmp_path))]
    fit(network, callbacks=callbacks, device_train_microbatch_size=4, max_duration="2ep", **options)
    assert b"tgdd" not in (tmp_path / "whole.pt").read_bytes()
    found = [each["counts"] for each in statistics(tmp_path / "run").values() if each]
    assert len(found) == 2 and all((counts > 0).all() for counts in found)


class Projected(nn.Module):
    """A wide layer behind the head in the listing and before it in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.projection = nn.Linear(7, CLASSES), nn.Linear(64, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.projection(images.flatten(1)).relu())


def test_a_model_that_does_not_say_how_many_classes_there_are(tmp_path):
    fit(OwnModel(Projected()), callbacks=[TGDDCallback(str(tmp_path), exemplars=2)], max_duration="1ep")
    noted = manifest(tmp_path / "run")
    assert (noted["head"], noted["num_classes"]) == ("net.fc", CLASSES)
    (means,) = [found["means"] for found in statistics(tmp_path / "run").values() if found]
    assert means.shape == (CLASSES, 7) and noted["exemplars"]
    names = ["a", "b", "c"]
    fit(OwnModel(Projected()), callbacks=[TGDDCallback(str(tmp_path / "named"), classes=names)], max_duration="1ba")
    noted = manifest(tmp_path / "named" / "run")
    assert (noted["head"], noted["classes"]) == ("net.fc", names)


def test_a_resumed_run_keeps_the_head_that_was_found(tmp_path):
    """What its checkpoint had added up is of that head's shape, and would otherwise be lost."""

    def train(folder, *callbacks, **options):
        torch.manual_seed(1)
        network = SeveralHeads(unused=False)  # Composer cannot save the optimizer's state of a layer without gradients
        fit(network, callbacks=[TGDDCallback(str(folder), "2ep"), *callbacks], max_duration="2ep", **options)

    options = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "3ba", "autoresume": True}
    with pytest.raises(RuntimeError, match="crash"):
        train(tmp_path / "t", Crash(5), **options)
    train(tmp_path / "t", **options)
    train(tmp_path / "whole")
    assert manifest(tmp_path / "t" / "run")["head"] == "fc"
    one, other = (list(statistics(tmp_path / name / "run").values())[-1] for name in ("t", "whole"))
    assert one["means"].shape == (CLASSES, 8)
    torch.testing.assert_close(one["counts"], other["counts"])


def test_a_head_that_is_never_called_is_told_when_distilling():
    network = FeatureNetwork(SeveralHeads(), "unused")
    with pytest.raises(InputError, match="got 'unused': the head is never called .*such as head='fc', which is called"):
        network.check(network.network.state_dict(), (1, 8, 8), CLASSES)


def test_a_plain_loop_may_name_its_head(tmp_path):
    network = SeveralHeads()
    recorder = TrajectoryRecorder(tmp_path)
    recorder.start(describe_run("run", network, CLASSES, head="auxiliary", mean=[0.0], std=[1.0]), network)
    network(torch.rand(3, 1, 8, 8))
    recorder.batch(torch.rand(3, 1, 8, 8), torch.arange(3))
    recorder.finish(epoch=1)
    (means,) = [found["means"] for found in statistics(tmp_path / "run").values() if found]
    assert means.shape == (CLASSES, 64)
