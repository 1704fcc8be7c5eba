"""Trainings on a compact set and on real images: each has its share of the passes, and every image comes alike."""

from __future__ import annotations

import pytest
import torch

from tgdd_plugin import InputError, mixed_loader, read_beton
from tgdd_plugin.beton.card import Card
from tgdd_plugin.beton.format import write_beton
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.data.mixing import mixed_images


@pytest.mark.parametrize(
    ("share", "passes", "own"), [(0.25, 40, 10), (1.0, 7, 7), (0.0, 40, 0), (0.5, 90, 45), (0.29, 100, 29)]
)
def test_a_mixture_has_its_share_and_uses_every_image_alike(share: float, passes: int, own: int) -> None:
    """Images of the set are 0 to 3, real ones 100 to 131."""
    compact = torch.arange(4).view(4, 1, 1, 1).to(torch.uint8), torch.arange(4)
    real = ImagePool((100 + torch.arange(32)).view(32, 1, 1, 1).to(torch.uint8), torch.arange(32))
    images, labels = mixed_images(*compact, real, passes, share, 0)
    assert len(images) == len(labels) == passes
    assert torch.equal(images.flatten() % 100, labels.to(torch.uint8)), "an image keeps its label"
    for mine, number, size in ((images < 100, own, 4), (images >= 100, passes - own, 32)):
        counts = images[mine.flatten()].flatten().bincount(minlength=132)
        counts = counts[:4] if size == 4 else counts[100:]
        assert int(counts.sum()) == number and int(counts.max() - counts.min()) <= 1
    assert not torch.equal(images, mixed_images(*compact, real, passes, share, 1)[0])


def written(folder):
    pixels = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    card = Card(["a", "b"], 0, 3, [], [0.4] * 3, [0.2] * 3)
    return write_beton(folder / "a.beton", pixels, torch.arange(2).repeat_interleave(3), card)


def test_a_loader_of_both_is_one_epoch_normalized_as_the_card_says(tmp_path):
    file = written(tmp_path)
    real = [(torch.full((3, 8, 8), value, dtype=torch.uint8), value % 2) for value in range(10)]
    loader = mixed_loader(file, real, 24, batch_size=10)
    seen = [torch.cat(parts) for parts in zip(*loader, strict=True)]
    assert len(loader) == 3 and seen[0].shape == (24, 3, 8, 8)
    back = ((seen[0] * 0.2 + 0.4) * 255).round().to(torch.uint8)
    stored = zip(*read_beton(file), strict=True)
    own = {(image.numpy().tobytes(), int(label)) for image, label in stored}
    others = {(image.numpy().tobytes(), label) for image, label in real}
    pairs = [(image.numpy().tobytes(), int(label)) for image, label in zip(back, seen[1], strict=True)]
    assert sum(pair in own for pair in pairs) == sum(pair in others for pair in pairs) == 12
    whole = mixed_loader(file, real, 6, share=1.0)
    assert {int(label) for _, labels in whole for label in labels} == {0, 1} and len(whole) == 1


def test_what_does_not_fit_is_one_line(tmp_path):
    file = written(tmp_path)
    real = [(torch.zeros(3, 8, 8).byte(), 0)]
    for share, came in ((2, "2"), ("half", "'half'"), (None, "None"), (float("nan"), "nan")):
        with pytest.raises(InputError, match=f"`share` must be a number from 0 to 1, got {came}. Give"):
            mixed_loader(file, real, 8, share=share)
    with pytest.raises(InputError, match="`passes` must be a whole number of at least 1, got 0"):
        mixed_loader(file, real, 0)
    with pytest.raises(InputError, match="The real images must be of at most 2 classes and shape"):
        mixed_loader(file, [(torch.zeros(3, 6, 6).byte(), 0)], 8)
