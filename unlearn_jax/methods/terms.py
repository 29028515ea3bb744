"""What an objective returns."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Terms(NamedTuple):
    """What an objective says about every row; which rows count is decided by the step.

    Attributes:
      retain: minimised on retain rows.
      forget: maximised on forget rows.
    """

    retain: Float[Array, "b"]
    forget: Float[Array, "b"]
