"""Trains one stage of a request: the original, the unlearned or the retrained model.

    python -m unlearn_jax.train --config=configs/quickstart.py --workdir=runs/original
    python -m unlearn_jax.train --config=configs/quickstart.py --workdir=runs/unlearned \\
        --config.stage=unlearned --config.init_from=runs/original

The three stages are the same loop over other phases. A run that was interrupted, by whatever,
resumes when the same command is given again, and ends with the same parameters, bit for bit.

Several processes train together (see `distributed`); a run may resume with another number of them:

    python -m unlearn_jax.train --config=… --workdir=… --coordinator=HOST:PORT \\
        --num_processes=2 --process_id=0   # and the same with --process_id=1
"""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from unlearn_jax import checkpoint, cli, data, distributed, memory, sharding
from unlearn_jax.certify import certificate
from unlearn_jax.certify import stage as certified
from unlearn_jax.config import certified as rules
from unlearn_jax.config import identity
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage, splits
from unlearn_jax.methods import goals, saliency, tokens
from unlearn_jax.models import flops
from unlearn_jax.models.params import overlay, select
from unlearn_jax.request import entries_of, past_of, resolve
from unlearn_jax.training import log as metrics
from unlearn_jax.training import optimizer
from unlearn_jax.training.phases import make_layout, make_optimizer, make_step
from unlearn_jax.training.probe import fired, make_probe
from unlearn_jax.training.step import UnlearnState


