"""Measurements of one model for all witnesses: numbers for each image, on any mesh.

What is here needs the model. What the numbers mean is decided by the witnesses, in numpy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from unlearn_jax import data, registry, sharding
from unlearn_jax import methods as objectives
from unlearn_jax.audit import AUDITS, limits
from unlearn_jax.audit.witness import Witness
from unlearn_jax.data.splits import Split
from unlearn_jax.methods import optimizer
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.models.distances import displacement, masked_mse, unexplained
from unlearn_jax.models.draws import losses
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request
from unlearn_jax.training.step import UnlearnState, jit_step

Measured = dict[str, np.ndarray]
_ROWS, _FINETUNE = 0, 1  # random streams


class Lab:
    """What witnesses measure with: images, model, devices; compiled once for all models.

    Attributes:
      request: images, sets, model, devices.
      cfg: its config; `cfg.audit` says how much is done.
      rows: the audited rows of each set, see `choose_rows`.
      key: of all randomness of measurements.
    """

    def __init__(self, request: Request):
        """Check that the request can be audited, and choose the rows."""
        self.request, self.cfg, self.split = request, request.cfg, request.split
        self.model, self.mesh = request.model, request.mesh
        if reason := limits.lacking(self.split):
            raise UserError(f"audit: {reason}.")
        sharding.check_batch_size(self.cfg.batch_size, self.mesh)
        sharding.check_batch_size(self.cfg.audit.batch_size, self.mesh, "audit.batch_size")
        self.rows = choose_rows(self.cfg, self.split)
        self.key = jax.random.key(self.cfg.request.seed)
        self._steps: dict[float, Any] = {}

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function of parameters and a batch, of which every output is [b …]."""
        return sharding.jit_rows(function, self.mesh)

    def round(self, function: Callable[[Params], Params]) -> Callable[[Params], Params]:
        """Compile a function of parameters to others, which lie as the first."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.request.like())
        return jax.jit(function, out_shardings=shardings)

    def losses_of(
        self, params: Params, batch: Batch, draws: Sequence[int] = ()
    ) -> Float[Array, "b k"]:
        """Return the training loss of each image, on some draws or all of them, see `losses`."""
        draws = draws or range(self.cfg.audit.draws)
        return losses(self.model, params, batch, self.key, draws)

    @cached_property
    def loss(self) -> Callable[[Params, Batch], Float[Array, "b k"]]:
        """Return `losses_of`, compiled."""
        return self.jit(self.losses_of)

    def look(self, function: Callable[..., Any], rows: np.ndarray, *args: Any, **options: Any):
        """Return a compiled function's values of these rows: the same masks for all models."""
        return self.request.map(function, rows, *args, seed=self.cfg.request.seed, **options)

    def over(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        sets: Sequence[str] = ("forget", "unseen"),
        **options: Any,
    ) -> Measured:
        """Return {"name/SET": values} of the rows of some sets, without those that are empty."""
        some = [s for s in sets if len(self.rows[s])]
        return {f"{name}/{s}": self.look(function, self.rows[s], *args, **options) for s in some}

    def finetune(
        self, params: Params, rows: np.ndarray, steps: Sequence[int], learning_rate: float
    ) -> Iterator[tuple[int, Params]]:
        """Train on some rows; yield (step, parameters) at these steps, to be used at once.

        All models see the same batches. The parameters given are left as they are.
        """
        if learning_rate not in self._steps:
            like = self.request.like()
            self._steps[learning_rate] = jit_finetuning(
                self.cfg, self.model, self.mesh, like, learning_rate
            )
        fresh_state, step = self._steps[learning_rate]
        params = jax.tree.map(lambda x: x.copy(), params)  # the step donates them
        size, seed = self.cfg.audit.batch_size, self.cfg.request.seed
        state = fresh_state(params, seed)
        loader = data.make_train(
            self.request.source, retain_rows=rows, forget_rows=None, batch_size=size,
            forget_fraction=0.5, task=self.cfg.task.to_dict(), first_step=0, num_steps=max(steps),
            seed=int(np.random.SeedSequence([seed, _FINETUNE]).generate_state(1)[0]),
            places=sharding.local_rows(size, self.mesh),
        )  # fmt: skip
        for k, batch in enumerate(loader, start=1):
            state, _ = step(state, {}, sharding.global_batch(batch, self.mesh))
            if k in steps:
                yield k, state.params


