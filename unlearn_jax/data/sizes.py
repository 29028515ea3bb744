"""Heights and widths of images, as configs and models name them: 224, or (224, 320)."""

from collections.abc import Sequence
from typing import Any

from unlearn_jax.registry import UserError

Size = int | Sequence[int]
"""One number for squares, or (height, width); in pixels."""


def sides(size: Any, what: str = "data.image_size") -> tuple[int, int]:
    """Return (height, width).

    Args:
      size: a `Size`.
      what: its name in messages.

    Raises:
      UserError: it is not one or two whole numbers from 1.
    """
    both = tuple(size) if isinstance(size, list | tuple) else (size,)
    both = 2 * both if len(both) == 1 else both
    if len(both) != 2 or not all(type(side) is int and side > 0 for side in both):
        raise UserError(
            f"{what} must be positive, got {size!r}; expected one whole number for squares, or "
            "(height, width)."
        )
    return both


def parsed(text: str, what: str) -> int | tuple[int, int]:
    """Return the size that a flag gives, "224" or "224,320"; raise UserError if it is none."""
    return settled([int(part) if part.isdecimal() else part for part in text.split(",")], what)


def settled(size: Any, what: str = "data.image_size") -> int | tuple[int, int]:
    """Return the one hashable form of a size: a number for squares, else (height, width)."""
    height, width = sides(size, what)
    return height if height == width else (height, width)


def shown(size: Size) -> str:
    """Describe a size: "224 x 320 (height x width)", or the number of a square."""
    size = settled(size)
    return str(size) if isinstance(size, int) else "{} x {} (height x width)".format(*size)


def misfit(size: Size, multiple: int, square: bool = False) -> str:
    """Say that a size does not fit, and name the nearest ones that do; "" if it fits.

    Args:
      size: of the images.
      multiple: each side must be one of this.
      square: and both must be equal.
    """
    both = sides(size)
    if not any(side % multiple for side in both) and (not square or both[0] == both[1]):
        return ""
    smaller, larger = ((min(both),) * 2, (max(both),) * 2) if square else (both, both)
    below = tuple(max(side // multiple, 1) * multiple for side in smaller)
    above = tuple(-(-side // multiple) * multiple for side in larger)
    near = dict.fromkeys(shown(of).partition(" (")[0] for of in (below, above))
    return f"got {shown(size)}; nearest: {' or '.join(near)}"
