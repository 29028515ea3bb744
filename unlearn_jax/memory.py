"""What to say when a device has too little memory: what was asked for, what fits, what to do."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

_SIZE = r"([\d.]+)\s?([KMGT]?)i?(?:B|bytes)?\b"
_ASKED = (
    rf"\({_SIZE}\) exceeds available HBM",
    rf"Used {_SIZE} of [\d.]+[KMGT]? hbm",
    rf"(?:allocate|allocating|allocate request for|reserve) {_SIZE}",
)
_THERE = (
    rf"available HBM \({_SIZE}\)",
    rf"Used [\d.]+[KMGT]? of {_SIZE} hbm",
    rf"There are {_SIZE} free",
)
_KEYS = (
    "Lower config.batch_size (protocol.batch_size, audit.batch_size), or raise config.accumulate: "
    "the same update in slices. config.model.remat=True computes features twice to keep fewer; "
    "config.mesh.fsdp splits parameters over devices."
)


def exhausted(error: BaseException) -> bool:
    """Tell whether XLA says with this error that a device has too little memory."""
    # The status of what fails after it was dispatched is INTERNAL on the CPU.
    return bool(re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)))


def asked(message: str, patterns: tuple[str, ...] = _ASKED) -> float | None:
    """Return the bytes that were asked for, from what XLA says; None if it does not say."""
    found = next(filter(None, (re.search(pattern, message) for pattern in patterns)), None)
    return float(found[1]) * 2 ** (10 * " KMGT".index(found[2] or " ")) if found else None


def limit() -> int | None:
    """Return the bytes that a device has for arrays and programs; None if it does not say."""
    with contextlib.suppress(RuntimeError):
        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return None


def message(error: BaseException, fits: str = "") -> str:
    """Put the error into one message for people, with what is known of what `fits`."""
    wanted, there = asked(str(error)), asked(str(error), _THERE) or limit()
    wanted, there = (f"{x / 2**30:,.2f} GiB" if x else "unknown" for x in (wanted, there))
    kind = jax.local_devices()[0].device_kind
    return f"Too little memory on {kind}: asked for: {wanted}, there: {there}. {fits}{_KEYS}"


@contextlib.contextmanager
def explained(step_fn: Any = None, unit: int = 1) -> Iterator[Callable[..., None]]:
    """Yield a function to be told a step's arguments; within, a lack of memory is a ValueError.

    Args:
      step_fn: of `jax.jit`; its third argument is the batch.
      unit: batches have multiples of so many rows.
    """
    like: list[Any] = []

    def called_with(*args: Any) -> None:  # shapes only: nothing of one step is kept for the next
        like[:] = jax.tree.map(_like, args)

    try:
        yield called_with
    except (RuntimeError, ValueError) as error:
        if not exhausted(error):
            raise
        found, fits = None, ""
        if like and limit() and jax.process_count() == 1:  # several would have to compile together
            rows = len(like[2]["valid"])
            with contextlib.suppress(RuntimeError):
                found = largest(lambda n: _bytes(step_fn, like, n), rows, unit, limit())
        if found is not None:
            fits = f"By the compiler's figures a batch of {found} fits, not one of {rows}. "
        raise ValueError(message(error, fits)) from error


def largest(
    bytes_at: Callable[[int], float | None], rows: int, unit: int, limit: int
) -> int | None:
    """Return the largest batch below rows that fits, memory being affine; None if unknown."""
    number = rows // unit
    if number < 2:
        return None
    few, more = max(number // 4, 1), max(number // 2, 2)
    low, high = bytes_at(few * unit), bytes_at(more * unit)
    if not low or not high or high <= low:
        return None
    found = few + int((limit - low) // ((high - low) / (more - few)))
    return max(min(found, number - 1), 0) * unit


def _bytes(step_fn: Any, like: list[Any], rows: int) -> float | None:
    """Return what the compiler wants on each device for a step with so many rows."""
    batch = {name: x.update(shape=(rows, *x.shape[1:])) for name, x in like[2].items()}
    try:
        found = step_fn.lower(*like[:2], batch, *like[3:]).compile().memory_analysis()
    except RuntimeError as error:  # a TPU's compiler refuses, and says how much
        return asked(str(error))
    if found is None:
        return None
    total = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return float(total - found.alias_size_in_bytes)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
