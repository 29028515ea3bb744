"""Pictures of a published evaluation: examples of completed images, a map of embeddings."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from unlearn_jax import distributed
from unlearn_jax.data import transforms
from unlearn_jax.evaluate.metrics import tsne
from unlearn_jax.evaluate.protocol import generation
from unlearn_jax.evaluate.protocol.tables import SETS
from unlearn_jax.evaluate.towers import extractor as towers
from unlearn_jax.evaluate.towers import features
from unlearn_jax.request import Request

Rows = Mapping[str, Int[np.ndarray, "_"]]  # of the source, by set
Files = Mapping[tuple[str, str, int], Mapping[str, list[Path]]]  # by (model, task, size) and set
_EMBEDDED = 50  # images of each set and model, as in protocol 5.5


def save_grids(
    request: Request,
    tasks: Mapping[tuple[str, int], Mapping[str, Any]],
    rows: Rows,
    files: Files,
    path: Path,
) -> None:
    """Write some images of each set: the original, degraded, and what each model made of it.

    Args:
      request: of the evaluation.
      tasks: by name and size.
      rows: of the images.
      files: the completed images.
      path: of the .npz file.
    """
    settings, grids = request.cfg.protocol, {}
    for name in SETS:
        chosen = np.linspace(0, len(rows[name]) - 1, min(settings.grid_rows, len(rows[name])))
        chosen = np.unique(chosen.astype(int))
        images = request.source.fetch(rows[name][chosen])
        grids |= {f"{name}/truth": images, f"{name}/index": rows[name][chosen]}
        for (task, size), spec in tasks.items():
            mask = transforms.make_mask(spec, images.shape[1:3], np.zeros((len(images), 2), "u8"))
            shown = transforms.to_uint8(transforms.to_float(images) * (1 - mask))
            grids[f"{name}/{task}_{size}/input"] = shown
        for (model, task, size), of_sets in files.items():
            made = [generation.read(of_sets[name][i], settings.compat.image_format) for i in chosen]
            grids[f"{name}/{task}_{size}/{model}"] = np.stack(made)
    np.savez_compressed(path, **grids)


def plot_embeddings(
    request: Request, extractors: Mapping[str, towers.Extractor], files: Files, root: Path
) -> None:
    """Write root/tsne_MODEL.png: t-SNE of what it and the first model made (protocol 5.5).

    Of inpainting by half of the side if that is among the tasks, as published, else of the last
    one. Nothing without a second model, or without a tower that gives embeddings.
    """
    known = [name for name in ("clip_cosine", "cifar10_classifier") if name in extractors]
    first, *others = dict.fromkeys(model for model, _, _ in files)
    tasks = [(task, size) for _, task, size in files]
    task, size = ("inpaint", 8) if ("inpaint", 8) in tasks else tasks[-1]
    for model in others if known else ():
        groups = {
            f"{each}, {name}": _embed(request, extractors[known[0]], files[each, task, size][name])
            for each in (model, first)
            for name in SETS
        }
        n = sum(map(len, groups.values()))
        if not distributed.first():
            continue
        points = tsne.embed(groups, every=1, perplexity=min(20, n // 4), seed=request.cfg.seed)
        tsne.plot(points, root / f"tsne_{model}.png", f"{task} {size}/16, {known[0]}")


def _embed(
    request: Request, extractor: towers.Extractor, files: list[Path]
) -> Float[np.ndarray, "n d"]:
    settings = request.cfg.protocol

    def item(position: int, file: Path) -> features.Item:
        image = generation.read(file, settings.compat.image_format)
        return {"position": position, "generated": image}

    chosen = files[:: max(1, len(files) // _EMBEDDED)]
    batches = features.extract(
        (partial(item, *pair) for pair in enumerate(chosen)),
        {"it/generated": extractor},
        request.mesh,
        batch_size=settings.batch_size,
        total=len(chosen),
        title="embeddings",
    )
    return np.concatenate(
        [distributed.fetch(towers.pooled(out["it/generated"]))[valid] for out, _, valid in batches]
    )
