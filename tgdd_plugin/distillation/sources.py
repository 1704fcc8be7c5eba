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
    further from that of their class. The figures behind the choice are in ``benchmarks/README.md``. A few images are
    matched all the same where no means were recorded, as where every image was mixed with another.

    Args:
        trajectory: The recorded runs.
        classes: The names of the classes to distill. Default: ``None``, all.

    Raises:
        InputError: If a file of images cannot be read.
    """
    counts = zip(trajectory.run.class_names, trajectory.exemplar_counts(), strict=True)
    fewest = min((count for name, count in counts if classes is None or name in classes), default=ENOUGH)
    return "exemplars" if fewest >= ENOUGH or (fewest and not _has_means(trajectory)) else "recorded"


def _has_means(trajectory: Trajectory) -> bool:
    """Whether each run has class means at some stage."""
    return all(any(trajectory.has_class_means(f, stage) for stage in run.stages) for f, run in trajectory.runs.items())
