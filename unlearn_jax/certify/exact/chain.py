"""The chain of a training by slices: what it was at the entrance of every slice, and of what.

A workdir whose config has `data.slices` gets slices/, a checkpoint of the entrance of each slice,
and chain.json. That has a hash of each slice's images (ids and pixels), hashes of parameters and
optimizer's state at both ends of each segment, and what computed it: devices, versions, code. The
link of a segment is a hash of all that and of the link before, so it binds everything up to there.

**Guarantee**: a state in the chain depends on the slices before it only, see `data.slices`. Not
covered: that it was computed so. Whoever can write the file can seal another one; `replay` tells.
"""

import contextlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, cli, data, distributed, files
from unlearn_jax.certify import certificate
from unlearn_jax.certify.stage import params_hash
from unlearn_jax.data import copies, slices
from unlearn_jax.registry import DamagedError, UserError
from unlearn_jax.request import Request
from unlearn_jax.training.run import Run

FILE, FOLDER, FORMAT = "chain.json", "slices", "unlearn_jax.chain.v1"
Values = dict[str, Any]
_SCHEMA = {"config": str, "entrances": [int], "slices": [{"n": int, "sha256": str}], "links": [str]}
_SCHEMA |= {"states": [{"params": str, "opt": str}], "computed": [[dict]]}


