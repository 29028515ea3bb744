"""Convert published checkpoints into models to unlearn, and models back.

    python -m unlearn_jax.convert --family=mae --checkpoint=FILE.pth --out=runs/original
    python -m unlearn_jax.convert --family=mae --export --checkpoint=runs/unlearned --out=FILE.pth

--out of an import is a workdir that `--config.init_from` takes; conversion.json in it says what
came from where. --served=none says that the model has forgotten nothing on request before, which
training asks of every model. --verify reads the result again, compares it with the file bit by bit
and, where there is a package with this architecture, its outputs with that package's. PyTorch files
and safetensors are read without executing anything in them.
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
from unlearn_jax.convert import agreement as verify
from unlearn_jax.convert import writing
from unlearn_jax.convert.reading import open_tensors
from unlearn_jax.registry import UserError


def import_(
    family: str, file: Path, workdir: Path, fields: Mapping[str, Any], served: str = ""
) -> dict[str, Any]:
    """Import a checkpoint; return the manifest, which is also in workdir/conversion.json.

    {"family", "model" (its fields), "source" {"file", "bytes", "sha256"}, "parameters",
    "tensors", "dropped", "mapping" {leaf: {"tensor", "shape", "dtype"}}, "versions"}.

    Args:
      family: a key of FAMILIES.
      file: the checkpoint.
      workdir: gets the model, as a finished run.
      fields: of the model, where they cannot be told from the tensors.
      served: "none" says that the model has forgotten nothing on request before; "" says nothing.

    Raises:
      UserError: an unknown family, an unsuitable file, a workdir that holds something else.
    """
    rules = convert.find(family)
    digest = files.file_digest(file) if file.is_file() else ""
    if checkpoint.saved_steps(workdir):
        manifest = _manifest(workdir)
        if served and "served" not in checkpoint.read_meta(workdir):
            raise UserError(f"{workdir} was made without --served. Choose another --out.")
        if manifest and (manifest["source"]["sha256"], manifest["family"]) == (digest, family):
            return manifest
        raise UserError(f"{workdir} holds another model already. Choose another --out.")
    source = open_tensors(file)
    try:
        model = rules.model(source.shapes, fields)
    except TypeError as error:  # a field that the model does not have
        raise UserError(f"--model: {error}. See the fields of {family}.") from error
    params = convert.to_params(rules, model, source)
    names = convert.mapping(rules, model)
    manifest = {
        "format": 1,
        "family": family,
        "model": dataclasses.asdict(model),
        "source": {"file": file.name, "bytes": file.stat().st_size, "sha256": digest},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tensors": len(names),
        "dropped": convert.dropped(rules, source),
        "mapping": {
            path: {"tensor": name, "shape": list(shape), "dtype": source.dtypes[name]}
            for path, (name, shape) in names.items()
        },
        "versions": {"unlearn_jax": unlearn_jax.__version__, "jax": jax.__version__},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / convert.MANIFEST, manifest)
    del source
    past = {"requests": [], "claim": "convert --served=none"}
    checkpoint.save_params(workdir, params, **({"served": past} if served == "none" else {}))
    return manifest


def export(family: str, workdir: Path, file: Path) -> list[str]:
    """Export to `file`, a `.pth` or `.safetensors` in the published layout; return tensor names.

    Args:
      family: a key of FAMILIES.
      workdir: of a conversion, or of a run that started from one.
      file: must not exist.

    Raises:
      UserError: no such model, another family, a file that exists.
    """
    rules, model = convert.find(family), _model(family, workdir)
    if file.exists():
        raise UserError(f"--out: {file} exists. Choose another file, or remove that one.")
    leaves = convert.to_torch(rules, model, checkpoint.load_params(workdir, _like(model))[0])
    tensors = dict(leaves)
    writing.write(file, tensors, rules.wrapper)
    return list(tensors)


def compare(family: str, file: Path, workdir: Path) -> dict[str, Any]:
    """Compare the result of a conversion with its file; the answer is also in workdir/parity.json.

    {"tensors": how many were compared bit by bit, "different": names, "reference": the package
    whose outputs were compared or why none was, "outputs": {name: largest relative difference}}.
    """
    rules, model = convert.find(family), _model(family, workdir)
    source = open_tensors(file)
    params, _ = checkpoint.load_params(workdir, _like(model))
    different, count = [], 0
    for name, array in convert.to_torch(rules, model, params):
        if name in source.shapes and not rules.drops(name):
            count += 1
            stored = np.asarray(source.read(name)).astype(array.dtype)
            if stored.tobytes() != array.tobytes():
                different.append(name)
    report = {"tensors": count, "different": different}
    report |= verify.outputs(family, model, params, source)
    (workdir / "parity.json").write_text(json.dumps(report, indent=1))
    return report


def _like(model: Any) -> Any:
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    mesh = sharding.make_mesh()
    return sharding.abstract(shapes, sharding.params_sharding(shapes, mesh))


def _manifest(workdir: Path) -> dict[str, Any] | None:
    path = workdir / convert.MANIFEST
    return json.loads(path.read_text()) if path.exists() else None


def _model(family: str, workdir: Path) -> Any:
    """Build the model in a workdir, by its conversion.json, or its config.json after training."""
    manifest = _manifest(workdir)
    if manifest:
        name = manifest["family"]
    elif (workdir / "config.json").exists():
        fields = json.loads((workdir / "config.json").read_text())["config"]["model"]
        name = fields.pop("name")
    else:
        raise UserError(f"--checkpoint: {workdir} has neither {convert.MANIFEST} nor config.json.")
    if name != family:
        raise UserError(f"--family: {workdir} holds a model of {name!r}, got {family!r}.")
    return convert.described(manifest) if manifest else models.build(name, **fields)


def _fields(texts: Sequence[str]) -> dict[str, Any]:
    fields = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
        if not equals:
            raise UserError(f"--model: expected FIELD=VALUE, got {text!r}.")
    return fields


def main(family: str, source: str, out: str) -> None:
    """Run the command."""
    if flags.FLAGS.export:
        names = export(family, Path(source), Path(out))
        print(f"Wrote {len(names)} tensors to {out}.")
        return
    given = flags.FLAGS
    manifest = import_(family, Path(source), Path(out), _fields(given.model), given.served)
    print(f"{manifest['tensors']} tensors, {manifest['parameters']:,} parameters. It is in {out}.")
    if family in models.MODELS:
        fields = {"name": family, **manifest["model"]}
        print(f"For a config:\n  config.model = {fields}\n  --config.init_from={out}")
    if flags.FLAGS.verify:
        report = compare(family, Path(source), Path(out))
        if report["different"]:
            raise UserError(f"{len(report['different'])} tensors differ: {report['different'][:9]}")
        print(f"{report['tensors']} tensors are bit for bit those of the file.")
        print(f"Outputs: {report['reference']}")
        for name, difference in report["outputs"].items():
            print(f"  {name}: largest relative difference {difference:.2g}")


if __name__ == "__main__":
    flags.DEFINE_enum("family", None, convert.FAMILIES, "Which model the checkpoint is of.")
    flags.DEFINE_string("checkpoint", None, "The file to import, or the workdir to export.")
    flags.DEFINE_string("out", None, "The workdir to make, or the file to export to.")
    flags.DEFINE_bool("export", False, "Write a PyTorch or safetensors file.")
    flags.DEFINE_bool("verify", False, "Compare the result with the file, and with PyTorch.")
    flags.DEFINE_enum("served", "", ("", "none"), "none: it has forgotten nothing before.")
    flags.DEFINE_multi_string("model", [], "A field of the model, as in --model=image_size=256.")
    cli.start(
        main,
        needs=("family", "checkpoint", "out"),
        example="--family=mae --checkpoint=mae_visualize_vit_base.pth --out=runs/mae",
    )
