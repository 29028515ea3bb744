"""Results of a comparison made by hand, for the tests of the leaderboard."""

import json

import numpy as np

RESULTS = """{"format": 2, "name": "cifar-like comparison", "created": "2026-01-02T03:04:05Z",
"command": "python -m unlearn_jax.compare --config=configs/compare.py --workdir=runs/comparison",
"hardware": "2 CPU devices", "versions": {"jax": "0.10.2"}, "config": {"batch_size": 64},
"confidence": 0.95, "request": {"kind": "random", "text": "Forget 250 of 2,500 training images."},
"poison": {"text": "Half of the forget images carry a 6 x 6 trigger."},
"split": {"hash": "sha256:abababab", "n": {"train": 2500, "forget": 250, "retain": 2250,
  "holdout": 500}}, "seeds": [1, 2, 3],
"utility": {"retain_loss": {"label": "retain loss", "unit": "mean training loss"},
  "unseen_loss": {"label": "unseen loss", "unit": "mean training loss"}}}"""
AUDITS = {  # label, unit, family
    "forget_error": ("forget error", "log loss", "recall"),
    "membership_plain": ("membership", "AUROC", "recall"),
    "resurfacing": ("resurfacing", "log loss after training", "hidden"),
    "difference": ("difference", "AUROC", "information"),
}
UTILITY = ("retain_loss", "unseen_loss")
MODELS = {  # kind, values of the audits and of the utility, excess of the audits, cost
    "original": ("original", (1.6, 0.80, 1.6, 0.5), (0.060, 0.090), None, None),
    "retrained": ("retrained", (0.0, 0.50, 0.0, 0.9), (0.061, 0.089), None, 1.0),
    "calibrated": ("method", (0.02, 0.51, 0.03, 0.8), (0.061, 0.091), (0.01, 0.02, 0.03), 0.04),
    "gradient_ascent": ("method", (-2, 0.31, 0.9, 0.9), (0.083, 0.118), (1.2, 0.6, 0.5), 0.02),
    "noisy_label": ("method", (0.5, 0.61, 0.8, 0.6), (0.064, 0.091), (0.30, 0.3, 0.5), 0.08),
    "retain_only": ("method", (1.2, 0.70, 1.4, 0.5), (0.059, 0.088), (0.70, 0.6, 0.8), 0.30),
    "l2_encoder": ("method", (0.1, 0.55, 0.4, 0.7), (0.063, 0.092), (0.06, 0.1, 0.24), 0.15),
}


def number(value, half=0.02):
    return {"value": value, "ci_low": max(0.0, value - half), "ci_high": value + half, "n": 250}


def make_panel(excesses, unseen_loss, names=tuple(AUDITS)[:3]):
    """Returns what `audit.conclusion.judge` would say of these excesses, by row."""
    of = dict(zip(names, excesses, strict=True))
    families = {f: [x for k, x in of.items() if AUDITS[k][2] == f] for f in ("recall", "hidden")}
    worst = max(of, key=of.get)
    headline = {f"{f}_excess": number(float(np.mean(x))) for f, x in families.items() if x}
    headline |= {"worst": worst, "worst_excess": number(of[worst]), "no_power": []}
    rows = {
        k: {"label": AUDITS[k][0], "family": AUDITS[k][2], "unit": AUDITS[k][1], "reason": "",
            "has_power": True, "word": "refuted" if x > 0.1 else "not refuted", "gap": number(x),
            "excess": number(x)}
        for k, x in of.items()
    }  # fmt: skip
    if "difference" in AUDITS:
        rows["difference"] = rows[worst] | {"family": "information"}
    word = "refuted" if of[worst] > 0.1 else "not refuted"
    return {
        "conclusion": {"word": word, "text": f"{word.capitalize()} by {worst}."},
        "gate": {"value": 0.9, "ci_low": 0.88, "ci_high": 0.92, "n": 250, "passed": True},
        "headline": headline,
        "damage": {"unseen_loss": number(unseen_loss, 0.01), "retain_memory": number(0.95)},
        "witnesses": rows,
    }


def make_results(seeds=(1, 2, 3), noise=0.01):
    """Returns a results.json of five methods; values of a seed are those of MODELS, times noise."""
    rng, results = np.random.default_rng(0), json.loads(RESULTS) | {"seeds": list(seeds)}
    names = ("label", "unit", "family")
    results["audits"] = {key: dict(zip(names, texts, strict=True)) for key, texts in AUDITS.items()}
    results["models"] = {}

    def of(seed_values, keys):
        return {
            k: number(v * (1 + noise * rng.standard_normal()))
            for k, v in zip(keys, seed_values, strict=True)
        }

    for name, (kind, audits, utility, excesses, cost) in MODELS.items():
        model = {"kind": kind, "label": name.replace("_", " "), "source": "a paper", "seeds": {}}
        model["phases"] = [{"objective": name, "steps": 40}] * (kind == "method")
        if kind == "method":
            model |= {"panel": make_panel(excesses, utility[1] / 0.090 - 1)}
            model |= {"default": name == "calibrated"}
        for seed in seeds:
            model["seeds"][str(seed)] = {
                "audits": of(audits, AUDITS),
                "utility": of(utility, UTILITY),
                "cost": None if cost is None else {"flops_fraction": cost, "steps": 40},
            }
        results["models"][name] = model
    return results


def make_workdir(root, results, n=700, size=32, triggered=True):
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    (root / "results.json").write_text(json.dumps(results))
    examples = {"index/forget": np.sort(rng.choice(50_000, n, replace=False))}
    hard = 0.5 * rng.standard_normal(n)
    for name, model in results["models"].items():
        for seed in model["seeds"]:
            noise = (0.05 if model["kind"] == "retrained" else 0.2) * rng.standard_normal(n)
            examples[f"error/{name}/{seed}"] = np.exp(hard + noise - 2.5).astype(np.float32)
    grids, (y, x) = {}, np.mgrid[:size, :size] / size
    for part in ("forget", "triggered")[: 1 + triggered]:
        wave = np.sin(rng.uniform(1, 9, [8, 1, 1, 3]) * (x + y)[..., None])
        truth = np.clip(127 + 90 * wave, 0, 255)
        grids |= {f"{part}/truth": truth, f"{part}/input": np.where(x[..., None] < 0.5, truth, 127)}
        for name in results["models"]:
            grids[f"{part}/{name}"] = np.clip(truth + 25 * rng.standard_normal(truth.shape), 0, 255)
    np.savez(root / "examples.npz", **examples)
    np.savez(root / "grids.npz", **{key: image.astype(np.uint8) for key, image in grids.items()})
    return root
