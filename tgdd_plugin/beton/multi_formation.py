"""Multi-formation (IDC, Kim et al., ICML 2022): stored images that hold several sub-images each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from tgdd_plugin.data.allocation import allocate


def decode(
    stored: Float[Tensor, "k n C H W"], factor: int, chosen: Int64[Tensor, "k s"] | None = None
) -> Float[Tensor, "k _ C H W"]:
    """Decodes stored images to images of full size, differentiably (multi-formation; IDC, Kim et al., ICML 2022).

    Each stored image is an f×f grid of sub-images, row by row, and each of them is enlarged.

    Args:
        stored: Stored images, floating point, ``(k, n, C, H, W)``.
        factor: f, which must divide H and W.
        chosen: Which decoded images of each class, ``(k, s)`` with values below n·f². Default: ``None``, all.

    Returns:
        Images of shape ``(k, n·f², C, H, W)``, or ``(k, s, C, H, W)``.

    Example:
        >>> stored = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(1, 1, 1, 2, 2)
        >>> decode(stored, 2)[0, :, 0].tolist()
        [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]], [[3.0, 3.0], [3.0, 3.0]]]
    """
    f = factor
    k, n, channels, height, width = stored.shape
    parts = stored.reshape(k, n, channels, f, height // f, f, width // f).permute(0, 1, 3, 5, 2, 4, 6)
    parts = parts.reshape(k, n * f * f, channels, height // f, width // f)
    if chosen is not None:
        parts = parts[torch.arange(k, device=parts.device)[:, None], chosen]
    if f == 1:
        return parts
    # Bilinear without aligned corners, as IDC decodes.
    enlarged = F.interpolate(parts.flatten(0, 1), size=(height, width), mode="bilinear", align_corners=False)
    return enlarged.view(k, -1, channels, height, width)


def unpack(stored: UInt8[Tensor, "N C H W"], factor: int) -> UInt8[Tensor, "N*{factor}**2 C H W"]:
    """Decodes a packed file's uint8 images ``(N, C, H, W)`` to uint8 ``(N·f², C, H, W)``, as a loader returns them."""
    images = allocate((len(stored) * factor**2, *stored.shape[1:]))
    for part, block in zip(images.split(256 * factor**2), stored.split(256), strict=True):
        # From whole numbers the weights of factor 2 and 4 round nothing off: every machine gets the same bytes.
        part.copy_(decode(block[None].float(), factor)[0].round())
    return images
