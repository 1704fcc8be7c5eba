"""How far classes lie apart, beside a loop written from the formula."""

import math

import pytest
import torch

from benchmarks.separation import class_separation


def test_equals_a_loop_written_from_the_formula():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(6)
    features = torch.randn(24, 5, generator=generator) + 2 * torch.randn(4, 5, generator=generator)[labels]

    total = 0.0
    for c in range(4):
        nearest = math.inf
        for d in range(4):
            if c == d:
                continue
            squares, centres = [], []
            for label in (c, d):
                rows = [features[i] for i in range(24) if labels[i] == label]
                centre = sum(rows) / len(rows)
                centres.append(centre)
                squares.append(sum(float(((row - centre) ** 2).sum()) for row in rows) / len(rows))
            distance = math.sqrt(float(((centres[0] - centres[1]) ** 2).sum()))
            nearest = min(nearest, distance / math.sqrt(sum(squares) / 2))
        total += nearest / 4

    assert class_separation(features, labels) == pytest.approx(total, rel=1e-6)


def test_classes_that_lie_further_apart_are_further_apart():
    features, labels = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1])
    near = class_separation(features, labels)
    assert class_separation(torch.where(labels[:, None] == 1, features + 10, features), labels) > near


def test_of_single_images_there_is_no_spread():
    assert not math.isfinite(class_separation(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])))
