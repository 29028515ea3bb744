"""Mechanism A: any training, ascent on the forget set, projection, then noise.

Noise comes from projection + noise; ascent certifies nothing, and is free if the model is projected
after it. Tags: [P] proved in docs/certificate.md, [C] classical. None of it is a theorem of the
paper by Varshney & Torra, whose text we do not have.

**Guarantee** (`decoupling_sensitivity`)
* Neighbours: any training data D with any forget set in D, of any size, against D without it; any
  training algorithm, random or not.
* Compared with: certifier "retrain", the same projection and noise applied to a model trained
  without the forget set; "reference", applied to a fixed public model, which is a weaker claim
  (the distance to retraining is then 2 mu).
* Assumes: radii, clip norm, steps and noise were chosen without the forget set; the centre of the
  balls never saw it; only the noised parameters are released, and the noise key never is.
* Not covered: optimizer state, averages of weights, batch statistics, earlier checkpoints,
  floating-point sampling, and what the bounds tagged conditional assume.
"""

import math
from numbers import Real

from unlearn_jax.certify.bounds.arguments import count, nonnegative, one_of, positive
from unlearn_jax.config.certified import CERTIFIERS
from unlearn_jax.registry import UserError


def decoupling_sensitivity(
    init_radius: Real,
    ascent_steps: Real,
    ascent_step_size: Real,
    ascent_clip_norm: Real,
    reprojection_radius: Real | None = None,
    certifier: str = "retrain",
) -> float:
    """Bound the distance between the decoupled model and the certifier's, before noise. [P]

    Without re-projection 2 C0 + eta T C1 ("retrain") or C0 + eta T C1 ("reference"); with it the
    smaller of that and C0 + C_dec ("retrain") or C_dec ("reference"): with C_dec = C0 any ascent,
    also without clipping or with a stop rule, costs nothing.

    Args:
      init_radius: C0 of the ball around the reference that the start is projected to, above 0.
      ascent_steps: T, may be 0.
      ascent_step_size: eta, the learning rate.
      ascent_clip_norm: C1, L2 norm that each ascent gradient is clipped to; inf: not clipped.
      reprojection_radius: C_dec, of a projection after the ascent; None: there is none.
      certifier: "retrain" or "reference", see the module.

    Raises:
      UserError: an argument is out of range, or nothing bounds the ascent.
    """
    positive(init_radius=init_radius)
    count(0, ascent_steps=ascent_steps)
    nonnegative(ascent_step_size=ascent_step_size)
    if ascent_clip_norm != math.inf:
        nonnegative(ascent_clip_norm=ascent_clip_norm)
    one_of(CERTIFIERS, certifier=certifier)
    length = ascent_steps * ascent_step_size
    start = 2 * init_radius if certifier == "retrain" else init_radius
    bound = start + (length * ascent_clip_norm if length else 0.0)
    if reprojection_radius is not None:
        positive(reprojection_radius=reprojection_radius)
        projected = init_radius if certifier == "retrain" else 0.0
        bound = min(bound, projected + reprojection_radius)
    if bound == math.inf:
        raise UserError(
            "ascent_clip_norm: expected a finite clip norm, or a reprojection_radius; ascent that "
            "is neither clipped nor projected is bounded by nothing."
        )
    return float(bound)
