"""What loss each forget example should end with: the goals of the objective `calibrated`.

A retrained model finds some unseen images easy and others hard. A goal is a guess, per example, of
the loss that a model has there that never saw the example, made without training one: a log-linear
fit on calibration images (the original never saw them, no audit uses them) from what can be
computed to the original's own loss, then applied to the forget images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax import sharding
from unlearn_jax.methods.features import features
from unlearn_jax.methods.preparation import Context, Prepared
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.models.draws import losses as losses_of_draws
from unlearn_jax.models.flops import Counted
from unlearn_jax.registry import UserError

GOALS = ("views", "reference", "views+reference", "features", "quantiles", "mean")
FIT_ROWS = 1000  # of the calibration part of the holdout, at most
LEAST_ROWS = 20  # for a fit
DRAWS = 8  # of masks, timesteps or noise, of a model that draws any
LEAK, LEVEL = 0.05, 0.05  # of an image's own memory, that a view may show; of the test of all views
MEMORY = 0.1  # in log loss; below it, there is nothing that views could show
Losses = Float[np.ndarray, "_"]


def views(image: Float[Array, "b h w c"]) -> list[Float[Array, "b h w c"]]:
    """Mirror and turn the image: 7 views of a square, 3 otherwise, without the image itself.

    Up to the model's own asymmetry they are as difficult as the image, but no one trained on them.
    """
    square = image.shape[1] == image.shape[2]
    turned = [jnp.rot90(image, k, (1, 2)) for k in range(0, 4, 1 if square else 2)]
    return [view for turn in turned for view in (turn, turn[:, :, ::-1])][1:]


def unviewed(
    outputs: list[Float[Array, "b h w c"]], chosen: Sequence[int] = ()
) -> list[Float[Array, "b h w c"]]:
    """Turn images back that `views` has mirrored and turned; chosen: which of them, () for all."""
    turns = 1 if outputs[0].shape[1] == outputs[0].shape[2] else 2
    back = []
    for k, output in zip(chosen or range(len(outputs)), outputs, strict=True):
        mirrored = output[:, :, ::-1] if (k + 1) % 2 else output
        back.append(jnp.rot90(mirrored, -turns * ((k + 1) // 2), (1, 2)))
    return back


def middle(
    outputs: Float[Array, "b k h w c"], losses: Float[Array, "b k"]
) -> Float[Array, "b h w c"]:
    """Average the outputs whose losses are in the middle: 3 of 7, 1 of 3.

    A view that shows a backdoor's trigger where the model learned it brings the payload, and has by
    far the lowest loss; it must not count, nor the views that fail.
    """
    k = losses.shape[1]
    keep = 3 if k >= 5 else 1
    order = jnp.argsort(losses, axis=1)[:, (k - keep) // 2 :][:, :keep]
    return jnp.take_along_axis(outputs, order[:, :, None, None, None], axis=1).mean(1)


def fit(
    predictors: Float[np.ndarray, "n k"],
    losses: Float[np.ndarray, "n"],
    of: Float[np.ndarray, "m k"],
) -> Float[np.ndarray, "m"]:
    """Fit goals by least squares: log loss = a + b . log predictors.

    The fitted values vary less than the losses (regression to the mean), so that goals made of
    them would be too much alike, and their mean too small. They are stretched about their mean to
    the spread of the log losses.

    Args:
      predictors: of holdout examples, all positive; with fewer than 10 examples per unknown, their
        geometric mean is the only one.
      losses: the original's losses on them.
      of: predictors of the forget examples.

    Raises:
      UserError: fewer than 20 examples, or values that are not positive.
    """
    if not all(np.isfinite(x).all() and (x > 0).all() for x in (predictors, losses, of)):
        raise UserError("goals: expected positive, finite losses.")
    n, k = predictors.shape
    if n < LEAST_ROWS:
        raise UserError(
            f"goals: {n} calibration rows are too few to fit goals; expected at least "
            f"{LEAST_ROWS}. Choose a larger holdout, or the goal 'quantiles'."
        )
    if n < 10 * (k + 1):
        predictors, of = (np.exp(np.log(x).mean(1, keepdims=True)) for x in (predictors, of))
    log = np.log(losses)
    design = np.column_stack([np.log(predictors), np.ones(n)])
    weights = np.linalg.lstsq(design, log, rcond=None)[0]
    fitted, goals = design @ weights, np.column_stack([np.log(of), np.ones(len(of))]) @ weights
    stretch = log.std() / fitted.std() if fitted.std() > 0 else 0.0
    return np.exp(log.mean() + stretch * (goals - fitted.mean()))


def quantiles(losses: Losses, holdout: Losses) -> Losses:
    """Hand out the holdout losses' quantiles by the rank of the forget examples' own losses."""
    ranks = (np.argsort(np.argsort(losses)) + 0.5) / len(losses)
    return np.quantile(holdout, ranks)


def conditional(
    predictors: Float[np.ndarray, "n k"],
    losses: Float[np.ndarray, "n"],
    of: Float[np.ndarray, "m k"],
    own: Float[np.ndarray, "m"],
) -> Float[np.ndarray, "m"]:
    """Hand out `quantiles` as they are for images that look alike.

    log loss = a + b . predictors + r is fitted by least squares on calibration images; a forget
    image gets the quantile of r by the rank of its own residual, so that the spread is right.

    Args:
      predictors: of holdout examples.
      losses: the original's losses on them.
      of: predictors of the forget examples.
      own: the original's losses on them.

    Raises:
      UserError: fewer than 10 holdout examples per unknown.
    """
    n, k = predictors.shape
    if n < 10 * (k + 1):
        raise UserError(
            f"goals: {n} calibration rows are too few for the goal 'features'; expected at least "
            f"{10 * (k + 1)}. Choose a larger holdout, or the goal 'quantiles'."
        )
    design, at = (np.column_stack([x, np.ones(len(x))]) for x in (predictors, of))
    weights = np.linalg.lstsq(design, np.log(losses), rcond=None)[0]
    usual = at @ weights
    return np.exp(usual + quantiles(np.log(own) - usual, np.log(losses) - design @ weights))


def choose_views(
    own: tuple[Losses, Losses],
    of_views: tuple[Float[np.ndarray, "_ k"], Float[np.ndarray, "_ k"]],
    flips: bool = False,
) -> list[int]:
    """Choose the views that the original has not memorised, each by a test of its own.

    Memory is the mean log loss on holdout minus that on forget images. A view is left out if its
    memory is above 5 % of the images' own: one-sided z tests, Holm over all views, level .05.

    Args:
      own: the original's losses on holdout and on forget images.
      of_views: its losses on their views.
      flips: training has shown mirrored images: that view is left out untested.

    Raises:
      UserError: none is left.
    """
    own_log, views_log = ([np.log(x) for x in pair] for pair in (own, of_views))
    memory = own_log[0].mean() - own_log[1].mean()
    tested = np.arange(flips, views_log[0].shape[1])
    if memory <= MEMORY:
        return tested.tolist()
    pairs = zip(own_log, views_log, strict=True)
    rest = [of_views[:, tested] - LEAK * of_own[:, None] for of_own, of_views in pairs]
    excess = rest[0].mean(0) - rest[1].mean(0)
    error = np.sqrt(sum(x.var(0, ddof=1) / len(x) for x in rest))
    p = scipy.special.ndtr(-excess / np.maximum(error, 1e-12))
    order = np.argsort(p)
    worse = p[order] <= LEVEL / np.arange(len(p), 0, -1)
    refused = order[: len(p) if worse.all() else int(np.argmin(worse))]
    chosen = np.delete(tested, refused).tolist()
    if not chosen:
        raise UserError(
            f"goals: the original restores all {len(tested)} kinds of mirrored and turned forget "
            f"images better than those of unseen images (by {excess.min():.2f} or more in log "
            f"loss, the images themselves by {memory:.2f}). It has memorised the views too, so "
            "they say nothing about unseen images. Use the goal 'features' or 'reference'."
        )
    return chosen


def prepare(context: Context) -> Prepared | None:
    """Prepare the phase's `goal`; with a direction, also what goes into it."""
    phase = context.phase
    if not phase.goal:
        return None
    directed = phase.objective_kw.get("direction", 0) > 0
    where = context.target, context.reference, context.key
    columns, flops = make(phase.goal, context.request, *where, outputs=directed)
    return Prepared(columns=columns, flops=flops)


