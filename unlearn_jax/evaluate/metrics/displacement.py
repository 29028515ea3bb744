"""How far unlearning has moved the outputs, measured, between the bounds that errors alone imply.

With e the root mean squared error on the hole and d the RMS distance to the original's output
there, of one example: |e - e_0| <= d <= e + e_0, by the triangle inequality, whatever the model;
and the same for the root mean squares over a set. So a rise of the error from e_0 to lambda + e_0
implies the displacement of at least lambda that decoupling asks for (Varshney & Torra, arXiv
2502.04260). How many steps of ascent suffice for that takes constants that nobody knows of a deep
network; it is not said here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

ROUNDING = 1e-5  # of float32, relative to e + e_0


def bounds(
    mse: Float[np.ndarray, "n"],
    original_mse: Float[np.ndarray, "n"],
    displacement: Float[np.ndarray, "n"],
) -> dict[str, Any]:
    """Bound the displacement of a set of examples from above and below.

    Return {"example", "rms": {"lower", "measured", "upper"}, "held", "n"}.

    "example": the means over examples of |e - e_0|, d and e + e_0; "rms": the same three of the
    root mean squares over the set; "held": of how many examples, of n, d is within its bounds.

    Args:
      mse: mean squared error of each example on the hole.
      original_mse: that of the original model.
      displacement: d of each example.
    """
    e, e_0, d = (
        np.asarray(x, np.float64) for x in (np.sqrt(mse), np.sqrt(original_mse), displacement)
    )
    slack = ROUNDING * (e + e_0)
    held = (np.abs(e - e_0) - slack <= d) & (d <= e + e_0 + slack)
    rms = [float(np.sqrt(np.mean(np.square(x)))) for x in (e, e_0, d)]
    return {
        "example": _three(np.abs(e - e_0).mean(), d.mean(), (e + e_0).mean()),
        "rms": _three(abs(rms[0] - rms[1]), rms[2], rms[0] + rms[1]),
        "held": int(held.sum()),
        "n": len(d),
    }


def of_request(
    examples: Mapping[str, np.ndarray], config: ConfigDict, names: list[str]
) -> dict[str, Any]:
    """Bound every model's displacement on every set, and say which lambda was wanted.

    Return {"models": {model: {set: `bounds`}}, "wanted": {"lambda", "phase", "moved"} or None}.

    Args:
      examples: as in examples.npz, "MODEL/SET/METRIC".
      config: of the request; the phase of the unlearned stage that stops at a displacement says
        which lambda is wanted; "moved": how many forget examples of each model moved so far.
      names: of the models.
    """
    moved = [name for name in names if name != "original"]
    columns = [("mse_hole", None), ("mse_hole", "original"), ("displacement", None)]
    models = {
        model: {
            s: bounds(*(examples[f"{of or model}/{s}/{metric}"] for metric, of in columns))
            for s in ("forget", "retain", "holdout")
            if f"original/{s}/mse_hole" in examples
        }
        for model in moved
    }
    wanted = None
    for name in config["stages"]["unlearned"]["phases"]:
        stop = config["phases"][name]["stop"]
        if moved and stop["metric"] == "displacement":
            far = {m: examples[f"{m}/forget/displacement"] >= stop["at_least"] for m in moved}
            wanted = {"lambda": float(stop["at_least"]), "phase": name}
            wanted |= {"moved": {m: int(x.sum()) for m, x in far.items()}}
    return {"models": models, "wanted": wanted}


def _three(lower: float, measured: float, upper: float) -> dict[str, float]:
    return {"lower": float(lower), "measured": float(measured), "upper": float(upper)}
