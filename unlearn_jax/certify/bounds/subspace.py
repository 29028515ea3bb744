"""Noise in blocks: the parameters in k orthogonal, fixed blocks, only one of them moved at a time.

After Dolgova & Stich 2026 (arXiv 2601.05134), of which we know abstract and code, not the text; the
bounds are ours [P]: adaptive composition of Gaussian DP (Dong, Roth & Su 2019).

**Guarantee**
* Neighbours and certifiers: those of `finetune`, block by block.
* Assumes: the basis does not depend on data; while block i moves all others are frozen; a finished
  block is never fine-tuned again without noise before the last stage has ended (the gradient sees
  the blocks that are not noised yet, which still hold the forget set).
* Not covered: calibration by a measured or assumed distance in place of a radius.
"""

import math
from collections.abc import Sequence
from numbers import Real

from unlearn_jax.certify.bounds.arguments import nonnegative, positive


def subspace_mu(
    block_sensitivity: Sequence[Real],
    block_shift: Sequence[Real],
    block_noise_std: Sequence[Real],
) -> float:
    """The mu of k blocks with a radius each: sqrt(sum ((Delta_i + s_i) / sigma_i)^2). [P]

    Args:
      block_sensitivity: distance of the starts in block i, 2 C_i or C_i, at least 0.
      block_shift: s_i = 2 gamma C1 T_i of its clipped steps before its noise, at least 0.
      block_noise_std: sigma_i, added once.

    Raises:
      ValueError: lists of unequal length or empty, an argument out of range.
    """
    lengths = [len(values) for values in (block_sensitivity, block_shift, block_noise_std)]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(
            "subspace_mu: expected block_sensitivity, block_shift and block_noise_std of one "
            f"length of at least 1, got {lengths}."
        )
    total = 0.0
    for distance, shift, sigma in zip(block_sensitivity, block_shift, block_noise_std, strict=True):
        nonnegative(block_sensitivity=distance, block_shift=shift)
        positive(block_noise_std=sigma)
        total += ((distance + shift) / sigma) ** 2
    return math.sqrt(total)


def subspace_mu_joint(sensitivity: Real, block_shift: Sequence[Real], noise_std: Real) -> float:
    """The mu of k blocks after one joint projection, with one noise: (Delta + |s|_2) / sigma. [P]

    Args:
      sensitivity: Delta, 2 C0 ("retrain") or C0 ("reference"), above 0.
      block_shift: s_i of `subspace_mu`.
      noise_std: sigma, the same in every block.

    Raises:
      ValueError: an argument is out of range.
    """
    positive(sensitivity=sensitivity, noise_std=noise_std)
    for shift in block_shift:
        nonnegative(block_shift=shift)
    return (sensitivity + math.hypot(*block_shift)) / noise_std
