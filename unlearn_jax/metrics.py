"""Training metrics: device scalars in, JSON lines out, non-finite values noticed."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from unlearn_jax import distributed


def mean_over_steps(first_step: int, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The means of per-step device metrics, fetched from the device at once.

    Args:
      first_step: the step of metrics[0].
      metrics: one dict of scalars per step.

    Raises:
      FloatingPointError: a value is not finite; names the first such step.
    """
    fetched = jax.device_get(list(metrics))
    for step, values in enumerate(fetched, start=first_step):
        bad = {name: float(value) for name, value in values.items() if not np.isfinite(value)}
        if bad:
            raise FloatingPointError(
                f"Training diverged at step {step}: {bad}. The checkpoints from before are kept. "
                "Lower the learning rate, set optimizer.clip_norm_l2, or, when ascending, set "
                "objective_kw.forget_cap or a stop rule."
            )
    return {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}


def flops(lowered: jax.stages.Lowered) -> float:
    """Floating-point operations of one call, as XLA counts them before it optimises.

    The same on every device, so that costs of methods can be compared where seconds cannot.
    """
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))


class JsonlWriter:
    """Appends one JSON object per line, after dropping what a resumed run will write again.

    Of several processes only the first one writes.
    """

    def __init__(self, path: Path, resume_step: int):
        """Opens path; of the lines already there, those with step <= resume_step stay."""
        if not distributed.first():
            self._file = open(os.devnull, "w")
            return
        kept = [line for line in read_jsonl(path) if line["step"] <= resume_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(path)
        self._file = path.open("a", buffering=1)

    def write(self, values: Mapping[str, Any]) -> None:
        """Writes one line; floats are rounded to 6 significant digits."""
        line = {k: _round(v) if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class IntervalLog:
    """The metrics of one phase, written one interval late so that logging never waits for a step.

    Attributes of every line: step, phase, means over the interval's steps, examples per second.
    """

    def __init__(self, writer: JsonlWriter, phase: str, batch_size: int, bar: tqdm):
        """Starts the first interval now."""
        self._writer, self._phase, self._batch_size, self._bar = writer, phase, batch_size, bar
        self._window: list[Mapping[str, Any]] = []
        self._late: tuple | None = None
        self._since = time.perf_counter()

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes the device metrics of one step; advances the progress bar."""
        self._window.append(metrics)
        self._bar.update(self._batch_size)

    def end_interval(self, step: int, probed: Mapping[str, Any]) -> None:
        """Ends the interval at this step and writes the one before.

        Raises:
          FloatingPointError: the one before has a value that is not finite.
        """
        self.flush()
        if self._window:
            now = time.perf_counter()
            self._late = (step, self._window, now - self._since, probed)
            self._window, self._since = [], now

    def flush(self) -> None:
        """Writes the interval that has ended but is not written yet."""
        if self._late:
            step, window, seconds, probed = self._late
            self._late = None
            means = mean_over_steps(step - len(window) + 1, window)
            rate = {"examples_per_s": len(window) * self._batch_size / seconds}
            probed = {name: float(value) for name, value in probed.items()}
            self._bar.set_postfix_str(f"loss {means['loss']:.4g}", refresh=False)
            self._writer.write({"step": step, "phase": self._phase, **means, **probed, **rate})


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _round(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value
