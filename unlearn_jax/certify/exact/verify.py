"""Verify a model trained by slices, or deleted from: its chain, and segments computed again.

**Guarantee** of a verified chain, with all segments replayed: the parameters are the result of the
training that config.json describes, of the images that split.json lists and chain.json hashes, and
of no other. It needs no trust in who made it. Not covered: what a base (`init_from`) was made of;
other copies of a model. Without a replay: all files fit together, and nothing else.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, data, distributed, registry
from unlearn_jax.certify.exact import chain
from unlearn_jax.certify.exact.replay import TOLERANCE, Replayed, replay
from unlearn_jax.config import identity
from unlearn_jax.config.validation import validate
from unlearn_jax.data import lineage, splits
from unlearn_jax.data.holdout import id_keys
from unlearn_jax.data.splits import Split
from unlearn_jax.registry import DamagedError, UserError
from unlearn_jax.request import Request

GUARANTEE = (
    "These parameters are the result of a computation in which the deleted images do not occur.",
    "chain.json hashes every image, state and version of it; whoever has the other images can run "
    "it again and compare bit for bit: unlearn-jax verify DIR --replay=all.",
    "Nothing is assumed about losses, noise or attackers: ε = 0.",
    "It does not undo the past: whoever kept a copy of the old model still has it, and the "
    "difference of both models points at what was deleted.",
    "It does not cover what a base model (init_from) was trained on, altered copies of the images "
    "that were not asked for, or pictures generated before.",
)
"""What a verified exact deletion means, in five lines for a lawyer."""


def of_model(workdir: Path) -> dict[str, Any] | None:
    """Return {"lines": `GUARANTEE`, "reason": why it does not hold, or ""}; None without a chain.

    Nothing is computed again: the lines say that it can be.
    """
    if not (workdir / chain.FILE).exists():
        return None
    reason = ""
    try:
        verify(workdir)
    except Exception as error:  # whatever is wrong with the files, they are not verified
        reason = str(error) or type(error).__name__
    return {"lines": list(GUARANTEE), "reason": reason}


@registry.of_record()
def verify(workdir: Path, replays: str = "0") -> list[str]:
    """Return what was verified of a workdir, in words.

    Args:
      workdir: of a training by slices, which may be somebody else's. Its images must be where its
        config says; those that were deleted need not be there any more.
      replays: "all" segments, or a number of them, drawn at random.

    Raises:
      DamagedError: something is not as it should be.
      UserError: there is no chain; a segment cannot be compared bit for bit here.

    Processes of a job call it together, as what several computed has its bits with as many only.
    """
    try:
        return _verified(workdir, replays)
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(
            f"{workdir}: its records are no training by slices: {error!r}"
        ) from error


def _verified(workdir: Path, replays: str) -> list[str]:
    known, (cfg, relevant) = chain.read(workdir), identity.of_run(workdir)
    validate(cfg)
    count = len(known["slices"])
    chosen = _choose(replays, count)
    split = splits.load(workdir / "split.json")
    request = _request(cfg, split, lineage.trained_on(split, _rows(cfg, split)), relevant)
    wrong = _facts(request, known, relevant) or _served(request, workdir)
    wrong = wrong or _states(workdir, known, checkpoint.run_of(relevant))
    if wrong:
        raise DamagedError("\n  ".join([f"{workdir} is not what its chain says:", *wrong[:10]]))
    n, steps = sum(of["n"] for of in known["slices"]), known["entrances"][-1]
    fit = "data, schedule, links, checkpoints fit"
    lines = [f"chain of {count} slices, {n:,} images, {steps:,} steps: {fit}"]
    found = [replay(request, workdir, s) for s in (-1, *chosen)]
    told = [_told(of, known) for of in found]
    if any(not of.same and (not of.elsewhere or of.distance > TOLERANCE) for of in found):
        raise DamagedError("\n  ".join([f"{workdir}: a replay ends elsewhere:", *lines, *told]))
    if any(not of.same for of in found):
        last = "No contradiction, and no proof: replay it on a machine like that which computed it."
        raise UserError("\n  ".join([f"{workdir}: not verified bit for bit:", *lines, *told, last]))
    left = count - len(chosen)
    return lines + told + ([f"{left} segments were not replayed: --replay=all"] if left else [])


def _choose(replays: str, count: int) -> list[int]:
    if replays == "all":
        return list(range(count))
    if not replays.isdecimal() or int(replays) > count:
        raise UserError(f"--replay: expected all, or a number up to {count}, got {replays!r}.")
    # Nobody may know beforehand which ones.
    drawn = np.random.default_rng().choice(count, int(replays), replace=False)
    return distributed.agreed(sorted(drawn.tolist()))


def _rows(cfg: ConfigDict, split: Split) -> np.ndarray:
    return getattr(split, cfg.stages[cfg.stage].rows)


def _request(cfg: ConfigDict, split: Split, rows: str, relevant: dict[str, Any]) -> Request:
    """Return the request that trains on the rows of a split, wherever they are in today's data."""
    if not (cfg.data.slices.count and cfg.stages[cfg.stage].scratch):
        raise UserError("config.json: expected a stage from scratch, with data.slices.")
    if rows != relevant["rows"]:
        raise DamagedError("split.json does not list the images that config.json hashes.")
    wanted = lineage.keys_of(split, _rows(cfg, split))
    source = data.open_data(cfg)[0]
    here = id_keys(source.ids)
    found = np.flatnonzero(np.isin(here, wanted))
    found = found[np.isin(found, np.array(source.splits["train"]))]
    if len(found) != len(wanted):
        raise UserError(
            f"{source.name}: expected the {len(wanted)} images of the training, found "
            f"{len(found)} of them. Restore the others: a replay needs all that were not deleted."
        )
    cfg.request.served, cfg.stages[cfg.stage].rows, cfg.log.to = "", "train", ""
    none = {name: [] for name in ("retain", "calibration", "audit")}
    sets = {"train": found.tolist(), "forget": found[:1].tolist(), **none}
    manifest = {**split.manifest, "sets": sets, "served": [], "apart": [], "poison": None}
    return Request(cfg, split=splits.of_manifest(json.loads(json.dumps(manifest))))


