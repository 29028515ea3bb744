"""Audits of an unlearned model: the panel of witnesses, see docs/audits.md."""

from unlearn_jax.audit.backdoor import backdoor
from unlearn_jax.audit.difference import difference
from unlearn_jax.audit.displacement import displacement
from unlearn_jax.audit.forget_error import forget_error
from unlearn_jax.audit.membership_calibrated import membership_calibrated
from unlearn_jax.audit.membership_masks import membership_masks
from unlearn_jax.audit.membership_noise import membership_noise
from unlearn_jax.audit.membership_plain import membership_plain
from unlearn_jax.audit.membership_quantiles import membership_quantiles
from unlearn_jax.audit.membership_structure import membership_structure
from unlearn_jax.audit.membership_views import membership_views
from unlearn_jax.audit.membership_visible import membership_visible
from unlearn_jax.audit.quantised import quantised
from unlearn_jax.audit.relearning import relearning
from unlearn_jax.audit.resurfacing import resurfacing
from unlearn_jax.audit.witness import Witness

AUDITS: dict[str, Witness] = {
    "forget_error": forget_error,
    "membership_plain": membership_plain,
    "membership_calibrated": membership_calibrated,
    "membership_noise": membership_noise,
    "membership_masks": membership_masks,
    "membership_visible": membership_visible,
    "membership_structure": membership_structure,
    "membership_views": membership_views,
    "membership_quantiles": membership_quantiles,
    "resurfacing": resurfacing,
    "relearning": relearning,
    "displacement": displacement,
    "backdoor": backdoor,
    "quantised": quantised,
    "difference": difference,
}
