"""The panel: every witness's scores of all models, compared; numpy only."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unlearn_jax.audit import gap
from unlearn_jax.audit.gap import Models
from unlearn_jax.audit.statistics import conformal_p_values, estimate
from unlearn_jax.audit.witness import (
    WORDS,
    Measured,
    References,
    Scores,
    Witness,
    auroc,
    log_loss,
)

Row = dict[str, Any]
UNKNOWN = "the original does not know these images: staying near its outputs is no memory of them"


class Seed(NamedTuple):
    """What was measured of the models of one seed.

    `further`: of other retrained ones; `ins`: of models trained with forget and unseen images.
    """

    original: Measured
    unlearned: Measured
    retrained: Measured
    further: Sequence[Measured] = ()
    ins: Sequence[Measured] = ()


def scores(witness: Witness, seed: Seed) -> dict[str, Models] | str:
    """Score the images under all models of a seed: {variant: scores}, or why there are none.

    The other models that scores may be calibrated by are the further retrained ones, for all models
    alike: in a difference of two models they cancel. (With the retrained model as another out of
    the further ones it would count in both, and the floor would be 1 + 1 / further times as high.)
    """
    outs = References(seed.further, seed.ins)
    found = [witness.score(model, outs) for model in (*seed[:3], *seed.further)]
    if reasons := [values for values in found if isinstance(values, str)]:
        return reasons[0]
    return {v: Models(*(f[v] for f in found[:3]), [f[v] for f in found[3:]]) for v in found[0]}


def estimates(
    audits: Mapping[str, Witness], model: Measured, outs: Sequence[Measured], **bootstrap: Any
) -> dict[str, Row]:
    """Estimate every row of one model alone: of several variants, the one that knows most."""
    found: dict[str, Row] = {}
    for name, witness in audits.items():
        scored = witness.score(model, References(outs))
        for k, (statistic, function) in enumerate(witness.statistics.items()):
            row = {"value": None, "reason": scored}
            if not isinstance(scored, str):
                pair = bootstrap["resamples"], bootstrap["seed"]
                drawn = [gap.values(function, of, *pair) for of in scored.values()]
                drawn = max(drawn, key=lambda values: values[0])
                interval = gap.percentiles(drawn, bootstrap["confidence"])
                row = estimate(drawn[0], interval, len(next(iter(scored.values())).forget))
            found[f"{name}.{statistic}" if k else name] = row
    return found


def rows(audits: Mapping[str, Witness], seeds: Sequence[Seed], **bootstrap: Any) -> dict[str, Row]:
    """Compare the models by all witnesses: {row: what docs/audits.md says}.

    Args:
      audits: the witnesses.
      seeds: what was measured of the models of each seed; the same images in all.
      bootstrap: confidence, resamples, seed.
    """
    found: dict[str, Row] = {}
    compared: dict[str, dict[str, Row]] = {}
    known = gate(seeds, **bootstrap)["passed"]
    for name, witness in audits.items():
        scored = [scores(witness, seed) for seed in seeds]
        reason = next((values for values in scored if isinstance(values, str)), "")
        reason = reason or ("" if known or not witness.needs_memory else UNKNOWN)
        for k, (statistic, function) in enumerate(witness.statistics.items()):
            about = {"label": witness.label, "family": witness.family, "unit": witness.unit}
            if k:
                words, unit = WORDS.get(statistic, (statistic, statistic))
                about |= {"label": f"{witness.label}, {words}", "unit": unit}
            key = f"{name}.{statistic}" if k else name
            found[key] = about | _not_measured(reason)
            if not reason:
                compared[key] = {
                    v: gap.compare(function, [s[v] for s in scored], **bootstrap) for v in scored[0]
                }
    between = _between(found, compared)
    for name, variants in compared.items():
        del found[name]["word"]
        found[name] |= _worst({v: of | gap.test(of, between) for v, of in variants.items()})
    _test(found)
    return found


def _not_measured(reason: str) -> Row:
    unknown = {"value": None, "reason": reason}
    row = {"word": "not measured", "reason": reason, "has_power": False, "variant": ""}
    row |= {"models": {}, "gap": unknown, "excess": unknown, "floor": None, "power": 0.0}
    return row | {"p_value": None, "p_holm": None, "variants": {}}


def _between(found: Mapping[str, Row], compared: Mapping[str, Mapping[str, Row]]) -> float:
    """Estimate what retrained models differ by, from all rows that count; means over variants."""
    apart, noise = [], []
    for name, variants in compared.items():
        able = [v for v in variants.values() if v["has_power"]]
        if able and found[name]["family"] != "information":
            apart.append(np.mean([v["apart"] for v in able]))
            noise.append(np.mean([v["noise"] for v in able]))
    return gap.between_models(np.array(apart), np.array(noise))


def _worst(variants: Mapping[str, Row]) -> Row:
    """Return the variant with the smallest p-value, times the number of those with power."""
    able = {v: of for v, of in variants.items() if of["has_power"]}
    most = min(
        able or variants, key=lambda v: (variants[v]["p_value"], -variants[v]["gap"]["value"])
    )
    chosen = dict(variants[most])
    chosen["tests"] = max(1, len(able))
    chosen["p_value"] = min(1.0, chosen["p_value"] * chosen["tests"])
    kept = ("models", "gap", "excess", "floor", "has_power", "reason")
    others = {v: {key: of[key] for key in kept} for v, of in variants.items()}
    return {"variant": most, **chosen, "variants": others if len(variants) > 1 else {}}


def counted(found: Mapping[str, Row], family: str = "") -> dict[str, Row]:
    """Return the rows that count: those with power, of one family or of both."""
    families = (family,) if family else ("recall", "hidden")
    return {k: r for k, r in found.items() if r["has_power"] and r["family"] in families}


def _test(found: dict[str, Row]) -> None:
    """Add p_holm, power and word to the rows."""
    rows = counted(found)
    adjusted = gap.holm({name: row["p_value"] for name, row in rows.items()})
    tests = len(rows)
    for name, row in found.items():
        if row.get("word") == "not measured":
            continue
        row["p_holm"] = adjusted.get(name)
        row["power"] = gap.power(row["floor"], row["error"], max(1, tests) * row["tests"])
        if name not in adjusted:
            row["word"], row["power"] = "no power", 0.0
        elif adjusted[name] <= gap.LEVEL:
            row["word"] = "refuted"
        elif row["excess"]["ci_high"] > gap.EXCESS:
            row["word"] = "too few images"
            row["reason"] = (
                f"the excess may be up to {row['excess']['ci_high']:.2f}, beyond {gap.EXCESS}"
            )
        else:
            row["word"] = "not refuted"


def headline(found: Mapping[str, Row], confidence: float) -> dict[str, Any]:
    """Return the mean excess of each family, the worst row's, and which rows have no power."""
    result: dict[str, Any] = {}
    for family in ("recall", "hidden"):
        able = counted(found, family)
        if not able:
            reason = f"no {family} witness has power"
            result[f"{family}_excess"] = {"value": None, "reason": reason}
            continue
        drawn = [np.maximum(abs(r["draws"]) - r["floor"], 0.0) for r in able.values()]
        mean = np.mean(drawn, axis=0)
        value = float(np.mean([r["excess"]["value"] for r in able.values()]))
        interval = gap.percentiles(mean, confidence)
        interval = min(value, interval[0]), max(value, interval[1])
        result[f"{family}_excess"] = estimate(value, interval, len(able))
    able = counted(found)
    worst = max(able, key=lambda name: able[name]["excess"]["value"], default="")
    result["worst"] = worst
    result["worst_excess"] = (
        able[worst]["excess"] if worst else {"value": None, "reason": "no witness has power"}
    )
    result["no_power"] = [
        k for k, r in found.items() if not r["has_power"] and r["family"] != "information"
    ]
    return result


