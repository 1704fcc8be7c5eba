"""Networks with a head for each task: a task-incremental learner is told which task an image belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tgdd_plugin.core.errors import InputError
from tgdd_plugin.replay.tasks import Task


def separate_heads(network: nn.Module, sizes: Sequence[int]) -> nn.Module:
    """Makes the outputs of a network those of several heads, in place: logarithms of shares within each head.

    The cross-entropy over all outputs is then that of an image's own head, plus the constant log(number of heads): the
    other heads learn nothing from it. Of mixed images (CutMix), each part is compared within its own head.

    Args:
        network: A network whose outputs are those of the heads, one after another.
        sizes: The number of classes of each head.

    Returns:
        ``network``. Its weights keep their names.
    """
    parts = list(sizes)

    def per_head(module: nn.Module, inputs: object, outputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.log_softmax(1) for part in outputs.split(parts, 1)], 1)

    network.register_forward_hook(per_head)
    return network


class OneHead(nn.Module):
    """A network that chooses among the classes of one task.

    Args:
        network: The network.
        task: The task.
    """

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        self.own = [task.test.classes.index(name) for name in task.new]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the outputs, those of classes of other tasks at minus infinity."""
        outputs = self.network(images)
        within = torch.full_like(outputs, -torch.inf)
        within[:, self.own] = outputs[:, self.own]
        return within


def head_sizes(tasks: Sequence[Task]) -> list[int]:
    """Returns the number of classes of each task.

    Raises:
        InputError: If a class is in several tasks.
    """
    names = [name for task in tasks for name in task.new]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"`replay.heads` must be 'one' where classes come back, as '{twice[0]}' does, got 'task'. A class belongs "
            f"to the head of one task."
        )
    return [len(task.new) for task in tasks]
