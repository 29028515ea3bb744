"""A PyTorch file into a model of your own, by a table of names; see docs/own_model.md."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import unlearn_jax
from unlearn_jax import checkpoint, convert, files
from unlearn_jax.convert.reading import Tensors, open_tensors
from unlearn_jax.models import Model
from unlearn_jax.registry import UserError, name_of

Rules = Mapping[str, tuple[str, Sequence[int]] | str | None]
"""{regex on a tensor's whole name: (path of a parameter, axes of np.transpose)}. The path may have
the regex's groups, as in r"encoder/down\\1/kernel"; alone it transposes nothing; None leaves the
tensor out."""


def import_torch(
    model: Model, file: Path | str, rules: Rules, workdir: Path | str, *, served: str = ""
) -> dict[str, Any]:
    """Import a PyTorch or safetensors file into a workdir that `init_from` takes.

    Args:
      model: of a class that "package.module:Class" finds.
      file: the state dict; nothing in it is executed.
      rules: a `Rules` table.
      workdir: new, or empty.
      served: "none" says that the model has forgotten nothing on request before.

    Returns:
      What was done, which is also in workdir/conversion.json.

    Raises:
      UserError: the file cannot be read, the table does not fit it (see `to_params`), or the
        workdir holds a model.
    """
    file, workdir = Path(file), Path(workdir)
    if checkpoint.saved_steps(workdir):
        raise UserError(f"{workdir} holds a model already. Choose another folder.")
    source = open_tensors(file)
    names = matched(rules, source)
    params = to_params(model, source, rules)
    manifest = {
        "format": 1,
        "family": name_of(type(model)),
        "model": dataclasses.asdict(model),
        "source": {
            "file": file.name,
            "bytes": file.stat().st_size,
            "sha256": files.file_digest(file),
        },
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tensors": len(names),
        "dropped": [name for name in source.shapes if name not in names],
        "mapping": {
            path: {
                "tensor": name,
                "shape": list(source.shapes[name]),
                "dtype": source.dtypes[name],
                "axes": list(axes),
            }
            for name, (path, axes) in names.items()
        },
        "versions": {"unlearn_jax": unlearn_jax.__version__, "jax": jax.__version__},
    }
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / convert.MANIFEST, manifest)
    past = {"requests": [], "claim": "import_torch(served='none')"}
    checkpoint.save_params(workdir, params, **({"served": past} if served == "none" else {}))
    return manifest


def to_params(model: Model, source: Tensors, rules: Rules) -> dict[str, Any]:
    """Return the model's parameters, in float32, of a file's tensors.

    Raises:
      UserError: listing every tensor that no rule or several rules name, every parameter that is
        filled by none or by several, every shape that differs, and what is not finite.
    """
    names = matched(rules, source)
    like = traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    filled = Counter(path for path, _ in names.values())
    problems = [f"{path}: no tensor fills this parameter, {list(leaf.shape)}"
                for path, leaf in like.items() if path not in filled]  # fmt: skip
    for name, (path, axes) in names.items():
        shape, dtype = source.shapes[name], source.dtypes[name]
        if filled[path] > 1:
            problems.append(f"{name}: another tensor fills {path}, too")
        elif path not in like:
            problems.append(f"{name}: the model has no parameter {path}")
        elif sorted(axes) != list(range(len(shape))):
            problems.append(f"{name}: {list(shape)} cannot be transposed by {tuple(axes)}")
        elif (found := tuple(shape[axis] for axis in axes)) != like[path].shape:
            wanted = list(like[path].shape)
            problems.append(f"{name}: {path} is {wanted}, the tensor transposed {list(found)}")
        elif dtype not in ("float32", "float16", "bfloat16"):
            problems.append(f"{name}: expected floating point, got {dtype}")
    _raise(problems)
    params = {}
    for name, (path, axes) in names.items():
        array = np.array(
            source.read(name).transpose(axes), np.float32
        )  # a copy: the file is let go
        if not np.isfinite(array).all():
            problems.append(f"{name}: has values that are NaN or infinite")
        params[path] = jnp.asarray(array)
    _raise(problems)
    return traverse_util.unflatten_dict(params, sep="/")


def matched(rules: Rules, source: Tensors) -> dict[str, tuple[str, Sequence[int]]]:
    """Return {tensor: (path of its parameter, axes)}, without what the rules leave out.

    Raises:
      UserError: a tensor that no rule matches, or more than one; a rule that is none.
    """
    found, problems = {}, []
    for name, shape in source.shapes.items():
        try:
            fits = [(rule, hit) for rule in rules if (hit := re.fullmatch(rule, name))]
            if len(fits) != 1:
                said = "no rule names it" if not fits else f"{len(fits)} rules name it"
                problems.append(
                    f"{name} {list(shape)}: {said}{''.join(f', {r!r}' for r, _ in fits)}"
                )
                continue
            hit, goal = fits[0][1], rules[fits[0][0]]
            if goal is not None:
                path, axes = (goal, range(len(shape))) if isinstance(goal, str) else goal
                found[name] = hit.expand(path), tuple(axes)
        except (re.error, IndexError, TypeError, ValueError) as error:
            raise UserError(f"The table of names: {error}, at the tensor {name!r}.") from error
    _raise(problems)
    return found


def _raise(problems: Sequence[str]) -> None:
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(
            f"The file does not fit the model by this table, {len(problems)} problem(s):{listed}"
        )
