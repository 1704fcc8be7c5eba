"""Per-channel normalization of images, as networks take them, and its inverse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tgdd_plugin.core.errors import InputError

if TYPE_CHECKING:
    import torch

TOLERANCE = 0.01
"""The largest difference of two normalizations that count as the same one: somebody rounded the numbers."""


@dataclass(frozen=True)
class Normalization:
    """The per-channel mean and standard deviation that images are normalized with, for pixels in [0, 1].

    Args:
        mean, std: One value for each of the C channels, kept as tuples of floats. A single value is used for all
            channels of any images.

    Raises:
        InputError: If they are not equally many, or not finite, or a standard deviation is not above 0.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            values = given.tolist() if hasattr(given, "tolist") else given  # numbers of NumPy and torch among them
            values = [values] if isinstance(values, (int, float)) else values
            object.__setattr__(self, name, tuple(float(value) for value in values))
        values = (*self.mean, *self.std)
        if (
            not self.mean
            or len(self.mean) != len(self.std)
            or not all(map(math.isfinite, values))
            or min(self.std) <= 0
        ):
            raise InputError(
                f"`mean` and `std` must be equally many finite values, one per channel, with each std above 0, got "
                f"mean {list(self.mean)} and std {list(self.std)}. Give the values that the networks' inputs are "
                f"normalized with, for pixels in [0, 1]."
            )

    @classmethod
    def of(cls, mean: Sequence[float] | float | None, std: Sequence[float] | float | None) -> Normalization | None:
        """The normalization by two optional arguments, of which numbers are for all channels; ``None`` without any.

        Raises:
            InputError: If one is given without the other, or they are not a normalization for pixels in [0, 1].
        """
        if mean is None and std is None:
            return None
        if mean is None or std is None:
            raise InputError(
                f"`mean` and `std` must be given together, got mean {mean} and std {std}. Give both or neither."
            )
        normalization = cls(mean, std)  # type: ignore[arg-type]  # numbers become sequences
        if max(*normalization.mean, *normalization.std) > 1:
            raise InputError(
                f"`mean` and `std` must be for pixels in [0, 1], got {normalization}. Divide both by 255 if they are "
                f"for pixels in 0..255."
            )
        return normalization

    @property
    def channels(self) -> int:
        """C."""
        return len(self.mean)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Turns uint8 images ``(..., C, H, W)`` into normalized float32 images of the same shape."""
        return self.normalize(images.float() / 255)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalizes floating-point pixels in [0, 1], ``(..., C, H, W)``."""
        mean, std = self.tensors(pixels.device)
        return (pixels - mean) / std

    def denormalize(self, images: torch.Tensor) -> torch.Tensor:
        """Turns normalized images ``(..., C, H, W)`` back into pixels in [0, 1], which are not clamped."""
        mean, std = self.tensors(images.device)
        return images * std + mean

    def tensors(self, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std as float32 tensors ``(C, 1, 1)``."""
        import torch  # here, so that settings can be checked without it

        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std

    def is_close(self, other: Normalization) -> bool:
        """Whether another normalization is the same up to :data:`TOLERANCE`."""
        pairs = zip((*self.mean, *self.std), (*other.mean, *other.std), strict=False)
        return self.channels == other.channels and all(abs(one - two) <= TOLERANCE for one, two in pairs)

    def of_channels(self, channels: int) -> Normalization:
        """The normalization with a value for each channel of images; a single one stands for all, as in torchvision.

        Raises:
            InputError: If there are several, but not one for each.
        """
        if self.channels == 1:
            return Normalization(list(self.mean) * channels, list(self.std) * channels)
        self.check_channels(channels)
        return self

    def check_channels(self, channels: int) -> None:
        """Checks that there is a value for each channel of images.

        Raises:
            InputError: If not.
        """
        if self.channels != channels:
            raise InputError(
                f"`mean` and `std` must have one value for each channel of the images, which have {channels}, got "
                f"mean {list(self.mean)} and std {list(self.std)}. Give {channels} value(s) of each."
            )

    def __str__(self) -> str:
        return f"mean {list(self.mean)} and std {list(self.std)}"
