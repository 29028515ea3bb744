import math
import stat

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from unlearn_jax import sharding
from unlearn_jax.certify import lower_bound
from unlearn_jax.training import noisy

KEY = noisy.secret_key(bytes(range(32)))
SIGMA, RATE, CLIP, RADIUS = 0.3, 0.1, 2.0, 1.5


def tree(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (64, 40), "b": (64, 40), "c": (300,)}
    return {k: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def norm64(values):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(values)]
    return math.sqrt(sum(np.square(x).sum() for x in leaves))


def difference(a, b):
    return jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)


# ---- norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1e-3, 1.0, 40.0, 1e4])
def test_the_clipped_norm_never_exceeds_the_bound_and_a_short_gradient_is_left_alone(bound):
    update = tree(1, scale=30.0)
    clipped = noisy.clip_update(update, bound)
    assert norm64(clipped) <= bound
    if norm64(update) > bound:
        assert norm64(clipped) == pytest.approx(bound, rel=2e-4)
        cosine = sum(np.vdot(a, b) for a, b in zip(clipped.values(), update.values(), strict=True))
        assert cosine == pytest.approx(norm64(clipped) * norm64(update), rel=1e-5)
    else:
        jax.tree.map(np.testing.assert_array_equal, clipped, update)


def test_a_long_sum_keeps_the_digits_that_the_margin_counts_on():
    update = {"w": jnp.full((1000, 3000), 0.1, jnp.float32), "v": jnp.full((9,), 1e-3)}
    assert float(noisy.global_norm(update)) == pytest.approx(norm64(update), rel=1e-6)
    assert float(noisy.global_norm({"w": jnp.full((4,), 1e25)})) == pytest.approx(2e25)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bound", [1.0, math.inf])
def test_a_gradient_that_is_not_finite_is_zero(bad, bound):
    update = tree()
    update["a"] = update["a"].at[3, 3].set(bad)
    assert norm64(noisy.clip_update(update, bound)) == 0
    assert norm64(difference(noisy.project_to_ball(update, tree(2), 1.0), tree(2))) == 0


def test_projection_is_onto_the_ball_and_not_expansive():
    centre, far, near = tree(2, 5.0), tree(3, 9.0), tree(2, 5.0)
    near["c"] = near["c"] + 0.01
    projected = noisy.project_to_ball(far, centre, RADIUS)
    assert norm64(difference(projected, centre)) <= RADIUS
    assert norm64(difference(projected, centre)) == pytest.approx(RADIUS, rel=2e-4)
    kept = noisy.project_to_ball(near, centre, RADIUS)
    assert norm64(difference(kept, near)) < 1e-5
    apart = norm64(difference(projected, kept))
    assert apart <= norm64(difference(far, near))
    at_centre = noisy.project_to_ball(centre, centre, RADIUS)  # 0 / 0
    jax.tree.map(np.testing.assert_array_equal, at_centre, centre)


# ---- noise -------------------------------------------------------------------------------------


def collect(key=KEY, steps=6, std=SIGMA):
    draws = [noisy.gaussian_noise(tree(), std, noisy.at_step(key, t)) for t in range(steps)]
    return {k: np.stack([np.ravel(d[k]) for d in draws]) for k in draws[0]}


def test_noise_has_the_right_law_and_all_of_it_is_independent():
    found = lower_bound.noise_self_test(collect(), SIGMA, significance=1e-3)
    assert found["passed"], found
    assert found["value"] == pytest.approx(1, abs=4 / math.sqrt(2 * found["n"]))
    assert found["ci_low"] < found["value"] < found["ci_high"]


