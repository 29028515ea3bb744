"""The panel for models that only functions show: of PyTorch, diffusers, ONNX, behind a web service.

    complete(images, masks, seed) -> images  # numpy [b h w 3] of floats in [-1, 1]
    loss(images, masks, seed) -> losses      # [b], at least 0; if there is one

masks are [b h w 1], 1 = to be generated. A model is the first function, with the second as its
attribute `loss`, or an object that has both. Nothing is trained, parameters are not needed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy
from tqdm import tqdm

from unlearn_jax import files, registry
from unlearn_jax.audit import AUDITS, conclusion, gap, panel, statistics
from unlearn_jax.audit.membership_masks import MASKS, moved
from unlearn_jax.audit.membership_noise import COPIES, NOISE
from unlearn_jax.audit.run import FORMAT, Findings
from unlearn_jax.audit.witness import Measured, Scores, Witness
from unlearn_jax.data import photos, preprocess, readers, transforms
from unlearn_jax.data.sizes import Size
from unlearn_jax.methods import goals
from unlearn_jax.methods.features import features
from unlearn_jax.models.distances import unexplained
from unlearn_jax.registry import UserError

COMPLETED = "forget", "unseen"
MARGIN = 0.05  # of an AUROC, where there is no original to say how much there was
BOOTSTRAP = {"confidence": 0.95, "resamples": 1000}
_PARAMETERS = "it changes parameters, which functions do not show"
IMPOSSIBLE = dict.fromkeys(("resurfacing", "relearning", "quantised"), _PARAMETERS)
IMPOSSIBLE["backdoor"] = "it needs a trigger that was planted before the original was trained"
UNTESTED = "attackers with the parameters: what further training, or coarser weights, bring back"


@dataclasses.dataclass(frozen=True)
class Function:
    """A model of which only calls are known; `name` is for messages."""

    name: str
    complete: Callable[..., np.ndarray]
    loss: Callable[..., np.ndarray] | None

    def call(self, what: str, images: np.ndarray, masks: np.ndarray, seed: int) -> np.ndarray:
        """Call `complete` or `loss`; check what it returns.

        Raises:
          UserError: another type, shape or range than is said above, or not finite.
          RuntimeError: the function raised something, which is the cause.
        """
        try:
            found = getattr(self, what)(images.copy(), masks.copy(), seed)
        except Exception as error:  # whatever its author's code raises
            raise RuntimeError(f"{what} of {self.name} raised {type(error).__name__}") from error
        shape = images.shape if what == "complete" else images.shape[:1]
        low, high = (-1.0, 1.0) if what == "complete" else (0.0, math.inf)
        if not isinstance(found, np.ndarray):
            got = type(found).__name__
        elif found.shape != shape or not np.issubdtype(found.dtype, np.floating):
            got = f"{found.dtype} {list(found.shape)}"
        elif not np.isfinite(found).all():
            got = f"{np.count_nonzero(~np.isfinite(found))} numbers that are NaN or infinite"
        elif found.min() < low - 1e-3 or found.max() > high + 1e-3:
            got = f"{found.min():.4g} to {found.max():.4g}"
        else:
            return found.astype(np.float32)
        raise UserError(
            f"{self.name}: expected {what} to return a numpy array of floats {list(shape)}, finite "
            f"and within [{low:g}, {high:g}]; got {got}. Convert, or clip, what it returns."
        )

    def losses(self, images: np.ndarray, masks: np.ndarray, seed: int) -> np.ndarray:
        """Return the model's own loss of each image or, without one, the error on the hole."""
        if self.loss:
            return self.call("loss", images, masks, seed)
        return masked_mse(self.call("complete", images, masks, seed), images, masks)