def gate(seeds: Sequence[Seed], **bootstrap: Any) -> dict[str, Any]:
    """Tell original from retrained by the loss on the same forget images: AUROC, .5 is nothing.

    {"value", "ci_low", "ci_high", "n", "least", "passed"}.
    """

    def of(seed):
        logs = (-log_loss(model["loss/forget"]) for model in (seed.original, seed.retrained))
        return gap.values(
            auroc, Scores(*logs, paired=True), bootstrap["resamples"], bootstrap["seed"]
        )

    drawn = np.mean([of(seed) for seed in seeds], axis=0)
    interval = gap.percentiles(drawn, bootstrap["confidence"])
    n = len(seeds[0].original["loss/forget"])
    found = estimate(drawn[0], interval, n)
    return found | {"least": gap.GATE, "passed": bool(drawn[0] >= gap.GATE)}


def damage(seeds: Sequence[Seed], **bootstrap: Any) -> dict[str, Any]:
    """Compare the unlearned model with its own original where nothing is to be forgotten.

    `unseen_loss`: mean loss on unseen images over the original's, minus 1. `retain_memory`: log
    loss on unseen minus that on retained training images, over the original's: 1 = as well
    remembered. No quality, and no forgetting.
    """
    confidence, resamples, seed = (bootstrap[k] for k in ("confidence", "resamples", "seed"))

    def loss(model, weight):
        return weight @ model["loss/unseen"].astype(np.float64).mean(1)

    def memory(model, of_retain, of_unseen):
        logs = (log_loss(model[f"loss/{s}"]) for s in ("retain", "unseen"))
        retain, unseen = (
            w @ x / w.sum(1) for w, x in zip((of_retain, of_unseen), logs, strict=True)
        )
        return unseen - retain

    unseen = gap.weights(len(seeds[0].original["loss/unseen"]), resamples, seed, 1)
    pairs = [(s.unlearned, s.original) for s in seeds]
    losses = np.mean([loss(u, unseen) / loss(o, unseen) - 1 for u, o in pairs], axis=0)
    found = {"unseen_loss": (losses, unseen)}
    if "loss/retain" in seeds[0].original:  # functions may come without
        retain = gap.weights(len(seeds[0].original["loss/retain"]), resamples, seed, 3)
        kept = [memory(u, retain, unseen) / memory(o, retain, unseen) for u, o in pairs]
        found["retain_memory"] = np.mean(kept, axis=0), retain
    return {
        name: estimate(drawn[0], gap.percentiles(drawn, confidence), weight.shape[1])
        for name, (drawn, weight) in found.items()
    }