def make(
    kind: str,
    request: Any,
    target: Params,
    reference: Params | None,
    key: PRNGKeyArray,
    outputs: bool = False,
) -> tuple[dict[str, np.ndarray], float]:
    """Return (columns for the batches: one value per row of the source; FLOPs spent).

    `goal` [rows]: the loss that the row should have, 1 where it is not to be forgotten. If asked
    for, `view_output` [rows h w c] float16: the `middle` of the original's outputs on the views of
    a forget image, turned back: what it makes of the image without having learned it by heart.

    Args:
      kind: "views", "reference" or "views+reference": predictors are the original's losses on
        views of the image (`choose_views`), the reference's losses on it, or both. "features": see
        `conditional`, with what anybody sees of the visible part; no views. "quantiles" and "mean"
        look at no example's difficulty: they hand out the quantiles, or the mean, of the original's
        holdout losses.
      request: a `unlearn_jax.Request`.
      target: the original.
      reference: a model trained for a short while on rows that may be kept.
      key: all losses draw the same randomness from it.
      outputs: make `view_output` too.

    Raises:
      UserError: no reference model, or one that has seen forget or holdout images; goals that
        cannot be fitted.
    """
    if "reference" in kind.split("+") and reference is None:
        raise UserError(
            "The goal 'reference' needs a model trained for a short while on rows that may be kept "
            "(--config.stage=reference). Say where: --config.reference_from=WORKDIR."
        )
    split, rows = request.split, len(request.source)
    rng = np.random.default_rng(request.cfg.seed)
    n = min(len(split.calibration), FIT_ROWS)
    unseen = np.sort(rng.choice(split.calibration, n, replace=False))
    losses = Counted(jit_losses(kind, request.model, request.mesh, key))
    holdout, forget = (
        request.map(losses, chosen, target, reference) for chosen in (unseen, split.forget)
    )
    augment, views = request.cfg.data.augment, []
    if "views" in holdout:
        own = (holdout["own"][:, 0], forget["own"][:, 0])
        both = (holdout["views"], forget["views"])
        views = choose_views(own, both, flips=bool(augment.name) and augment.flip)
        holdout, forget = (x | {"views": x["views"][:, views]} for x in (holdout, forget))
    made = {"goal": np.ones(rows, np.float32)}
    made["goal"][split.forget] = _goals(kind, holdout, forget)
    flops = losses.flops
    if outputs:
        again = Counted(jit_losses(kind, request.model, request.mesh, key, tuple(views)))
        output = request.map(again, split.forget, target, reference)["output"]
        # Memory is taken only where it is written, that is for the forget rows.
        made["view_output"] = np.zeros((rows, *output.shape[1:]), np.float16)
        made["view_output"][split.forget] = output
        flops += again.flops
    return made, flops


