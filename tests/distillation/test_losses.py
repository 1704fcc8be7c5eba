"""Loss and gradient against a loop written from the paper's formula, class by class and image by image."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tgdd_plugin.augmentation.dsa import augment, draw_augmentation
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.normalization import Normalization
from tgdd_plugin.distillation.losses import distribution_constraint, stage_matching
from tgdd_plugin.distillation.model import DistillationModel
from tgdd_plugin.distillation.sampling import Draws
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.distillation.stage_bank import StagePair
from tgdd_plugin.distillation.synthetic_images import SyntheticImages
from tgdd_plugin.networks import convnet
from tgdd_plugin.networks.feature_network import FeatureNetwork

pytestmark = pytest.mark.numerical

CLASSES, SIDE, REAL = 3, 8, 5
TWO_STAGES = StagePair(0, 1)
MEAN, STD, ALPHA = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], 0.7


class Bank:
    """Two stages, drawn from as the test says; what StageBank does is tested on its own."""

    def __init__(self, networks: list[nn.Module], pair: StagePair) -> None:
        self.states = [network.state_dict() for network in networks]
        self.pair = pair
        self.architecture = [0] * len(networks)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return self.states[position]

    def draw(self, max_gap: int, generator: torch.Generator) -> StagePair:
        return self.pair


def make(factor: int, count: int = 2, pair: StagePair = TWO_STAGES):
    torch.manual_seed(0)
    networks = [convnet(CLASSES, 3, SIDE, depth=2, width=4).double() for _ in range(2)]
    labels = torch.arange(CLASSES).repeat_interleave(REAL + 2)
    pool = ImagePool(torch.randint(0, 256, (len(labels), 3, SIDE, SIDE), dtype=torch.uint8), labels)
    pixels = torch.rand(CLASSES, count, 3, SIDE, SIDE, dtype=torch.float64)
    synthetic = SyntheticImages(pixels, factor)
    settings = DistillSettings(images_per_class=count, factor=factor, real_per_class=REAL).resolved(SIDE)
    bank = Bank(networks, pair)
    frozen = FeatureNetwork(copy.deepcopy(networks[0]), "classifier")
    model = DistillationModel(synthetic, [frozen], bank, pool, normalization=Normalization(MEAN, STD), alpha=ALPHA)
    draws = Draws(settings, bank, pool, synthetic)
    return model, draws, networks, pool


def decode_by_hand(image: torch.Tensor, factor: int) -> list[torch.Tensor]:
    """Cuts one stored image into its grid, row by row, and enlarges each part."""
    side = SIDE // factor
    parts = [
        image[:, i * side : (i + 1) * side, j * side : (j + 1) * side] for i in range(factor) for j in range(factor)
    ]
    if factor == 1:
        return parts
    return [F.interpolate(p[None], size=SIDE, mode="bilinear", align_corners=False)[0] for p in parts]


def loss_by_formula(pixels, factor, batch, networks, pool):
    """Σ_c ‖ mean φ_j(ω_c X_c) − mean φ_j(ω_c S_c) ‖² + α Σ_c mean CE( h_k(ω_c S_c), c )."""
    early, late = networks[batch["early"]], networks[batch["late"]]
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    match = constraint = 0.0
    for c in range(CLASSES):
        omega = {name: tensor[c] for name, tensor in batch["draw"].items()}

        def features(image, omega=omega):
            seen = augment(((image - mean) / std)[None], omega)
            return early.features(seen).flatten(), seen

        real = [features(pool.images[i].double() / 255)[0] for i in batch["real"][c]]
        synthetic, losses = [], []
        for image in pixels[c]:
            for part in decode_by_hand(image, factor):
                feature, seen = features(part)
                synthetic.append(feature)
                losses.append(F.cross_entropy(late(seen), torch.tensor([c])))
        match = match + ((sum(real) / len(real) - sum(synthetic) / len(synthetic)) ** 2).sum()
        constraint = constraint + sum(losses) / len(losses)
    return match, constraint, match + ALPHA * constraint


@pytest.fixture(autouse=True)
def in_double_precision(monkeypatch):
    """The product works in float32; in float64 the two sums differ by rounding only, and any mistake shows."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("pair", [TWO_STAGES, StagePair(1, 1)], ids=["two stages", "one stage"])