def test_two_steps_and_two_leaves_of_one_shape_are_uncorrelated():
    noise = collect(steps=2)
    for x, y in ((noise["a"][0], noise["a"][1]), (noise["a"][0], noise["b"][0])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / math.sqrt(x.size)
    assert abs(np.corrcoef(noise["a"][0][:-1], noise["a"][0][1:])[0, 1]) < 4 / math.sqrt(2560)


def test_other_secrets_and_the_same_secret():
    again, other = collect(steps=2), collect(noisy.secret_key(b"\x01" + bytes(31)), steps=2)
    jax.tree.map(np.testing.assert_array_equal, again, collect(steps=2))
    assert abs(np.corrcoef(again["a"][0], other["a"][0])[0, 1]) < 0.08
    alike = collect(noisy.secret_key(bytes(32)), steps=2)["a"]
    assert alike.std() == pytest.approx(SIGMA, rel=5 / math.sqrt(2 * alike.size))
    last = noisy.secret_key(bytes(31) + b"\x01")  # every byte of the secret counts
    first = noisy.gaussian_noise(tree(), 1.0, noisy.at_step(noisy.secret_key(bytes(32)), 0))
    assert not np.array_equal(
        first["a"], noisy.gaussian_noise(tree(), 1.0, noisy.at_step(last, 0))["a"]
    )


def test_tails_reach_beyond_those_of_one_float32_normal():
    draws = np.asarray(
        jax.jit(lambda: noisy.gaussian_noise({"w": jnp.zeros((4000, 1000))}, 1.0, KEY))()["w"]
    )
    for threshold in (3.0, 4.0, 4.8):
        expected = draws.size * 2 * stats.norm.sf(threshold)
        low, high = stats.poisson.interval(0.9999, expected)
        assert low <= (np.abs(draws) > threshold).sum() <= high


def test_noise_is_the_same_on_one_and_on_eight_devices():
    like = {"w": jnp.zeros((64, 48)), "v": jnp.zeros(24)}
    mesh = sharding.make_mesh(data=2, fsdp=4)
    shards = {"w": NamedSharding(mesh, P("fsdp", "data")), "v": NamedSharding(mesh, P("fsdp"))}
    placed = jax.device_put(like, shards)

    def draw(x, key):
        return noisy.gaussian_noise(x, SIGMA, key)

    one = jax.jit(draw)(like, noisy.at_step(KEY, 7))
    many = jax.jit(draw, out_shardings=shards)(placed, noisy.at_step(KEY, 7))
    assert len(many["w"].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, one, jax.device_get(many))
    clipped = jax.jit(lambda x: noisy.clip_update(x, 1.0))(placed | {"w": many["w"] + 1})
    expected = noisy.clip_update(like | {"w": one["w"] + 1}, 1.0)
    np.testing.assert_allclose(clipped["w"], expected["w"], rtol=1e-6)


def test_coarse_parameters_are_refused():
    with pytest.raises(ValueError, match=r"float32 parameters, got \['bfloat16'\]"):
        noisy.gaussian_noise({"w": jnp.zeros(3, jnp.bfloat16)}, 1.0, KEY)


def test_the_secret_is_kept_for_a_resume_and_then_removed(tmp_path):
    secret = noisy.secret_file(tmp_path)
    path = tmp_path / noisy.SECRET_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(secret) == 32
    assert noisy.secret_file(tmp_path) == secret
    other = tmp_path / "other"
    other.mkdir()
    assert noisy.secret_file(other) != secret
    noisy.forget_secret(tmp_path)
    noisy.forget_secret(tmp_path)
    assert not path.exists() and not list(tmp_path.glob("*.partial"))
    path.write_text("12")
    with pytest.raises(ValueError, match="64 hexadecimal digits, got 2 characters"):
        noisy.secret_file(tmp_path)


# ---- the step, its self-test, and sabotage -----------------------------------------------------


def one_step(tx, params, gradient, step):
    """The step as a run takes it: new parameters = parameters + update."""
    more = {"secret": KEY, "step": step, "reference": CENTRE}
    updates, _ = tx.update(gradient, tx.init(params), params, **more)
    return optax.apply_updates(params, updates)


CENTRE, START, GRADIENT = tree(2, 5.0), tree(3, 9.0), tree(4, 100.0)


def right(t, std):
    tx = noisy.noisy_sgd(learning_rate=RATE, noise_std=std, clip_norm_l2=CLIP)
    start = noisy.project_to_ball(START, CENTRE, RADIUS)
    return one_step(tx, start, GRADIENT, t)


def reused_key(t, std):
    tx = noisy.noisy_sgd(learning_rate=RATE, noise_std=std, clip_norm_l2=CLIP)
    return one_step(tx, noisy.project_to_ball(START, CENTRE, RADIUS), GRADIENT, 0)


def one_key_for_all_leaves(t, std):
    key, noiseless = noisy.at_step(KEY, t), right(t, 0.0)
    return {k: noisy.gaussian_perturb({k: v}, std, key)[k] for k, v in noiseless.items()}


def noise_on_the_gradient(t, std):
    start = noisy.project_to_ball(START, CENTRE, RADIUS)
    clipped = noisy.clip_update(GRADIENT, CLIP)
    noised = noisy.gaussian_perturb(clipped, std, noisy.at_step(KEY, t))
    return jax.tree.map(lambda x, g: x - RATE * g, start, noised)


def variance_for_deviation(t, std):
    return right(t, std**2)


def missing_projection(t, std):
    tx = noisy.noisy_sgd(learning_rate=RATE, noise_std=std, clip_norm_l2=CLIP)
    return one_step(tx, START, GRADIENT, t)


def missing_clip(t, std):
    tx = noisy.noisy_sgd(learning_rate=RATE, noise_std=std)
    start = noisy.project_to_ball(START, CENTRE, RADIUS)
    return one_step(tx, start, GRADIENT, t)


def clip_after_noise(t, std):
    start = noisy.project_to_ball(START, CENTRE, RADIUS)
    noised = noisy.gaussian_perturb(GRADIENT, std / RATE, noisy.at_step(KEY, t))
    return jax.tree.map(lambda x, g: x - RATE * g, start, noisy.clip_update(noised, CLIP))


def self_test(mechanism):
    return lower_bound.mechanism_self_test(
        mechanism, CENTRE, noise_std=SIGMA, reach=RADIUS + RATE * CLIP, significance=1e-3
    )


def test_the_right_step_passes_its_self_test():
    found = self_test(right)
    assert found["passed"] and found["noise"]["passed"], found
    assert found["distance"] <= RADIUS + RATE * CLIP


@pytest.mark.long
@pytest.mark.parametrize(
    ("sabotage", "caught_by"),
    [
        (reused_key, "steps"),
        (one_key_for_all_leaves, "leaves"),
        (noise_on_the_gradient, "scale"),
        (variance_for_deviation, "scale"),
        (missing_projection, "distance"),
        (missing_clip, "distance"),
        (clip_after_noise, "scale"),
    ],
)
def test_a_sabotaged_step_fails_its_self_test(sabotage, caught_by):
    found = self_test(sabotage)
    assert not found["passed"]
    if caught_by == "distance":
        assert found["distance"] > RADIUS + RATE * CLIP
    else:
        assert found["noise"]["p_values"][caught_by] < 1e-6
        assert found["noise"]["p_values"]["mean"] > 1e-6 or caught_by == "scale"


def test_weight_decay_pulls_towards_the_reference_and_model_clipping_projects_before_the_noise():
    tx = noisy.noisy_sgd(learning_rate=RATE, noise_std=0.0, weight_decay=2.0)
    zero = jax.tree.map(jnp.zeros_like, START)
    found = one_step(tx, START, zero, 0)
    expected = jax.tree.map(lambda x, c: c + 0.8 * (x - c), START, CENTRE)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )
    for std in (0.0, SIGMA):
        tx = noisy.noisy_sgd(learning_rate=RATE, noise_std=std, model_clip_norm=RADIUS)
        found = norm64(difference(one_step(tx, START, GRADIENT, 0), CENTRE))
        entries = sum(x.size for x in CENTRE.values())
        assert found <= RADIUS if not std else found == pytest.approx(
            math.hypot(RADIUS, SIGMA * math.sqrt(entries)), rel=0.05
        )  # fmt: skip
