"""The page of the published evaluation, from what `evaluate --checkpoints=…` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax import files
from unlearn_jax.evaluate.protocol.tables import SETS
from unlearn_jax.report.page import COLOURS, NUMBER, inline, load, render, unzip

FOLDER = "protocol"
_SCHEMA = dict.fromkeys(("name", "created", "hardware"), str)
_SCHEMA |= {"request": {"text": str}, "split": {"hash": str, "n": {"*": int}}, "seed": int}
_SCHEMA |= {"versions": dict, "config": dict, "confidence": NUMBER, "compat": dict}
_SCHEMA |= {"models": {"*": {"step": int, "checksums": str}}}
_SCHEMA |= {"sets": {key: {"n": int, "classes": int} for key in SETS}}
_SCHEMA |= {"metrics": {"*": {"tower": {"family": str}, "preprocessing": dict}}}
_ROW = {"model": str, "task": str, "size": int} | {key: {"*": {"kind": str}} for key in SETS}


def write(workdir: str | Path) -> Path:
    """Write the page WORKDIR/protocol/report.html; return its path.

    The page refers to nothing outside itself, and the same inputs give the same bytes.

    Raises:
        FileNotFoundError: A file is missing; says which one, and which command makes it.
        UserError: A file is damaged; lists everything that is wrong with it.
    """
    root = Path(workdir) / FOLDER
    results = load(root, "results.json", files.parse, _SCHEMA | {"rows": [_ROW]}, "evaluate")
    grids = load(root, "grids.npz", unzip, {f"{name}/index": "i1" for name in SETS}, "evaluate")
    names = {"r": results, "sets": SETS, "models": list(results["models"]), "colours": COLOURS}
    with files.of_others(root / "results.json", "what evaluate writes"):
        names |= {"images": _images(results, grids)}
        names |= {"embeddings": [inline(path) for path in sorted(root.glob("tsne_*.png"))]}
        page = render("protocol.html.j2", names)
    path = root / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _images(results: Mapping[str, Any], grids: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Collect {title: [(index, {column: image})]} of each set, task and size."""
    found = {}
    for name in SETS:
        for task, size in dict.fromkeys((row["task"], row["size"]) for row in results["rows"]):
            columns = {c: grids[f"{name}/{task}_{size}/{c}"] for c in ("input", *results["models"])}
            columns |= {"truth": grids[f"{name}/truth"]}
            found[f"{name}: {task} {size}"] = [
                (int(number), {label: images[i] for label, images in columns.items()})
                for i, number in enumerate(grids[f"{name}/index"])
            ]
    return found
