"""The one conclusion of an audit, in a word and a sentence; numpy only."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearn_jax.audit import gap, panel
from unlearn_jax.audit.witness import Witness
from unlearn_jax.registry import REFUTED

WORDS = ("refuted", "not refuted", "not tested")
POWER = 0.8  # at an excess of `gap.EXCESS`, of a witness that can support "not refuted"
THREATS = {
    "black box": "completes images of its choice, many times",
    "white box": "has the released parameters, and may train them further on images of its own",
    "two models": "has the original's outputs or parameters as well",
}
UNTESTED = (
    "attacks that are not listed",
    "what later training could bring back in more steps than were taken",
    "extraction of whole images from the parameters",
    "copies of the original, of its checkpoints and of what it generated",
)


def judge(
    audits: Mapping[str, Witness], seeds: Sequence[panel.Seed], **bootstrap: Any
) -> dict[str, Any]:
    """Judge the unlearned model: what audit.json says of it, see docs/audits.md.

    Args:
      audits: the witnesses.
      seeds: what was measured of the models of each seed.
      bootstrap: confidence, resamples, seed.
    """
    rows = panel.rows(audits, seeds, **bootstrap)
    gate = panel.gate(seeds, **bootstrap)
    few = len(seeds[0].unlearned["index/forget"]) <= MOST_ALONE
    images = panel.images(audits, seeds[0]) if few else None
    found = {
        "conclusion": conclude(rows, gate, images),
        "gate": gate,
        "headline": panel.headline(rows, bootstrap["confidence"]),
        "witnesses": {name: _plain(row) for name, row in rows.items()},
        "damage": panel.damage(seeds, **bootstrap),
        "images": images,
        "worst_images": panel.worst_images(seeds[0], audits),
        "threats": THREATS,
        "untested": list(UNTESTED),
    }
    return _finite(found)


NOTHING = {"reason": "there is none in this audit"}
UNDEFINED = "it is no number: the models that are compared do not differ"
MOST_ALONE = 50  # forget images that get an answer each


def conclude(
    rows: Mapping[str, panel.Row], gate: Mapping[str, Any], images: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return {"word", "text", "witness", "excess", "missing"}.

    * "refuted": a row is refuted, or an image is known by its own exact test.
    * "not refuted": none is, the gate is passed, and a recall and a hidden row each had a power of
      .8 at an excess of .25 (of few images: their exact tests would have seen as much of 80 %).
    * "not tested": otherwise; `missing` says what is lacking, and what to do.
    """
    refuted = {k: r for k, r in rows.items() if r["word"] == "refuted"}
    if refuted:
        name = max(refuted, key=lambda k: refuted[k]["excess"]["value"])
        return _conclusion("refuted", _refuted(refuted[name]), name, refuted[name]["excess"])
    known = _known(images)
    if known:
        name, count, of = known
        text = f"Refuted by {in_text(rows[name])}: {count} of {of} forget images are known "
        text += "to the unlearned model better than unseen ones (exact tests, Holm, level .05)."
        return _conclusion("refuted", text, name)
    able = {f: _able(rows, f, images) for f in ("recall", "hidden")}
    missing = _missing(rows, gate, able)
    if missing:
        return _conclusion("not tested", f"Not tested: {missing[0]}.", missing=missing)
    labels = " and ".join(in_text(rows[names[0]]) for names in able.values())
    text = f"Not refuted by these attacks, of which {labels} would have seen a quarter of what the "
    text += "original remembers with a probability of 80 % or more. Others may do better."
    return _conclusion("not refuted", text)


def fail_unless(wanted: str | None, audit: Mapping[str, Any] | None) -> None:
    """End the process with exit code `REFUTED` unless an audit concludes as is wanted.

    Args:
      wanted: "not_refuted", or None: nothing is.
      audit: of audit.json; None: there is none, and nothing was tested.
    """
    word = audit["conclusion"]["word"] if audit else "not tested"
    if wanted and word != wanted.replace("_", " "):
        print(f"--fail_unless={wanted}: {word}.", file=sys.stderr)
        raise SystemExit(REFUTED)


def _conclusion(word, text, witness=None, excess=None, missing=()):
    values = {"word": word, "text": text, "witness": witness, "excess": excess}
    return values | {"missing": list(missing)}


def in_text(row: panel.Row) -> str:
    """Return a row's label as it stands in a sentence: AUROC and TPR stay as they are."""
    return row["label"][:1].lower() + row["label"][1:]


def _refuted(row: panel.Row) -> str:
    models, over = row["models"], row["excess"]
    of = {name: f"{value['value']:.3g}" for name, value in models.items()}
    what = f" ({row['variant']})" if row["variant"] else ""
    return (
        f"Refuted by {in_text(row)}{what}: unlearned {of['unlearned']}, retrained "
        f"{of['retrained']}, original {of['original']} ({row['unit']}). Beyond what retrained "
        f"models differ by, {over['value']:.0%} of the way to the original are left "
        f"[{over['ci_low']:.0%}, {over['ci_high']:.0%}] (n = {over['n']})."
    )


def _known(images: Mapping[str, Any] | None) -> tuple[str, int, int] | None:
    """Return the witness that knows most images by their own tests, how many, of how many."""
    if not images:
        return None
    counts = {k: sum(p <= gap.LEVEL for p in t["p_holm"]) for k, t in images["tests"].items()}
    name = max(counts, key=counts.__getitem__, default="")
    return (name, counts[name], len(images["rows"])) if name and counts[name] else None


def _able(rows: Mapping[str, panel.Row], family: str, images) -> list[str]:
    """Return the rows of a family that had the power to support "not refuted", best first."""
    able = panel.counted(rows, family)
    able = {k: r for k, r in able.items() if r["power"] >= POWER and r["word"] == "not refuted"}
    best = sorted(able, key=lambda k: -able[k]["power"])
    tests = images["tests"] if images else {}
    seen = [k for k, t in tests.items() if t["would_see"] >= POWER]
    return best + [k for k in seen if rows[k]["family"] == family and k not in best]


def _missing(rows, gate, able) -> list[str]:
    """Say what is lacking for "not refuted"."""
    missing = []
    if not gate["passed"]:
        missing.append(
            f"there is nothing to forget that we could measure: on the forget images, the original "
            f"is told from the retrained model with an AUROC of {gate['value']:.2f} "
            f"[{gate['ci_low']:.2f}, {gate['ci_high']:.2f}], at least {gate['least']} is needed; "
            "train the original for longer, or ask for images that it has seen more often"
        )
    for family, names in able.items():
        if names:
            continue
        rest = [r for r in rows.values() if r["family"] == family]
        best = max(rest, key=lambda r: r.get("power") or 0.0, default={"label": "none", **NOTHING})
        why = best["reason"] or f"the best power is {best.get('power') or 0:.2f}"
        missing.append(
            f"no {family} witness would have seen a quarter of the memory with a probability of "
            f"80 % ({in_text(best)}: {why}); use more forget and unseen images, "
            "more retrained models (audit.shadows, --retrained), or several seeds (compare)"
        )
    return missing


def _plain(row: panel.Row) -> panel.Row:
    return {k: v for k, v in row.items() if k not in ("draws", "tests")}


def _finite(values: Any) -> Any:
    """Replace what JSON cannot say, NaN and infinity, by None."""
    if isinstance(values, dict):
        if isinstance(value := values.get("value"), float) and not np.isfinite(value):
            return {"value": None, "reason": values.get("reason") or UNDEFINED}
        return {k: _finite(v) for k, v in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(v) for v in values]
    if isinstance(values, float) and not np.isfinite(values):
        return None
    return values
