"""What the original and the unlearned model tell together."""

import numpy as np

from unlearn_jax.audit.witness import Scores, auroc, witness


@witness(
    family="information",
    label="Difference of both models",
    unit="AUROC of the log distance of their outputs, forget against unseen images",
    statistics={"auroc": auroc},
)
def difference(model, references):
    """Guess that images were forgotten on which the model and the original differ most.

    It leaks after exact deletion, too: where old copies of the original are kept, what was
    forgotten can be read from the difference (and amplified, as reversed guidance does). So it
    never counts, and the page says that old copies must go.

    Guarantee: none.
    Power: high for every method that forgets.
    Cost: none beside `displacement`.
    Source: reversed guidance and model differencing, e.g. Chen et al. 2021 (arXiv 2005.02205).
    """
    del references
    moved = [model[f"displacement/{s}"].astype(np.float64) for s in ("forget", "unseen")]
    return {"": Scores(*(np.log(x + 1e-12) for x in moved))}
