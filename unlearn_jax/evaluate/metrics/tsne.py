"""t-SNE of embeddings: where unlearned and original images lie, in one picture."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from unlearn_jax.registry import UserError

Groups = Mapping[str, Float[np.ndarray, "_ _"]]


def embed(
    groups: Groups, *, every: int = 100, perplexity: float | int = 20, seed: int = 0
) -> dict[str, Float[np.ndarray, "_ 2"]]:
    """Embed every n-th row of each group in the plane, all groups together.

    Exact t-SNE of the Euclidean distances, from a random start that the seed decides: the same
    points every time. Settings are those of Li et al. (protocol 5.5; 50 of 5,000 images in each of
    4 groups), who had no seed: 1,000 iterations, learning rate 500, early exaggeration 4.
    Directions and distances between far clusters mean nothing; compare neighbourhoods.

    Args:
      groups: embeddings by name, for example of CLIP, rows in the protocol's order.
      every: take the rows 0, every, 2 every, ...
      perplexity: about how many neighbours a point has.
      seed: of the start.

    Raises:
      UserError: no more points in all than the perplexity, or values that are not finite.

    Source: van der Maaten & Hinton, JMLR 2008; scikit-learn's implementation, whose momentum rises
    from 0.5 to 0.8 after 250 iterations instead of 20, where the exaggeration ends too, not at 100.
    """
    if every < 1:
        raise UserError(f"t-SNE: expected every >= 1, got {every}.")
    chosen = {name: rows[::every] for name, rows in groups.items()}
    rows = np.concatenate(list(chosen.values()))
    if len(rows) <= perplexity:
        raise UserError(
            f"t-SNE: expected more points than the perplexity {perplexity}, got {len(rows)} "
            f"(every {every}th). Take a smaller `every`."
        )
    if not np.isfinite(rows).all():
        raise UserError("t-SNE: expected finite embeddings.")
    model = TSNE(
        method="exact",
        perplexity=perplexity,
        learning_rate=500,
        early_exaggeration=4,
        max_iter=1000,
        init="random",
        random_state=seed,
    )
    points = model.fit_transform(np.float64(rows))
    ends = np.cumsum([len(part) for part in chosen.values()])
    return dict(zip(chosen, np.split(points, ends[:-1]), strict=True))


def plot(points: Mapping[str, Float[np.ndarray, "_ 2"]], path: Path, title: str = "") -> None:
    """Write the points as a picture, .png or .svg, one colour and mark a group.

    Raises:
      UserError: another ending.
    """
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"t-SNE: expected a name ending in .png or .svg, got {path}.")
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots(subplot_kw={"title": title, "xticks": [], "yticks": []})
    for i, (name, xy) in enumerate(points.items()):
        axes.scatter(*xy.T, s=22, marker="osD^vP"[i % 6], alpha=0.75, label=name, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    metadata = {"Date": None} if path.suffix == ".svg" else None  # the same file every time
    with matplotlib.rc_context({"svg.hashsalt": "unlearn_jax"}):
        figure.savefig(partial, dpi=160, metadata=metadata)
    partial.replace(path)
