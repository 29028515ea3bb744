"""Feature towers ready for use: weights, where they came from, and what metrics may be called."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from unlearn_jax import checkpoint, files, sharding
from unlearn_jax.evaluate.towers import preprocessing, small_classifier
from unlearn_jax.evaluate.towers.clip_tower import Clip
from unlearn_jax.evaluate.towers.inception import Inception
from unlearn_jax.evaluate.towers.resnet50 import ResNet50
from unlearn_jax.registry import UserError

FAMILIES = {"inception": Inception, "resnet50": ResNet50, "clip": Clip}
KINDS = ("frechet", "kernel", "score", "cosine")

NEEDS: Mapping[str, Mapping[str, Any]] = {
    "fid": {
        "family": "inception",
        "fields": {"variant": "fid"},
        "recipe": "fid",
        "file": "pt_inception-2015-12-05-6726825d.pth",
        "from": "the releases of github.com/mseitzer/pytorch-fid",
        "sha256": "6726825d",  # the first digits, which PyTorch writes into names of weights
    },
    "inception_score": {
        "family": "inception",
        "fields": {"variant": "torchvision"},
        "recipe": "inception_score",
        "file": "inception_v3_google-0cc3c7bd.pth",
        "from": "torchvision (Inception_V3_Weights.IMAGENET1K_V1)",
        "sha256": "0cc3c7bd",
    },
    "places365_score": {
        "family": "resnet50",
        "fields": {},
        "recipe": "places365",
        "file": "resnet50_places365.pth.tar",
        "from": "places2.csail.mit.edu/models_places365",
        "sha256": "",
    },
    "clip_cosine": {
        "family": "clip",
        "fields": {},
        "recipe": "clip",
        "file": "open_clip_model.safetensors",
        "from": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K on the Hugging Face hub",
        "sha256": "",
    },
}
"""Needs of each metric. `kid` is made with the tower of `fid`."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Features of uint8 images: they follow from these four, and from nothing else."""

    tower: Any
    params: Any
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]


