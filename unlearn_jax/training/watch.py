"""Watching a run: a bar on a terminal, lines in a log, TensorBoard, or a function of your own."""

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import distributed, registry
from unlearn_jax.registry import UserError

LINE_EVERY_S = 10  # where there is no terminal
FOLDER = "tensorboard"  # in the workdir
Tell = Callable[[int, Mapping[str, float], Any], None]  # step, scalars, images [n h w 3] or None


def images_of(config: ConfigDict, stage: str) -> int:
    """Return how many images a stage trains on at most, repetitions counted."""
    phases = [config.phases[name] for name in config.stages[stage].phases]
    return sum(phase.steps * (phase.batch_size or config.batch_size) for phase in phases)


def say(text: str) -> None:
    """Print a line with the time, where no terminal shows bars; of a job's first process only."""
    if distributed.first() and not sys.stderr.isatty():
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


class Progress:
    """The progress of a phase: on a terminal a bar, elsewhere a line every few seconds.

    Only the first process of a job shows it.
    """

    def __init__(self, title: str, *, steps: int, done: int, batch_size: int, later: int = 0):
        """Begin to show it.

        Args:
          title: of the phase.
          steps: that it takes at most.
          done: of these, before.
          batch_size: images of a step.
          later: images that are trained on after this phase, in the whole request.
        """
        self._title, self._steps, self._step, self._batch = title, steps, done, batch_size
        self._later, self._images, self._seconds = later, 0, 0.0
        self._bar = tqdm(
            desc=title,
            total=steps * batch_size,
            initial=done * batch_size,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not distributed.first() or None,  # None: where there is no terminal
        )
        self._bar.set_postfix_str(self._left())
        self._shown, self._text = -1, ""
        self._line()

    def update(self) -> None:
        """Count a step."""
        self._step += 1
        self._bar.update(self._batch)

    def measured(self, loss: float, images: int, seconds: float) -> None:
        """Take the mean loss of an interval, and what was trained on in which time."""
        self._images, self._seconds = self._images + images, self._seconds + seconds
        self._bar.set_postfix_str(f"loss {loss:.4g}, {self._left()}", refresh=False)
        self._text = f"loss {loss:.4g}, {images / seconds:,.0f} images/s, "
        if time.monotonic() - self._last >= LINE_EVERY_S:
            self._line()

    def close(self) -> None:
        """Show where it ended."""
        self._bar.close()
        if self._shown != self._step:
            self._line()

    def _line(self) -> None:
        self._last, self._shown = time.monotonic(), self._step
        step = f"step {self._step:,} of {self._steps:,}"
        say(f"{self._title}, {step}, {self._text}{self._left()}")

    def _left(self) -> str:
        """Return the time left if all goes as fast as this phase did; phases may end early."""
        here = (self._steps - self._step) * self._batch
        text = f"left {self._time(here)}"
        return text + (f", of all training {self._time(here + self._later)}" if self._later else "")

    def _time(self, images: int) -> str:
        if not self._images:
            return "unknown"
        seconds = images * self._seconds / self._images
        if seconds < 90:
            return f"{seconds:.0f} s"
        return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def open_log(to: str, workdir: Path, step: int) -> Iterator[Tell | None]:
    """Yield what is told every interval besides metrics.jsonl; None if that is nothing.

    Args:
      to: `config.log.to`: "", "tensorboard" or "package.module:function".
      workdir: of the run; tensorboard writes to workdir/tensorboard.
      step: that the run resumes at. TensorBoard hides what was written of later ones; a function
        is told them again.

    Raises:
      UserError: TensorBoard's writer is not installed; no such function.
    """
    tell = find(to)
    if not tell or not distributed.first():
        yield None
    elif to != "tensorboard":
        yield tell
    else:
        purge = step + 1 if step else None
        with tell(str(workdir / FOLDER), purge_step=purge) as writer:
            yield lambda *values: _write(writer, *values)


def find(to: str) -> Any:
    """Return TensorBoard's writer, or the function that a name means; None for "".

    Raises:
      UserError: the message says what to install, or what was expected.
    """
    if to != "tensorboard":
        return registry.find({"": None, "tensorboard": None}, to, "function")
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"config.log.to: expected SummaryWriter in tensorboardX, got {error}. pip install "
            "'unlearn_jax[tensorboard]', or leave it out."
        ) from error


def _write(writer: Any, step: int, scalars: Mapping[str, float], images: Any) -> None:
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)
    if images is not None:
        title = "forget: input, completed, truth"
        writer.add_images(title, images, step, dataformats="NHWC")
    writer.flush()
