"""Every bound of the certificate, in float64, without JAX.

Units: radii, norms, sensitivities and `noise_std` in L2 norm of the parameters; `noise_std` is
always on the parameters and per step; step sizes are learning rates; epsilon in nats. What a bound
is a statement about is in the **Guarantee** of its module, in plain words in docs/certificate.md.
Impossible arguments raise a ValueError that names argument, range and value.
"""

from unlearn_jax.certify.bounds.gaussian import (
    analytic_gaussian_sigma,
    classical_gaussian_sigma,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    rdp_epsilon_basic,
    rdp_epsilon_improved,
)
from unlearn_jax.certify.bounds.model_clipping import (
    model_clipping_delta,
    model_clipping_epsilon,
    model_clipping_sigma,
)
from unlearn_jax.certify.bounds.noisy_finetune import (
    iteration_mu,
    noisy_finetune_mu,
    noisy_finetune_optimal_steps,
    noisy_finetune_sigma,
    noisy_finetune_sigma_published,
    noisy_finetune_sigma_zcdp,
)
from unlearn_jax.certify.bounds.output_perturbation import (
    ascent_path_length,
    conditional_mu,
    decoupling_sensitivity,
    newton_like_distance,
    noisy_ascent_mu,
    output_perturbation_sigma,
    stability_distance,
)
from unlearn_jax.certify.bounds.planning import (
    ascent_gain_lower_bound,
    ascent_steps_for_displacement,
)
from unlearn_jax.certify.bounds.reflection import (
    reflection_delta,
    reflection_epsilon,
    reflection_sigma,
)
from unlearn_jax.certify.bounds.subspace import subspace_mu, subspace_mu_joint

__all__ = [
    "analytic_gaussian_sigma",
    "ascent_gain_lower_bound",
    "ascent_path_length",
    "ascent_steps_for_displacement",
    "classical_gaussian_sigma",
    "conditional_mu",
    "decoupling_sensitivity",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_mu",
    "iteration_mu",
    "model_clipping_delta",
    "model_clipping_epsilon",
    "model_clipping_sigma",
    "newton_like_distance",
    "noisy_ascent_mu",
    "noisy_finetune_mu",
    "noisy_finetune_optimal_steps",
    "noisy_finetune_sigma",
    "noisy_finetune_sigma_published",
    "noisy_finetune_sigma_zcdp",
    "output_perturbation_sigma",
    "rdp_epsilon_basic",
    "rdp_epsilon_improved",
    "reflection_delta",
    "reflection_epsilon",
    "reflection_sigma",
    "stability_distance",
    "subspace_mu",
    "subspace_mu_joint",
]
