"""A run of a stage: its workdir, its record, and what happens between two steps of its loop."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PRNGKeyArray

from unlearn_jax import checkpoint, cli, distributed, sharding
from unlearn_jax.models import Params, memory
from unlearn_jax.models.flops import Counted
from unlearn_jax.models.params import overlay, select
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.training import lease
from unlearn_jax.training import log as logs
from unlearn_jax.training.phases import Phase
from unlearn_jax.training.probe import fired, make_probe, make_samples
from unlearn_jax.training.start import Start
from unlearn_jax.training.step import UnlearnState
from unlearn_jax.training.watch import Progress, open_log

TEACHER = "teacher"  # folder in the workdir


@dataclasses.dataclass
class Record:
    """What a run has done; every checkpoint has it as its meta.

    Attributes:
      step: updates done.
      phase: index of the phase that the next step belongs to.
      phase_start: the step at which that phase began.
      phases: of each that has ended {"name", "objective", "first_step", "last_step", "stopped_by"}.
      done: whether all have.
      served: the requests that the model has served, see `data.served`.
      wall_s: seconds, restarts included.
      compile_s: seconds of that for compiling steps.
      examples: images that steps were made of.
      flops: of steps and preparations.
      versions: that a certificate names; None without one.
      of: the run that it is of, see `checkpoint.run_of`.
    """

    step: int = 0
    phase: int = 0
    phase_start: int = 0
    phases: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    done: bool = False
    served: dict[str, Any] = dataclasses.field(default_factory=dict)
    wall_s: float = 0.0
    compile_s: float = 0.0
    examples: int = 0
    flops: float = 0.0
    versions: dict[str, str] | None = None
    of: dict[str, str] | None = None

    @classmethod
    def from_meta(cls, meta: checkpoint.Meta) -> "Record":
        """Read the record of a checkpoint."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in meta.items() if name in names})

    def meta(self) -> checkpoint.Meta:
        """Return it as a checkpoint keeps it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}


class Run:
    """A stage in training.

    Attributes:
      request: what it is trained for.
      workdir: where it is kept.
      start: where it starts.
      phases: that it has.
      like: the whole model's parameters as ShapeDtypeStructs.
      record: what it has done.
      state: of the current phase.
      target: all leaves of the frozen original; the public ones alone once a phase is noised.
      manager: of its checkpoints.
    """

    def __init__(
        self,
        request: Request,
        workdir: Path,
        start: Start,
        phases: Sequence[Phase],
        like: Params,
        manager: ocp.CheckpointManager,
        record: Record,
        kept: ocp.CheckpointManager | None = None,
    ):
        """Resume what the workdir has of this run, or begin with this record.

        Args:
          request: what it is trained for.
          workdir: where it is kept.
          start: where it starts.
          phases: that it has.
          like: the whole model's parameters as ShapeDtypeStructs.
          manager: of its checkpoints.
          record: of a run that begins.
          kept: of checkpoints to begin from, if there are any.
        """
        self.request, self.workdir, self.start, self.phases = request, workdir, start, phases
        self.manager, self.record, self.target = manager, record, start.original
        self.like = like
        stored = functools.partial(checkpoint.restore_latest, like=self._shapes)
        own = stored(manager)
        if found := own or (kept and stored(kept)):
            whole, opt, meta = found
            past = {"of": record.of} | ({} if own else {"served": record.served})
            self.record = dataclasses.replace(Record.from_meta(meta), **past)
            params = select(start.pack(whole), start.trainable)
            self.state = UnlearnState(params=params, **start.pack(opt))
        else:
            self.state = phases[0].new_state(start.params, 0, start.keys.state)
        start.params = None  # the state is a copy; both together could be too much

    def _shapes(self, meta: checkpoint.Meta) -> tuple[Params, dict[str, Any]]:
        """Say what a checkpoint with this meta holds: the model, and what is kept beside it."""
        request = self.request
        state = jax.eval_shape(self.start.unpack, self.phases[meta["phase"]].shapes)
        shardings = sharding.params_sharding(state, request.mesh, **request.cfg.sharding)
        return self.like, _beside_params(sharding.abstract(state, shardings))

    def whole(self) -> tuple[Params, dict[str, Any]]:
        """Return what a checkpoint of the run as it is has: the whole model, and what else."""
        whole = self.start.unpack(overlay(self.target, self.state.params))
        return whole, self.start.unpack(_beside_params(self.state))

    @contextlib.contextmanager
    def working(self, profile: str, later: int) -> Iterator[None]:
        """Open what the loop writes to, and start its clock; nobody else may write there."""
        start, step, to = self.start, self.record.step, self.request.cfg.log.to
        self._later = later
        self._probe = make_probe(self.request, start.original, start.keys.probe)
        self._samples = make_samples(self.request, start) if to else lambda params: None
        self._ask = distributed.make_asker(self.request.mesh)
        self._metrics: dict[str, Any] = {}
        with (
            lease.take(self.workdir),
            logs.profile(profile) as self._profiled,
            contextlib.closing(logs.JsonlWriter(self.workdir / "metrics.jsonl", step)) as writer,
            open_log(to, self.workdir, step) as self._tell,
        ):
            self._writer, self._began = writer, time.perf_counter() - self.record.wall_s
            yield

    def enter(self, phase: Phase) -> None:
        """Give the state that phase's optimizer, and save it, unless the phase only goes on.

        What a phase prepares may take long and can be interrupted: nothing may be lost by it.
        """
        record = self.record
        if phase.index > record.phase:
            record.phase, record.phase_start = phase.index, record.step
            key = self.start.keys.state
            self.state = phase.new_state(self.state.params, record.step, key)
            if phase.spec.steps:  # else what comes next is saved at the same step
                self.save()
        self.target = self._teacher(phase)

    def _teacher(self, phase: Phase) -> Params:
        """Return what the phase compares with; kept in the workdir until the run is done."""
        if phase.spec.teacher == "original" or not phase.index:
            return self.start.original
        folder = self.workdir / TEACHER / str(phase.index)
        if self.resumed:
            return self.start.pack(checkpoint.load_params(folder, self.like)[0])
        whole = jax.tree.map(jnp.copy, overlay(self.start.original, self.state.params))
        checkpoint.save_params(folder, self.start.unpack(whole))
        return whole

    @property
    def resumed(self) -> bool:
        """Tell whether the current phase has steps behind it."""
        return self.record.step > self.record.phase_start

    def fresh(self, key: PRNGKeyArray) -> Params:
        """Draw trainable leaves as they are before any training, in the layout of the loop."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.like)
        whole = jax.jit(self.request.model.init, out_shardings=shardings)(key)
        return select(self.start.pack(whole), self.start.trainable)

    def earlier(self, share: float) -> Params:
        """Load trainable leaves as they were after that share of the original's own training.

        Raises:
          UserError: no checkpoint was kept within a tenth of the training from there.
        """
        folder = self.request.cfg.init_from
        last = checkpoint.read_meta(folder)["step"]
        near = min(checkpoint.saved_steps(folder), key=lambda step: abs(step - share * last))
        if not near or abs(near - share * last) > 0.1 * last:
            kept = sorted(checkpoint.saved_steps(folder))
            raise UserError(
                f"rewind: expected a checkpoint of {folder} near step {share * last:.0f}, of its "
                f"{last}, found steps {kept}. Train it with a smaller checkpoint.every and a "
                "larger checkpoint.keep."
            )
        whole, _ = checkpoint.load_params(folder, self.like, step=near)
        return select(self.start.pack(whole), self.start.trainable)

    @contextlib.contextmanager
    def logging(self, phase: Phase, step: Counted) -> Iterator[logs.IntervalLog]:
        """Yield the log of a phase, which shows its progress; a lack of memory is explained."""
        unit = self.request.mesh.size * phase.accumulate
        progress = Progress(
            f"{self.request.cfg.stage}: {phase.name}",
            steps=phase.spec.steps,
            done=self.record.step - self.record.phase_start,
            batch_size=phase.batch_size,
            later=self._later
            + sum(next.spec.steps * next.batch_size for next in self.phases[phase.index + 1 :]),
        )
        with memory.explained(step.jitted, unit) as self._called_with, contextlib.closing(progress):
            log = logs.IntervalLog(self._writer, phase.name, phase.batch_size, progress, self._tell)
            yield log
            log.end_interval(self.record.step, {})
            log.flush()

    def compile(self, step: Counted, *args: Any) -> None:
        """Compile a step for its arguments, if that is still to be done."""
        self._called_with(*args)
        if step.compile(*args):
            self.record.compile_s += step.compile_s

    def after_step(
        self, phase: Phase, log: logs.IntervalLog, metrics: dict[str, Any], flops: float
    ) -> str:
        """Count a step, measure and save when due; return why the phase ends, "" if it goes on.

        Raises:
          FloatingPointError: training diverged.
          OSError: a checkpoint could not be written.
          cli.Interrupted: once everything is saved, if a signal asked for it.
          UserError: another job has taken the workdir, or it is gone.
        """
        record, cfg = self.record, self.request.cfg
        record.step += 1
        record.examples += phase.batch_size
        record.flops += flops
        self._metrics = metrics
        log.add(metrics)
        self._profiled(metrics)
        log.spent("dispatch")
        due = phase.spec.probe_every and record.step % phase.spec.probe_every == 0
        probed = self._probe(self.state.params) if due else {}
        samples = self._samples(self.state.params) if due else None
        reason = fired(phase.spec.stop, probed)
        if due or record.step % cfg.log_every == 0:
            log.end_interval(record.step, probed, samples)
        if reason or record.step == record.phase_start + phase.spec.steps:
            return reason or "steps"
        if self._ask(record.step, cli.stopping()):
            self.save()
            log.flush()
            raise cli.Interrupted(f"saved at step {record.step} in {self.workdir}", agreed=True)
        if record.step % cfg.checkpoint.every == 0:
            jax.block_until_ready(metrics)  # else the wait would count as saving
            log.spent("device")
            self.save()
            log.spent("save")
        return ""

    def leave(self, phase: Phase, reason: str) -> None:
        """Record that a phase has ended, and why."""
        record = self.record
        ended = {"name": phase.name, "objective": phase.spec.objective}
        ended |= {"first_step": record.phase_start, "last_step": record.step}
        record.phases = [*record.phases, ended | {"stopped_by": reason}]

    def save(self, manager: ocp.CheckpointManager | None = None) -> None:
        """Start saving a checkpoint of the run as it is, among its own or with another manager.

        Raises:
          FloatingPointError: the last step diverged: such a model is not worth keeping.
          UserError: another job has taken the workdir, or it is gone.
          OSError: it could not be written.
        """
        lease.check(self.workdir, needs=("config.json", "split.json"))
        logs.mean_over_steps(self.record.step, [self._metrics])
        self.record.wall_s = time.perf_counter() - self._began
        checkpoint.save(manager or self.manager, *self.whole(), self.record.meta())


def _beside_params(state: UnlearnState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}
