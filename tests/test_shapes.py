"""Shapes in signatures are checked under pytest (see conftest.py), by jaxtyping and beartype."""

import pytest
import torch
from jaxtyping import TypeCheckError

from tgdd_plugin.augmentation.dsa import augment
from tgdd_plugin.beton.multi_formation import decode, unpack
from tgdd_plugin.data.targets import single_class_targets
from tgdd_plugin.distillation.losses import distribution_constraint, stage_matching
from tgdd_plugin.replay.functional import replay_batch


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (stage_matching, (torch.ones(3, 5, 4), torch.ones(3, 2, 6))),
        (stage_matching, (torch.ones(1, 5, 4), torch.ones(3, 2, 4))),  # torch would broadcast
        (distribution_constraint, (torch.ones(3, 2, 4), torch.zeros(1, dtype=torch.int64))),
        (decode, (torch.ones(3, 2, 1, 8, 8), 2, torch.zeros(1, 2, dtype=torch.int64))),
        (unpack, (torch.ones(3, 1, 8, 8), 2)),  # not uint8
        (augment, (torch.ones(8, 8), {})),
        (replay_batch, (torch.ones(4, 1, 8, 8), torch.ones(3), torch.ones(2, 1, 8, 8), torch.ones(2))),
        (single_class_targets, (torch.ones(()), 3)),
    ],
)
def test_a_wrong_shape_is_refused(function, arguments):
    with pytest.raises(TypeCheckError):
        function(*arguments)