def audit_functions(
    candidate: Any,
    out: Path | str,
    *,
    forget: Path | str,
    unseen: Path | str,
    retain: Path | str = "",
    original: Any = None,
    retrained: Sequence[Any] = (),
    task: Mapping[str, Any] | None = None,
    image_size: Size = 0,
    batch_size: int = 32,
    seed: int = 0,
) -> Findings:
    """Audit a model that functions show; return what is written to out/audit.json.

    Args:
      candidate: said to have forgotten; a model as above, or its name "package.module:name".
      out: folder of audit.json, see docs/audits.md.
      forget: folder of the images that are said to be forgotten.
      unseen: folder of images of the same kind that no model was trained on; a third of them is
        for what witnesses fit.
      retain: folder of training images that were kept; "": none.
      original: the model before.
      retrained: models trained without the forget images; the whole panel needs the original and
        two of these.
      task: whose masks are used, as in a config; None: a centred hole of half the width.
      image_size: of what functions get, one number or (height, width); 0: all images have one.
      batch_size: of every call; each image is in about 20.
      seed: of all randomness; functions get numbers made of it, the same for all models.

    Raises:
      UserError: images, or what functions return, are not as they must be.
      RuntimeError: a function raised something, which is the cause.
    """
    given = {"original": ("original", original), "unlearned": ("candidate", candidate)}
    for k, of in enumerate(retrained):
        given[f"shadow{k}" if k else "retrained"] = ("retrained", of)
    models = {name: _named(*of) for name, of in given.items() if of[1] is not None}
    if len({model.loss is None for model in models.values()}) > 1:
        lacking = [model.name for model in models.values() if model.loss is None]
        raise UserError(f"audit: expected a loss of all models or of none; {lacking} have none.")
    folders = {"forget": forget, "unseen": unseen} | ({"retain": retain} if retain else {})
    pixels, index, names = read(folders, image_size, seed)
    task = dict(task or {"name": "inpaint", "hole": 0.5})
    measured = measure(models, pixels, task, batch_size, seed)
    for of in measured.values():
        of |= {f"index/{name}": rows for name, rows in index.items()}
    ours, further = measured["unlearned"], [measured[m] for m in models if m.startswith("shadow")]
    one = panel.Seed(measured.get("original", ours), ours, measured.get("retrained", ours), further)
    audits = possible("original" in models)
    if "original" in models and further:
        judged = conclusion.judge(audits, [one], **BOOTSTRAP, seed=seed)
    else:
        judged = _judge_in_part(audits, one, list(models))
    for of in judged["worst_images"]:
        of["file"] = names["forget"][of["index"]]
    settings = {
        "models": {name: model.name for name, model in models.items()},
        "folders": {name: str(folder) for name, folder in folders.items()},
        "n": {name: len(rows) for name, rows in index.items()},
        "loss": "the models' own" if models["unlearned"].loss else "error on the hole",
        "task": task, "seed": seed, "batch_size": batch_size, **BOOTSTRAP,
    }  # fmt: skip
    judged["threats"] = {k: v for k, v in judged["threats"].items() if k != "white box"}
    judged["untested"] = [UNTESTED, *judged["untested"]]
    found = Findings({"format": FORMAT, **judged, "models": list(models), "shadows": len(further),
                      "settings": settings, "earlier": [], "own": {}})  # fmt: skip
    Path(out).mkdir(parents=True, exist_ok=True)
    files.write_json(Path(out) / "audit.json", found)
    return found


