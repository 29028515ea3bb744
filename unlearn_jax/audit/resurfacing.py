"""Whether forget images come back when the model is trained on other images."""

from unlearn_jax.audit.witness import auroc, calibrated, mean_difference, witness

SETS = {"retain": "remaining", "unseen": "calibration"}  # what is trained on: rows of the split


def measure(lab):
    """Return (params, original) -> the loss after steps, "resurfacing/ON/RATE/STEPS/SET" [n k]."""
    settings = lab.cfg.audit.resurfacing

    def run(params, original):
        found = {}
        for on in settings.on if settings.steps else ():
            rows = getattr(lab.split, SETS[on])
            for rate in settings.learning_rates if len(rows) else ():
                for step, tuned in lab.finetune(params, rows, settings.steps, rate):
                    found |= lab.over(f"resurfacing/{on}/{rate:g}/{step}", lab.loss, tuned)
        return found

    return run


@witness(
    family="hidden",
    label="Resurfacing",
    unit="mean calibrated log loss on unseen minus forget images, after training on other images",
    statistics={"difference": mean_difference, "auroc": auroc},
    measure=measure,
)
def resurfacing(model, references):
    """Train on retained images only, or on other unseen ones, and look at the forgotten ones.

    The images that are trained on say nothing of the forget images: what comes back was there. The
    worst of all settings counts, corrected for their number.

    Guarantee: 0 (AUROC .5) for a model that never saw the images, however long it is trained.
    Power: high against what hides by small changes.
    Cost: steps of training, of every model: the key audit.resurfacing.
    Source: DiMRA (arXiv 2512.03564), MemoRa (2510.03263).
    """
    variants = [k.removesuffix("/forget") for k in model if k.startswith("resurfacing/")]
    variants = [k for k in variants if f"{k}/forget" in model]
    if not variants:
        return "not asked for: set audit.resurfacing.steps"

    def name(variant):
        _, on, rate, steps = variant.split("/")
        return f"{steps} steps on {on} images, learning rate {rate}"

    return {name(v): calibrated(model, references, f"{v}/{{}}") for v in variants}
