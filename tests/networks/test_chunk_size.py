"""How much of a step is computed at once, what happens when that is too much, and compiled passes."""

import shutil
from dataclasses import replace

import pytest
import torch

from tests.patterned import SETTINGS, patterned, run, tiny
from tgdd_plugin import InputError
from tgdd_plugin.beton.card import read_card
from tgdd_plugin.beton.format import read_beton
from tgdd_plugin.distillation.stage_bank import StageBank
from tgdd_plugin.networks.chunk_size import CPU_ACTIVATION, chunk_sizes, even_part
from tgdd_plugin.networks.compilation import should_compile
from tgdd_plugin.networks.factory import build_network
from tgdd_plugin.networks.feature_network import FeatureNetwork
from tgdd_plugin.recording.runs import record
from tgdd_plugin.recording.settings import RecordSettings
from tgdd_plugin.trajectory.store import Trajectory

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    settings = RecordSettings(epochs=2, batch_size=8, learning_rate=0.05)
    return record(tmp_path_factory.mktemp("trajectory"), patterned(), tiny, settings, device="cpu", progress_bar=False)


@pytest.mark.parametrize(
    ("count", "limit", "wanted"), [(128, 40, 32), (40, None, 40), (200, 48, 40), (7, 5, 5), (3, 9, 3), (101, 10, 10)]
)
def test_even_parts(count, limit, wanted):
    assert even_part(count, limit) == wanted


def test_the_footprint_is_that_of_the_layers():
    network = FeatureNetwork(build_network("convnet", {"width": 8}, (3, 32, 32), 10), "classifier")
    maps = [8 * side**2 for side in (32, 32, 32, 16, 16, 16, 16, 8, 8, 8, 8, 4)]  # conv, norm, relu, pool, ...
    assert network.footprint(network.network.state_dict(), (3, 32, 32)) == (4 * maps[0], 4 * (sum(maps) + 10))


def test_a_cpu_gets_as_much_as_its_caches_take():
    largest = CPU_ACTIVATION // 40
    assert chunk_sizes((largest, 5 * largest), 10, 40, 128, CPU) == (1, 40)
    assert chunk_sizes((largest, 5 * largest), 1000, 4, 128, CPU) == (10, 40), "the same however many classes there are"
    assert chunk_sizes((10, 50), 10, 4, 128, CPU)[0] == 10
    assert chunk_sizes((2 * CPU_ACTIVATION, 0), 10, 40, 0, CPU) == (1, 1), "one image at least"


def test_slices_change_nothing():
    torch.manual_seed(0)
    network = FeatureNetwork(tiny(), "classifier")
    weights = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    images = torch.randn(10, 3, 8, 8)
    whole = network(weights, images)
    network.slice_size = 4
    for sliced, wanted in zip(network(weights, images), whole, strict=True):
        torch.testing.assert_close(sliced, wanted)


@pytest.mark.filterwarnings("ignore:2 classes at a time do not fit")  # a second halving, after the one it waits for
def test_a_chunk_that_does_not_fit_is_halved_and_the_run_goes_on(trajectory, tmp_path):
    """Memory runs out in the second half of the run for more than one class at a time."""
    calls = []

    class Small(FeatureNetwork):
        def __call__(self, weights, images):
            calls.append(len(images))
            if len(calls) > 15 and len(images) > 8:  # 2 synthetic or 8 real images of a class
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().__call__(weights, images)

    pool = patterned()
    whole = run(trajectory, pool, tmp_path / "whole.beton", replace(SETTINGS, classes_per_chunk=1))
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="3 classes at a time do not fit"):
        patch.setattr("tgdd_plugin.distillation.frozen_networks.FeatureNetwork", Small)
        path = run(trajectory, pool, tmp_path / "a" / "whole.beton", checkpoint_interval="5ba")
    assert max(calls[-20:]) == 8
    difference = (read_beton(path)[0].int() - read_beton(whole)[0].int()).abs()
    assert difference.max() <= 1, "the images are those of a run in such chunks, up to rounding"