def masked_mse(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Average squared differences [b h w c] where the mask [b h w 1] is 1; 0 if nowhere."""
    return (np.square(a - b) * mask).mean(3).sum((1, 2)) / np.maximum(mask.sum((1, 2, 3)), 1)


def _named(flag: str, given: Any) -> Function:
    found = registry.find({}, given, "model") if isinstance(given, str) else given
    name = given if isinstance(given, str) else getattr(found, "__qualname__", type(found).__name__)
    complete = getattr(found, "complete", found)
    if not callable(complete):
        raise UserError(f"--{flag}: expected a function, or an object with `complete`; got {name}.")
    return Function(f"--{flag}={name}", complete, getattr(found, "loss", None))


def read(folders: Mapping[str, Path | str], size: Size, seed: int) -> tuple[dict, dict, dict]:
    """Return pixels [n h w 3] uint8 of each set, their places in a folder's list, and the lists.

    A random third of the unseen images are the set "calibration". Without a size, it is that of
    the first image, and all must have it.

    Raises:
      UserError: no folder, no image, another size, an image in two folders, too few images.
    """
    pixels, index, names, known = {}, {}, {}, {}
    resize = "crop" if size else "none"
    for flag, folder in folders.items():
        if not Path(folder).is_dir():
            raise UserError(f"--{flag}: expected a folder of images, got {str(folder)!r}.")
        listing = photos.survey(readers.list_folder(Path(folder), ("train",)), folder, exif=True)
        names[flag], made = list(listing.ids), []
        for row, name in enumerate(names[flag]):
            image = photos.decode(listing.encoded([row])[0], f"--{flag}: {name}", exif=True)
            size = size or image.size[::-1]
            view = preprocess.View(size, resize)
            if resize == "none" and image.size != view.pixels:
                wanted, got = ("{} x {}".format(*of) for of in (view.pixels, image.size))
                raise UserError(f"--{flag}: {name}: expected {wanted} pixels (width x height), as "
                                f"the first image, got {got}. Set --image_size.")  # fmt: skip
            made.append(preprocess.fit(image, view, name))
            if known.setdefault(made[-1].tobytes(), flag) != flag:
                raise UserError(f"--{flag}: {name} is in another folder, too: in which set is it?")
        order = np.random.default_rng([seed, len(made)]).permutation(len(made))
        third = len(made) // 3 if flag == "unseen" else 0
        for name, rows in ((flag, order[third:]), ("calibration", order[:third])):
            if len(rows):
                index[name] = np.sort(rows)
                pixels[name] = np.stack(made)[index[name]]
    if min(len(pixels[name]) for name in ("forget", "unseen")) < 2:
        raise UserError("audit: expected at least 2 images in --forget, and 3 in --unseen.")
    return pixels, index, names


def measure(
    models: Mapping[str, Function],
    pixels: Mapping[str, np.ndarray],
    task: Mapping[str, Any],
    batch_size: int,
    seed: int,
) -> dict[str, Measured]:
    """Measure what `measure.make_measure` says, without training, of every model.

    All models get the same images, masks and seeds; the last batch is filled up with copies.
    """
    parts: dict[tuple[str, str], list[Any]] = {}
    before: dict[tuple[str, int], np.ndarray] = {}
    todo = [(m, s, k) for m in models for s in pixels for k in range(0, len(pixels[s]), batch_size)]
    for model, name, start in tqdm(todo, "audit", unit="batch", dynamic_ncols=True, disable=None):
        rows = np.minimum(np.arange(start, start + batch_size), len(pixels[name]) - 1)
        keys = np.stack([np.full(batch_size, seed), rows], 1).astype(np.uint64)
        mask = transforms.make_mask(task, pixels[name].shape[1:3], keys)
        image = transforms.to_float(pixels[name][rows])
        seeds = np.random.SeedSequence([seed, start]).generate_state(COPIES) >> 1
        others = [moved(mask, rows, k, seed) for k in range(MASKS)] if name in COMPLETED else []
        found = _of_batch(models[model], name, image, mask, others, seeds.tolist())
        output = found.pop("output", None)
        if model == "original":
            before[name, start] = output
        if output is not None and (name, start) in before:
            found["displacement"] = np.sqrt(masked_mse(output, before[name, start], mask))
        for key, values in found.items():
            parts.setdefault((model, f"{key}/{name}"), []).append(values)
    measured: dict[str, Measured] = {model: {} for model in models}
    for (model, key), values in parts.items():
        measured[model][key] = np.concatenate(values)[: len(pixels[key.split("/")[1]])]
    return measured


def _of_batch(model: Function, name, image, mask, others, seeds) -> dict[str, Any]:
    """Return the arrays of a batch of a set, and "output", which the displacement needs."""

    def losses(images, seeds, masks=None):
        of = zip(images, masks or [mask] * len(images), seeds, strict=True)
        return np.stack([model.losses(*each) for each in of], 1)

    found = {"loss": losses([image], seeds[:1])}
    if name != "retain":
        views = [np.asarray(view) for view in goals.views(jnp.asarray(image))]
        found |= {"views": losses(views, seeds[:1] * len(views))}
        found |= {"features": features({"image": image, "mask": mask})}
    if name in COMPLETED:
        output = model.call("complete", image, mask, seeds[0])
        noise = [NOISE * np.random.default_rng(s).normal(size=image.shape) for s in seeds]
        copies = [(image + z * (1 - mask)).clip(-1, 1).astype(np.float32) for z in noise]
        found |= {"masks": losses([image] * len(others), seeds[: len(others)], others)}
        found |= {"noise": losses(copies, seeds), "error": masked_mse(output, image, mask)}
        structure = unexplained(*map(jnp.asarray, (output, image, mask)))
        found |= {"structure": np.asarray(structure)}
        found |= {"visible": masked_mse(output, image, 1 - mask), "output": output}
    return found


def possible(original: bool) -> dict[str, Witness]:
    """Return the witnesses; of those that calls cannot give, the score says why."""
    both = {} if original else dict.fromkeys(("displacement", "difference"), "it needs --original")
    found = dict(AUDITS)
    for name, reason in (IMPOSSIBLE | both).items():
        found[name] = dataclasses.replace(found[name], score=lambda *_, reason=reason: reason)
    return found


def _judge_in_part(
    audits: Mapping[str, Witness], seed: panel.Seed, models: Sequence[str]
) -> dict[str, Any]:
    """Judge as `conclusion.judge` does, without an original or without two retrained models.

    How much of the original's memory is left cannot be said then, so that "not refuted" cannot. But
    who knows forget images better than unseen ones is refuted: AUROC above .55 and a Mann-Whitney
    test, Holm over all witnesses, level .05. Scores are less those of retrained models, if there
    are some; otherwise what anybody sees of the images must not tell the folders apart.
    """
    retrained = [m for m in models if m not in ("original", "unlearned")]
    missing = [] if "original" in models else ["there is no original to compare with (--original)"]
    if len(retrained) < 2:
        missing.append(f"of two models trained without the forget images there are {len(retrained)}"
                       " (--retrained)")  # fmt: skip
    apart = not retrained and _look_apart(seed.unlearned)
    if apart:
        missing.append("the images of both folders look different, which membership cannot tell")
    lacking = {"value": None, "reason": "; ".join(missing)}
    rows: dict[str, panel.Row] = {}
    for name, witness in audits.items():
        scored = panel.scores(witness, seed)
        row = {key: getattr(witness, key) for key in ("label", "family", "unit")}
        row |= {"word": "not measured", "reason": lacking["reason"], "has_power": False}
        rows[name] = row
        if isinstance(scored, str):
            row["reason"] = scored
        elif witness.family == "recall" and "auroc" in witness.statistics:
            of = scored[""]
            others = [of.retrained, *of.further] if retrained else []
            less = [np.mean([other[k] for other in others] or [0.0], 0) for k in (0, 1)]
            own = Scores(*(of.unlearned[k] - less[k] for k in (0, 1)))
            row |= {"word": "no power", "power": 0.0, "variant": "", "variants": {}, "floor": None}
            row |= {"models": {m: _auroc(getattr(of, m)) for m in of._fields[:3] if m in models}}
            row |= {"gap": None, "excess": lacking, "test": _auroc(own)}
            row["p_value"] = float(scipy.stats.mannwhitneyu(*own[:2], alternative="greater").pvalue)
    for name, p in gap.holm({k: r["p_value"] for k, r in rows.items() if "test" in r}).items():
        rows[name]["p_holm"] = p
        if p <= gap.LEVEL and rows[name]["test"]["value"] > 0.5 + MARGIN and not apart:
            rows[name] |= {"word": "refuted", "reason": ""}
    refuted = {k: r["test"] for k, r in rows.items() if r["word"] == "refuted"}
    concluded = {"word": "not tested", "text": f"Not tested: {missing[0]}.", "witness": None}
    if refuted:
        worst = max(refuted, key=lambda k: refuted[k]["value"])
        of = {key: f"{refuted[worst][key]:.2f}" for key in ("value", "ci_low", "ci_high")}
        text = f"Refuted by {conclusion.in_text(rows[worst])}: it knows forget images better than "
        text += "unseen ones" + ", beyond what retrained models do" * bool(retrained)
        text += f": AUROC {of['value']} [{of['ci_low']}, {of['ci_high']}], .5 would be nothing "
        text += f"(n = {refuted[worst]['n']})"
        text += "." if retrained else ", if both folders were drawn from the same images."
        concluded = {"word": "refuted", "text": text, "witness": worst}
    return {
        "conclusion": concluded | {"excess": None, "missing": missing * (not refuted)},
        "gate": {**lacking, "least": gap.GATE, "passed": False},
        "headline": panel.headline(rows, BOOTSTRAP["confidence"]),
        "witnesses": rows, "damage": {}, "images": None,
        "worst_images": panel.worst_images(seed, audits),
        "threats": conclusion.THREATS, "untested": conclusion.UNTESTED,
    }  # fmt: skip


def _auroc(scores: Scores) -> dict[str, Any]:
    pair, n = scores[:2], min(map(len, scores[:2]))
    interval = statistics.auroc_interval(*pair, BOOTSTRAP["confidence"])
    return statistics.estimate(statistics.auroc(*pair), interval, n)


def _look_apart(measured: Measured) -> bool:
    """Tell forget from unseen images by what anybody sees: Kolmogorov-Smirnov, level .05."""
    pairs = zip(measured["features/forget"].T, measured["features/unseen"].T, strict=True)
    p = [scipy.stats.ks_2samp(*pair).pvalue for pair in pairs]
    return bool(min(p) * len(p) <= gap.LEVEL)
