"""The budget of a replay memory: how many images of each class it may keep."""

from __future__ import annotations

from dataclasses import dataclass

from tgdd_plugin.core.errors import InputError, whole_number

KINDS = ("images_per_class", "total_images", "total_bytes")
"""What a budget can count."""


@dataclass(frozen=True)
class Budget:
    """A number, and what it counts.

    Args:
        kind: One of :data:`KINDS`. Of a total, all classes have the same share, and the first ones one image more where
            a remainder is left. Bytes are those of the stored uint8 pixels, C · H · W for an image; labels, the card
            and a file's padding are not counted.
        amount: The number.
    """

    kind: str
    amount: int

    @classmethod
    def of(cls, **amounts: int | None) -> Budget:
        """Returns the one budget among :data:`KINDS` that is not ``None``.

        Raises:
            InputError: If there is not exactly one, or it is not a whole number above 0.
        """
        given = {kind: amount for kind, amount in amounts.items() if amount is not None}
        whole = {kind: number for kind, amount in given.items() if (number := whole_number(amount)) and number > 0}
        if len(given) != 1 or not whole:
            came = ", ".join(f"{kind}={amount}" for kind, amount in given.items()) or "nothing"
            raise InputError(
                f"One of `{KINDS[0]}`, `{KINDS[1]}` and `{KINDS[2]}` must be a whole number of at least 1, got {came}. "
                f"Give exactly one of them."
            )
        ((kind, amount),) = whole.items()
        return cls(kind, amount)

    def share(self, classes: int, size: int) -> int:
        """Returns how many images of ``size`` bytes each of ``classes`` classes may have.

        Raises:
            InputError: If the budget is less than one image of each class.
        """
        if self.kind == "images_per_class":
            return self.amount
        least = classes * (size if self.kind == "total_bytes" else 1)
        if self.amount < least:
            image = f"image of {size} bytes" if self.kind == "total_bytes" else "image"
            raise InputError(
                f"`{self.kind}` must be at least {least}, one {image} for each of {classes} classes, got "
                f"{self.amount}. Raise it, or use fewer classes."
            )
        return self.amount // max(least, 1)

    def remainder(self, classes: int, size: int) -> int:
        """Returns how many of ``classes`` classes may have one image of ``size`` bytes more than their share."""
        if self.kind == "images_per_class" or not classes:
            return 0
        return self.capacity(classes, size) % classes

    def capacity(self, classes: int, size: int) -> int:
        """Returns how many images of ``size`` bytes fit in the budget altogether if there are ``classes`` classes."""
        if self.kind == "images_per_class":
            return self.amount * classes
        return self.amount // (size if self.kind == "total_bytes" else 1)
