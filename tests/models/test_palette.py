"""Palette as a model: losses, estimates and samples against torch, and its promises."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_unet import (
    GOLDEN,
    SMALL,
    close,
    fill,
    made_inputs,
    made_weights,
    small_params,
    torch_shapes,
)
from unlearn_jax.methods import i2i
from unlearn_jax.models import diffusion, unet
from unlearn_jax.models.palette import Palette
from unlearn_jax.sharding import make_mesh

KEY = jax.random.key(3)
TINY = {"image_size": 4, "inner": 8, "mults": (1,), "res_blocks": 1, "groups": 4}
TINY |= {"head_channels": 4, "timesteps": 4, "beta_start": 0.1, "beta_end": 0.5}


def tiny(b=3, **fields):
    """A model of one resolution, its parameters without zeros, and a batch."""
    model = Palette(**TINY | fields)
    schedule = diffusion.linear_schedule(model.timesteps, model.beta_start, model.beta_end)
    params = fill(model, made_weights(torch_shapes(model)) | schedule)
    image = np.random.RandomState(2).uniform(-1, 1, (b, 4, 4, 3)).astype(np.float32)
    mask = np.zeros((b, 4, 4, 1), np.float32)
    mask[:, 1:3, :3] = 1
    batch = {"image": jnp.asarray(image), "mask": jnp.asarray(mask)}
    return model, params, batch | {"is_forget": jnp.full(b, True)}


@pytest.mark.long
def test_losses_and_estimates_are_those_of_torch():
    model, (batch, draws), params = Palette(**SMALL), made_inputs(), small_params()
    golden = np.load(GOLDEN)

    forget = batch | {"is_forget": jnp.full(2, True)}
    retain = batch | {"is_forget": jnp.full(2, False)}

    @jax.jit
    def values(params):
        latent = model.encode(params, batch, KEY, draws=draws)
        noise = model.encode_noise(params, forget, KEY, draws=draws)
        return {
            "loss": model.loss(params, batch, KEY, draws=draws),
            "noisy_loss": model.noisy_loss(params, forget, KEY, draws=draws),
            "estimate": model.decode(params, latent, batch, KEY, draws=draws),
            "pull": i2i.distance(latent, noise),
            "kept": model.noisy_loss(params, retain, KEY, draws=draws),
        }

    found = values(params)
    np.testing.assert_allclose(found.pop("kept"), found["loss"], rtol=1e-5)
    for name in found:
        close(found[name], golden[name])


@pytest.mark.long
def test_samples_are_those_of_torch():
    model, (batch, draws), params = Palette(**SMALL), made_inputs(), small_params()
    golden = np.load(GOLDEN)
    given = {name: draws[name] for name in ("hole_noise", "step_noise")}
    generated = jax.jit(model.generate)(params, batch, KEY, draws=given)
    close(generated, golden["generated"])
    condition = batch["image"] * (1 - batch["mask"]) + draws["hole_noise"] * batch["mask"]
    plan = model.sampling_plan(params)
    args = params, batch, plan, 0, condition, condition, draws["step_noise"][0]
    close(jax.jit(model.sample_step)(*args), golden["first_step"])


@pytest.mark.long
def test_drawn_values_have_their_ranges_and_are_what_the_functions_use():
    model, params, batch = tiny(b=64)
    drawn = model.draw(batch, KEY)
    assert {name: x.shape[1:] for name, x in drawn.items()} == {
        "hole_noise": (4, 4, 3),
        "noise": (4, 4, 3),
        "timestep": (),
        "gamma_uniform": (),
    }
    assert set(np.asarray(drawn["timestep"])) == {1, 2, 3}  # never 0: there is none before it
    assert 0 <= drawn["gamma_uniform"].min() < 0.1 and 0.9 < drawn["gamma_uniform"].max() < 1
    for name in ("hole_noise", "noise"):
        assert abs(drawn[name].mean()) < 0.1 and abs(drawn[name].std() - 1) < 0.1
    assert abs((drawn["hole_noise"] * drawn["noise"]).mean()) < 0.1
    # What is given wins, and a noise level wins over a timestep.
    g = diffusion.between(params["schedule"]["gammas"], drawn["timestep"], drawn["gamma_uniform"])
    other = drawn | {"timestep": drawn["timestep"] * 0 + 1, "gamma": g}
    loss = jax.jit(model.loss)
    by_key = loss(params, batch, KEY)
    given = loss(params, batch, jax.random.key(9), draws=other)
    np.testing.assert_allclose(given, by_key, rtol=1e-4)
    for name in ("gamma", "noise", "hole_noise"):
        changed = loss(params, batch, KEY, draws=other | {name: other[name] * 0.5})
        assert not np.allclose(changed, by_key, rtol=1e-2), name


def test_only_the_noise_hides_the_image_in_the_hole():
    model, params, batch = tiny()
    hidden = batch | {"image": jnp.where(batch["mask"] == 1, 0.5, batch["image"])}
    shown = batch | {"image": batch["image"].at[:, 0, 0].add(0.5)}
    some, none = ({"gamma": jnp.full(3, level)} for level in (0.5, 0.0))

    def equal(a, b):
        return [np.array_equal(x, y) for x, y in zip(a, b, strict=True)]

    encode, encode_noise = jax.jit(model.encode), jax.jit(model.encode_noise)
    first, second, third = (
        encode_noise(params, x, KEY, draws=some) for x in (batch, hidden, shown)
    )
    assert all(equal(first, second)) and not any(equal(first, third))
    assert not any(equal(*(encode(params, x, KEY, draws=some) for x in (batch, hidden))))
    # Without signal left, the image is noise anyhow.
    assert all(equal(*(f(params, batch, KEY, draws=none) for f in (encode, encode_noise))))
    with pytest.raises(ValueError, match="expected 'normal'.*got 'uniform'"):
        model.encode_noise(params, batch, KEY, "uniform")


def test_a_perfect_prediction_gives_the_image_and_no_loss(monkeypatch):
    model, params, batch = tiny()
    noise = model.draw(batch, KEY)["noise"]
    monkeypatch.setattr(unet.Encoder, "apply", lambda *_, **__: ())
    monkeypatch.setattr(unet.Decoder, "apply", lambda *_, **__: noise)
    np.testing.assert_allclose(model.decode(params, (), batch, KEY), batch["image"], atol=1e-5)
    np.testing.assert_array_equal(model.loss(params, batch, KEY), np.zeros(3))
    off = noise + 2.0 * (1 + batch["mask"])  # 4 in the hole, 2 where nobody looks
    monkeypatch.setattr(unet.Decoder, "apply", lambda *_, **__: off)
    np.testing.assert_allclose(model.loss(params, batch, KEY), np.full(3, 16 * 6 / 16), rtol=1e-5)


@pytest.mark.long
def test_an_image_does_not_depend_on_its_neighbours():
    model, params, batch = tiny(b=8)
    batch["index"] = jnp.array([5, 2, -1, 7, 9, 0, 3, 4], jnp.int32)
    generate = jax.jit(model.generate)
    whole = generate(params, batch, KEY)
    turned = generate(params, jax.tree.map(lambda x: x[::-1], batch), KEY)[::-1]
    np.testing.assert_allclose(whole, turned, atol=1e-5)
    spread = jax.NamedSharding(make_mesh(), jax.P("data"))
    np.testing.assert_allclose(
        generate(params, jax.device_put(batch, spread), KEY), whole, atol=1e-5
    )
    assert whole.min() >= -1 and whole.max() <= 1
    visible = np.asarray(1 - batch["mask"])
    np.testing.assert_array_equal(whole * visible, batch["image"] * visible)
    # The same image again, by another name or another key: another sample.
    same = jax.tree.map(lambda x: x.at[1:].set(x[:1]), {k: batch[k] for k in ("image", "mask")})
    samples = generate(params, same | {"index": batch["index"]}, KEY)
    hole = np.asarray(samples)[:, 1:3, :3]
    assert min(np.abs(hole[i] - hole[j]).max() for i in range(8) for j in range(i)) > 1e-2
    assert np.abs(generate(params, batch, jax.random.key(4)) - whole).max() > 1e-2


def test_schedules_of_generate():
    model, params, _ = tiny()
    stored = model.sampling_plan(params)
    np.testing.assert_array_equal(stored["gamma"], params["schedule"]["gammas"][::-1])
    halved = params | {"schedule": jax.tree.map(lambda x: x / 2, params["schedule"])}
    np.testing.assert_array_equal(model.sampling_plan(halved)["gamma"], stored["gamma"] / 2)
    for name, (steps, *_) in diffusion.SCHEDULES.items():
        plan = Palette(**TINY, schedule=name).sampling_plan(params)
        want = diffusion.linear_schedule(steps, 1e-4, 0.09)["gammas"][::-1]
        np.testing.assert_array_equal(plan["gamma"], want)
    with pytest.raises(ValueError, match=r"timesteps is 5, .* has 4"):
        jax.eval_shape(Palette(**TINY | {"timesteps": 5}).loss, params, tiny()[2], KEY)


def test_fewer_steps_and_none_of_their_noise():
    model, params, batch = tiny(sampler="ddim", sampling_steps=2)
    plan = model.sampling_plan(params)
    np.testing.assert_array_equal(plan["gamma"], params["schedule"]["gammas"][jnp.array([3, 1])])
    draws = {
        "hole_noise": jax.random.normal(KEY, (3, 4, 4, 3)),
        "step_noise": jnp.ones((2, 3, 4, 4, 3)),
    }
    generate = jax.jit(model.generate)
    first = generate(params, batch, KEY, draws=draws)
    other = generate(params, batch, KEY, draws=draws | {"step_noise": -draws["step_noise"]})
    np.testing.assert_array_equal(first, other)
    changed = generate(params, batch, KEY, draws=draws | {"hole_noise": -draws["hole_noise"]})
    assert np.abs(changed - first).max() > 1e-2


@pytest.mark.long
def test_dropout_in_training_only_and_by_the_key():
    (model, params, batch), plain = tiny(dropout=0.5), tiny()[0]
    draws = model.draw(batch, KEY)
    other = draws | {"dropout": jax.random.key(77)}
    loss = jax.jit(model.loss)
    first, again, changed = (loss(params, batch, KEY, draws=d) for d in (draws, draws, other))
    np.testing.assert_array_equal(first, again)
    without = jax.jit(plain.loss)(params, batch, KEY, draws=draws)
    assert np.abs(first - changed).min() > 1e-4 and np.abs(first - without).min() > 1e-4
    text, same = (str(jax.make_jaxpr(m.generate)(params, batch, KEY)) for m in (model, plain))
    assert text == same


@pytest.mark.long
def test_fresh_parameters_learn():
    model, _, batch = tiny()
    params = jax.jit(model.init)(jax.random.key(0))
    draws = model.draw(batch, KEY)

    @jax.jit
    def step(params):
        loss, gradient = jax.value_and_grad(lambda p: model.loss(p, batch, KEY, draws=draws).sum())(
            params
        )
        return loss, jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)

    losses = []
    for _ in range(30):
        loss, params = step(params)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    schedule = diffusion.linear_schedule(4, 0.1, 0.5)
    for name, array in params["schedule"].items():
        np.testing.assert_array_equal(array, schedule[name])


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"image_size": 20}, "image_size must be divisible by 8 (2 ** (len(mults) - 1)), got 20"),
        ({"inner": 0}, "inner must be positive, got 0"),
        ({"inner": 48}, "inner must be even, and times each of mults a multiple of groups=32"),
        ({"mults": ()}, "mults must be one or more positive numbers"),
        ({"res_blocks": 0}, "res_blocks must be positive"),
        ({"head_channels": 48}, "head_channels must be a divisor of the 512 channels"),
        ({"dropout": 1.0}, "dropout must be in [0, 1)"),
        ({"timesteps": 1}, "timesteps must be 2 or more"),
        ({"beta_start": 0.02}, "beta_start must be in (0, beta_end]"),
        ({"schedule": "cosine"}, "schedule must be one of ('checkpoint', 'config_test_2000'"),
        ({"sampler": "euler"}, "sampler must be one of ('ddpm', 'ddpm_strided', 'ddim')"),
        ({"sampling_steps": 50}, "sampling_steps must be 0 with the sampler 'ddpm'"),
        (
            {"sampler": "ddim", "schedule": "palette_paper_1000", "sampling_steps": 1001},
            "sampling_steps must be 0 (all) to 1000",
        ),
        ({"dtype": "float8"}, "dtype must be one of"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Palette(**fields)


def test_lists_and_wrong_image_sizes():
    model, params, _ = tiny()
    assert hash(Palette(mults=[1, 2], trainable=["a"])) == hash(
        Palette(mults=(1, 2), trainable=("a",))
    )
    batch = {"image": jnp.zeros((1, 8, 8, 3)), "mask": jnp.zeros((1, 8, 8, 1))}
    with pytest.raises(ValueError, match=r"images \[b, 4, 4, 3\], got \[1, 8, 8, 3\]"):
        jax.eval_shape(model.loss, params, batch, KEY)
