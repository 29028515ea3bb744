"""Every bound of the certificate, in float64, without JAX.

Units: radii, norms, sensitivities and `noise_std` in L2 norm of the parameters; `noise_std` is
always on the parameters and per step; step sizes are learning rates; epsilon in nats. What a bound
is a statement about is in the **Guarantee** of its module, in plain words in docs/certificate.md.
Impossible arguments raise a ValueError that names argument, range and value.
"""

from unlearn_jax.certify.bounds.gaussian import (
    analytic_gaussian_sigma,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
)
from unlearn_jax.certify.bounds.model_clipping import (
    model_clipping_delta,
    model_clipping_epsilon,
    model_clipping_sigma,
)
from unlearn_jax.certify.bounds.noisy_finetune import (
    noisy_finetune_mu,
    noisy_finetune_optimal_steps,
    noisy_finetune_sigma,
)
from unlearn_jax.certify.bounds.output_perturbation import (
    decoupling_sensitivity,
)
from unlearn_jax.certify.bounds.reflection import (
    reflection_delta,
    reflection_epsilon,
    reflection_sigma,
)

__all__ = [
    "analytic_gaussian_sigma",
    "decoupling_sensitivity",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "model_clipping_delta",
    "model_clipping_epsilon",
    "model_clipping_sigma",
    "noisy_finetune_mu",
    "noisy_finetune_optimal_steps",
    "noisy_finetune_sigma",
    "reflection_delta",
    "reflection_epsilon",
    "reflection_sigma",
]
