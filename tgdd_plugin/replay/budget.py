"""How many images of each class a replay memory may hold."""

from __future__ import annotations

from dataclasses import dataclass

from tgdd_plugin.core.errors import InputError

KINDS = ("images_per_class", "total_images", "total_bytes")


@dataclass(frozen=True)
class Budget:
    """One number, and what it counts.

    Args:
        kind: One of :data:`KINDS`. Of a total, all classes have the same share, rounded down. Bytes are those of the
            stored uint8 pixels, C · H · W an image; labels, the card and a file's padding are not counted.
        amount: The number.
    """

    kind: str
    amount: int

    @classmethod
    def of(cls, **amounts: int | None) -> Budget:
        """The one budget among :data:`KINDS` that is not ``None``.

        Raises:
            InputError: If there is not exactly one, of a whole number above 0.
        """
        given = {kind: amount for kind, amount in amounts.items() if amount is not None}
        if len(given) != 1 or not all(type(amount) is int and amount > 0 for amount in given.values()):
            came = ", ".join(f"{kind}={amount}" for kind, amount in given.items()) or "nothing"
            raise InputError(f"the budget came as {came}; wanted one of {', '.join(KINDS)}, a whole number from 1 on")
        ((kind, amount),) = given.items()
        return cls(kind, amount)

    def share(self, classes: int, size: int) -> int:
        """Images that each of ``classes`` classes may have, of ``size`` bytes each.

        Raises:
            InputError: If that is not one.
        """
        if self.kind == "images_per_class":
            return self.amount
        least = classes * (size if self.kind == "total_bytes" else 1)
        if self.amount < least:
            each = f" of {size} bytes" if self.kind == "total_bytes" else ""
            raise InputError(
                f"{self.kind} is {self.amount}, less than one image{each} for each of {classes} classes; give at least "
                f"{least}"
            )
        return self.amount // max(least, 1)

    def most(self, classes: int, size: int) -> int:
        """Images of ``size`` bytes that fit in all, of ``classes`` classes."""
        if self.kind == "images_per_class":
            return self.amount * classes
        return self.amount // (size if self.kind == "total_bytes" else 1)
