"""Train one stage of a request: the original, the unlearned or the retrained model.

    python -m unlearn_jax.train --config=configs/quickstart.py --workdir=runs/original
    python -m unlearn_jax.train --config=configs/quickstart.py --workdir=runs/unlearned \\
        --config.stage=unlearned --config.init_from=runs/original

The three stages are the same loop over other phases. A run that was interrupted, by whatever,
resumes when the same command is given again, and ends with the same parameters, bit for bit.

Several processes train together (see `distributed`); a run may resume with another number of them:

    python -m unlearn_jax.train --config=… --workdir=… --coordinator=HOST:PORT \\
        --num_processes=2 --process_id=0   # and the same with --process_id=1
"""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, cli, data, distributed, methods, sharding
from unlearn_jax.certify import certificate
from unlearn_jax.certify import stage as certified
from unlearn_jax.certify.exact import chain as chains
from unlearn_jax.config import identity
from unlearn_jax.data import lineage, splits
from unlearn_jax.methods import optimizer
from unlearn_jax.methods.preparation import Context
from unlearn_jax.models.flops import Counted
from unlearn_jax.request import Request, entries_of, past_of
from unlearn_jax.training import lease, noisy, watch
from unlearn_jax.training.phases import Phase, make_phases
from unlearn_jax.training.run import TEACHER, Record, Run
from unlearn_jax.training.start import Start, load_start


