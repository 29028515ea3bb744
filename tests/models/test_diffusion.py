"""Schedules and steps, against published numbers, Bayes' rule and exact noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearn_jax.models import diffusion

STEEP = diffusion.linear_schedule(50, 1e-4, 0.3)


def test_training_schedule_has_the_golden_values():
    found = diffusion.linear_schedule(2000, 1e-6, 0.01)
    assert set(found) == {
        "gammas",
        "sqrt_recip_gammas",
        "sqrt_recipm1_gammas",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    }
    assert all(a.dtype == np.float32 and a.shape == (2000,) for a in found.values())
    want = [0.999999, 0.999993, 0.99971393, 0.97495363, 0.53391121, 0.081374628, 4.3859782e-05]
    np.testing.assert_allclose(found["gammas"][[0, 1, 10, 100, 500, 1000, 1999]], want, rtol=1e-7)
    want = [-13.969613, -10.079677, -7.618218, -4.605171]
    logs = found["posterior_log_variance_clipped"]
    np.testing.assert_allclose(logs[[1, 10, 100, 1999]], want, rtol=1e-7)
    np.testing.assert_allclose(found["posterior_mean_coef1"][1], 0.857184, atol=1e-6)
    np.testing.assert_allclose(found["posterior_mean_coef2"][1], 0.142816, atol=1e-6)
    np.testing.assert_allclose(found["sqrt_recip_gammas"][1999], 150.9965, rtol=1e-6)
    np.testing.assert_allclose(found["sqrt_recipm1_gammas"][1999], 150.9931, rtol=1e-6)
    first = {name: float(array[0]) for name, array in found.items()}
    assert first["posterior_mean_coef1"] == 1 and first["posterior_mean_coef2"] == 0
    assert first["posterior_log_variance_clipped"] == pytest.approx(-46.0517, abs=1e-4)


def test_test_schedules_have_the_golden_values_and_are_finite():
    paper = diffusion.linear_schedule(*diffusion.SCHEDULES["palette_paper_1000"])
    want = [0.99971003, 0.6275249, 1.0174287e-05, 6.6043773e-21]
    np.testing.assert_allclose(paper["gammas"][[1, 100, 500, 999]], want, rtol=1e-6)
    config = diffusion.linear_schedule(*diffusion.SCHEDULES["config_test_2000"])
    assert config["sqrt_recip_gammas"][-1] == pytest.approx(1.5e20, rel=0.01)
    for schedule, steps in ((paper, 0), (config, 0), (config, 37)):
        for sampler in diffusion.SAMPLERS:
            plan = diffusion.sampling_plan(schedule, sampler, steps)
            assert all(np.isfinite(array).all() for array in plan.values())


def test_steps_are_bayes_rule():
    # Of y_s ~ N(sqrt(gs) image, 1 - gs) and y_t ~ N(sqrt(a) y_s, 1 - a), for s < t.
    gammas = np.cumprod(1 - np.linspace(1e-4, 0.3, 50))
    for sampler, steps in (("ddpm", 0), ("ddpm_strided", 0), ("ddpm_strided", 7)):
        plan = diffusion.sampling_plan(STEEP, sampler, steps)
        times = diffusion.sampling_timesteps(50, steps)
        for step, (t, s) in enumerate(itertools.pairwise(times)):
            gs, a = gammas[s], gammas[t] / gammas[s]
            precision = 1 / (1 - gs) + a / (1 - a)
            want = {
                "gamma": gammas[t],
                "image_coef": np.sqrt(gs) / (1 - gs) / precision,
                "y_coef": np.sqrt(a) / (1 - a) / precision,
                "std": precision**-0.5,
            }
            found = {name: plan[name][step] for name in want}
            for name, value in want.items():
                np.testing.assert_allclose(
                    found[name], value, rtol=2e-4, err_msg=(sampler, t, name)
                )
        last = {name: float(plan[name][-1]) for name in ("image_coef", "y_coef", "std")}
        assert last == {"image_coef": 1, "y_coef": 0, "std": 0}


def test_strided_steps_on_all_timesteps_are_the_ancestral_ones():
    schedule = diffusion.linear_schedule(2000, 1e-6, 0.01)
    all_steps = diffusion.sampling_plan(schedule, "ddpm", 0)
    strided = diffusion.sampling_plan(schedule, "ddpm_strided", 2000)
    for name, array in all_steps.items():
        np.testing.assert_allclose(strided[name], array, rtol=2e-3, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [("ddpm", 12), ("ddpm_strided", 4), ("ddpm_strided", 12), ("ddim", 1), ("ddim", 4)],
)
def test_who_knows_the_image_arrives_at_it(sampler, steps):
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.uniform(keys[0], (2, 4, 4, 3), minval=-1)
    y = noisy = jax.random.normal(keys[1], image.shape)
    schedule = diffusion.linear_schedule(12, 1e-3, 0.6)
    plan = diffusion.sampling_plan(schedule, sampler, steps)
    for step in range(steps):
        gamma = jnp.full(2, plan["gamma"][step])
        noise = (noisy - jnp.sqrt(gamma[0]) * image) / jnp.sqrt(1 - gamma[0])
        np.testing.assert_allclose(diffusion.remove_noise(noisy, noise, gamma), image, atol=2e-3)
        np.testing.assert_allclose(diffusion.add_noise(image, noise, gamma), noisy, atol=1e-5)
        fresh = jax.random.normal(jax.random.fold_in(keys[2], step), image.shape)
        noisy = diffusion.sampling_step(plan, step, noisy, noise, fresh)
    np.testing.assert_allclose(noisy, image, atol=1e-4)
    assert np.abs(y - image).max() > 1


def test_ddim_takes_no_noise_and_clips_the_image():
    plan = diffusion.sampling_plan(STEEP, "ddim", 5)
    y = jnp.full((1, 1, 1, 1), 3.0)
    zero, one = jnp.zeros_like(y), jnp.ones_like(y)
    for step in range(5):
        found = diffusion.sampling_step(plan, step, y, zero, one)
        assert found == diffusion.sampling_step(plan, step, y, zero, zero)
        g = float(plan["gamma"][step])
        after = float(plan["gamma"][step + 1]) if step < 4 else 1.0
        noise = (3 - np.sqrt(g)) / np.sqrt(1 - g)  # the image would be above 1 and becomes 1
        want = np.sqrt(after) + np.sqrt(1 - after) * noise
        np.testing.assert_allclose(found.item(), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("total", "steps", "want"),
    [(10, 5, [9, 7, 5, 3, 1]), (10, 3, [9, 6, 2]), (7, 1, [6]), (4, 0, [3, 2, 1, 0])],
)
def test_timesteps_are_even_and_begin_with_the_last(total, steps, want):
    assert diffusion.sampling_timesteps(total, steps).tolist() == want


def test_noise_levels_lie_between_two_timesteps():
    gammas = jnp.asarray(STEEP["gammas"])
    found = diffusion.between(gammas, jnp.array([1, 1, 49]), jnp.array([0.0, 1.0, 0.5]))
    want = [STEEP["gammas"][0], STEEP["gammas"][1], STEEP["gammas"][48:50].mean()]
    np.testing.assert_allclose(found, want, rtol=1e-6)
