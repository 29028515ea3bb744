"""The method of Li et al. (ICLR 2024, arXiv 2402.00351) and its baselines, for any `Model`.

All of them pull forget rows *towards* something, by a distance that must fall. Terms on forget rows
are ascended by the step, so each distance enters with a minus sign here; the step's sign flip is
still the only one of a loss. Their weights are the phase's: `forget_weight` is the paper's alpha.

Where the release has two variants, for token models (MAGE) and for diffusion (Palette), it is the
one for token models, written for images. Its means and standard deviations are scalars over the
whole batch; padded rows are left out of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from unlearn_jax.methods.ascent import share
from unlearn_jax.methods.terms import Terms
from unlearn_jax.models import Batch, Latent, Model, Params, with_image
from unlearn_jax.registry import UserError

_NOISE = 0x401E  # folded into the key; far from the small numbers that models use
_RANDOM_IMAGES: dict[str, Callable[..., Any]] = {
    "normal": lambda key, shape, mean, std: mean + std * jax.random.normal(key, shape),
    "uniform": lambda key, shape, mean, std: jax.random.uniform(key, shape, minval=-1, maxval=1),
    "constant": lambda key, shape, mean, std: jnp.full(shape, mean),
}


def noisy_label(
    model: Model, params: Params, target: Params, batch: Batch, key: PRNGKeyArray
) -> Terms:
    """Train with the model's own loss; on forget rows, towards noise in the hole.

    The forget term is minus the loss of restoring that noise, which is `noise_image` of type
    "normal": what fills the hole of a forget row is to look like it, instead of like the image. A
    model with labels of its own draws those at random (`noisy_loss`). Cost: one forward and one
    backward pass.
    """
    del target
    if model.noisy_loss:
        loss = model.noisy_loss(params, batch, key)
    else:
        hole = batch["mask"] * batch["is_forget"][:, None, None, None]
        noise = noise_image(batch, key, "normal")
        noisy = batch["image"] * (1 - hole) + noise * hole
        loss = model.loss(params, with_image(batch, noisy), key)
    return Terms(retain=loss, forget=-loss)


def retain_label(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    upstream_bug_compat: bool = False,
    upstream_weights: bool = False,
) -> Terms:
    """Keep the original's outputs; on forget rows, move to its outputs of other images.

    The k-th forget row is to restore what the original restores for the k-th retain row, counted
    modulo their number; without a retain row in the batch it is N(0, 1). Distances are mean
    squared differences over whole images, not clipped, or over all that the model's loss looks at
    (`predict`: MAGE's logits, Palette's noise). Cost: two forward passes and one backward pass.

    Args:
      upstream_bug_compat: see `random_encoder`.
      upstream_weights: see `l2_encoder`.
    """
    check_target("retain_label", target)
    mine, original = answers(model, (params, target), target, batch, key)
    retain, forget = _split(batch)
    first_retain = jnp.argsort(~retain, stable=True)
    rank = jnp.where(forget, jnp.cumsum(forget), jnp.cumsum(batch["valid"])) - 1
    other = original[first_retain[rank % jnp.maximum(retain.sum(), 1)]]
    noise = jax.random.normal(jax.random.fold_in(key, _NOISE), original.shape)
    goal = jnp.where(retain.any(), other, noise)
    return _pull(
        batch, distance(mine, original), distance(mine, goal), upstream_bug_compat, upstream_weights
    )


def random_encoder(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    upstream_bug_compat: bool = False,
    upstream_weights: bool = False,
) -> Terms:
    """Keep the original's latents; on forget rows, move to Gaussian latents.

    The noise has the mean and standard deviation of the original's latents of the batch, one pair
    for each leaf. Cost: two encoder passes forward, one backward.

    Args:
      upstream_bug_compat: as released, where the pull to noise acts on the retain rows, and forget
        rows have no gradient at all.
      upstream_weights: see `l2_encoder`.
    """
    check_target("random_encoder", target)
    batch = _with_codes(model, target, batch)
    mine, original = (model.encode(p, batch, key) for p in (params, target))
    leaves, tree = jax.tree.flatten(original)
    keys = jax.random.split(jax.random.fold_in(key, _NOISE), len(leaves))
    noise = tree.unflatten(
        mean + std * jax.random.normal(k, leaf.shape)
        for k, leaf in zip(keys, leaves, strict=True)
        for mean, std in [_moments(leaf, batch["valid"])]
    )
    return _pull(
        batch,
        distance(mine, original),
        distance(mine, noise),
        upstream_bug_compat,
        upstream_weights,
    )


def l2_encoder(
    model: Model,
    params: Params,
    target: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    noise_type: str = "normal",
    upstream_weights: bool = False,
    forget_part: Callable[[Array], Array] | None = None,
) -> Terms:
    """Keep the original's latents; on forget rows, move to its latents of noise.

    The method of the paper, which trains the encoder only (`trainable` of the model): latents of
    retain images stay, those of forget images become what the original makes of noise. The masks
    and noise of the model are the same for the three. A model that sees what is in the hole, as
    diffusion does, may have noise there only (`encode_noise`). The original sees one batch, its
    forget rows replaced by noise. Cost: two encoder passes forward, one backward; codes of all
    images, and of the noise for `forget_part`.

    Args:
      noise_type: "normal", "uniform" or "constant", see `noise_image`.
      forget_part: see `objectives.build`; by default all rows.
      upstream_weights: as released, where both sums are divided by the size of the whole batch, and
        each row counts twice (for tokens; once for diffusion, so halve the weights there);
        otherwise each is a mean over its own rows.
    """
    check_target("l2_encoder", target)
    batch = _with_codes(model, target, batch)
    if model.encode_noise:
        goal = model.encode_noise(target, batch, key, noise_type)
    else:
        noise = noise_image(batch, key, noise_type)
        changed = _with_other_images(model, target, batch, noise, forget_part)
        goal = model.encode(target, changed, key)
    away = distance(model.encode(params, batch, key), goal)
    return _pull(batch, away, away, False, upstream_weights)


def noise_image(batch: Batch, key: PRNGKeyArray, noise_type: str) -> Float[Array, "b h w c"]:
    """Draw images of noise in [-1, 1].

    Args:
      batch: its valid images give one mean and one standard deviation for all pixels.
      key: a key of its own is folded from it.
      noise_type: "normal" has the batch's mean and standard deviation before it is clipped,
        "uniform" is between -1 and 1, "constant" is the batch's mean everywhere.

    Raises:
      UserError: another noise_type.
    """
    if noise_type not in _RANDOM_IMAGES:
        raise UserError(
            f"objective_kw.noise_type: expected one of {sorted(_RANDOM_IMAGES)}, "
            f"got {noise_type!r}."
        )
    image = batch["image"]
    mean, std = _moments(image, batch["valid"])
    noise = _RANDOM_IMAGES[noise_type](jax.random.fold_in(key, _NOISE), image.shape, mean, std)
    return noise.clip(-1, 1)


def answers(
    model: Model, of: Sequence[Params], target: Params, batch: Batch, key: PRNGKeyArray
) -> list[Float[Array, "b ..."]]:
    """Return what each of some parameters answers, with the same masks and noise.

    All that the model's loss looks at: whole images, not clipped, or what it predicts instead
    (`predict`: MAGE's logits, Palette's noise).

    Args:
      model: the architecture.
      of: parameters.
      target: the original, or {}; a tokenizer is the same for all.
      batch: rows.
      key: of masks and noise.
    """
    batch = _with_codes(model, target, batch) if target else batch

    def answer(params):
        if model.predict:
            return model.predict(params, batch, key)
        return model.decode(params, model.encode(params, batch, key), batch, key)

    return [answer(params) for params in of]


def check_target(name: str, target: Params) -> None:
    """Check that there is an original; raise UserError naming the objective if not."""
    if not target:
        raise UserError(
            f"The objective {name!r} compares with the original, and a stage that starts from "
            "scratch has none. Use it in a stage with scratch=False."
        )


def distance(a: Latent, b: Latent) -> Float[Array, "b"]:
    """Sum, over the leaves, the mean squared difference of each row; integers do not count."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(
        jnp.square(x - y).reshape(len(x), -1).mean(axis=1)
        for x, y in pairs
        if jnp.issubdtype(x.dtype, jnp.floating)
    )


