"""Whether a few forget images bring back the others."""

import numpy as np

from unlearn_jax.audit.witness import calibrated, log_loss, mean_difference, witness

FOLDS = 2


def measure(lab):
    """Return (params, original) -> "relearning/SET" [n]: mean log loss while it is trained.

    The forget images are in two halves; some of one are trained on, the other half is measured.
    """
    settings, rows = lab.cfg.audit.relearn, lab.rows["forget"]

    def run(params, original):
        if not settings.steps or len(rows) < FOLDS:
            return {}
        order = np.random.default_rng(lab.cfg.request.seed).permutation(len(rows))
        steps = tuple(range(settings.every, settings.steps + 1, settings.every))
        forget, unseen = np.zeros(len(rows), np.float32), []
        for fold in range(FOLDS):
            again, held = order[fold::FOLDS], np.sort(np.setdiff1d(order, order[fold::FOLDS]))
            logs = {"held": [], "unseen": []}
            again = rows[again[: settings.images]]
            for _, tuned in lab.finetune(params, again, steps, lab.cfg.audit.learning_rate):
                for name, chosen in (("held", rows[held]), ("unseen", lab.rows["unseen"])):
                    logs[name].append(log_loss(lab.look(lab.loss, chosen, tuned)))
            forget[held] = np.mean(logs["held"], axis=0)
            unseen.append(np.mean(logs["unseen"], axis=0))
        log = {"forget": forget, "unseen": np.mean(unseen, axis=0)}
        return {f"relearning/{name}": np.exp(values) for name, values in log.items()}

    return run


@witness(
    family="hidden",
    label="Relearning",
    unit="mean calibrated log loss on unseen minus other forget images, while it learns a few",
    statistics={"difference": mean_difference},
    measure=measure,
)
def relearning(model, references):
    """Train on a few forget images, and see how the others fare on the way.

    The mean over the way (the area under the curve) has no end that it could miss. What unseen
    images gain by the same steps is subtracted.

    Guarantee: 0 for a model that never saw the images, if the request is random.
    Power: high against what hides by small changes; needs some of the images.
    Cost: 2 x audit.relearn.steps steps of training, of every model.
    Source: relearning attacks, e.g. Lynch et al. 2024 (arXiv 2402.16835).
    """
    if "relearning/forget" not in model:
        return "not asked for: set audit.relearn.steps"
    return {"": calibrated(model, references, "relearning/{}")}