def jit_losses(
    kind: str, model: Model, mesh: Mesh, key: PRNGKeyArray, outputs: tuple[int, ...] = ()
) -> Callable[[Params, Params | None, Batch], dict[str, Array]]:
    """Compile (target, reference, batch) -> {"own", "views", "reference", "features"}, [b k] each.

    Losses are geometric means over `DRAWS` draws, if the model draws anything; what is not asked
    for is not there. With `outputs`, which views: {"output"} of them instead; other arguments as
    of `make`.
    """
    parts = set(kind.split("+"))

    def loss(params, batch):
        drawn = losses_of_draws(model, params, batch, key, range(DRAWS))
        return jnp.exp(jnp.log(jnp.maximum(drawn, 1e-12)).mean(1))

    def losses(target: Params, reference: Params | None, batch: Batch) -> dict[str, Array]:
        viewed = [{**batch, "image": view} for view in views(batch["image"])]
        if outputs:
            some = [viewed[k] for k in outputs]
            made = [model.decode(target, model.encode(target, b, key), b, key) for b in some]
            errors = jnp.stack([model.error(y, b) for y, b in zip(made, some, strict=True)], 1)
            return {"output": middle(jnp.stack(unviewed(made, outputs), 1), errors)}
        found = {"own": loss(target, batch)[:, None]}
        if "views" in parts:
            found["views"] = jnp.stack([loss(target, view) for view in viewed], 1)
        if "reference" in parts:
            found["reference"] = loss(reference, batch)[:, None]
        if "features" in parts:
            found["features"] = features(batch)
        return found

    return sharding.jit_rows(losses, mesh)


def _goals(kind: str, holdout: Mapping[str, Any], forget: Mapping[str, Any]) -> Losses:
    holdout, forget = ({k: v.astype(np.float64) for k, v in x.items()} for x in (holdout, forget))
    own = holdout["own"][:, 0], forget["own"][:, 0]
    if kind == "mean":
        return np.full(len(own[1]), own[0].mean())
    if kind == "quantiles":
        return quantiles(own[1], own[0])
    if kind == "features":
        return conditional(holdout[kind], own[0], forget[kind], own[1])
    parts = [part for part in holdout if part != "own"]
    of_holdout, of_forget = (np.column_stack([x[p] for p in parts]) for x in (holdout, forget))
    return fit(of_holdout, own[0], of_forget)
