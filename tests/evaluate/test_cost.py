"""What an unlearning step computes, in passes through the networks."""

import jax
import jax.numpy as jnp
import pytest

from tests.helpers.toy import make_batch
from unlearn_jax import methods as objectives
from unlearn_jax import models
from unlearn_jax.evaluate import results
from unlearn_jax.models import flops
from unlearn_jax.models.params import overlay, select
from unlearn_jax.training.step import unlearn_grad

pytestmark = pytest.mark.long

KEY = jax.random.key(0)
# Large enough for matrix products to be nearly all that counts; nothing here is run.
SIZES = {
    "autoencoder": {"image_size": 32, "channels": (64, 128)},
    "mae": {"image_size": 64, "dim": 256, "depth": 2, "heads": 4, "decoder_dim": 256},
    "palette": {"image_size": 32, "mults": (1,), "res_blocks": 1},
    "mage": {
        "image_size": 8, "dim": 32, "depth": 1, "heads": 2, "decoder_dim": 32, "decoder_depth": 1,
        "decoder_heads": 2, "class_slots": 8,
        "tokenizer": {"ch": 64, "ch_mult": (1,), "res_blocks": 1, "codebook": 16, "z_dim": 16},
    },
}  # fmt: skip
SIZES["mae"] |= {"decoder_depth": 2, "decoder_heads": 4}
TEACHERS = ("l2_encoder", "random_encoder", "retain_label")


def build(name):
    """(model, shapes of its parameters, shapes of a batch of 8 with 4 forget rows)."""
    model = models.build(name, **SIZES[name])
    params = jax.eval_shape(model.init, KEY)
    return model, params, jax.eval_shape(lambda: make_batch(8, forget=4, size=model.image_size))


def traced(
    model, params, batch, objective, trainable=None, retain=1.0, forget=1.0, forget_part=None
):
    """The gradient of an unlearning step."""

    objective = objectives.build(objective, forget_part=forget_part)

    def step(trained, target, batch, key):
        return unlearn_grad(
            trained, target, batch, key, model=model, objective=objective,
            retain_weight=retain, forget_weight=forget,
        )  # fmt: skip

    trained = select(params, trainable or model.trainable)
    return jax.jit(step).trace(trained, params, batch, KEY)


def as_compiled(traced):
    """FLOPs of what runs: what is equal is computed once, what is unused not at all."""
    return traced.lower().compile().cost_analysis()["flops"]


def output(model):
    def predict(params, batch, key):
        if model.predict:
            return model.predict(params, batch, key)
        return model.decode(params, model.encode(params, batch, key), batch, key)

    return predict


def of_student(model, params, batch, function):
    """FLOPs of a gradient through a function of the student alone."""

    def loss(trained, params, batch, key):
        out = function(overlay(params, trained), batch, key)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(out))

    trained = select(params, model.trainable)
    return flops.of(jax.jit(jax.grad(loss)).trace(trained, params, batch, KEY))


@pytest.mark.parametrize("name", ["autoencoder", "mae", "palette"])
def test_the_original_is_run_once_for_both_halves_of_the_batch(name):
    model, params, batch = build(name)
    for function, names in (model.encode, TEACHERS[:2]), (output(model), TEACHERS[2:]):
        once = flops.of(jax.jit(function).trace(params, batch, KEY))
        student = of_student(model, params, batch, function)
        for objective in names:
            found = flops.of(traced(model, params, batch, objective))
            assert found - student == pytest.approx(once, rel=0.1), objective


@pytest.mark.parametrize("name", ["autoencoder", "mae", "palette"])
def test_own_losses_are_computed_once_for_both_halves_of_the_batch(name):
    model, params, batch = build(name)
    plain = flops.of(traced(model, params, batch, "reconstruction"))
    for objective in ("gradient_ascent", "noisy_label"):
        found = flops.of(traced(model, params, batch, objective))
        assert found == pytest.approx(plain, rel=0.02), objective


@pytest.mark.parametrize("name", ["mae", "palette"])
def test_a_frozen_decoder_costs_no_gradient_of_its_own(name):
    model, params, batch = build(name)
    latent = jax.eval_shape(model.encode, params, batch, KEY)
    decoder = flops.of(jax.jit(model.decode).trace(params, latent, batch, KEY))
    part, whole = (
        flops.of(traced(model, params, batch, "gradient_ascent", trainable))
        for trainable in (model.trainable, ("encoder/.*", "decoder/.*"))
    )
    assert whole - part == pytest.approx(decoder, rel=0.1)


def test_mage_makes_codes_of_an_image_once_and_of_none_that_are_cached():
    model, params, batch = build("mage")
    tokenizer = flops.of(jax.jit(model.tokens).trace(params, batch))
    cached = {**batch, "tokens": jax.eval_shape(model.tokens, params, batch)}
    names = {"noisy_label": 1, "random_encoder": 1, "retain_label": 1, "l2_encoder": 2}
    found = {name: flops.of(traced(model, params, batch, name)) for name in names}
    for name, expected in names.items():
        assert (expected - 0.02) * tokenizer < found[name] < (expected + 0.8) * tokenizer, name
    saved = found["l2_encoder"] - flops.of(traced(model, params, cached, "l2_encoder"))
    assert saved == pytest.approx(tokenizer, rel=0.02)
    # Codes of noise for 4 of 8 rows, as `train` asks for.
    part = flops.of(traced(model, params, batch, "l2_encoder", forget_part=lambda x: x[-4:]))
    assert found["l2_encoder"] - part == pytest.approx(tokenizer / 2, rel=0.02)


def test_a_term_of_no_weight_is_not_computed():
    model, params, batch = build("autoencoder")
    latent = as_compiled(jax.jit(model.encode).trace(params, batch, KEY))
    both, retain, forget = (
        as_compiled(traced(model, params, batch, f"{__name__}:unequal", None, *weights))
        for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    )
    assert both - retain == pytest.approx(latent, rel=0.1)
    assert forget == pytest.approx(latent, rel=0.1)


def unequal(model, params, target, batch, key):
    """Terms that share nothing: the student's loss, and the original's latents of other images."""
    other = models.with_image(batch, -batch["image"])
    latent, head = model.encode(target, other, key), params["encoder"]["down1"]["bias"]
    forget = (latent * head).mean((1, 2, 3))
    return objectives.Terms(retain=model.loss(params, batch, key), forget=forget)


def test_what_was_not_counted_has_no_ratio():
    run = {"steps": 1, "examples": 8, "flops": 0.0, "wall_s": 3.0, "compile_s": 1.0}
    retraining = {"steps": 4, "examples": 16, "flops": 0.0, "wall_s": 9.0, "compile_s": 1.0}
    expected = {"steps_ratio": 0.25, "examples_ratio": 0.5, "wall_ratio": 0.25}
    assert results.cost(run, retraining) == expected | {"flops_ratio": None}
    counted = [of | {"flops": flops} for of, flops in ((run, 3.0), (retraining, 4.0))]
    assert results.cost(*counted) == expected | {"flops_ratio": 0.75}