def images(
    audits: Mapping[str, Witness], seed: Seed, names: Sequence[str] = ("recall", "hidden")
) -> dict[str, Any]:
    """Answer for each forget image alone: is it better known than unseen images are?

    {"rows", "unseen": n, "least_p", "tests": {witness: {"p_values", "p_holm", "would_see"}}}. A
    p-value is (1 + unseen images with a score at least as high) / (n + 1), exact if the image is as
    an unseen one to the model; of several variants the smallest, times their number. One witness
    of each family is chosen before any score is looked at: the first of `CHOSEN` that was measured.
    `would_see`: the share of images with p_holm <= .05, were a quarter of what the original has
    above the retrained model added to the retrained model's scores.
    """
    tests: dict[str, dict[str, Any]] = {}
    shifted: dict[str, np.ndarray] = {}
    for family in names:
        for name in filter(audits.__contains__, CHOSEN[family]):
            scored = scores(audits[name], seed)
            if isinstance(scored, str):
                continue
            p = [_p_values(m.unlearned) for m in scored.values()]
            tests[name] = {"p_values": np.minimum(1.0, np.min(p, 0) * len(p)), "variants": len(p)}
            p = [_p_values(_quarter(m)) for m in scored.values()]
            shifted[name] = np.minimum(1.0, np.min(p, 0) * len(p))
            break
    for values, key in (
        ({k: t["p_values"] for k, t in tests.items()}, "p_holm"),
        (shifted, "seen"),
    ):
        flat = {(k, i): float(p) for k, of in values.items() for i, p in enumerate(of)}
        adjusted = gap.holm(flat)
        for k, of in values.items():
            tests[k][key] = [adjusted[k, i] for i in range(len(of))]
    for of in tests.values():
        of["p_values"] = of["p_values"].tolist()
        of["would_see"] = float(np.mean(np.array(of.pop("seen")) <= gap.LEVEL))
    n = len(seed.unlearned["loss/unseen"])
    most = max((of.pop("variants") for of in tests.values()), default=1)
    rows = seed.unlearned["index/forget"].tolist()
    return {"rows": rows, "unseen": n, "least_p": most / (n + 1), "tests": tests}


CHOSEN = {
    "recall": (
        "membership_likelihood",
        "membership_calibrated",
        "membership_views",
        "membership_plain",
    ),
    "hidden": ("resurfacing",),
}


def _p_values(scores: Scores) -> np.ndarray:
    return conformal_p_values(scores.forget, scores.unseen)


def _quarter(models: Models) -> Scores:
    """Return what the scores of a model would be that keeps a quarter of the original's memory."""
    known = models.original.forget - models.retrained.forget
    return models.retrained._replace(forget=models.retrained.forget + gap.EXCESS * known)


def worst_images(seed: Seed, audits: Mapping[str, Witness], n: int = 10) -> list[dict[str, Any]]:
    """Return the forget images that the unlearned model knows best, with their place among unseen.

    {"index", "score", "unseen_quantile", "n": of unseen ones}, by the first recall witness of
    `CHOSEN`.
    """
    for name in filter(audits.__contains__, CHOSEN["recall"]):
        scored = scores(audits[name], seed)
        if not isinstance(scored, str):
            forget, unseen, _ = scored[""].unlearned
            order = np.argsort(-forget)[:n]
            return [
                {
                    "index": int(seed.unlearned["index/forget"][i]),
                    "score": float(forget[i]),
                    "unseen_quantile": float((unseen < forget[i]).mean()),
                    "n": len(unseen),
                }
                for i in order
            ]
    return []
