"""What pages are made of: results, audits and arrays of requests, comparisons, the protocol."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tests.helpers import made_request, made_results
from tools.fuzz.format import Format
from tools.fuzz.mutate import JSON, LINES, NPZ, Tree, dumped
from unlearn_jax import files
from unlearn_jax.evaluate import comparison, results
from unlearn_jax.report import (
    audit_page,
    issue,
    leaderboard,
    leaderboard_plots,
    protocol_page,
    results_page,
)

CHARTS = ("_overview", "_histograms", "_curves")
PLOTS = ("tradeoff", "audit_panels", "example_panels")
EVERY = 97  # pages have their charts, which take most of the time, in one case of so many


def _make(made: Path) -> None:
    number = {"value": 0.4, "ci_low": 0.3, "ci_high": 0.5, "n": 9}
    row = {"label": "l", "family": "recall", "unit": "AUROC", "word": "refuted", "reason": "",
           "n": 9, "models": {"original": number, "unlearned": number}, "gap": number}  # fmt: skip
    audit = audit_page.without("nothing") | {"format": audit_page.FORMAT, "models": ["original"]}
    row |= {"excess": number, "power": 0.9, "has_power": True}
    audit |= {"witnesses": {"w": row}, "threats": {"black box": "completes"}, "earlier": []}
    audit |= {"worst_images": [{"index": 3, "unseen_quantile": 0.9, "file": "a.png"}]}
    audit |= {"settings": {"confidence": 0.95, "models": {"unlearned": "mine"}}}
    audit["conclusion"] |= {"word": "refuted", "witness": "w", "text": "Refuted by l."}
    found = made_request.certified(made_request.make_results(audit=audit))
    made_request.make_workdir(made / "a", found, size=8, rows=2)
    files.write_json(made / "a/audit.json", audit)
    made_results.make_workdir(made / "b", made_results.make_results(seeds=(1, 2)), n=20, size=8)
    _points(made / "c")
    _protocol(made / "d" / protocol_page.FOLDER)


def _points(folder: Path) -> None:
    of, lines = (
        {
            "config": {"seed": 0},
            "request": {"kind": "random"},
            "split": {"hash": "h"},
            "versions": {"jax": "1"},
        },
        [],
    )
    lines.append({"about": of})
    (folder / comparison.ARRAYS).mkdir(parents=True)
    for name in ("original", "retrained", "calibrated"):
        path = folder / comparison.ARRAYS / f"{name}-0-aaaa.npz"
        np.savez(path, **{"loss/unseen": np.ones(3, np.float32), "loss/retain": np.ones(3)})
        lines.append({"of": comparison.tag(of), "model": name, "seed": 0, "arrays": path.name,
                      "sha256": files.file_digest(path)})  # fmt: skip
    (folder / comparison.POINTS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _protocol(folder: Path) -> None:
    sets = {key: {"n": 2, "classes": 1} for key in protocol_page.SETS}
    measured = {
        key: {"fid": {"kind": "number", "value": 3.0, "n": 2}} for key in protocol_page.SETS
    }
    found = {"name": "n", "created": "c", "hardware": "h", "request": {"text": "t"}, "seed": 0,
             "split": {"hash": "h", "n": {"train": 3}}, "versions": {}, "config": {}, "compat": {},
             "sets": sets, "confidence": 0.9, "models": {"original": {"step": 1, "checksums": "c"}},
             "metrics": {"fid": {"tower": {"family": "inception"}, "preprocessing": {}}},
             "rows": [{"model": "original", "task": "inpaint", "size": 8, **measured}]}  # fmt: skip
    files.write_json(folder / "results.json", found)
    grids = {}
    for key in protocol_page.SETS:
        images = np.zeros((2, 4, 4, 3), np.uint8)
        grids |= {f"{key}/index": np.arange(2), f"{key}/truth": images}
        grids |= {f"{key}/inpaint_8/{c}": images for c in ("input", "original")}
    np.savez(folder / "grids.npz", **grids)


def _seal(tree: Tree) -> None:
    """Write the hashes of arrays into the points."""
    if "points.jsonl" in tree:
        lines = [json.loads(line) for line in tree["points.jsonl"].splitlines()]
        for line in lines:
            content = tree.get(f"{comparison.ARRAYS}/{line.get('arrays')}")
            if isinstance(content, bytes):
                line["sha256"] = files.hashlib.sha256(content).hexdigest()
        tree["points.jsonl"] = b"".join(dumped(x).replace(b"\n", b"") + b"\n" for x in lines)


def _charted(write: Any, of: Any, charts: tuple[str, ...]) -> Any:
    """Return what writes a page, in most cases without its charts."""

    def written(folder: Path) -> Path:
        path = folder / "results.json"
        content = path.read_bytes() if path.is_file() else b""
        kept = {name: getattr(of, name) for name in charts}
        if zlib.crc32(content) % EVERY:
            for name in charts:
                setattr(of, name, lambda *args: Markup(""))
        try:
            return write(folder)
        finally:
            for name, function in kept.items():
                setattr(of, name, function)

    return written


FORMATS = {
    "report": Format(
        _make,
        {
            "report": _charted(results_page.write, results_page, CHARTS),
            "audit": audit_page.write,
            "leaderboard": _charted(leaderboard.write, leaderboard_plots, PLOTS),
            "protocol": protocol_page.write,
            "points": comparison.read,
            "conclusions": issue.conclusions,
            "recorded": lambda p: results._recorded(p / "audit.json"),
        },
        {"results.json": JSON, "audit.json": JSON, "protocol/results.json": JSON, "*.npz": NPZ,
         "*.jsonl": LINES},
        seal=_seal,
        modules=("report/page.py", "report/audit_page.py"),
    )
}  # fmt: skip
