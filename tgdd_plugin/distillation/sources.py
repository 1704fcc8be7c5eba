"""What a distillation matches where no real images are given. Nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence

from tgdd_plugin.distillation.settings import Source
from tgdd_plugin.trajectory.store import Trajectory

ENOUGH = 64
"""Real images of each class from which on they are matched in place of the recorded means: 100 did better than means,
40 did not."""


def source_without_images(trajectory: Trajectory, classes: Sequence[str] | None = None) -> Source:
    """Returns ``'exemplars'`` where the trajectory keeps enough images of each class, else ``'recorded'``.

    Images share every draw of the augmentation with the synthetic ones, and means do not; of a few images the mean lies
    further from that of their class. The figures behind the choice are in ``benchmarks/README.md``.

    Args:
        trajectory: The recorded runs.
        classes: The names of the classes to distill. Default: ``None``, all.

    Raises:
        InputError: If a file of images cannot be read.
    """
    counts = zip(trajectory.run.class_names, trajectory.exemplar_counts(), strict=True)
    few = [name for name, count in counts if count < ENOUGH and (classes is None or name in classes)]
    return "recorded" if few else "exemplars"