def load_tower(
    workdir: Path | str, mesh: Mesh | None = None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Load (tower, params, provenance) from a workdir that `unlearn_jax.convert` has written.

    provenance: {"family", "model" (the tower's fields), "source" {"file", "bytes", "sha256"},
    "parameters_sha256"}.

    Raises:
      UserError: no such workdir, a model that is no tower, or damage.
    """
    family, tower, source = _manifest(workdir)
    shapes = jax.eval_shape(tower.init, jax.random.key(0))
    mesh = mesh or sharding.make_mesh()
    like = sharding.abstract(shapes, sharding.params_sharding(shapes, mesh))
    params, meta = checkpoint.load_params(workdir, like)
    digest = files.digest(meta["checksums"])  # which load_params has compared with the arrays
    about = {"family": family, "model": dataclasses.asdict(tower), "source": source}
    return tower, params, about | {"parameters_sha256": digest}


def require(metric: str, workdir: Path | str | None, mesh: Mesh | None = None) -> Extractor:
    """Load the extractor of a metric of `NEEDS`, from the converted tower in a workdir.

    provenance also has "published": whether the weights are the published file's, None where its
    checksum is not known.

    Raises:
      UserError: no converted tower is given, with what to get and to run; or it is another.
    """
    needs = NEEDS[metric]
    family, file = needs["family"], needs["file"]
    out = workdir or f"towers/{metric}"
    command = f"python -m unlearn_jax.convert --family={family} --checkpoint={file} --out={out}"
    if not workdir or not (Path(workdir) / "conversion.json").exists():
        raise UserError(
            f"{metric} needs the weights of {family}, which are not part of this package"
            f"{f', and {workdir} has none' if workdir else ''}. Get {file} from {needs['from']}, "
            f"run\n  {command}\nand give {out} here."
        )
    found, tower, _ = _manifest(workdir)
    wanted = {"family": family} | needs["fields"]
    found = {"family": found} | dataclasses.asdict(tower)
    if wrong := {key: found.get(key) for key in wanted if found.get(key) != wanted[key]}:
        raise UserError(
            f"{metric}: expected a tower with {wanted} in {workdir}, got {wrong}. Convert the "
            f"right file:\n  {command}"
        )
    tower, params, provenance = load_tower(workdir, mesh)
    known = needs["sha256"]
    published = provenance["source"]["sha256"].startswith(known) if known else None
    recipe = preprocessing.RECIPES[needs["recipe"]]
    return extractor(tower, params, recipe, provenance | {"published": published})


def small() -> Extractor:
    """Load the extractor of the CIFAR-10 classifier that comes with the package."""
    tower, params, provenance = small_classifier.load()
    provenance = provenance | {"parameters_sha256": files.digest(checkpoint.checksums(params))}
    return extractor(tower, params, preprocessing.RECIPES["cifar10_classifier"], provenance)


def extractor(
    tower: Any, params: Any, recipe: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Extractor:
    """Make an extractor whose tower normalises as the recipe says.

    Raises:
      UserError: the recipe makes images of another size than the tower's.
    """
    if preprocessing.size(recipe) != tower.image_size:
        raise UserError(
            f"The recipe makes images of {preprocessing.size(recipe)} pixels, the tower "
            f"{type(tower).__name__} takes {tower.image_size}."
        )
    tower = dataclasses.replace(tower, mean=recipe["mean"], std=recipe["std"])
    return Extractor(tower, params, recipe, provenance)


def flipped(of: Extractor) -> Extractor:
    """Exchange red's and blue's normalisation of an extractor (norm_then_flip_compat)."""
    return extractor(of.tower, of.params, preprocessing.norm_then_flip(of.recipe), of.provenance)


def pooled(outputs: Mapping[str, Any]) -> Any:
    """Pick, of a tower's outputs, the one for distances: "pool", or CLIP's "embedding"."""
    return outputs["pool"] if "pool" in outputs else outputs["embedding"]


def fingerprint(of: Extractor) -> str:
    """Hash all that features depend on but the images: tower, weights, preprocessing."""
    about = {"tower": type(of.tower).__name__, "fields": dataclasses.asdict(of.tower)}
    return files.digest(about | {"recipe": dict(of.recipe), "provenance": dict(of.provenance)})


def metric_name(kind: str, of: Extractor) -> str:
    """Name a metric of this kind as it may be called when it is made with this tower.

    "fid", "kid" and "inception_score" are of an Inception of the published size only, the first two
    of FID's variant only, "clip_cosine" of ViT-H-14; any other tower's metrics bear its own name.

    Raises:
      UserError: an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"Expected a metric of {KINDS}, got {kind!r}.")
    tower, family = of.tower, of.provenance["family"]
    if isinstance(tower, Inception):
        if (tower.width, tower.classes) != (32, Inception(tower.variant).classes):
            family = f"inception_{tower.variant}_width{tower.width}"
        elif kind == "score":
            return "inception_score"
        elif tower.variant == "fid":
            return {"frechet": "fid", "kernel": "kid"}.get(kind, f"inception_fid_{kind}")
        else:
            family = "inception_torchvision"
    if isinstance(tower, Clip) and (tower.width, tower.layers) != (1280, 32):
        family = f"clip_width{tower.width}"
    if isinstance(tower, ResNet50) and (tower.width, tower.classes) == (64, 365):
        family = "places365"
    return f"{family}_{kind}"


def _manifest(workdir: Path | str) -> tuple[str, Any, dict[str, Any]]:
    """Read (family, tower, source) of a conversion."""
    path = Path(workdir) / "conversion.json"
    if not path.exists():
        raise UserError(
            f"{workdir}: expected a converted tower, found no conversion.json. Make one with "
            "python -m unlearn_jax.convert --family=FAMILY --checkpoint=FILE --out=WORKDIR."
        )
    manifest = files.read_json(path, "what convert writes", "Convert the file again.")
    try:
        family, fields, source = (manifest[key] for key in ("family", "model", "source"))
        source = {key: source[key] for key in ("file", "bytes", "sha256")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}). Convert the file again."
        ) from error
    if family not in FAMILIES:
        raise UserError(f"{workdir}: expected one of {sorted(FAMILIES)}, got a {family!r}.")
    try:
        tower = FAMILIES[family](**fields)
    except TypeError as error:
        raise UserError(f"{path}: its fields are not a {family}'s ({error}).") from error
    return family, tower, source