def run(cfg: ConfigDict, workdir: Path, profile: str = "") -> dict[str, Any]:
    """The record of a finished stage: its phases and why each ended, steps, seconds, examples.

    Args:
      cfg: a config; `cfg.stage` says which stage.
      workdir: gets config.json, split.json, metrics.jsonl and checkpoints/, and certificate.json
        if a phase is noised. If it holds an unfinished run of the same config, that run is resumed;
        a finished one is left alone.
      profile: folder that gets a trace of some steps, see `metrics.profile`.

    Raises:
      ValueError: the config, the data or the workdir are not what they must be.
      OSError: a file could not be read or written.
      FloatingPointError: training diverged.
      SystemExit: with code 0, after SIGTERM or SIGINT, of any one process, once everything is
        saved.
    """
    # ---- data --------------------------------------------------------------------------------
    validate(cfg)
    stage = cfg.stages[cfg.stage]
    # A stage that changes or replaces a model belongs to the request of the runs beside it.
    setup, past = resolve(cfg, workdir, siblings=stage.rows != "train"), past_of(cfg)
    _, mesh, source, split, model = setup
    sharding.check_batch_size(cfg.batch_size, mesh, accumulate=cfg.accumulate)
    for name in stage.phases:
        phase, key = cfg.phases[name], f"phases.{name}.batch_size"
        accumulate = phase.accumulate or cfg.accumulate
        sharding.check_batch_size(phase.batch_size or cfg.batch_size, mesh, key, accumulate)
    retain_rows = getattr(split, stage.rows)

    # ---- model and target --------------------------------------------------------------------
    init_key, state_key, probe_key = jax.random.split(jax.random.key(cfg.seed), 3)
    like = setup.like()
    whole_sharding = jax.tree.map(lambda leaf: leaf.sharding, like)
    parent = None
    if cfg.init_from:
        params, parent = checkpoint.load_params(Path(cfg.init_from), like)
        lineage.check_model(split, Path(cfg.init_from))
    elif stage.scratch:
        params = jax.jit(model.init, out_shardings=whole_sharding)(init_key)
    else:
        raise ValueError(
            f"The stage {cfg.stage!r} changes a trained model. Say which: "
            "--config.init_from=WORKDIR, where the original was trained."
        )
    reference = reference_meta = None
    if cfg.reference_from:
        reference, reference_meta = checkpoint.load_params(Path(cfg.reference_from), like)
        lineage.check_model(split, Path(cfg.reference_from), role="reference")
    # What is trained from scratch is trained whole, and there is no original to compare it with.
    trainable = (".*",) if stage.scratch else model.trainable
    pack, unpack = make_layout(cfg, stage, like, trainable, mesh)
    params, reference = pack(params), pack(reference)
    target = {} if stage.scratch else params
    target_sharding = jax.tree.map(lambda leaf: leaf.sharding, target)
    params = select(params, trainable)

    # ---- phases ------------------------------------------------------------------------------
    phases = [(name, cfg.phases[name]) for name in stage.phases]
    txs = [make_optimizer(phase) for _, phase in phases]
    noised_from = rules.position(cfg)

    def new_state(params, step, i):
        key = state_key
        if noised_from is not None and i >= noised_from:
            # How many steps came before may depend on the forget set: no randomness may tell.
            step, key = 0, jax.random.fold_in(state_key, i)
        params = jax.tree.map(jnp.copy, params)  # the state is donated, the original is not
        return UnlearnState(jnp.int32(step), params, txs[i].init(params), jnp.copy(key))

    states = [jax.eval_shape(lambda p, i=i: new_state(p, 0, i), params) for i in range(len(phases))]
    shardings = [sharding.params_sharding(state, mesh, **cfg.sharding) for state in states]

    def placed_state(params, step, i):
        return jax.jit(new_state, static_argnums=2, out_shardings=shardings[i])(params, step, i)

    # ---- where an earlier run stopped --------------------------------------------------------
    inherited = [found and found["checksums"] for found in (parent, reference_meta)]
    seen = lineage.trained_on(split, retain_rows) if stage.scratch else split.manifest["hash"]
    identity.claim(workdir, cfg, rows=seen, init_from=inherited)
    if distributed.first() and not (workdir / "split.json").exists():
        splits.save(split, workdir / "split.json")
    forgets = entries_of(cfg, split) + ([setup.entry()] if stage.rows != "train" else [])
    meta = {"step": 0, "phase": 0, "phase_start": 0, "phases": [], "done": False,
            "served": {"requests": forgets, "claim": past.claim if past else ""},
            "wall_s": 0.0, "compile_s": 0.0, "examples": 0, "flops": 0.0}  # fmt: skip

    def like_state(meta):
        state = jax.eval_shape(unpack, states[meta["phase"]])
        state = sharding.abstract(state, sharding.params_sharding(state, mesh, **cfg.sharding))
        return like, {"step": state.step, "opt_state": state.opt_state, "key": state.key}

    with (
        checkpoint.open_manager(workdir, keep=cfg.checkpoint.keep) as manager,
        _signals() as stop,
        metrics.profile(profile) as profiled,
    ):
        if resumed := checkpoint.restore_latest(manager, like_state):
            whole, opt, meta = resumed
            state = UnlearnState(params=select(pack(whole), trainable), **pack(opt))
        original = target
        if meta["done"]:
            if noised_from is not None:
                certified.issue(setup, workdir, manager, original, init_key)
            return meta
        if not resumed:
            state = placed_state(params, 0, 0)
        del params, resumed

        noised = None
        if noised_from is not None:
            noised = certified.prepare(setup, original, trainable, init_key, workdir)
        probe, ask = make_probe(setup, target, probe_key), distributed.make_asker(mesh)
        writer = metrics.JsonlWriter(workdir / "metrics.jsonl", meta["step"])
        began, step, last = time.perf_counter() - meta["wall_s"], meta["step"], {}

        def save(**changes):
            metrics.mean_over_steps(step, [last])  # a diverged model is not worth keeping
            meta.update(step=step, wall_s=time.perf_counter() - began, **changes)
            opt = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
            checkpoint.save(manager, unpack(overlay(target, state.params)), unpack(opt), meta)

        # ---- the loop ------------------------------------------------------------------------
        for i, (name, phase) in list(enumerate(phases))[meta["phase"] :]:
            if i > meta["phase"]:
                meta.update(phase=i, phase_start=step)
                state = placed_state(state.params, step, i)
            done, stopped_by, columns = step - meta["phase_start"], "", {}
            constants, constants_sharding = (), None
            if noised and i >= noised_from:  # from here on, nothing of the original
                target = noised.frozen
                target_sharding = jax.tree.map(lambda leaf: leaf.sharding, target)
                if i == noised_from and not done:
                    start = certified.noised_start(state.params, noised, phase)
                    state = jax.device_put(state.replace(params=start), shardings[i])
                if phase.noise.std:
                    constants = ({"secret": noised.secret, "reference": noised.centre},)
                    constants_sharding = {
                        "secret": sharding.replicated(mesh),
                        "reference": shardings[i].params,
                    }
            batch_size = phase.batch_size or cfg.batch_size
            accumulate = phase.accumulate or cfg.accumulate
            if phase.goal:
                directed = phase.objective_kw.get("direction", 0) > 0
                columns, spent = goals.make(
                    phase.goal, setup, target, reference, probe_key, outputs=directed
                )
                meta["flops"] += 0.0 if done else spent
            used = {
                "retain_rows": retain_rows if phase.retain_weight else None,
                "forget_rows": split.forget if phase.forget_weight else None,
            }
            if phase.cache_tokens:
                tokens.check_frozen(state.params, phase)
                rows = np.concatenate([rows for rows in used.values() if rows is not None])
                made, spent = tokens.make(setup, overlay(target, state.params), rows)
                columns, meta["flops"] = columns | made, meta["flops"] + (0.0 if done else spent)
            if 0 < phase.saliency < 1 and not done:  # later it is in the optimizer's state
                original = select(target, trainable)
                mask, spent = saliency.make(phase.saliency, setup, original, target, probe_key)
                opt_state = optimizer.with_mask(state.opt_state, mask)
                state = jax.device_put(state.replace(opt_state=opt_state), shardings[i])
                meta["flops"] += spent
            batches = data.make_train(
                source,
                **used,
                batch_size=batch_size,
                forget_fraction=phase.forget_fraction,
                task=cfg.task.to_dict(),
                seed=int(np.random.SeedSequence([cfg.seed, i]).generate_state(1)[0]),
                first_step=done,
                num_steps=phase.steps - done,
                places=sharding.local_rows(batch_size, mesh),
                num_threads=cfg.data.num_threads,
                prefetch=cfg.data.prefetch,
                columns=columns,
            )
            step_fn = make_step(
                phase,
                model,
                txs[i],
                mesh,
                forget_count=data.forget_count(batch_size, phase.forget_fraction, **used),
                accumulate=accumulate,
                state_sharding=shardings[i],
                target_sharding=target_sharding,
                noised_sharding=constants_sharding,
            )
            bar = _progress(f"{cfg.stage}: {name}", phase.steps, done, batch_size)
            log = metrics.IntervalLog(writer, name, batch_size, bar)
            explained = memory.explained(step_fn, mesh.size * accumulate)
            with explained as called_with, contextlib.closing(batches), contextlib.closing(bar):
                for batch in batches:
                    log.spent("data_wait")
                    batch = sharding.global_batch(batch, mesh)
                    if step == meta["phase_start"] + done:
                        called_with(state, target, batch, *constants)
                        start = time.perf_counter()
                        traced = step_fn.trace(state, target, batch, *constants)
                        step_fn, per_step = traced.lower().compile(), flops.of(traced)
                        meta["compile_s"] += time.perf_counter() - start
                        log.spent(None)
                    state, last = step_fn(state, target, batch, *constants)
                    step += 1
                    meta["examples"] += batch_size
                    meta["flops"] += per_step
                    log.add(last)
                    profiled(last)
                    log.spent("dispatch")
                    due = phase.probe_every and step % phase.probe_every == 0
                    probed = probe(state.params) if due else {}
                    stopped_by = fired(phase.stop, probed)
                    if due or step % cfg.log_every == 0:
                        log.end_interval(step, probed)
                    if stopped_by or step == meta["phase_start"] + phase.steps:
                        break
                    if ask(step, bool(stop)):
                        save()
                        log.flush()
                        by = stop[0] if stop else "another process"
                        print(f"\nStopped by {by}, saved at step {step} in {workdir}. "
                              "The same command resumes.", file=sys.stderr)  # fmt: skip
                        raise SystemExit(0)
                    if step % cfg.checkpoint.every == 0:
                        jax.block_until_ready(last)
                        log.spent("device")
                        save()
                        log.spent("save")
                log.end_interval(step, {})
                log.flush()
            ended = {"name": name, "objective": phase.objective, "first_step": meta["phase_start"],
                     "last_step": step, "stopped_by": stopped_by or "steps"}  # fmt: skip
            meta["phases"] = [*meta["phases"], ended]
        save(done=True, **({"versions": certificate.versions()} if noised else {}))
        writer.close()
        if noised:
            certified.issue(setup, workdir, manager, original, init_key)
    return meta


def _progress(title: str, steps: int, done: int, batch_size: int) -> tqdm:
    """A progress bar in images; only the first process of a job shows one."""
    return tqdm(
        desc=title,
        total=steps * batch_size,
        initial=done * batch_size,
        unit="img",
        unit_scale=True,
        dynamic_ncols=True,
        disable=not distributed.first(),
    )


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """A list that gets the signal's name when SIGTERM or SIGINT asks the run to stop."""
    received: list[str] = []

    def handler(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def main(cfg: ConfigDict, workdir: Path, profile: str) -> None:
    """The binary."""
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
