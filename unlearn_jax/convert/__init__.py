"""Published checkpoints in and out: every tensor used once, every leaf filled, or an error."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unlearn_jax import files, models
from unlearn_jax.convert import naming
from unlearn_jax.convert.family import Family
from unlearn_jax.convert.reading import Tensors, open_tensors
from unlearn_jax.registry import UserError

MANIFEST = "conversion.json"  # of a workdir that `import_` made
_SHOWN = 4  # problems of a file, in a message of ten lines at most
FAMILIES = ("mae", "mage", "vqgan", "palette", "inception", "resnet50", "clip")


def find(name: str) -> Family:
    """Find the family of that name: FAMILY of the module of this package that is called so.

    Raises:
      UserError: there is none.
    """
    if name not in FAMILIES:
        raise UserError(f"--family: expected one of {FAMILIES}, got {name!r}.")
    return importlib.import_module(f"unlearn_jax.convert.{name}").FAMILY


def families() -> dict[str, Family]:
    """Return all families by name."""
    return {name: find(name) for name in FAMILIES}


def table() -> str:
    """Make the table of what is supported, with the command, for `--list` and README."""
    lines = ["| family | what | `--verify` compares with | `unlearn-jax convert` with |"]
    lines += ["|---|---|---|---|"]
    for name, family in families().items():
        rows = [(family.about, family.verified, family.example)]
        if family.dialect:
            rows.append((family.dialect.about, family.dialect.verified, "FOLDER"))
        for about, verified, file in rows:
            flags = f"`--family={name} --from={file} --out=DIR`"
            lines.append(f"| `{name}` | {about} | {verified} | {flags} |")
    return "\n".join(lines)


def opened(family: str, path: Path, key: str = "") -> Tensors:
    """Open the tensors of a checkpoint under the names of its family.

    Args:
      family: one of FAMILIES.
      path: of the file, the index of shards, or the folder of either.
      key: which tensors, if it holds several models.

    Raises:
      UserError: see `reading.open_tensors` and `naming.fitted`.
    """
    return naming.fitted(families(), family, open_tensors(path, key), path, key)


def recognised(path: Path, key: str = "") -> str:
    """Name the family whose tensors a checkpoint has, by their names.

    Raises:
      UserError: none has.
    """
    tensors = open_tensors(path, key)
    found = naming.nearest(families(), tensors.shapes)
    if not found or naming.foreign(tensors.shapes):
        raise UserError(naming.refusal(families(), "", tensors, path))
    return found


def manifest(workdir: Path) -> dict[str, Any]:
    """Read the manifest of a conversion.

    Raises:
      UserError: there is none, or it is damaged.
    """
    what, fix = "what convert writes", "Convert the file again."
    return files.read_json(workdir / MANIFEST, what, fix, {"family": str, "model": dict})


def described(workdir: Path) -> Any:
    """Return the model that the manifest of a conversion describes.

    Raises:
      UserError: it describes none.
    """
    with files.of_others(workdir / MANIFEST, "what convert writes", "Convert the file again."):
        said = manifest(workdir)
        if ":" in said["family"]:  # of `own.import_torch`
            return models.build(said["family"], **said["model"])
        return find(said["family"]).build(**said["model"])


def mapping(family: Family, model: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Map a model's leaves: {leaf path: (torch name, shape there)}."""
    found = {}
    for path, leaf in _leaves(model).items():
        layout = family.layout(path, len(leaf.shape))
        # An empty view of the right shape: nothing is allocated.
        shape = layout.to_torch(np.broadcast_to(np.float32(0), leaf.shape)).shape
        found[path] = family.torch_name(path), shape
    return found


def dropped(family: Family, tensors: Tensors) -> list[str]:
    """List the names of the tensors that the family leaves out."""
    return [name for name in tensors.shapes if family.drops(name)]


def to_params(family: Family, model: Any, tensors: Tensors, file: Any = "") -> dict[str, Any]:
    """Convert tensors, one by one, to the model's parameters in float32.

    Raises:
      UserError: with some of the tensors that have no place, leaves that no tensor fills, shapes
        that differ, and tensors that are not finite numbers.
    """
    wanted = mapping(family, model)
    ndim = {path: len(leaf.shape) for path, leaf in _leaves(model).items()}
    names = {name: path for path, (name, _) in wanted.items()}
    left_out = set(dropped(family, tensors))
    problems = [
        f"unused tensor {name} {list(shape)}"
        for name, shape in tensors.shapes.items()
        if name not in names and name not in left_out
    ]
    for path, (name, shape) in wanted.items():
        if name not in tensors.shapes:
            problems.append(f"missing tensor {name} {list(shape)}, for the leaf {path}")
        elif tensors.shapes[name] != shape:
            problems.append(f"{name}: expected {list(shape)}, got {list(tensors.shapes[name])}")
        elif tensors.dtypes[name] not in ("float32", "float16", "bfloat16"):
            problems.append(f"{name}: expected floating point, got {tensors.dtypes[name]}")
    _raise(problems, family, tensors, file)
    params = {}
    for path, (name, shape) in wanted.items():
        leaf = family.layout(path, ndim[path]).to_leaf(tensors.read(name))
        array = np.array(leaf, np.float32)  # a copy: the file is let go
        params[path] = jnp.asarray(array)
        if not np.isfinite(array).all():
            problems.append(f"{name} {list(shape)} has values that are NaN or infinite")
    _raise(problems, family, tensors, file)
    return traverse_util.unflatten_dict(params, sep="/")


def to_torch(
    family: Family, model: Any, params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of everything that the published file of this model holds.

    A leaf is let go once it is yielded, so that a caller that keeps none needs little more memory
    than the model's.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    del params
    for path in list(leaves):
        array = np.asarray(leaves.pop(path))
        layout = family.layout(path, array.ndim)
        yield family.torch_name(path), np.ascontiguousarray(layout.to_torch(array))
    yield from family.buffers(model).items()


def _leaves(model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return traverse_util.flatten_dict(shapes, sep="/")


def _raise(problems: list[str], family: Family, tensors: Tensors, file: Any) -> None:
    """Raise at most ten lines on what does not fit: problems, names of the file, the family."""
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        more = len(problems) - _SHOWN
        listed += f"\n  and {more} more" if more > 0 else ""
        name = next((name for name, known in families().items() if known is family), "")
        said = naming.refusal(families(), name, tensors, file or "This file")
        raise UserError(
            f"The checkpoint does not fit the model, {len(problems)} problem(s):\n{listed}\n{said}"
        )
