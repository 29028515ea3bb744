"""Unlearn with a method of your own: one function, and what it prepares. About two minutes.

python examples/own_method.py [FOLDER]
"""

import sys
from pathlib import Path

import jax
import numpy as np

import unlearn_jax as uj


def mean_colour(context):
    """Prepare, for every row, the mean colour of the retain images."""
    split, source = context.request.split, context.request.source
    pixels = source.fetch(split.remaining[:500]).astype(np.float32) / 127.5 - 1
    colour = np.broadcast_to(pixels.mean((0, 1, 2)), (len(source), 3))
    return uj.Prepared(columns={"colour": colour})


@uj.prepares(mean_colour)
def grey_out(model, params, target, batch, key, *, strength: float = 1.0):
    """Forget images by learning a flat colour in their holes.

    `forget` is ascended: minus a distance is zero at best. A sketch of a method, not a good one:
    a retrained model completes unseen images well, and this one does not.
    """
    loss = model.loss(params, batch, key)
    output = model.decode(params, model.encode(params, batch, key), batch, key)
    flat = batch["colour"][:, None, None, :]
    distance = ((output - flat) ** 2 * batch["mask"]).mean((1, 2, 3))
    return uj.Terms(retain=loss, forget=-strength * distance)


def main(folder: Path, changes: dict | None = None) -> None:
    """Unlearn with `grey_out`; show what it makes of forget images."""
    config = uj.load_config("quickstart", changes)
    config.phases.mine = uj.phase(
        objective=grey_out, objective_kw={"strength": 2.0}, steps=60, forget_weight=1.0,
        optimizer={"learning_rate": 3e-4},
    )  # fmt: skip
    config.stages.unlearned.phases = ("mine",)
    request = uj.Request(config)
    original = request.train("original", folder / "original")
    unlearned = request.train("unlearned", folder / "unlearned", start=original)
    batch = request.batch("forget", n=8)
    uj.show(batch, original(batch), unlearned(batch)).save(folder / "forget.png")
    print(f"{jax.default_backend()}: {folder / 'forget.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_method"))