def here(cfg: ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Describe what computes: a segment has the same bits wherever this is the same."""
    device = jax.devices()[0]
    found: dict[str, Any] = {"platform": device.platform, "device": device.device_kind}
    found |= {"devices": jax.device_count(), "processes": jax.process_count()}
    found |= {"mesh": dict(mesh.shape), "accumulate": cfg.accumulate}
    found |= {"xla_flags": os.environ.get("XLA_FLAGS", "").split()}
    if device.platform == "cpu":
        found["processor"] = cli.processor()
    return found | {"versions": certificate.versions(), "code": certificate.code_hash()}


def state_hash(params: Any, opt: Any) -> dict[str, str]:
    """Hash the whole model and what is kept beside it: {"params", "opt"}, SHA-256 of all bits."""

    def bits(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if key else leaf

    return {"params": params_hash(params), "opt": params_hash(jax.tree.map(bits, opt))}


def facts(request: Request, config: str, fresh: bool = False) -> Values:
    """Return what a chain says before the first step.

    Args:
      request: whose stage is trained.
      config: a hash of what of its config decides the result.
      fresh: hash the images anew, whatever was kept.
    """
    cfg, stage = request.cfg, request.cfg.stages[request.cfg.stage]
    rows, spec = getattr(request.split, stage.rows), cfg.data.slices
    found = None
    if distributed.first():
        source = request.source
        known = None if fresh else data.open_data(cfg)[1].pixels[rows]
        pixels = copies.hash_pixels(source, rows) if known is None else known
        found = slices.digests(source, rows, spec, pixels)
    steps = slices.steps_of(cfg)
    return {
        "config": config,
        "entrances": [*slices.entrances(spec.count, steps, spec.last), steps],
        "slices": distributed.agreed(found),
        "states": [],  # at each entrance, and at the end
        "computed": [],  # of each segment: by what, see `here`; several after restarts elsewhere
        "links": [],
    }


def link(values: Values, s: int) -> str:
    """Return the hash of segment s and of all before it."""
    before = values["links"][s - 1] if s else values["config"]
    own = [values[name][s] for name in ("slices", "computed")]
    return files.digest([before, *own, values["entrances"][s : s + 2], values["states"][s : s + 2]])


def read(workdir: Path) -> Values:
    """Return the chain of a workdir.

    Raises:
      UserError: there is none, or what is there is no chain or was altered.
    """
    if not (workdir / FILE).exists():
        raise UserError(
            f"{workdir}: expected a model trained by slices, with {FILE}; there is none. Slices "
            "must be planned before training: --config.data.slices.count=10 (docs/exact.md)."
        )
    values = files.read_sealed(workdir / FILE, FORMAT, "the chain of a training by slices")
    wrong = sorted(set(values) ^ set(_SCHEMA)) or files.problems(values, _SCHEMA)
    if wrong:
        raise UserError(f"{workdir / FILE} is no chain, by {wrong[0]!r}: it has {sorted(values)}.")
    count, n = len(values["slices"]), {key: len(values[key]) for key in _SCHEMA}
    if n["entrances"] != count + 1 or not n["links"] <= n["computed"] <= n["states"] <= count + 1:
        raise UserError(f"{workdir / FILE} is no chain: of {count} slices it has {n}.")
    return values


def unchanged(a: Values, b: Values) -> int:
    """Return how many slices, from the first on, are the same in both."""
    pairs = zip(a["slices"], b["slices"], strict=False)
    return next((s for s, (x, y) in enumerate(pairs) if x != y), len(a["slices"]))


def head(values: Values, n: int) -> Values:
    """Return the chain up to the entrance of slice n."""
    kept = {"states": n + 1, "computed": n, "links": n}
    return {key: of[: kept[key]] if key in kept else of for key, of in values.items()}


class Chain:
    """Writes the chain of a run while it trains."""

    def __init__(self, request: Request, workdir: Path, config: str, kept: ocp.CheckpointManager):
        """Go on with the chain of a workdir, or begin one.

        Raises:
          UserError: the images are not those that the run began with.
        """
        self.values, self.kept, self._path = facts(request, config), kept, workdir / FILE
        self._here = here(request.cfg, request.mesh)
        begun = distributed.agreed(read(workdir) if self._path.exists() else None)
        if begun:
            for key in ("config", "entrances", "slices"):
                if begun[key] != self.values[key]:
                    raise UserError(
                        f"{self._path}: {key} are not what they were when this run began: its "
                        "images or its config have changed. Put them back, or choose another "
                        "--workdir."
                    )
            self.values = begun

    def start(self, run: Run) -> None:
        """Note that this machine goes on with a run, or begins it.

        Raises:
          DamagedError: the chain is not that of the checkpoint that the run goes on from.
        """
        values, step = self.values, run.record.step
        s = bisect_right(values["entrances"], step) - 1
        at_entrance = step == values["entrances"][s]
        known = values["states"][s : s + 1]
        if len(values["states"]) < s + (not at_entrance) or (
            at_entrance and known and known[0] != state_hash(*run.whole())
        ):
            raise DamagedError(
                f"{self._path}: expected the state of step {values['entrances'][s]}, as the "
                "checkpoint that the run goes on from has it. Put both back, or start again in "
                "another --workdir."
            )
        if not at_entrance:
            self.values = head(values, s)
            self.values["computed"].append([*values["computed"][s : s + 1][0]])
            self._note()

    def enter(self, run: Run) -> None:
        """Keep the state of a run before its next step if a slice enters there."""
        if (step := run.record.step) not in self.values["entrances"]:
            return
        s, state = self.values["entrances"].index(step), state_hash(*run.whole())
        if self.values["states"][s : s + 1] != [state] or step not in self.kept.all_steps():
            if step in self.kept.all_steps():
                self.kept.delete(step)
            run.manager.wait_until_finished()  # of several processes, two saves would meet
            run.save(self.kept)
            self.kept.wait_until_finished()
        self._reached(s, state)
        self.values["computed"].append([])
        self._note()

    def finish(self, run: Run) -> None:
        """Write the last link."""
        self._reached(len(self.values["slices"]), state_hash(*run.whole()))
        self._write()

    def _reached(self, s: int, state: dict[str, str]) -> None:
        self.values = head(self.values, s)
        self.values["states"] = [*self.values["states"][:s], state]
        if s > len(self.values["links"]):
            self.values["links"].append(link(self.values, s - 1))

    def _note(self) -> None:
        by = self.values["computed"][-1]
        if not by or by[-1] != self._here:
            by.append(self._here)
        self._write()

    def _write(self) -> None:
        if distributed.first():
            files.write_sealed(self._path, self.values, FORMAT)


@contextlib.contextmanager
def keeping(request: Request, workdir: Path, config: str) -> Iterator[Chain | None]:
    """Yield the chain of a run that is about to begin or to go on; None without slices."""
    cfg = request.cfg
    if not (cfg.data.slices.count and cfg.stages[cfg.stage].scratch):
        yield None
        return
    with checkpoint.open_manager(workdir / FOLDER, keep=cfg.data.slices.count) as kept:
        yield Chain(request, workdir, config, kept)
