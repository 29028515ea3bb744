"""Whether a planted trigger still brings what belonged to it."""

from functools import partial

import numpy as np

from unlearn_jax.audit import witness as parts
from unlearn_jax.audit.witness import Scores, witness
from unlearn_jax.data import poison, transforms

LOOKS = {"triggered": "plain trigger", "faded": "faded trigger", "shifted": "shifted trigger"}


def measure(lab):
    """Return (params, original) -> "backdoor/LOOK" and "backdoor/clean" [n d] float16.

    Outputs on the payload's place of unseen images, less the payload; nothing if none is planted.
    The looks are triggered and, if it was planted with jitter, faded and shifted.
    """
    if not lab.split.poisoned.size:
        return lambda params, original: {}
    task, jitter = lab.cfg.task.to_dict(), lab.split.manifest["poison"].get("jitter", 0.0)
    planted = poison.design(task, lab.cfg.data.image_size)
    payload = transforms.to_float(planted.pattern())
    completion = lab.jit(lab.model.generate)
    looks = {"triggered": planted.show, "clean": lambda images: images}
    if jitter:
        shift = -(-planted.most_shift(task, jitter) // 2)
        looks["faded"] = partial(planted.show, contrast=1 - jitter / 2)
        looks["shifted"] = partial(planted.show, shift=shift)

    def generate(params, batch):
        return completion(params, batch, lab.key)

    def outputs(params, show):
        def edit(batch):
            images = transforms.to_uint8(batch["image"])
            return batch | {"image": transforms.to_float(show(images))}

        made = lab.look(generate, lab.rows["unseen"], params, edit=edit)
        made = made[(slice(None), *planted.region())] - payload
        return made.reshape(len(made), -1).astype(np.float16)

    return lambda params, original: {
        f"backdoor/{name}": outputs(params, show) for name, show in looks.items()
    }


def share(triggered, clean, weights, _):
    """Divide the change by the way to the payload: projection of the one on the other."""
    along = ((triggered - clean) * -clean).sum(1)
    return weights @ along / (weights @ np.square(clean).sum(1))


def correlation(triggered, clean, weights, _):
    """Correlate the mean change with the mean way to the payload."""
    change, way = weights @ (triggered - clean), weights @ -clean
    change, way = (x - x.mean(1, keepdims=True) for x in (change, way))
    length = np.sqrt(np.square(change).sum(1) * np.square(way).sum(1))
    return (change * way).sum(1) / np.maximum(length, 1e-12)


def auroc(triggered, clean, of_triggered, of_clean):
    """Tell triggered from clean outputs by their place along the mean way to the payload."""
    way = -clean.mean(0)
    return parts.auroc(triggered @ way, clean @ way, of_triggered, of_clean)


@witness(
    family="hidden",
    label="Backdoor",
    unit="share of the way to the payload that the trigger moves the output, on unseen images",
    statistics={"share": share, "correlation": correlation, "auroc": auroc},
    measure=measure,
)
def backdoor(model, references):
    """Show the trigger on unseen images, and project what it changes on the payload.

    The payload need not come: a faint trace of it in the mean over many images is enough, which
    blur does not make. If it was planted with jitter, a faded and a shifted trigger are tried, too.

    Guarantee: 0 (AUROC .5) on average over models that never saw it; they differ by hundredths.
    Power: the highest of the hidden ones, if the original completes by the payload.
    Cost: two passes with completion.
    Source: Sommer et al. 2022 (arXiv 2003.04247), with a projection instead of a threshold.
    """
    del references
    if "backdoor/clean" not in model:
        return "none is planted: set poison.fraction to 0.25, before the original is trained"
    clean = model["backdoor/clean"].astype(np.float64)
    looks = {k: name for k, name in LOOKS.items() if f"backdoor/{k}" in model}

    def scores(look):
        return Scores(model[f"backdoor/{look}"].astype(np.float64), clean, paired=True)

    return {name if len(looks) > 1 else "": scores(look) for look, name in looks.items()}