@lease.exclusively(unless=checkpoint.is_done)  # what has finished is only read
def run(
    cfg: ConfigDict,
    workdir: Path,
    profile: str = "",
    later: int = 0,
    request: Request | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Train the stage cfg.stage; return its record: phases, why each ended, steps, seconds.

    Args:
      cfg: a config; `cfg.stage` says which stage.
      workdir: gets config.json, split.json, metrics.jsonl and checkpoints/, and certificate.json
        if a phase is noised. If it holds an unfinished run of the same config, that run is resumed;
        a finished one is left alone.
      profile: folder that gets a trace of some steps, see `training.log.profile`.
      later: images that are trained on after this stage, for the time that is left of a request.
      request: the config, resolved; None: it is resolved here.
      until: the step at which a slice enters and the run ends, unfinished; see `exact.replay`.

    Raises:
      UserError: the config, the data or the workdir are not what they must be; another job has
        the workdir.
      OSError: a file could not be read or written.
      FloatingPointError: training diverged.
      cli.Interrupted: after SIGTERM or SIGINT, of any one process, once everything is saved.
    """
    # ---- what is asked for: images, sets, model, devices
    # A stage that changes or replaces a model belongs to the request of the runs beside it.
    siblings = cfg.stage in cfg.stages and cfg.stages[cfg.stage].rows != "train"
    request = request or Request(cfg, workdir, siblings=siblings)
    sharding.check_batch_size(cfg.batch_size, request.mesh, accumulate=cfg.accumulate)

    # ---- where it starts, and the phases that it goes through
    like = request.like()
    start = load_start(request, like)
    phases = make_phases(request, start.params, start.keys.state)

    # ---- a workdir holds one run; one that was interrupted goes on where it was saved
    with (
        claimed(request, workdir, start) as record,
        cli.finishing(f"once the step, and what it compiles, is done and saved in {workdir}"),
        checkpoint.open_manager(workdir, keep=cfg.checkpoint.keep) as manager,
        chains.keeping(request, workdir, record.of["config"]) as chain,
    ):
        run = Run(request, workdir, start, phases, like, manager, record, chain and chain.kept)
        if not run.record.done:
            noise = certified.load_noise(request, start, workdir)
            with run.working(profile, later):
                if chain:
                    chain.start(run)
                for phase in phases[run.record.phase :]:
                    if train_phase(run, phase, noise, chain, until) == "until":
                        return run.record.meta()
                if chain:
                    chain.finish(run)
                run.record.done = True
                run.record.versions = certificate.versions() if noise else None
                run.save()
        if phases[-1].noised:
            certified.issue(request, workdir, manager, start.original, start.keys.init)
    if distributed.first():
        shutil.rmtree(workdir / TEACHER, ignore_errors=True)
    lease.check(workdir, (*FILES[:2], f"{checkpoint.DIRECTORY}/{run.record.step}"))
    return run.record.meta()


def train_phase(
    run: Run,
    phase: Phase,
    noise: certified.Noised | None,
    chain: chains.Chain | None = None,
    until: int | None = None,
) -> str:
    """Train one phase, from its first step or from where it was interrupted; return why it ended.

    Args:
      run: the run; its state and record change.
      phase: the phase.
      noise: of a run with a noised phase, else None.
      chain: of a run by slices, else None.
      until: a step to stop before, which is then "until".
    """
    run.enter(phase)
    with cli.at_once():
        columns = prepare(run, phase, noise)
    constants = certified.constants(noise, phase, run.request.mesh) if phase.noised else ()
    step = Counted(phase.make_step(run.request, run.target, constants))
    first = run.record.step - run.record.phase_start
    reason = "steps"
    with (
        run.logging(phase, step) as log,
        closing(phase.batches(run.request, columns, first)) as batches,
    ):
        for batch in batches:
            log.spent("data_wait")
            if chain:
                chain.enter(run)
                log.spent("save")
            if run.record.step == until:
                return "until"
            batch = sharding.global_batch(batch, run.request.mesh)
            if not step.compiled:
                run.compile(step, run.state, run.target, batch, *constants)
                log.spent(None)  # compiling is in no step's time
            run.state, metrics = step(run.state, run.target, batch, *constants)
            reason = run.after_step(phase, log, metrics, step.each)
            if reason:
                break
    run.leave(phase, reason)
    return reason


def prepare(run: Run, phase: Phase, noise: certified.Noised | None) -> dict[str, np.ndarray]:
    """Let a phase prepare what its method declares; return the columns of its batches.

    A mask or another start goes into the run's state. What lies in a state is not made again when
    a run resumes; columns are.
    """
    used = [rows for rows in phase.rows.values() if rows is not None]
    preparations = methods.preparations(phase.spec.objective)
    if phase.noised:
        run.target = noise.frozen  # from here on, nothing of the original
        preparations = (noise.prepare, *preparations)
    columns: dict[str, np.ndarray] = {}
    for preparation in preparations:
        found = preparation(
            Context(
                request=run.request,
                phase=phase.spec,
                params=run.state.params,
                target=run.target,
                reference=run.start.reference,
                rows=np.concatenate(used) if used else np.zeros(0, np.int64),
                key=run.start.keys.probe,
                resumed=run.resumed,
                fresh=run.fresh,
                earlier=run.earlier,
            )
        )
        if found is None:
            continue
        columns |= found.columns
        run.record.flops += 0.0 if run.resumed else found.flops
        state = run.state
        if found.params is not None:
            state = state.replace(params=found.params)
        if found.mask is not None:
            state = state.replace(opt_state=optimizer.with_mask(state.opt_state, found.mask))
        run.state = jax.device_put(state, phase.shardings)
    return columns


FILES = ("config.json", "split.json", "metrics.jsonl", noisy.SECRET_FILE, chains.FILE)


@contextmanager
def claimed(request: Request, workdir: Path, start: Start) -> Iterator[Record]:
    """Write config.json and split.json, or check those that are there; yield a new record.

    A run that ends before its first step has claimed nothing: the workdir is as it was.

    Raises:
      UserError: the workdir holds a run with other numbers.
    """
    cfg, split, past = request.cfg, request.split, past_of(request.cfg)
    stage = cfg.stages[cfg.stage]
    parents = [meta and meta["checksums"] for meta in start.parents]
    rows = split.manifest["hash"]
    if stage.scratch:  # of what is left out, it depends on the rows alone
        rows = lineage.trained_on(split, getattr(split, stage.rows))
    begun = (workdir / "config.json").exists() or checkpoint.saved_steps(workdir)
    more = data.facts(request.source)
    facts = identity.claim(workdir, cfg, rows=rows, init_from=parents, **more)
    if distributed.first() and not (workdir / "split.json").exists():
        splits.save(split, workdir / "split.json")
    forgets = entries_of(cfg, split) + ([request.entry()] if stage.rows != "train" else [])
    served = {"requests": forgets, "claim": past.claim if past else ""}
    record = Record(served=served, of=checkpoint.run_of(facts))
    try:
        yield record
    except BaseException:
        # What lies there may be of a job that has taken the workdir over.
        if lease.held(workdir) and not begun and not record.step:
            for name in FILES:
                (workdir / name).unlink(missing_ok=True)
            for name in (checkpoint.DIRECTORY, watch.FOLDER, chains.FOLDER):
                shutil.rmtree(workdir / name, ignore_errors=True)
        raise


def main(cfg: ConfigDict, workdir: Path, profile: str) -> None:
    """Run the command."""
    meta = run(cfg, workdir, profile)
    if not distributed.first():
        return
    for ended in meta["phases"]:
        steps = f"steps {ended['first_step']} to {ended['last_step']}"
        print(f"{cfg.stage}: {ended['name']}, {steps}, ended by {ended['stopped_by']}")
    if (workdir / certificate.FILE).exists():
        print(certificate.summary(certificate.read(workdir / certificate.FILE)))
        for line in certified.clipping_text(certified.clipped_share(workdir)):
            print(line)
    print(f"{meta['examples']} examples in {meta['wall_s']:.1f} s. The model is in {workdir}.")


if __name__ == "__main__":
    flags.DEFINE_string("profile", "", "Folder for a trace of a few steps, for XProf or Perfetto.")
    cli.start(main, needs=("config", "workdir", "profile"), several=True)