def _facts(request: Request, known: chain.Values, relevant: dict[str, Any]) -> list[str]:
    """List what of a chain does not follow from the config and the images."""
    new = chain.facts(request, checkpoint.run_of(relevant)["config"], fresh=True)
    count = len(new["slices"])
    wrong = [f"{key}: {known[key]!r}, by config.json {new[key]!r}"
             for key in ("config", "entrances") if known[key] != new[key]]  # fmt: skip
    if len(known["slices"]) != count:
        return [*wrong, f"{len(known['slices'])} slices, by config.json {count}"]
    wrong += [f"slice {s}: {known['slices'][s]['n']} images, and the data have "
              f"{new['slices'][s]['n']} or others"
              for s in range(count) if known["slices"][s] != new["slices"][s]]  # fmt: skip
    sizes = {"states": count + 1, "computed": count, "links": count}
    short = [f"{key}: expected {n}, got {len(known[key])}"
             for key, n in sizes.items() if len(known[key]) != n]  # fmt: skip
    if short:
        return wrong + short
    wrong += [f"segment {s}: it does not say what computed it"
              for s in range(count) if not known["computed"][s]]  # fmt: skip
    return wrong + [f"link {s} does not bind its segment to those before"
                    for s in range(count) if known["links"][s] != chain.link(known, s)]  # fmt: skip


def _served(request: Request, workdir: Path) -> list[str]:
    """List the images that the model says it has forgotten and that it is trained on."""
    served = checkpoint.read_meta(workdir).get("served") or {"requests": []}
    gone = {id for of in served["requests"] for id in of["ids"]}
    back = [id for id in (request.source.ids[row] for row in request.split.train) if id in gone]
    return [f"{len(back)} images of requests that it has served are in it: {back[:3]}"] * bool(back)


def _states(workdir: Path, known: chain.Values, of: dict[str, str]) -> list[str]:
    """List the checkpoints that are not those of the chain."""
    wrong = []
    *steps, end = known["entrances"]
    there = {False: checkpoint.saved_steps(workdir / chain.FOLDER),
             True: checkpoint.saved_steps(workdir)}  # fmt: skip
    if max(there[True], default=-1) != end:
        return [f"checkpoints: expected step {end} as the last, found {sorted(there[True])}"]
    for s, step in enumerate([*steps, end]):
        where, last = workdir / chain.FOLDER, step == end
        if step not in there[last]:
            wrong.append(f"state {s}: no checkpoint of step {step}")
            continue
        params, opt, meta = checkpoint.load_step(workdir if last else where, step)
        if chain.state_hash(params, opt) != known["states"][s]:
            wrong.append(f"state {s}: the checkpoint of step {step} is another one")
        if last and (not meta["done"] or meta.get("of") != of):
            wrong.append(f"the model of step {step} is not the end of this run")
    return wrong


def _told(of: Replayed, known: chain.Values) -> str:
    """Say how a replay ended."""
    name = f"segment {of.slice}, steps {known['entrances'][of.slice]:,} to "
    name += f"{known['entrances'][of.slice + 1]:,}"
    name = "start" if of.slice < 0 else name
    if of.same:
        return f"{name}: computed again, the same bits"
    how = "other bits on the same machine and versions"
    if of.elsewhere:
        how = "computed by another machine, version or number of devices: bits cannot be compared"
    return f"{name}: {how}; distance {of.distance:.2g} of its way, tolerance {TOLERANCE}"


def main(workdir: Path, replays: str) -> None:
    """Print what was verified."""
    holds = GUARANTEE if replays == "all" else ()
    lines = verify(workdir, replays)
    if distributed.first():
        print(f"Verified {workdir}:", *lines, *holds, sep="\n  ")
