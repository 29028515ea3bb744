"""Convert published checkpoints into models to unlearn, and models back.

    python -m unlearn_jax.convert --family=mae --from=FILE.pth --out=runs/original
    python -m unlearn_jax.convert --family=mae --from=FOLDER --out=runs/original
    python -m unlearn_jax.convert --family=mae --export --from=runs/unlearned --out=FILE.pth
    python -m unlearn_jax.convert --list

--from is a file, the index.json of shards, or a folder that transformers has saved; --out of an
import is a workdir that `--config.init_from` takes. What a file does not say of its model is read
from its arguments or the config beside it, known of a published model, or asked for with --set;
conversion.json says what came from where. --out of an export is a file in the published layout or,
of an MAE and without an ending, a folder that transformers loads. --served=none says that the model
has forgotten nothing on request before, which training asks of every model. --verify reads the
result again, compares it with the file bit by bit and, where there is a library with this
architecture, its outputs with that library's. Nothing in a file is executed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import unlearn_jax
from unlearn_jax import checkpoint, cli, convert, files, models, sharding
from unlearn_jax.config.identity import RECORD
from unlearn_jax.convert import agreement as verify
from unlearn_jax.convert import settings, writing
from unlearn_jax.convert.reading import Tensors, weights
from unlearn_jax.registry import UserError

_TOLERANCE = 1e-4  # of outputs, relative to the largest
_EXAMPLE = "--family=mae --from=mae_visualize_vit_base.pth --out=runs/mae"


def import_(
    family: str,
    file: Path,
    workdir: Path,
    fields: Mapping[str, Any],
    served: str = "",
    key: str = "",
) -> dict[str, Any]:
    """Import a checkpoint; return the manifest, which is also in workdir/conversion.json.

    {"family", "model" (its fields), "fields" {name: where its value is from}, "unsaid" (those that
    no tensor tells), "source" {"file", "bytes", "sha256", "key", "library", "left_out",
    "resized_from"}, "asked" {"key", "set"},
    "parameters", "tensors", "dropped", "mapping" {leaf: {"tensor", "shape", "dtype"}}, "versions"}.

    Args:
      family: a key of FAMILIES.
      file: the checkpoint, see `reading.weights`.
      workdir: gets the model, as a finished run.
      fields: of the model, where nothing else tells them. Another image_size than the file's means
        to interpolate position tables.
      served: "none" says that the model has forgotten nothing on request before; "" says nothing.
      key: which tensors, of a file that holds several models.

    Raises:
      UserError: an unknown family, an unsuitable file, a workdir that holds something else.
    """
    rules, parts = convert.find(family), weights(file)
    source = _source(file, parts)
    asked = {"key": key, "set": json.loads(json.dumps(dict(fields)))}
    if checkpoint.saved_steps(workdir):
        manifest = _manifest(workdir)
        if served and "served" not in checkpoint.read_meta(workdir):
            raise UserError(f"{workdir} was made without --served. Choose another --out.")
        if manifest and (manifest["source"]["sha256"], manifest["family"]) == (
            source["sha256"],
            family,
        ):
            if manifest.get("asked", asked) != asked:
                raise UserError(f"{workdir} was made with other flags. Choose another --out.")
            return manifest
        raise UserError(f"{workdir} holds another model already. Choose another --out.")
    tensors = convert.opened(family, file, key)
    said = settings.said(family, tensors, parts[0])
    known = None if tensors.library else parts[0].name
    model, origins = rules.settle(tensors.shapes, fields, said, known)
    tensors, resized_from = _resized(rules, tensors, model)
    params = convert.to_params(rules, model, tensors, file)
    names = convert.mapping(rules, model)
    manifest = {
        "format": 1,
        "family": family,
        "model": dataclasses.asdict(model),
        "fields": origins,
        "unsaid": list(rules.unsaid),
        "source": source
        | {"key": tensors.key, "library": tensors.library, "left_out": list(tensors.left_out)}
        | {"resized_from": resized_from},
        "asked": asked,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tensors": len(names),
        "dropped": convert.dropped(rules, tensors),
        "mapping": {
            path: {"tensor": name, "shape": list(shape), "dtype": tensors.dtypes[name]}
            for path, (name, shape) in names.items()
        },
        "versions": {"unlearn_jax": unlearn_jax.__version__, "jax": jax.__version__},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / convert.MANIFEST, manifest)
    del tensors
    past = {"requests": [], "claim": "convert --served=none"}
    checkpoint.save_params(workdir, params, **({"served": past} if served == "none" else {}))
    return manifest


def _source(file: Path, parts: Sequence[Path]) -> dict[str, Any]:
    digests = {part.name: files.file_digest(part) for part in parts}
    sha256 = files.digest(digests) if len(parts) > 1 else digests[parts[0].name]
    size = sum(part.stat().st_size for part in parts)
    return {"file": file.absolute().name, "bytes": size, "sha256": sha256}


def _resized(rules: convert.Family, tensors: Tensors, model: Any) -> tuple[Tensors, int | None]:
    """Return tensors for the image size of the model, and that of the file if it is another."""
    stored = rules.read(tensors.shapes).get("image_size")
    if not rules.resized or stored in (None, model.image_size):
        return tensors, None
    return rules.resized(tensors, model), stored


def export(family: str, workdir: Path, file: Path) -> list[str]:
    """Export in the published layout, or in that of transformers; return tensor names.

    Args:
      family: a key of FAMILIES.
      workdir: of a conversion, or of a run that started from one.
      file: a `.pth` or `.safetensors`, or a folder for transformers; must not exist.

    Raises:
      UserError: no such model, another family, a file that exists.
    """
    rules, model = convert.find(family), _model(family, workdir)
    if file.exists():
        raise UserError(f"--out: {file} exists. Choose another file, or remove that one.")
    if file.suffix == "" and not rules.dialect:
        raise UserError(f"--out: expected a name ending in .pth or .safetensors, got {file}.")
    params = checkpoint.load_params(workdir, _like(model))[0]
    leaves = convert.to_torch(rules, model, params)
    del params
    if file.suffix == "":
        tensors = dict(rules.dialect.export(leaves))
        writing.write_folder(file, tensors, rules.dialect.config(model))
    else:
        tensors = dict(leaves)
        writing.write(file, tensors, rules.wrapper)
    return list(tensors)


def compare(family: str, file: Path, workdir: Path, key: str = "") -> dict[str, Any]:
    """Compare a model with a file that it is from, or was exported to.

    {"tensors": how many were compared bit by bit, "different": names, "interpolated": names that
    are not in the file as they are here, "unverified": fields that only --set says, "reference":
    the library whose outputs were compared or why none was, "outputs": {name: largest relative
    difference}}.
    """
    rules, model, manifest = convert.find(family), _model(family, workdir), _manifest(workdir) or {}
    source = convert.opened(family, file, key)
    params, _ = checkpoint.load_params(workdir, _like(model))
    sized, resized = _resized(rules, source, model)
    changed = [n for n in source.shapes if source.shapes[n] != sized.shapes[n]] if resized else []
    different, count = [], 0
    for name, array in convert.to_torch(rules, model, params):
        if name in source.shapes and not rules.drops(name) and name not in changed:
            count += 1
            stored = np.asarray(source.read(name)).astype(array.dtype)
            if stored.tobytes() != array.tobytes():
                different.append(name)
    origins = manifest.get("fields", {})
    report = {"tensors": count, "different": different, "interpolated": changed}
    report["unverified"] = [name for name in rules.unsaid if origins.get(name) == "--set"]
    return report | verify.outputs(family, model, params, sized, file)


def _like(model: Any) -> Any:
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    mesh = sharding.make_mesh()
    return sharding.abstract(shapes, sharding.params_sharding(shapes, mesh))


def _manifest(workdir: Path) -> dict[str, Any] | None:
    return convert.manifest(workdir) if (workdir / convert.MANIFEST).exists() else None


def _model(family: str, workdir: Path) -> Any:
    """Build the model in a workdir, by its conversion.json, or its config.json after training."""
    name = _held(workdir)
    if name != family:
        raise UserError(f"--family: {workdir} holds a model of {name!r}, got {family!r}.")
    if _manifest(workdir):
        return convert.described(workdir)
    with files.of_others(workdir / "config.json", RECORD):
        return models.build(**_recorded(workdir))


def _held(workdir: Path) -> str:
    """Name the family of the model in a workdir."""
    if manifest := _manifest(workdir):
        return manifest["family"]
    if (workdir / "config.json").exists():
        return _recorded(workdir)["name"]
    raise UserError(f"--from: {workdir} has neither {convert.MANIFEST} nor config.json.")


def _recorded(workdir: Path) -> dict[str, Any]:
    """Read the section on the model of the record of a run."""
    path, schema = workdir / "config.json", {"config": {"model": {"name": str}}}
    return files.read_json(path, RECORD, schema=schema)["config"]["model"]


def _fields(texts: Sequence[str]) -> dict[str, Any]:
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            fields[name] = json.loads({"True": "true", "False": "false"}.get(value, value))
        except ValueError:
            fields[name] = value
        if not equals:
            raise UserError(f"--set: expected FIELD=VALUE, got {text!r}.")
    return fields


def _tell(manifest: Mapping[str, Any]) -> None:
    """Print which value of the model is from where, and what of the file was not taken."""
    if "fields" not in manifest:
        return print("  converted by an earlier version, which did not record what is from where")
    model, source, by = manifest["model"], manifest["source"], {}
    for name, value in model.items():
        by.setdefault(manifest["fields"].get(name, "default"), []).append(f"{name}={value}")
    for origin, values in by.items():
        print(f"  {origin}: {', '.join(values)}")
    if source["key"] not in ("", "."):
        print(f"  taken from {source['key']!r} in the file")
    if source["left_out"]:
        print(f"  left out: {', '.join(source['left_out'])}")
    if source["resized_from"]:
        print(
            f"  position tables interpolated from images of {source['resized_from']} pixels to "
            f"{model['image_size']}, as --set=image_size asks: they are not those of the file"
        )


def _verify(family: str, file: Path, workdir: Path, key: str) -> dict[str, Any]:
    """Compare, print what was and what was not verified, or raise UserError."""
    report = compare(family, file, workdir, key)
    if report["different"]:
        raise UserError(f"{len(report['different'])} tensors differ: {report['different'][:9]}")
    print(f"{report['tensors']} tensors are bit for bit those of the file.")
    if report["interpolated"]:
        print(f"Interpolated, and not compared: {', '.join(report['interpolated'])}.")
    print(f"Outputs: {report['reference']}")
    for name, difference in report["outputs"].items():
        print(f"  {name}: largest relative difference {difference:.2g}")
    if wrong := [n for n, d in report["outputs"].items() if not d < _TOLERANCE]:
        raise UserError(
            f"The outputs {wrong} differ from {report['reference']} by more than {_TOLERANCE:g}."
        )
    if report["unverified"]:
        print(
            f"Not verified: {', '.join(report['unverified'])}. Only --set says so, and nothing in "
            "the file or beside it; the reference was built with the same."
        )
    return report


def main() -> None:
    """Run the command."""
    given = flags.FLAGS
    if given.list:
        print(convert.table())
        return
    source, out = getattr(given, "from"), given.out
    if not source or not out:
        raise UserError(f"Expected --from=… and --out=…. For example:\n  {_EXAMPLE}")
    if any("://" in path for path in (source, out)):
        raise UserError("--from, --out: expected paths, got a URL. Get the files first.")
    source, out = Path(source), Path(out)
    if given.export:
        family = given.family or _held(source)
        print(f"Wrote {len(export(family, source, out))} tensors to {out}.")
        if given.verify:
            _verify(family, out, source, "")
        return
    family = given.family or convert.recognised(source, given.key)
    manifest = import_(family, source, out, _fields(given.set), given.served, given.key)
    print(f"{manifest['tensors']} tensors, {manifest['parameters']:,} parameters. It is in {out}.")
    _tell(manifest)
    if family in models.MODELS:
        fields = {"name": family, **manifest["model"]}
        print(f"For a config:\n  config.model = {fields}\n  --config.init_from={out}")
    if given.verify:
        report = _verify(family, source, out, given.key)
        files.write_json(out / "parity.json", report)


if __name__ == "__main__":
    flags.DEFINE_enum("family", None, convert.FAMILIES, "Which model it is of; by its names.")
    flags.DEFINE_string("from", None, "The file or folder to import, or the workdir to export.")
    flags.DEFINE_alias("checkpoint", "from")
    flags.DEFINE_string("out", None, "The workdir to make, or the file to export to.")
    flags.DEFINE_bool("export", False, "Write a PyTorch or safetensors file, or a folder.")
    flags.DEFINE_bool("verify", False, "Compare the result with the file, and with a library.")
    flags.DEFINE_bool("list", False, "Show what is supported, and what --verify compares with.")
    flags.DEFINE_string("key", "", "Which tensors, of a file that holds several models.")
    flags.DEFINE_enum("served", "", ("", "none"), "none: it has forgotten nothing before.")
    flags.DEFINE_multi_string("set", [], "A field of the model, as in --set=heads=4; can repeat.")
    flags.DEFINE_alias("model", "set")  # its former name
    cli.start(main, needs=(), example=_EXAMPLE)
