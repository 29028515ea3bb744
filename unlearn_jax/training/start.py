"""Where a stage starts: its parameters, the original that it is compared with, a reference."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, files
from unlearn_jax.data import lineage
from unlearn_jax.models import Params
from unlearn_jax.models.params import select
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.sharding import leaf_path
from unlearn_jax.training.phases import make_layout


class Keys(NamedTuple):
    """The three keys of a run: of initial parameters, of its steps, of what it measures."""

    init: PRNGKeyArray
    state: PRNGKeyArray
    probe: PRNGKeyArray


@dataclass
class Start:
    """Where a stage starts, in the layout that it computes with.

    Attributes:
      keys: of the run.
      trainable: regexes on the paths of the leaves that may change.
      params: these leaves; None once a state has been made of them.
      original: all leaves of the frozen original; {} for a stage from scratch.
      reference: all leaves of the reference model, None without one.
      parents: meta of the checkpoints of original and reference; None for what is not there.
      pack: makes the layout of a tree of parameters or an optimizer's state.
      unpack: undoes it.
    """

    keys: Keys
    trainable: tuple[str, ...]
    params: Params | None
    original: Params
    reference: Params | None
    parents: tuple[checkpoint.Meta | None, checkpoint.Meta | None]
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def load_start(request: Request, like: Params) -> Start:
    """Load or draw what the stage of a request starts from.

    Args:
      request: its config says which stage, and where models are.
      like: `request.like()`.

    Raises:
      UserError: a stage that changes a model without one; a model that is of another request,
        damaged or not finished.
    """
    cfg, model = request.cfg, request.model
    stage = cfg.stages[cfg.stage]
    keys = Keys(*jax.random.split(jax.random.key(cfg.seed), 3))
    parent = reference = reference_meta = None
    if cfg.init_from:
        params, parent = checkpoint.load_params(Path(cfg.init_from), like)
        _check_finite(params, "init_from", cfg.init_from)
        _check_fields(model, Path(cfg.init_from))
        lineage.check_model(request.split, Path(cfg.init_from))
    elif stage.scratch:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        params = jax.jit(model.init, out_shardings=shardings)(keys.init)
    else:
        raise UserError(
            f"The stage {cfg.stage!r} changes a trained model. Say which: "
            "--config.init_from=WORKDIR, where the original was trained."
        )
    if cfg.reference_from:
        reference, reference_meta = checkpoint.load_params(Path(cfg.reference_from), like)
        _check_finite(reference, "reference_from", cfg.reference_from)
        lineage.check_model(request.split, Path(cfg.reference_from), role="reference")
    trainable = trained(stage, model.trainable)
    pack, unpack = make_layout(cfg, stage, like, trainable, request.mesh)
    params, reference = pack(params), pack(reference)
    original = {} if stage.scratch else params
    return Start(keys, trainable, select(params, trainable), original, reference,
                 (parent, reference_meta), pack, unpack)  # fmt: skip


def _check_finite(params: Params, key: str, workdir: str) -> None:
    """Check that all weights are numbers; raise UserError naming the leaves that have others."""
    flat = jax.tree_util.tree_leaves_with_path(params)
    bad = [leaf_path(path) for path, leaf in flat if not jnp.isfinite(leaf).all()]
    if bad:
        raise UserError(
            f"config.{key}: {len(bad)} of {len(flat)} arrays of the model in {workdir} have NaN or "
            f"infinite weights, such as {bad[0]}. It was damaged before it was given here: take "
            "an earlier checkpoint of it, or convert or train it again."
        )


def _check_fields(model: Any, workdir: Path) -> None:
    """Check fields that no shape tells against those of the conversion in a workdir, if it is one.

    Raises:
      UserError: the config's model has, say, other heads, and would compute something else.
    """
    path = workdir / "conversion.json"
    said = files.read_json(path, "what convert writes") if path.exists() else {}
    schema = {"model": dict} | ({"unsaid": [str]} if "unsaid" in said else {})
    if wrong := files.problems(said, schema) if said else []:
        raise UserError(f"{path}: expected what convert writes, {wrong[0]}. Convert it again.")
    for name in said.get("unsaid", []):
        theirs, ours = said["model"].get(name), getattr(model, name, None)
        if theirs != ours and name != "image_size":  # which may be another, if shapes allow it
            raise UserError(
                f"config.model has {name}={ours}, the model converted in {workdir} has {theirs}: "
                f"the same weights would mean something else. Set config.model.{name}={theirs}."
            )


def trained(stage: ConfigDict, trainable: Any) -> tuple[str, ...]:
    """Return the regexes of what a stage trains.

    What is trained from scratch is trained whole, and there is no original to compare it with.
    """
    return (".*",) if stage.scratch else tuple(trainable)
