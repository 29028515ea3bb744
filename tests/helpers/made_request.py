"""Results of a request made by hand, for the tests of its report."""

import json

import numpy as np

SETS = ("forget", "holdout", "retain")
ERRORS = {  # mean error on forget, holdout, retain
    "original": (0.060, 0.100, 0.060),
    "unlearned": (0.099, 0.101, 0.062),
    "retrained": (0.100, 0.100, 0.060),
}
RESULTS = """{"format": 1, "name": "quickstart", "created": "2026-01-02T03:04:05Z", "seed": 0,
"config": {"model": {"name": "autoencoder"}, "batch_size": 64}, "versions": {"jax": "0.10.2"},
"hardware": "2 CPU devices", "task": {"name": "inpaint", "hole": 0.5}, "confidence": 0.95,
"request": {"text": "Forget 250 of 2,500 training images: 10 % of each class.", "kind": "random"},
"split": {"hash": "sha256:abababab", "n": {"forget": 250, "holdout": 500, "retain": 2250}},
"metrics": {
  "mse_hole": {"label": "Error on the hole", "unit": "images in [-1, 1]", "better": "lower"},
  "psnr": {"label": "PSNR", "unit": "dB", "better": "higher"},
  "displacement": {"label": "Displacement", "unit": "RMS distance", "better": null}},
"stages": {
  "original": {"steps": 400, "wall_s": 40.1, "examples": 25600, "phases": [{"name": "train",
    "objective": "supervised", "first_step": 0, "last_step": 400, "stopped_by": "steps"}]},
  "unlearned": {"steps": 100, "wall_s": 10, "examples": 6400, "phases": [{"name": "decouple",
    "objective": "ascent", "first_step": 0, "last_step": 40, "stopped_by": "displacement >= 0.2"},
    {"name": "repair", "objective": "distance", "first_step": 40, "last_step": 100,
    "stopped_by": "steps"}]}},
"certificate": null}"""


def stat(mean, half, **more):
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, **more}


def make_results(unlearned=None, original=None, retrained=True, half=0.002, audit=None):
    """Returns a results.json whose mean errors are those of ERRORS, or as given."""
    results, given = json.loads(RESULTS), {"original": original, "unlearned": unlearned}
    errors = {model: given.get(model) or means for model, means in ERRORS.items()}
    if retrained:
        results["stages"]["retrained"] = results["stages"]["original"]
        gaps = zip(SETS, np.subtract(errors["unlearned"], errors["retrained"]), strict=True)
        results["gaps"] = {name: {"mse_hole": stat(float(gap), half, n=90)} for name, gap in gaps}
        results["cost"] = dict.fromkeys(("steps_ratio", "wall_ratio", "examples_ratio"), 0.25)
    else:
        del errors["retrained"]
    results["evaluation"] = {model: {} for model in errors}
    for model, means in errors.items():
        for name, mean in zip(SETS, means, strict=True):
            n = results["split"]["n"][name]
            metrics = {"mse_hole": stat(mean, half, n=n), "psnr": stat(9 - mean, 0.2, n=n)}
            moved = {} if model == "original" else {"displacement": stat(0.21, 0.004, n=n)}
            results["evaluation"][model][name] = metrics | moved
    contrasts = {m: {"mse_hole": stat(e[0] - e[1], 1.4 * half, n=90)} for m, e in errors.items()}
    three = {"lower": 0.04, "measured": 0.21, "upper": 0.5}
    results["displacement"] = {"wanted": None, "models": {}}
    for model in set(errors) - {"original"}:
        moved = {s: {"example": three, "rms": three, "held": 90, "n": 90} for s in SETS}
        results["displacement"]["models"][model] = moved
    if audit:
        results |= {"audit": audit, "names": {}}
        for of in audit["worst_images"]:
            results["names"][str(of["index"])] = f"people/jane doe {of['index']}.png"
    return results | {"contrasts": contrasts}


RECORD = {"mechanism": "noisy_finetune", "certifier": "retrain", "epsilon": 8.0, "delta": 1e-5,
          "mu": 1.67, "noise_std": 0.5, "sensitivity": 2.0, "steps": 20, "accountant": "gdp",
          "conditional": False, "parameters": 6144, "assumptions": ["nobody looked"]}  # fmt: skip
LOWER = {"reason": "", "epsilon": 3.21, "n": [4000, 4000], "significance": 0.01, "delta": 1e-5,
         "refuted": False, "self_test": True, "repeated": "the mechanism alone",
         "assumptions": ["fresh noise in each"]}  # fmt: skip


def certified(results, upper=(), lower=(), record=()):
    """Returns the results with a verified certificate and an audit, or as given."""
    up = {"verified": True, "reason": "", "record": RECORD | dict(record), "cautions": []}
    both = {"upper": up | dict(upper), "lower": LOWER | dict(lower), "clipping": "In 40 %."}
    return results | {"certificate": both}


def make_workdir(root, results, size=32, rows=8):
    """Returns `root` filled with the files of a finished request that fit `results`."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    (root / "results.json").write_text(json.dumps(results))
    examples, grids = {}, {}
    y, x = np.mgrid[:size, :size] / size
    worst = [of["index"] for of in (results.get("audit") or {}).get("worst_images", ())][:rows]
    for name in SETS + ("worst",) * bool(worst):
        grids[f"{name}/index"] = np.array(worst) if name == "worst" else rng.choice(50000, rows)
        wave = np.sin(rng.uniform(1, 9, [rows, 1, 1, 3]) * (x + y)[..., None])
        truth = np.clip(127 + 90 * wave + 8 * rng.standard_normal(wave.shape), 0, 255)
        hidden = np.where(x[..., None] < 0.5, truth, 127)
        grids |= {f"{name}/truth": truth, f"{name}/input": hidden}
        for model in results["evaluation"]:
            of = results["evaluation"][model]["forget" if name == "worst" else name]
            mean = of["mse_hole"]["mean"]
            errors = mean * np.exp(0.6 * rng.standard_normal(200) - 0.18)
            if name != "worst":
                examples[f"{model}/{name}/mse_hole"] = errors.astype(np.float32)
            noise = 127 * mean**0.5 * rng.standard_normal(truth.shape)
            grids[f"{name}/{model}"] = np.clip(truth + noise, 0, 255)
    pixels = {k: v if v.ndim == 1 else v.astype(np.uint8) for k, v in grids.items()}
    np.savez(root / "examples.npz", **examples)
    np.savez(root / "grids.npz", **pixels)
    for model, stage in results["stages"].items():
        (root / model).mkdir(exist_ok=True)
        lines = []
        for phase in stage["phases"]:
            for step in range(phase["first_step"], phase["last_step"], 5):
                row = {"step": step, "phase": phase["name"], "loss": 0.06 + 0.5 ** (1 + step / 60)}
                if model == "unlearned":
                    term = "forget" if phase["name"] == "decouple" else "retain"
                    row |= {term: 1 / (step + 9), "displacement": min(step, 40) / 188}
                if step % 20 == 0:
                    row |= {"probe_forget": 0.08 + row["loss"] / 9, "probe_holdout": 0.11}
                lines.append(json.dumps(row))
        (root / model / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return root
