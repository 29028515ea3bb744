"""Training metrics: device scalars in, JSON lines out, non-finite values noticed."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unlearn_jax import distributed, files
from unlearn_jax.data import transforms
from unlearn_jax.training.watch import Progress, Tell


def mean_over_steps(first_step: int, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average per-step device metrics, fetched from the device at once.

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
                "objective_kw.forget_cap or a stop rule. Other values make another run: give "
                "another --workdir."
            )
    return {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}


_UNTRACED_STEPS, _TRACED_STEPS = 5, 5  # the first ones are not typical


@contextlib.contextmanager
def profile(directory: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function to call after each step with its metrics: it traces the 6th to 10th.

    The trace goes to directory/plugins/profile/TIME, for XProf, TensorBoard or (*.trace.json.gz)
    Perfetto. "" traces nothing.
    """
    steps, last_step = 0, _UNTRACED_STEPS + _TRACED_STEPS

    def after_step(metrics):
        nonlocal steps
        steps += 1
        if steps in (_UNTRACED_STEPS, last_step):
            jax.block_until_ready(metrics)
            if steps == last_step:
                jax.profiler.stop_trace()
            else:
                jax.profiler.start_trace(directory)

    try:
        yield after_step if directory else lambda metrics: None
    finally:
        if directory and _UNTRACED_STEPS <= steps < last_step:
            jax.profiler.stop_trace()
        elif directory and steps < _UNTRACED_STEPS:
            print(f"warning: no trace in {directory}: the run took {steps} steps, and the first "
                  f"{_UNTRACED_STEPS} are not traced", file=sys.stderr)  # fmt: skip


class JsonlWriter:
    """Appends one JSON object per line, after dropping what a resumed run will write again.

    Of several processes only the first one writes.
    """

    def __init__(self, path: Path, resume_step: int):
        """Open path; of the lines already there, those with step <= resume_step stay."""
        if not distributed.first():
            self._file = open(os.devnull, "w")
            return
        kept = [line for line in files.read_jsonl(path) if line["step"] <= resume_step]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, values: Mapping[str, Any]) -> None:
        """Write one line; floats are rounded to 6 significant digits."""
        line = {k: _round(v) if isinstance(v, float) else v for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


PARTS = ("data_wait", "dispatch", "device", "save")  # of the time of a step, see `IntervalLog`


class IntervalLog:
    """The metrics of one phase, written one interval late so that logging never waits for a step.

    Keys of every line: step, phase, means over the interval's steps, examples per second, and where
    the time of the loop went, in seconds per step, which sum to that of a step:
    * `data_wait_s`: until a batch was there. Near 0 unless loading is slower than training.
    * `dispatch_s`: handing a batch and a step to the device. With a device of its own, little; on a
      CPU, XLA may run parts of the step meanwhile.
    * `device_s`: until the device had finished what was asked of it: metrics, probes.
    * `save_s`: of a checkpoint, what does not happen in the background.
    Compilation is in none of them.
    """

    def __init__(
        self,
        writer: JsonlWriter,
        phase: str,
        batch_size: int,
        progress: Progress,
        tell: Tell | None = None,
    ):
        """Start the first interval now.

        Args:
          writer: of the lines.
          phase: its name.
          batch_size: images of a step.
          progress: shows it to who started the run.
          tell: gets what is written, too, see `watch.open_log`.
        """
        self._writer, self._phase, self._batch_size = writer, phase, batch_size
        self._progress, self._tell = progress, tell
        self._window: list[Mapping[str, Any]] = []
        self._late: tuple | None = None
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._lap = time.perf_counter()

    def spent(self, part: str | None) -> None:
        """Count the time since the last call as this one of `PARTS`; None: as nothing."""
        now = time.perf_counter()
        if part:
            self._seconds[part] += now - self._lap
        self._lap = now

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Take the device metrics of one step; advance the progress."""
        self._window.append(metrics)
        self._progress.update()

    def end_interval(self, step: int, probed: Mapping[str, Any], samples: Any = None) -> None:
        """End the interval at this step and write the one before.

        Args:
          step: the last one.
          probed: scalars, see `probe`.
          samples: images [n h w 3] in [-1, 1] for `tell`, None if there are none.

        Raises:
          FloatingPointError: the one before has a value that is not finite.
        """
        self.flush()
        self.spent("device")
        if self._window:
            self._late = (step, self._window, self._seconds, probed, samples)
            self._window, self._seconds = [], dict.fromkeys(PARTS, 0.0)

    def flush(self) -> None:
        """Write the interval that has ended but is not written yet."""
        if self._late:
            step, window, seconds, probed, samples = self._late
            self._late = None
            means = mean_over_steps(step - len(window) + 1, window)
            images, spent = len(window) * self._batch_size, sum(seconds.values())
            rate = {"examples_per_s": images / spent}
            parts = {f"{part}_s": total / len(window) for part, total in seconds.items()}
            probed = {name: float(value) for name, value in probed.items()}
            self._progress.measured(means["loss"], images, spent)
            scalars = {**means, **probed, **rate, **parts}
            self._writer.write({"step": step, "phase": self._phase, **scalars})
            if self._tell:
                pictures = None if samples is None else transforms.to_uint8(np.asarray(samples))
                self._tell(step, scalars, pictures)


def _round(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value
