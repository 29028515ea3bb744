"""The page of an audit of functions, from the audit.json that `audit --candidate=…` wrote."""

import json
from pathlib import Path

from unlearn_jax.report import results_page
from unlearn_jax.report.page import COLOURS, NUMBER, load, render

_SCHEMA = {"conclusion": {"word": str, "text": str, "missing": [str]}, "models": [str]}
_SCHEMA |= {"settings": {"confidence": NUMBER, "models": {"unlearned": str}}, "untested": [str]}
_SCHEMA |= {"witnesses": {"*": {"label": str, "word": str, "reason": str}}, "threats": {"*": str}}


def write(out: str | Path) -> Path:
    """Write out/report.html; return its path.

    Raises:
        FileNotFoundError: There is no audit.json.
        UserError: It is damaged.
    """
    audit = load(Path(out), "audit.json", json.loads, _SCHEMA, "audit")
    settings = audit["settings"]
    r = {"name": settings["models"]["unlearned"], "confidence": settings["confidence"]}
    shown = [m for m in audit["models"] if m in COLOURS]
    names = {"r": r | {"audit": audit}, "models": shown, "colours": COLOURS}
    page = render("audit.html.j2", names | {"finding": results_page.concluded({"audit": audit})})
    path = Path(out) / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path
