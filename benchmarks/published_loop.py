"""The published TGDD loop, class after class, as the baseline that this package's engine is measured against.

Written afresh from descriptions of the method (arXiv 2512.02469) and of what its released program does at each step; no
line is taken from that program, which has no licence. Kept as published, although it costs time and changes no image:
two networks are built and their weights read from disk at every step, nothing in them is frozen, so the gradients of
their weights are computed and thrown away, and the optimizer steps once for each class.

Left out: the test accuracies on which the published program selects its images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tgdd_plugin.augmentation.dsa import Draw, augment, draw_augmentation
from tgdd_plugin.core.seeding import forked_streams, keyed_generator
from tgdd_plugin.data.image_pool import ImagePool
from tgdd_plugin.distillation.settings import DistillSettings
from tgdd_plugin.distillation.synthetic_images import SyntheticImages, start_pixels
from tgdd_plugin.recording.description import describe_run
from tgdd_plugin.trajectory.manifest import Stage
from tgdd_plugin.trajectory.store import Trajectory
from tgdd_plugin.trajectory.writing import add_stage, write_manifest_and_prune

MOMENTUM = 0.5
AUGMENTATION = "color_crop_cutout_flip"

Recorded = tuple[Path, Stage]  # a run's folder and one of its stages


class ClassDraw(NamedTuple):
    """What is drawn for one class in one step.

    Attributes:
        real: Positions of its real images in the pool, ``(m,)``.
        augmentation: One draw, for its real and its synthetic images alike.
        chosen: Which of its decoded images take part, ``(1, s)``; ``None`` for all.
    """

    real: torch.Tensor
    augmentation: Draw
    chosen: torch.Tensor | None


class PublishedLoop:
    """K classes of synthetic images under the published loop; :meth:`step` is one iteration of it.

    A step draws a trajectory, an early and a late stage, and loads a network of each. Then, for each class c in turn:

        loss_c = ‖ mean φ_early(ω_c X_c) − mean φ_early(ω_c S_c) ‖² + α · mean CE( h_late(ω_c S_c), c ),

    its gradient, one SGD step with momentum over the pixels of all classes, and a clamp of them to [0, 1].

    Of ``settings`` it takes what has a published counterpart: ``images_per_class``, ``factor``, ``start`` (by default
    the published ``'mix'``), ``learning_rate``, ``alpha``, ``max_gap``, ``real_per_class``, ``max_decoded``,
    ``augmentation`` (by default the published one) and ``seed``. The learning rate is **half** of the settings', by
    default the published 0.01 · n (0.1 · n from 128 px on), so that both loops move a class equally far. The start is
    the engine's of the same seed; later draws are a stream of their own. The pixels are clamped right after each step;
    the published program does so before the next.

    Networks stay in training mode, in which their factory makes them; all is float32.

    Args:
        trajectory: Its stages are read from its folder at every step.
        pool: The real images; moved to ``device`` if they fit.
        settings: See above.
        network_factory: Builds the trajectory's network, whose parameter names are the recorded ones. Initial weights
            come from torch's global generator and are overwritten.
        mean, std: Per-channel normalization for pixels in [0, 1].
        device: Default: ``'cpu'``.

    Attributes:
        generator: Of every draw, on the CPU.
        optimizer: Of the pixels.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        pool: ImagePool,
        settings: DistillSettings,
        network_factory: Callable[[], nn.Module],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        settings = replace(settings, start=settings.start or "mix", schedule="constant").sized(pool.num_classes)
        self.trajectory = trajectory
        self.settings = settings
        self.augmentation = settings.augmentation or AUGMENTATION
        resolved = settings.resolved(pool.shape[1])
        self.alpha = resolved.alpha or 0.0
        self.device = torch.device(device)
        shape = (pool.num_classes, settings.images_per_class, *pool.shape)
        start = start_pixels(settings.start, shape, settings.factor, pool, keyed_generator(settings.seed, 0, 2**31))
        self.synthetic = SyntheticImages(start.to(self.device), settings.factor)
        self.pool = pool.to(self.device)
        self.network_factory = network_factory
        self.mean = torch.tensor(mean, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(-1, 1, 1)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimizer = torch.optim.SGD([self.pixels], lr=(resolved.learning_rate or 0.0) / 2, momentum=MOMENTUM)

    @property
    def pixels(self) -> nn.Parameter:
        """The stored images, in [0, 1], ``(K, n, C, H, W)`` on the device."""
        return self.synthetic.pixels

    def step(self) -> dict[str, float]:
        """One iteration: a step of the optimizer for each class.

        Returns:
            ``match``, ``constraint`` and ``total`` = match + α · constraint, each summed over the classes, each class
            before its own step.
        """
        early, late = (self.load(recorded) for recorded in self.draw_stages())
        sums = torch.zeros(2, device=self.device)
        for label in range(self.pool.num_classes):
            match, constraint = self.class_losses(label, self.draw_class(label), early, late)
            self.optimizer.zero_grad()
            (match + self.alpha * constraint).backward()
            self.optimizer.step()
            self.synthetic.clamp_()
            sums += torch.stack([match.detach(), constraint.detach()])
        # Read once a step: the published loop's own bookkeeping is not to be blamed for waits on the device.
        match_sum, constraint_sum = sums.tolist()
        return {"match": match_sum, "constraint": constraint_sum, "total": match_sum + self.alpha * constraint_sum}

    def draw_stages(self) -> tuple[Recorded, Recorded]:
        """The early and the late stage: r ~ U{1..R}, j ~ U{0..S-1}, k ~ U{j..min(j+L-1, S-1)}."""
        runs = list(self.trajectory.runs.items())
        folder, run = runs[self._below(len(runs))]
        early = self._below(len(run.stages))
        late = early + self._below(min(self.settings.max_gap, len(run.stages) - early))
        return (folder, run.stages[early]), (folder, run.stages[late])

    def draw_class(self, label: int) -> ClassDraw:
        """What a step needs for one class."""
        s = self.settings
        (real,) = self.pool.draw(torch.tensor([label]), s.real_per_class, self.generator)
        augmentation = draw_augmentation(self.augmentation, 1, self.pool.shape[1:], self.generator)
        chosen = None
        if self.synthetic.decoded_per_class > s.max_decoded:
            order = torch.randperm(self.synthetic.decoded_per_class, generator=self.generator)
            chosen = order[: s.max_decoded].unsqueeze(0)
        return ClassDraw(real, augmentation, chosen)

    def load(self, recorded: Recorded) -> nn.Module:
        """A new network on the device with the weights of one stage, read from its file; every parameter trainable."""
        network = self.network_factory().to(self.device)
        network.load_state_dict(self.trajectory.load(*recorded))
        return network

    def class_losses(
        self, label: int, draw: ClassDraw, early: nn.Module, late: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two terms of one class' loss, as scalars: squared distance of mean features, and cross-entropy."""
        real = self.pool.take(draw.real).to(self.device).float() / 255
        chosen = None if draw.chosen is None else draw.chosen.to(self.device)
        (synthetic,) = self.synthetic.decode(torch.tensor([label], device=self.device), chosen)
        # One batch, so that both get the same augmentation.
        both = (torch.cat([real, synthetic]) - self.mean) / self.std
        augmentation = {name: values.to(self.device) for name, values in draw.augmentation.items()}
        real, synthetic = augment(both.unsqueeze(0), augmentation).squeeze(0).split([len(real), len(synthetic)])
        with torch.no_grad():
            real_features = self._features(early, real)
        distance = real_features.mean(0) - self._features(early, synthetic).mean(0)
        targets = torch.full((len(synthetic),), label, device=self.device)
        return distance.square().sum(), F.cross_entropy(late(synthetic), targets)

    def _features(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """φ(images), the input of the network's head, ``(N, D)``."""
        seen: list[torch.Tensor] = []
        head = network.get_submodule(self.trajectory.run.head)
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
        network(images)
        hook.remove()
        return seen[-1]

    def _below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))


def random_trajectory(
    folder: Path,
    network_factory: Callable[[], nn.Module],
    num_classes: int,
    *,
    runs: int = 1,
    stages: int = 61,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Trajectory:
    """Writes a trajectory of untrained networks and random class means: for timing, where the values do not matter.

    Args:
        folder: The trajectory folder, made if missing.
        network_factory: Builds a freshly initialised network.
        num_classes: K.
        runs: R. Default: ``1``.
        stages: S, for each run. Default: ``61``, those of 60 epochs.
        mean, std: Noted in the manifests. Default: ``None``.
    """
    with forked_streams(0):
        for number in range(runs):
            for stage in range(stages):
                network = network_factory()
                if stage == 0:
                    run = describe_run(f"random{number}", network, num_classes, mean=mean, std=std)
                    run.complete = True
                    write_manifest_and_prune(folder / run.name, run)
                head = network.get_submodule(run.head)
                assert isinstance(head, nn.Linear)
                means = torch.randn(num_classes, head.in_features), torch.ones(num_classes)
                when: dict[str, Any] = {"epoch": stage, "batch": stage, "sample": 0, "metrics": {}}
                add_stage(
                    folder / run.name, run, network.state_dict(), None, class_means=means if stage else None, **when
                )
    return Trajectory.open(folder)