def test_loss_and_gradient_equal_the_formula(factor, pair):
    model, draws, networks, pool = make(factor, pair=pair)
    batch = draws(7)
    losses = model.loss(model(batch), batch)
    losses["total"].backward()

    pixels = model.synthetic.pixels.detach().clone().requires_grad_()
    match, constraint, total = loss_by_formula(pixels, factor, batch, networks, pool)
    total.backward()

    for name, wanted in (("match", match), ("constraint", constraint), ("total", total)):
        torch.testing.assert_close(losses[name], wanted.detach(), rtol=1e-10, atol=1e-10, check_dtype=False)
    torch.testing.assert_close(model.synthetic.pixels.grad, pixels.grad, rtol=1e-9, atol=1e-11)


def test_a_chunk_of_classes_adds_up_to_all_of_them():
    model, draws, networks, pool = make(2)
    batch = draws(3)
    whole = model.loss(model(batch), batch)["total"]
    parts = []
    for c in range(CLASSES):
        part = {key: value[c : c + 1] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        part["draw"] = {name: tensor[c : c + 1] for name, tensor in batch["draw"].items()}
        # Composer weights a microbatch by its share of the samples.
        parts.append(model.loss(model(part), part)["total"] / CLASSES)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [1, 2])
def test_one_batched_step_follows_the_published_class_by_class_loop(factor):
    """lr × 2 without momentum, all classes at once, against lr with momentum 0.5, one class after another.

    In the published loop the optimizer steps on the whole tensor once for each class. So after a class' own step, its
    momentum carries it on while the others take their turns: by lr · g · (1 + 1/2 + 1/4 + ...) = 2 · lr · g in the end.
    Once the momentum has run out (here: steps with no gradient at the end), the two loops differ only because the
    published one sees part of a move later than we do. That is of second order in lr, and relative to the distance
    moved of first order: a small gap that halves when lr is halved. Any other factor or momentum leaves a gap that
    stays.
    """
    gaps = []
    for rate in (2e-4, 1e-4):
        model, draws, networks, pool = make(factor)
        steps = 3
        published = model.synthetic.pixels.detach().clone().requires_grad_()
        momentum = torch.zeros_like(published)
        for step in range(steps):
            batch = draws(step)
            for c in range(CLASSES):
                _, _, total = loss_by_formula(published, factor, batch, networks, pool)
                (gradient,) = torch.autograd.grad(total, published)
                mine = torch.zeros_like(gradient)
                mine[c] = gradient[c]
                momentum = 0.5 * momentum + mine
                published = (published - rate * momentum).detach().requires_grad_()
        for _ in range(60):
            momentum = 0.5 * momentum
            published = (published - rate * momentum).detach()

        start = model.synthetic.pixels.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=2 * rate)
        for step in range(steps):
            batch = draws(step)
            optimizer.zero_grad()
            model.loss(model(batch), batch)["total"].backward()
            optimizer.step()
        moved = (model.synthetic.pixels.detach() - start).norm()
        gaps.append(float((model.synthetic.pixels.detach() - published).norm() / moved))
    assert gaps[0] < 0.02, "the two loops part by more than second-order terms"
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.2)


def test_terms_are_sums_over_classes_and_means_within_them():
    real, synthetic = torch.randn(4, 6, 5), torch.randn(4, 3, 5)
    wanted = sum(((real[c].mean(0) - synthetic[c].mean(0)) ** 2).sum() for c in range(4))
    torch.testing.assert_close(stage_matching(real, synthetic), wanted)
    logits, classes = torch.randn(4, 3, 7), torch.tensor([6, 0, 2, 2])
    wanted = sum(F.cross_entropy(logits[i], classes[i].repeat(3)) for i in range(4))
    torch.testing.assert_close(distribution_constraint(logits, classes), wanted)


def test_siamese_images_of_a_class_share_their_augmentation():
    model, draws, _, pool = make(1)
    batch = draws(0)
    same = pool.take(batch["real"][:, :1]).double() / 255
    both = model._prepared(same, batch["draw"]), model._prepared(same.clone(), batch["draw"])
    assert torch.equal(*both)
    other = draw_augmentation("color_crop_cutout_flip", CLASSES, (SIDE, SIDE), torch.Generator().manual_seed(99))
    other = {name: values.unsqueeze(1) for name, values in other.items()}
    assert not torch.equal(both[0], model._prepared(same, other))
