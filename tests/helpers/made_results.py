"""Results of a comparison made by hand, for the tests of the leaderboard."""

import json

import numpy as np

from unlearn_jax.report import leaderboard_scores as scores

RESULTS = """{"format": 1, "name": "cifar-like comparison", "created": "2026-01-02T03:04:05Z",
"command": "python -m unlearn_jax.compare --config=configs/compare.py --workdir=runs/comparison",
"hardware": "2 CPU devices", "versions": {"jax": "0.10.2"}, "config": {"batch_size": 64},
"confidence": 0.95, "request": {"kind": "random", "text": "Forget 250 of 2,500 training images."},
"poison": {"text": "Half of the forget images carry a 6 x 6 trigger."},
"split": {"hash": "sha256:abababab", "n": {"train": 2500, "forget": 250, "retain": 2250,
  "holdout": 500}}, "seeds": [1, 2, 3],
"utility": {"retain_error": {"label": "retain error", "unit": "MSE on the hole"},
  "holdout_error": {"label": "holdout error", "unit": "MSE on the hole"}}}"""
AUDITS = {  # label, unit, null
    "forget_error": ("forget error", "MSE on the hole", "the retrained model's"),
    "membership_auroc": ("membership AUROC", "AUROC", "0.5: no better than chance"),
    "score_spread": ("score spread", "ratio of sd", "1: as spread as holdout"),
    "backdoor_success": ("backdoor success", "share of images", "the retrained model's"),
}
UTILITY = ("retain_error", "holdout_error")
MODELS = {  # kind, values of the audits, values of the utility, cost
    "original": ("original", (0.060, 0.80, 1.6, 0.97), (0.060, 0.090), None),
    "retrained": ("retrained", (0.100, 0.52, 1.0, 0.01), (0.061, 0.089), 1.0),
    "calibrated": ("method", (0.0985, 0.53, 1.03, 0.05), (0.0615, 0.0905), 0.04),
    "gradient_ascent": ("method", (0.160, 0.31, 2.4, 0.002), (0.083, 0.118), 0.02),
    "noisy_label": ("method", (0.088, 0.61, 1.2, 0.30), (0.064, 0.091), 0.08),
    "retain_only": ("method", (0.073, 0.70, 1.4, 0.80), (0.059, 0.088), 0.30),
    "l2_encoder": ("method", (0.105, 0.55, 1.3, 0.10), (0.063, 0.092), 0.15),
}


def make_results(seeds=(1, 2, 3), noise=0.01):
    """Returns a results.json of five methods; values of a seed are those of MODELS, times noise."""
    rng, results = np.random.default_rng(0), json.loads(RESULTS) | {"seeds": list(seeds)}
    names = ("label", "unit", "null")
    results["audits"] = {key: dict(zip(names, texts, strict=True)) for key, texts in AUDITS.items()}
    results["models"] = {}
    for name, (kind, audits, utility, cost) in MODELS.items():
        model = {"kind": kind, "label": name.replace("_", " "), "source": "a paper", "seeds": {}}
        model["phases"] = [{"objective": name, "steps": 40}] * (kind == "method")
        for seed in seeds:
            x = {
                k: v * (1 + noise * rng.standard_normal())
                for k, v in zip(AUDITS, audits, strict=True)
            }
            u = {
                k: v * (1 + noise * rng.standard_normal())
                for k, v in zip(UTILITY, utility, strict=True)
            }
            model["seeds"][str(seed)] = {
                "audits": {
                    k: {"value": v, "ci_low": v, "ci_high": v, "n": 250} for k, v in x.items()
                },
                "utility": {k: {"value": v} for k, v in u.items()},
                "cost": None if cost is None else {"flops_fraction": cost, "steps": 40},
            }
        results["models"][name] = model
    return results


def small(**models):
    """Returns a results.json of one audit "a" and one utility "u": name=(audits, utilities)."""
    results = make_results()
    results["audits"] = {"a": {"label": "audit", "unit": "", "null": ""}}
    results["utility"] = {"u": {"label": "error", "unit": ""}}
    results["models"] = {}
    for name, (audits, utility) in models.items():
        seeds = {
            str(seed): {"audits": {"a": {"value": a}}, "utility": {"u": {"value": u}}}
            | {"cost": {"flops_fraction": 0.1 * seed}}
            for seed, (a, u) in enumerate(zip(audits, utility, strict=True), 1)
        }
        kind = name if name in scores.REFERENCES else "method"
        results["models"][name] = {"kind": kind, "label": name, "source": "", "seeds": seeds}
        results["models"][name]["phases"] = []
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
