"""What loss each forget example should end with: the goals of the objective `calibrated`.

A retrained model finds some unseen images easy and others hard. A goal is a guess, per example, of
the loss that a model has there that never saw the example, made without training one: a log-linear
fit on calibration images (the original never saw them, no audit uses them) from what can be
computed to the original's own loss, then applied to the forget images.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from unlearn_jax import sharding
from unlearn_jax.methods.preparation import Context, Prepared
from unlearn_jax.models import Batch, Model, Params
from unlearn_jax.models.flops import Counted
from unlearn_jax.registry import UserError

GOALS = ("views", "reference", "views+reference", "quantiles", "mean")
FIT_ROWS = 1000  # of the calibration part of the holdout, at most
LEAST_ROWS = 20  # for a fit
Losses = Float[np.ndarray, "_"]


def views(image: Float[Array, "b h w c"]) -> list[Float[Array, "b h w c"]]:
    """Mirror and turn the image: 7 views of a square, 3 otherwise, without the image itself.

    Up to the model's own asymmetry they are as difficult as the image, but no one trained on them.
    """
    square = image.shape[1] == image.shape[2]
    turned = [jnp.rot90(image, k, (1, 2)) for k in range(0, 4, 1 if square else 2)]
    return [view for turn in turned for view in (turn, turn[:, :, ::-1])][1:]


def unviewed(outputs: list[Float[Array, "b h w c"]]) -> list[Float[Array, "b h w c"]]:
    """Turn images back that `views` has mirrored and turned, in its order."""
    turns = 1 if len(outputs) == 7 else 2
    back = []
    for k, output in enumerate(outputs, start=1):
        mirrored = output[:, :, ::-1] if k % 2 else output
        back.append(jnp.rot90(mirrored, -turns * (k // 2), (1, 2)))
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


def check_views_unseen(
    own: tuple[Losses, Losses], of_views: tuple[Float[np.ndarray, "_ k"], Float[np.ndarray, "_ k"]]
) -> None:
    """Check that the original has not memorised the views of the forget images as well.

    Args:
      own: the original's losses on holdout and on forget images.
      of_views: its losses on their views.

    Raises:
      UserError: the views show more than a quarter of the images' own memorisation.
    """
    gap, views_gap = (
        float(np.log(holdout).mean() - np.log(forget).mean()) for holdout, forget in (own, of_views)
    )
    if gap > 0.1 and views_gap > gap / 4:
        raise UserError(
            f"goals: the original restores mirrored and turned forget images {views_gap:.2f} (in "
            f"log loss) better than those of unseen images, the images themselves {gap:.2f}. It "
            "has memorised the views too (was it trained on mirrored images?), so they say nothing "
            "about unseen images. Use the goal 'reference'."
        )


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
        views of the image, the reference's losses on it, or both. "quantiles" and "mean" look at
        no example's difficulty: they hand out the quantiles, or the mean, of the original's holdout
        losses.
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
    losses = Counted(jit_losses(kind, request.model, request.mesh, key, outputs))
    holdout, forget = (
        request.map(losses, chosen, target, reference) for chosen in (unseen, split.forget)
    )
    holdout.pop("output", None)
    output = forget.pop("output", None)
    made = {"goal": np.ones(rows, np.float32)}
    made["goal"][split.forget] = _goals(kind, holdout, forget)
    if outputs:
        # Memory is taken only where it is written, that is for the forget rows.
        made["view_output"] = np.zeros((rows, *output.shape[1:]), np.float16)
        made["view_output"][split.forget] = output
    return made, losses.flops


def jit_losses(
    kind: str, model: Model, mesh: Mesh, key: PRNGKeyArray, outputs: bool = False
) -> Callable[[Params, Params | None, Batch], dict[str, Array]]:
    """Compile (target, reference, batch) -> {"own", "views", "reference" [b k], "output"}.

    What is not asked for is not there; arguments as of `make`.
    """
    parts = set(kind.split("+"))

    def losses(target: Params, reference: Params | None, batch: Batch) -> dict[str, Array]:
        found = {"own": model.loss(target, batch, key)[:, None]}
        viewed = [{**batch, "image": view} for view in views(batch["image"])]
        if outputs:
            made = [model.decode(target, model.encode(target, b, key), b, key) for b in viewed]
            of_views = jnp.stack([model.error(y, b) for y, b in zip(made, viewed, strict=True)], 1)
            found["output"] = middle(jnp.stack(unviewed(made), 1), of_views)
        elif "views" in parts:
            of_views = jnp.stack([model.loss(target, b, key) for b in viewed], 1)
        if "views" in parts:
            found["views"] = of_views
        if "reference" in parts:
            found["reference"] = model.loss(reference, batch, key)[:, None]
        return found

    return sharding.jit_rows(losses, mesh)


def _goals(kind: str, holdout: Mapping[str, Any], forget: Mapping[str, Any]) -> Losses:
    holdout, forget = ({k: v.astype(np.float64) for k, v in x.items()} for x in (holdout, forget))
    own = holdout["own"][:, 0], forget["own"][:, 0]
    if kind == "mean":
        return np.full(len(own[1]), own[0].mean())
    if kind == "quantiles":
        return quantiles(own[1], own[0])
    if "views" in holdout:
        check_views_unseen(own, (holdout["views"], forget["views"]))
    parts = [part for part in holdout if part != "own"]
    of_holdout, of_forget = (np.column_stack([x[p] for p in parts]) for x in (holdout, forget))
    return fit(of_holdout, own[0], of_forget)
