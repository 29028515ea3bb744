"""Noise schedules and the steps of samplers that go back through them: arithmetic, no networks.

gamma_t is the share of the signal's variance that is left at timestep t = 0 … T-1: an image x with
noise n is sqrt(gamma_t) x + sqrt(1 - gamma_t) n.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Schedule = Mapping[str, Any]  # the six arrays [T] of `linear_schedule`
SCHEDULES = {  # by name: (timesteps, first beta, last beta), what the published configs state
    "config_test_2000": (2000, 1e-4, 0.09),
    "palette_paper_1000": (1000, 1e-4, 0.09),
}
SAMPLERS = ("ddpm", "ddpm_strided", "ddim")


def linear_schedule(
    timesteps: int, beta_start: float, beta_end: float
) -> dict[str, Float[np.ndarray, "t"]]:
    """Make the six float32 arrays of a schedule, named as in checkpoints; computed in float64.

    `gammas` is the product of 1 - beta. With y at t, the noise n and gamma of t:
    image = sqrt_recip_gammas * y - sqrt_recipm1_gammas * n. Given image and y, the mean of y at t-1
    is posterior_mean_coef1 * image + posterior_mean_coef2 * y, with the variance
    exp(posterior_log_variance_clipped), clipped at 1e-20.

    Args:
      timesteps: T.
      beta_start: of t = 0.
      beta_end: of t = T - 1; linear in between.
    """
    beta = np.linspace(beta_start, beta_end, timesteps, dtype=np.float64)
    gamma = np.cumprod(1 - beta)
    before = np.append(1.0, gamma[:-1])
    variance = beta * (1 - before) / (1 - gamma)
    schedule = {
        "gammas": gamma,
        "sqrt_recip_gammas": np.sqrt(1 / gamma),
        "sqrt_recipm1_gammas": np.sqrt(1 / gamma - 1),
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(before) / (1 - gamma),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - beta) / (1 - gamma),
    }
    return {name: array.astype(np.float32) for name, array in schedule.items()}


def between(
    gammas: Float[Array, "t"], timestep: Int[Array, "b"], share: Float[Array, "b"]
) -> Float[Array, "b"]:
    """Interpolate between the noise levels of t - 1 (share 0) and t (share 1), t in 1 … T-1."""
    before, after = gammas[timestep - 1], gammas[timestep]
    return before + share * (after - before)


def add_noise(
    image: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], gamma: Float[Array, "b"]
) -> Float[Array, "b h w c"]:
    """Add noise: sqrt(gamma) image + sqrt(1 - gamma) noise."""
    gamma = gamma[:, None, None, None]
    return jnp.sqrt(gamma) * image + jnp.sqrt(1 - gamma) * noise


def remove_noise(
    y: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], gamma: Float[Array, "b"]
) -> Float[Array, "b h w c"]:
    """Remove noise: return the image of which `add_noise` makes y."""
    gamma = gamma[:, None, None, None]
    return (y - jnp.sqrt(1 - gamma) * noise) / jnp.sqrt(gamma)


def sampling_timesteps(timesteps: int, steps: int) -> np.ndarray:
    """List the timesteps of a sampler, falling from T - 1, evenly spaced; all T if steps is 0.

    The last step goes from about T / steps - 1 to the image (diffusers calls it "trailing").
    """
    steps = steps or timesteps
    return np.rint(np.arange(steps, 0, -1) * (timesteps / steps)).astype(np.int32) - 1


def sampling_plan(schedule: Schedule, sampler: str, steps: int) -> dict[str, Float[Array, "s"]]:
    """Compute what each step of a sampler needs, in the order of the steps.

    "gamma" is what the network is told. An estimate of the image is sqrt_recip * y - sqrt_recipm1
    * n, clipped to [-1, 1], and the next y is image_coef * image + y_coef * y + std * fresh noise.

    Args:
      schedule: of `linear_schedule`, or out of a checkpoint.
      sampler: "ddpm": the ancestral sampler that visits every timestep, with the arrays of the
        schedule as they are. "ddpm_strided": the same on `steps` of the timesteps. "ddim": the
        deterministic one (eta 0), whose noise fits the clipped image.
      steps: how many timesteps are visited, 0 for all.
    """
    timesteps = sampling_timesteps(len(schedule["gammas"]), steps)
    # Read in this order, an array begins with t = T - 1.
    at = {name: jnp.asarray(array)[timesteps] for name, array in schedule.items()}
    recip, recipm1 = at["sqrt_recip_gammas"], at["sqrt_recipm1_gammas"]
    if sampler == "ddpm":
        image_coef, y_coef = at["posterior_mean_coef1"], at["posterior_mean_coef2"]
        std = jnp.exp(at["posterior_log_variance_clipped"] / 2)
    else:
        # The same between timesteps further apart. In terms of these two arrays nothing cancels
        # in float32, where 1 - gamma of the first timesteps does, and nothing overflows.
        recip_after = jnp.append(recip[1:], 1.0)
        recipm1_after = jnp.append(recipm1[1:], 0.0)
        ratio = recipm1_after / recipm1
        power = ratio if sampler == "ddim" else ratio**2
        image_coef, y_coef = (1 - power) / recip_after, power * recip / recip_after
        std = jnp.sqrt(1 - power) * recipm1_after / recip_after * (sampler != "ddim")
    return {
        "gamma": at["gammas"],
        "sqrt_recip": recip,
        "sqrt_recipm1": recipm1,
        "image_coef": image_coef,
        "y_coef": y_coef,
        "std": std.at[-1].set(0.0),  # the last step adds no noise
    }


def sampling_step(
    plan: Mapping[str, Float[Array, "s"]],
    step: int | Int[Array, ""],
    y: Float[Array, "b h w c"],
    predicted: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Take one step of a `sampling_plan`: return the y after it.

    Args:
      plan: the sampler's.
      step: 0 is the first that is taken.
      y: before the step.
      predicted: the noise that the network sees in y.
      noise: fresh, standard normal.
    """
    now = jax.tree.map(lambda array: array[step], dict(plan))
    image = (now["sqrt_recip"] * y - now["sqrt_recipm1"] * predicted).clip(-1, 1)
    return now["image_coef"] * image + now["y_coef"] * y + now["std"] * noise
