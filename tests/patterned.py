"""What tests of distilling share: patterned images, a tiny ConvNet, and a quiet ``distill()``."""

import math

import torch
from composer import Callback
from torch import nn

from tgdd_plugin import DistillSettings, ImagePool, InputError, distill
from tgdd_plugin.networks import convnet

SETTINGS = DistillSettings(
    images_per_class=2, factor=1, start="mix", steps=12, schedule="constant", real_per_class=8, learning_rate=0.5
)


def patterned(channels: int = 3, per_class: int = 20, side: int = 8) -> ImagePool:
    """Three classes: noise over rows, columns or a chessboard (shades alone would be lost to instance norm)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(per_class)
    row, column = torch.arange(side)[:, None] // 2 % 2, torch.arange(side)[None] // 2 % 2
    patterns = torch.stack([row.expand(side, side), column.expand(side, side), row ^ column]) * 120
    noise = torch.randint(0, 120, (len(labels), channels, side, side), generator=generator)
    return ImagePool((noise + patterns[labels][:, None]).to(torch.uint8), labels, ["rows", "columns", "chess"])


def tiny(channels: int = 3) -> nn.Module:
    return convnet(3, channels, 8, depth=2, width=4)


def run(trajectory, pool, path, settings=SETTINGS, **options):
    options = {"device": "cpu", "progress_bar": False, **options}
    return distill(trajectory, pool, path, settings, **options)


def is_kept(trajectory, pool, path, settings=SETTINGS):
    """Whether ``distill()`` leaves a file as one of the same job, without any step; that of another it refuses."""
    try:
        run(trajectory, pool, path, settings, callbacks=[Crash(1)])
    except InputError as error:
        assert "is of another job" in str(error)
        return False
    return True


class Crash(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def batch_end(self, state, logger):
        if state.timestamp.batch.value == self.at:
            raise KeyboardInterrupt


def herding_by_hand(features, labels, per_class):
    """iCaRL's algorithm 4: argmin over x of |mu - (phi(x) + sum of the chosen) / k|, each image once."""
    positions = []
    for label in range(max(labels) + 1):
        own = [i for i in range(len(labels)) if labels[i] == label]
        mu = sum(features[i] for i in own) / len(own)
        chosen = []
        for k in range(1, per_class + 1):
            best, best_distance = None, math.inf
            for i in own:
                difference = mu - (features[i] + sum(features[j] for j in chosen)) / k
                distance = round(math.sqrt(sum(difference**2)), 9)  # dividing by k parts a tie in the last digit
                if i not in chosen and distance < best_distance:
                    best, best_distance = i, distance
            chosen.append(best)
        positions += chosen
    return positions


def k_center_by_hand(features, labels, per_class):
    """Farthest first: argmax over x of min over the chosen c of |phi(x) - phi(c)|, from the one nearest to the mean."""
    positions = []
    for label in range(max(labels) + 1):
        own = [i for i in range(len(labels)) if labels[i] == label]
        mu = sum(features[i] for i in own) / len(own)
        chosen = [min(own, key=lambda i: round(math.dist(features[i], mu), 9))]
        while len(chosen) < per_class:
            left = [i for i in own if i not in chosen]
            chosen.append(max(left, key=lambda i: min(math.dist(features[i], features[j]) for j in chosen)))
        positions += chosen
    return positions


def learner_pools() -> tuple[ImagePool, ImagePool]:
    """20 training and 10 test images of each of three classes."""
    return patterned(1, per_class=30).split(1 / 3, torch.Generator().manual_seed(0))
