"""Tensors out of PyTorch and safetensors files, one at a time, without running anything in them."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unlearn_jax import files
from unlearn_jax.registry import UserError, brief

_MAPPED_BYTES = 2**27
_FLOATS = ("float32", "float16", "bfloat16")
_INDEX = ".index.json"
# What a folder of a library calls its weights; the first that is there is taken.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors",
            "open_clip_pytorch_model.bin", "diffusion_pytorch_model.safetensors")  # fmt: skip


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint by name; their values are read when they are asked for.

    Attributes:
      shapes: of every tensor.
      dtypes: of every tensor, as numpy names them ("float32", "bfloat16", "int64", …).
      read: the values of one, as they are stored.
      key: where in the file they were.
      arguments: plain values that the file holds beside them, by name: "args", for example.
      left_out: what else the file holds, in words.
      library: whose names they had; "": the release's.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    read: Callable[[str], np.ndarray]
    key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    library: str = ""

    def replaced(
        self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str],
        read: Callable[[str], np.ndarray],
    ) -> "Tensors":  # fmt: skip
        """Return other tensors of the same file."""
        return dataclasses.replace(self, shapes=shapes, dtypes=dtypes, read=read)

    def renamed(self, names: Mapping[str, str], **about: Any) -> "Tensors":
        """Return those of {new name: name here} only."""
        shapes = {new: self.shapes[old] for new, old in names.items()}
        dtypes = {new: self.dtypes[old] for new, old in names.items()}
        return dataclasses.replace(
            self, shapes=shapes, dtypes=dtypes, read=lambda new: self.read(names[new]), **about
        )


def weights(path: Path) -> list[Path]:
    """List the files of a checkpoint, the index of a sharded one first.

    Args:
      path: a file, the index.json of several, or the folder of either.

    Raises:
      UserError: there is nothing, or it is not clear what.
    """
    if path.is_dir():
        names = [n for name in _WEIGHTS for n in (name, name + _INDEX) if (path / n).is_file()]
        endings = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
        others = sorted(p.name for p in path.iterdir() if p.suffix in endings)
        if not names and len(others) != 1:
            raise UserError(
                f"--from: expected one checkpoint in the folder {path}, found "
                f"{', '.join(others[:5]) or 'none'}. Name the file."
            )
        path /= (names or others)[0]
    if not path.is_file():
        raise UserError(f"--from: expected a file or a folder, found none at {path}.")
    if path.name.endswith(_INDEX):
        return [path, *(path.parent / name for name in sorted(set(_index(path).values())))]
    return [path]


def open_tensors(path: Path, key: str = "") -> Tensors:
    """Open the tensors of a `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors` file, or of shards.

    Nothing in a file is executed: pickles are read by torch's restricted unpickler, see
    `pickled`. Before that, the checksums of its zip are.

    Args:
      path: the file, the index.json of several, or the folder of either.
      key: which ones of a file that holds several sets, such as "ema".

    Raises:
      UserError: the file is missing, damaged, holds code, several sets or no tensors; torch is not
        installed.
    """
    first, *shards = weights(path)
    if not shards:
        return _open(first, key)
    opened = {shard.name: _open(shard, key) for shard in shards}
    where = _index(first)
    for name, tensors in opened.items():
        listed = {tensor for tensor, file in where.items() if file == name}
        if wrong := sorted(listed ^ tensors.shapes.keys()):
            raise UserError(
                f"{first} and {name} do not fit together: {wrong[0]!r} is in one of them only. "
                "Get both again."
            )
    return Tensors(
        {k: s for tensors in opened.values() for k, s in tensors.shapes.items()},
        {k: d for tensors in opened.values() for k, d in tensors.dtypes.items()},
        lambda name: opened[where[name]].read(name),
        next(iter(opened.values())).key,
    )


def _index(path: Path) -> dict[str, str]:
    """Read {tensor: file} of the index of a sharded checkpoint; files are beside it."""
    try:
        where = files.read_json(path, "an index")["weight_map"]
        names = {str(name) for name in where.values()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected an index with a weight_map, got {error!r}.") from error
    for name in sorted(names):
        if not files.is_name(name) or not (path.parent / name).is_file():
            raise UserError(f"{path} lists {name!r}, which is no file beside it. Get it again.")
    return where


def _open(path: Path, key: str) -> Tensors:
    if path.suffix == ".safetensors":
        found = _safetensors(path, key)
    elif path.suffix == ".json":
        raise UserError(f"--from: expected weights, got {path}. Name the folder that it is in.")
    else:
        from unlearn_jax.convert import pickled

        found = pickled.open_tensors(path, key)
    if not found.shapes:
        raise UserError(f"{path} holds no tensors.")
    check_dtypes(path, found.dtypes)
    size = sum(int(np.prod(s)) * np.dtype(_numpy(found.dtypes[k])).itemsize
               for k, s in found.shapes.items())  # fmt: skip
    # A small file can claim huge tensors, which are views of a few bytes.
    if size > 2 * path.stat().st_size + 2**20:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes and claims tensors of {size} bytes. Expected "
            "a file that stores what it claims; it is damaged, or made to exhaust memory."
        )
    return found


def _safetensors(path: Path, key: str) -> Tensors:
    safetensors = package("safetensors")
    try:
        file = safetensors.safe_open(path, framework="numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {brief(error)}.") from error
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    names |= {f"{k}{n}": f"{'u' * (k == 'U')}int{n}" for k in "IU" for n in (8, 16, 32, 64)}
    dtypes = {k: names.get(s.get_dtype(), s.get_dtype()) for k, s in slices.items()}

    def get(file: Any, name: str) -> np.ndarray:
        with files.of_others(path, "tensors that can be read"):
            if dtypes[name] == "bfloat16":  # numpy alone has none
                with safetensors.safe_open(path, framework="flax") as again:
                    return np.asarray(again.get_tensor(name))
            return file.get_tensor(name)

    shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
    return Tensors(shapes, dtypes, reader(lambda: safetensors.safe_open(path, "numpy"), get))


def reader(load: Callable[[], Any], get: Callable[[Any, str], np.ndarray]) -> Callable:
    """Return a function from name to array; it maps the file anew now and then, to free pages."""
    file, taken = load(), 0

    def read(name: str) -> np.ndarray:
        nonlocal file, taken
        if taken > _MAPPED_BYTES:
            file, taken = load(), 0
        array = get(file, name)
        taken += array.nbytes
        return array

    return read


def check_dtypes(path: Path, dtypes: Mapping[str, str]) -> None:
    """Check that tensors are floating point numbers, or integer buffers.

    Raises:
      UserError: others.
    """
    bad = {name: d for name, d in dtypes.items() if d not in _FLOATS and not _integer(d)}
    if bad:
        listed = ", ".join(f"{name}: {dtype}" for name, dtype in sorted(bad.items())[:3])
        raise UserError(
            f"{path}: expected tensors of {', '.join(_FLOATS)} (and integer buffers), got {listed}"
            f"{', …' if len(bad) > 3 else ''} ({len(bad)} in all). Save them as float32."
        )


def _integer(dtype: str) -> bool:
    return bool(re.fullmatch(r"u?int(8|16|32|64)|bool", dtype))


def _numpy(dtype: str) -> Any:
    return jnp.dtype(jnp.bfloat16) if dtype == "bfloat16" else dtype


def package(name: str) -> Any:
    """Import a package that reading needs.

    Raises:
      UserError: it is not installed.
    """
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(
            f"Reading this file needs {name}, which is not installed: "
            "pip install 'unlearn_jax[convert]'."
        ) from error