def _with_codes(model: Model, target: Params, batch: Batch) -> Batch:
    """Add the codes of a batch's images, which the student and the original both need.

    They are the original's: the tokenizer has no gradient here.
    """
    return {**batch, "tokens": model.tokens(target, batch)} if model.tokens else batch


def _with_other_images(
    model: Model,
    target: Params,
    batch: Batch,
    image: Float[Array, "b h w c"],
    forget_part: Callable[[Array], Array] | None,
) -> Batch:
    """Put these images, or their codes, into the forget rows of a batch of `_with_codes`."""
    forget = batch["is_forget"]
    if not model.tokens:
        return with_image(batch, jnp.where(forget[:, None, None, None], image, batch["image"]))
    image, codes = forget_part(image) if forget_part else image, batch["tokens"]
    if len(image):
        others = model.tokens(target, {"image": image})
        others = jnp.concatenate([codes[: len(codes) - len(others)], others])
        codes = jnp.where(forget[:, None], others, codes)
    return {**batch, "tokens": codes}


def _moments(
    x: Float[Array, "b ..."], valid: Bool[Array, "b"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return (mean, standard deviation) of all numbers in the valid rows, as scalars."""
    where = valid.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.mean(x, where=where), jnp.std(x, where=where)


def _split(batch: Batch) -> tuple[Bool[Array, "b"], Bool[Array, "b"]]:
    return batch["valid"] & ~batch["is_forget"], batch["valid"] & batch["is_forget"]


def _pull(
    batch: Batch,
    keep: Float[Array, "b"],
    change: Float[Array, "b"],
    bug_compat: bool,
    upstream_weights: bool,
) -> Terms:
    """Make terms of two distances: retain rows are to have a small `keep`, forget rows `change`.

    So forget = -change, since forget terms are ascended.
    """
    retain, forget = _split(batch)
    if bug_compat:  # the mean over the retain rows, whichever forget row is asked
        mean = jnp.where(retain, change, 0.0).sum() / jnp.maximum(retain.sum(), 1)
        change, forget = jnp.broadcast_to(mean, change.shape), retain
    if upstream_weights:
        keep, change = 2 * share(batch, retain) * keep, 2 * share(batch, forget) * change
    return Terms(retain=keep, forget=-change)
