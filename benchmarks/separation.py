"""How far apart the classes of a set lie in the features of a network: what the distribution constraint is for."""

from __future__ import annotations

import torch


def class_separation(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Computes how far each class' mean is from the nearest other one, in units of the spread within the two.

    For classes c and d with means μ and mean squared distances of their images to these s², the distance is
    ‖μ_c − μ_d‖ / √((s²_c + s²_d) / 2). Of each class the smallest one counts; the mean over classes is returned.

    Args:
        features: Features of the images, ``(N, D)``.
        labels: Class ids 0 .. K-1, each of which occurs, ``(N,)``.

    Returns:
        The mean; 0 where all classes have one mean, and the more the further they are apart. Not finite where a class
        has a single image.
    """
    classes = range(int(labels.max()) + 1)
    own = [features[labels == c].double() for c in classes]
    means = torch.stack([rows.mean(0) for rows in own])
    spreads = torch.stack([(rows - rows.mean(0)).square().sum(1).mean() for rows in own])
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances / ((spreads[:, None] + spreads[None]) / 2).sqrt()
    distances.fill_diagonal_(torch.inf)
    return float(distances.min(1).values.mean())
