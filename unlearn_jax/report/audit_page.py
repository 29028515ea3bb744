"""What an audit found, for people: the conclusion first, then the evidence. No JAX.

`parts` makes both sections of a page from what audit.json says, see docs/audits.md; `write` makes a
page of these alone, for an audit of functions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax import files
from unlearn_jax.report.page import COLOURS, NUMBER, load, render

FORMAT = 2  # of audit.json
STATUS = {"refuted": "bad", "not refuted": "note"}  # all else is "unclear"; nothing is "good"
MODELS = ("original", "unlearned", "retrained")
_ROW = dict.fromkeys(("label", "family", "unit", "word", "reason"), str)
_SCHEMA = {
    "conclusion": {"word": str, "text": str, "missing": [str]},
    "gate": {"value": NUMBER | None},
    "damage": dict,
    "witnesses": {"*": _ROW},
    "images": dict | None,
    "worst_images": [{"index": int, "unseen_quantile": NUMBER}],
    "threats": {"*": str},
    "untested": [str],
}


def schema(audit: Any) -> Any:
    """Describe what audit.json must hold; of another version, nothing."""
    if isinstance(audit, dict):
        return _SCHEMA if audit.get("format") == FORMAT else {}
    return type(None)


def without(reason: str) -> dict[str, Any]:
    """Return what audit.json would say where there is none, for this reason."""
    found = {"word": "not tested", "text": f"Not tested: {reason}.", "missing": [reason]}
    found |= {"witness": None, "excess": None}
    none = {"value": None, "reason": reason}
    return {"conclusion": found, "gate": none, "damage": {}, "witnesses": {}, "images": None,
            "worst_images": [], "threats": {}, "untested": ["everything"]}  # fmt: skip


def parts(
    audit: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    grids: Mapping[str, np.ndarray] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the templates conclusion.html.j2 and audit.html.j2 need, as "a".

    Args:
      audit: of audit.json.
      config: of the request, whose keys say what to do next; None: it has none.
      grids: images of "forget", "retain" and "worst", as evaluation leaves them: "SET/index",
        "SET/input", "SET/truth", "SET/MODEL"; None: no pictures.
      names: of images, by index as text; None: the page names none.
    """
    rows = audit["witnesses"]
    measured = {k: r for k, r in rows.items() if r["word"] != "not measured"}
    folded: dict[str, list[str]] = {}
    for row in rows.values():
        if row["word"] == "not measured":
            folded.setdefault(row["reason"], []).append(row["label"])
    of_models = [row["models"] for row in measured.values()]
    return audit | {
        "status": STATUS.get(audit["conclusion"]["word"], "unclear"),
        "next": steps(audit, config),
        "measured": measured,
        "folded": folded,
        "columns": [m for m in MODELS if any(m in of for of in of_models)],
        "compared": any((r.get("excess") or {}).get("value") is not None for r in rows.values()),
        "pictures": _pictures(audit, grids or {}),
        "worst_images": [of | {"shown": _shown(grids or {}, of["index"])}
                         for of in audit["worst_images"]],
        "names": names or {},
        "statuses": STATUS,
    }  # fmt: skip


def steps(audit: Mapping[str, Any], config: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Say what to do next: pairs of a sentence and a config key or command, which may be ""."""
    found, word = audit["conclusion"], audit["conclusion"]["word"]
    phases = config["stages"]["unlearned"]["phases"] if config and "stages" in config else ()
    longer = ", ".join(f"phases.{name}.steps" for name in phases)
    if word == "refuted":
        over = _beyond(audit["witnesses"].get(found["witness"], {}))
        less = "Forget for fewer steps: the model avoids these images, which gives them away, too."
        more = "Forget for more steps. Attacks that train the model further ask for a longer end."
        ways = [(less if over else more, longer)]
        ways += [("Choose another method; a comparison ranks several on this request.",
                  "stages.unlearned.phases; unlearn-jax compare")]  # fmt: skip
        if "retrained" in audit.get("models", ()):
            ways += [("Or release the retrained model, which never saw the images.", "retrained/")]
    elif word == "not refuted":
        ways = [
            ("Attack for longer before you rely on it.", "audit.resurfacing.steps"),
            ("Delete what still knows the images: the model before, its checkpoints, its copies.",
             "unlearn-jax receipt --purge"),
        ]  # fmt: skip
    else:
        ways = [(f"{text[:1].upper()}{text[1:]}.", "") for text in found["missing"]]
        ways += [("More images make every test sharper: more unseen ones, and more at once to "
                  "forget.", "holdout.fraction, audit.rows, request.fraction")]  # fmt: skip
    return ways if config else [(text, "") for text, _ in ways]


def _beyond(row: Mapping[str, Any]) -> bool:
    """Tell whether a witness finds the model beyond the retrained one, away from the original."""
    found = [(row.get("models", {}).get(m) or {}).get("value") for m in MODELS]
    if None in found:
        return False
    original, unlearned, retrained = found
    return (unlearned - retrained) * (original - retrained) < 0


def _shown(grids: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Return the pictures of one of the worst images, by column; {} if there are none."""
    place = np.flatnonzero(grids.get("worst/index", np.zeros(0)) == index)
    return _row(grids, "worst", int(place[0])) if len(place) else {}


def _row(grids: Mapping[str, np.ndarray], name: str, row: int) -> dict[str, np.ndarray]:
    columns = ("input", *MODELS, "truth")
    return {c: grids[f"{name}/{c}"][row] for c in columns if f"{name}/{c}" in grids}


def _pictures(audit: Mapping[str, Any], grids: Mapping[str, np.ndarray]) -> Sequence[tuple]:
    """Return an image to forget, the best known one if the model is refuted, and a retained one."""
    first = "worst" if audit["conclusion"]["word"] == "refuted" else "forget"
    sets = [first if f"{first}/index" in grids else "forget", "retain"]
    return [
        (name, int(grids[f"{name}/index"][0]), _row(grids, name, 0))
        for name in sets
        if len(grids.get(f"{name}/index", ()))
    ]


def write(folder: str | Path) -> Path:
    """Write FOLDER/report.html from FOLDER/audit.json, of models that functions show; return it.

    Raises:
      FileNotFoundError: there is no audit.json.
      UserError: it is damaged; says what is wrong.
    """
    root, settings = Path(folder), {"confidence": NUMBER, "models": {"unlearned": str}}
    audit = load(root, "audit.json", files.parse, _SCHEMA | {"settings": settings}, "audit")
    of = audit["settings"]
    named = {str(x["index"]): x["file"] for x in audit["worst_images"] if "file" in x}
    names = {"r": {"name": of["models"]["unlearned"], "confidence": of["confidence"]}}
    path = root / "report.html"
    with files.of_others(root / "audit.json", "what audit writes"):
        names |= {"a": parts(audit, names=named), "colours": COLOURS}
        page = render("audit_page.html.j2", names)
    path.write_text(page, encoding="utf-8", errors="replace")
    return path
