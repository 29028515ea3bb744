"""What the arguments of a bound must be: one UserError that names argument, range and value."""

import math
from collections.abc import Collection
from numbers import Real

from unlearn_jax.registry import UserError


def positive(**values: Real) -> None:
    """Check that every value is finite and above 0; raise UserError if not."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name}: expected a finite number above 0, got {value!r}.")


def nonnegative(**values: Real) -> None:
    """Check that every value is finite and at least 0; raise UserError if not."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name}: expected a finite number of at least 0, got {value!r}.")


def probability(**values: Real) -> None:
    """Check that every value is within (0, 1); raise UserError if not."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise UserError(f"{name}: expected a number within (0, 1), got {value!r}.")


def count(at_least: int = 1, **values: Real) -> None:
    """Check that every value is a whole number of at least `at_least`; raise UserError if not."""
    for name, value in values.items():
        if not (math.isfinite(value) and value == int(value) and value >= at_least):
            raise UserError(
                f"{name}: expected a whole number of at least {at_least}, got {value!r}."
            )


def one_of(names: Collection[str], **values: str) -> None:
    """Check that every value is one of the names; raise UserError if not."""
    for name, value in values.items():
        if value not in names:
            raise UserError(f"{name}: expected one of {sorted(names)}, got {value!r}.")