def make_measure(
    request: Request, audits: Mapping[str, Witness] = AUDITS
) -> Callable[[Params, Params], Measured]:
    """Make a function (params, original) -> arrays of a model, compiled once for all models.

    Sets are forget (without rows that carry a backdoor: no model can guess a payload), unseen (the
    audit part of the holdout), calibration (the other part, for fits), retain, and earlier0, …: the
    forget sets of requests that were served before. All witnesses share

    * `index/SET` [n]: which rows;
    * `loss/SET` [n k]: training loss, see `losses`;
    * `error/SET` [n], of all but calibration: mean squared error of the completed hole;
    * `structure/SET` [n]: share of the hole's variance that the completion does not explain;
    * `visible/SET` [n]: the same of the visible part, as decoded (0 if there is none);
    * `displacement/SET` [n]: RMS distance to the original's completion.

    Args:
      request: of the request; `cfg.audit` says how many rows, steps and draws.
      audits: the witnesses, which add arrays of their own.
    """
    lab = Lab(request)
    shared = jit_shared(lab)
    measures = [w.measure(lab) for w in audits.values() if w.measure]

    def run(params: Params, original: Params) -> Measured:
        found: Measured = {f"index/{name}": rows for name, rows in lab.rows.items()}
        for name, rows in lab.rows.items():
            if name == "calibration":
                values = {"loss": lab.look(lab.loss, rows, params)} if len(rows) else {}
            else:
                values = lab.look(shared, rows, params, original)
            found |= {f"{key}/{name}": value for key, value in values.items()}
        for measure in measures:
            found |= measure(params, original)
        return found

    return run


def witnesses_of(cfg: ConfigDict) -> tuple[dict[str, Witness], dict[str, Callable[..., Any]]]:
    """Return the witnesses of a config, with its own; and its own functions, which only show."""
    own = {name: registry.find({}, name, "audit") for name in cfg.audit.own}
    witnesses = {name: of for name, of in own.items() if isinstance(of, Witness)}
    return AUDITS | witnesses, {name: of for name, of in own.items() if name not in witnesses}


def choose_rows(cfg: ConfigDict, split: Split) -> dict[str, np.ndarray]:
    """Choose the audited rows of every set: at most cfg.audit.rows, at random, none poisoned."""
    sets = {
        "forget": np.setdiff1d(split.forget, split.poisoned),
        "unseen": split.audit,
        "calibration": split.calibration,
        "retain": split.remaining,
    }
    sets |= {f"earlier{k}": rows for k, rows in enumerate(split.served)}
    rng = np.random.default_rng([cfg.request.seed, _ROWS])
    n = cfg.audit.rows
    return {k: np.sort(rng.permutation(rows)[:n]) for k, rows in sets.items()}


def jit_shared(lab: Any) -> Callable[..., Any]:
    """Compile (params, original, batch) -> what all witnesses share: {"loss" [b k], "error", …}.

    lab: a `Lab`, or what has its model, key, losses_of and jit.
    """
    model, key = lab.model, lab.key

    def measure(params, original, batch):
        image, mask = batch["image"], batch["mask"]
        output = model.generate(params, batch, key)
        before = model.generate(original, batch, key)
        decoded = model.decode(params, model.encode(params, batch, key), batch, key)
        shown = (1 - mask).any((1, 2, 3))
        return {
            "loss": lab.losses_of(params, batch),
            "error": masked_mse(output, image, mask),
            "structure": unexplained(output, image, mask),
            "visible": jnp.where(shown, masked_mse(decoded, image, 1 - mask), 0.0),
            "displacement": displacement(output, before, mask),
        }

    return lab.jit(measure)


def jit_finetuning(
    cfg: ConfigDict, model: Model, mesh: Mesh, like: Params, learning_rate: float
) -> tuple[Callable[..., UnlearnState], Callable[..., Any]]:
    """Compile (params, seed) -> state, and the step of fine-tuning; `like`: all leaves."""
    tx = optimizer.make_optimizer(learning_rate=learning_rate, steps=1)

    def fresh_state(params, seed):
        return UnlearnState(jnp.int32(0), params, tx.init(params), jax.random.key(seed))

    shardings = jax.eval_shape(fresh_state, like, 0)
    shardings = sharding.params_sharding(shardings, mesh, **cfg.sharding)
    step = jit_step(
        model,
        objectives.build("reconstruction"),
        tx,
        retain_weight=1.0,
        forget_weight=0.0,
        state_sharding=shardings,
        target_sharding={},
        batch_sharding=sharding.batch_sharding(mesh),
        replicated=sharding.replicated(mesh),
    )
    return jax.jit(fresh_state, out_shardings=shardings), step