@pytest.mark.parametrize("how", [{"progress_bar": True}, {"settings": replace(SETTINGS, learning_rate="auto")}])
@pytest.mark.filterwarnings("ignore:2 classes at a time do not fit")
def test_a_chunk_that_never_fits_is_halved_before_the_first_step(trajectory, tmp_path, how):
    """While the cost is estimated, or the rate is found, both of which call the network."""

    class Small(FeatureNetwork):
        def __call__(self, weights, images):
            if len(images) > 8:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().__call__(weights, images)

    how = {**how, "settings": replace(how.get("settings", SETTINGS), steps=2)}
    wanted = run(trajectory, patterned(), tmp_path / "a" / "one.beton", **how)
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="3 classes at a time do not fit"):
        patch.setattr("tgdd_plugin.distillation.frozen_networks.FeatureNetwork", Small)
        path = run(trajectory, patterned(), tmp_path / "one.beton", **how)
    assert (read_beton(path)[0].int() - read_beton(wanted)[0].int()).abs().max() <= 1


def test_a_class_that_does_not_fit_is_said_in_one_line(trajectory, tmp_path):
    def full(self, weights, images):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried"
        )

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="1 class.*[.] Lower real_per_class"):
        patch.setattr(FeatureNetwork, "__call__", full)
        run(trajectory, patterned(), tmp_path / "a.beton", replace(SETTINGS, classes_per_chunk=1))


def test_a_loss_that_is_no_number_leaves_the_last_good_images(trajectory, tmp_path):
    """Stages are poisoned from the sixth step on; what is kept equals a run of five steps."""
    folder = tmp_path / "t"
    shutil.copytree(trajectory.folder, folder)
    bank, steps = StageBank.__getitem__, []

    def poisoned(self, position):
        steps.append(position)  # two a step, and one before the first
        good = len(steps) <= 2 * 5 + 1
        return {name: tensor if good else tensor * float("nan") for name, tensor in bank(self, position).items()}

    pool = patterned()
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(InputError, match="no longer finite at step 5.*in '") as e,
    ):
        patch.setattr(StageBank, "__getitem__", poisoned)
        run(folder, pool, tmp_path / "a.beton")
    kept = tmp_path / "a-step5.beton"
    assert str(kept) in str(e.value)
    assert read_card(kept).method["stopped_after"] == 5
    wanted = run(folder, pool, tmp_path / "five.beton", replace(SETTINGS, steps=5))
    assert torch.equal(read_beton(kept)[0], read_beton(wanted)[0])
    assert not (tmp_path / "a.beton").exists()


def test_the_cost_is_told_before_the_start_and_changes_nothing(trajectory, tmp_path, capsys):
    pool = patterned()
    told = run(trajectory, pool, tmp_path / "told.beton", progress_bar=True)
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("distilling 12 steps"))
    assert "of 24 real and 6 synthetic images, 3 of 3 classes at a time: about" in line and "3 stages" in line
    silent = run(trajectory, pool, tmp_path / "silent.beton")
    assert torch.equal(read_beton(told)[0], read_beton(silent)[0])


@pytest.mark.once
def test_compiled_passes_are_the_same_up_to_rounding(trajectory, tmp_path):
    torch.manual_seed(0)
    plain = FeatureNetwork(tiny(), "classifier")
    compiled = FeatureNetwork(plain.network, "classifier", compiled=True)
    weights = {name: tensor.clone() for name, tensor in plain.network.state_dict().items()}
    gradients = []
    for network in (plain, compiled):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        features, logits = network(weights, images)
        (features.square().sum() + logits.square().sum()).backward()
        gradients.append(images.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_compiled_is_said(monkeypatch):
    def broken(function):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    assert not should_compile(None, 10, 32, CPU) and not should_compile(False, 10**9, 32, CPU)
    with pytest.warns(UserWarning, match="no compiler found.*Install"):
        assert not should_compile(None, 10**9, 32, CPU)
    with pytest.raises(InputError, match="`compile` must be false where .*no compiler found.*got true. Install"):
        should_compile(True, 10, 32, CPU)
