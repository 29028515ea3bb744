"""Tensors out of PyTorch and safetensors files, one at a time, without running anything in them."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unlearn_jax.registry import UserError

# Published files keep their training arguments beside the weights; nothing else is allowed.
_ALLOWED = (argparse.Namespace,)
_MAPPED_BYTES = 2**27
_WRAPPERS = ("model", "state_dict")  # where a file may hold its tensors, if not at the top
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tensors:
    """The tensors of a file by name; their values are read when they are asked for.

    Attributes:
      shapes: of every tensor.
      dtypes: of every tensor, as numpy names them ("float32", "bfloat16", "int64", …).
      read: the values of one, as they are stored.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    read: Callable[[str], np.ndarray]


def open_tensors(path: Path) -> Tensors:
    """Open the tensors of a `.pth`, `.pt`, `.ckpt` or `.safetensors` file.

    Nothing in the file is executed: pickles are read by torch's restricted unpickler, which builds
    tensors and plain containers only (and `argparse.Namespace`, which published files hold). The
    prefix "module." that distributed training leaves on every name is taken off.

    Args:
      path: the file.

    Raises:
      UserError: the file is missing, damaged, holds code, or no tensors; torch is not installed.
    """
    if not path.is_file():
        raise UserError(f"--checkpoint: expected a file, found none at {path}.")
    found = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not found.shapes:
        raise UserError(f"{path} holds no tensors.")
    size = sum(int(np.prod(s)) * np.dtype(_numpy(found.dtypes[k])).itemsize
               for k, s in found.shapes.items())  # fmt: skip
    # A small file can claim huge tensors, which are views of a few bytes.
    if size > 2 * path.stat().st_size + 2**20:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes and claims tensors of {size} bytes. Expected "
            "a file that stores what it claims; it is damaged, or made to exhaust memory."
        )
    return found


def _safetensors(path: Path) -> Tensors:
    safetensors = _package("safetensors")
    try:
        file = safetensors.safe_open(path, framework="numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}.") from error
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    names |= {f"{k}{n}": f"{'u' * (k == 'U')}int{n}" for k in "IU" for n in (8, 16, 32, 64)}
    dtypes = {k: names.get(s.get_dtype(), s.get_dtype()) for k, s in slices.items()}
    _check_dtypes(path, dtypes)

    def get(file: Any, name: str) -> np.ndarray:
        if dtypes[name] == "bfloat16":  # numpy alone has none
            with safetensors.safe_open(path, framework="flax") as again:
                return np.asarray(again.get_tensor(name))
        return file.get_tensor(name)

    shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
    return Tensors(shapes, dtypes, _reader(lambda: safetensors.safe_open(path, "numpy"), get))


def _torch(path: Path) -> Tensors:
    torch = _package("torch")
    mapped = zipfile.is_zipfile(path)  # files from before torch 1.6 are not, and read as a whole

    def load() -> dict[str, Any]:
        with torch.serialization.safe_globals(list(_ALLOWED)):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        state = _unwrap(path, loaded, torch.Tensor)
        plain = {name.removeprefix("module."): value for name, value in state.items()}
        if len(plain) < len(state):
            raise UserError(f"{path} has names both with and without the prefix 'module.'.")
        return plain

    try:
        state = load()
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|class|function) [`'\"]?([\w.]+)", str(error))
        what = f"It asks for {asked[1]}. " if asked else ""
        raise UserError(
            f"{path} is refused: it is not a plain state dict. Reading it would mean to run code "
            f"that it names, and nothing of it was run. {what}Load it where you trust it and save "
            "the weights alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or no PyTorch checkpoint: {reason}") from error
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise UserError(
                f"{path}: expected tensors only, got {name!r} of {type(value).__name__}. Save the "
                "state dict alone."
            )
    dtypes = {name: str(t.dtype).removeprefix("torch.") for name, t in state.items()}
    _check_dtypes(path, dtypes)

    def get(state: Mapping[str, Any], name: str) -> np.ndarray:
        tensor = state[name].detach()
        if dtypes[name] == "bfloat16":
            return tensor.view(torch.int16).numpy().view(jnp.dtype(jnp.bfloat16))
        return tensor.numpy()

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Tensors(shapes, dtypes, _reader(load if mapped else lambda: state, get))


def _reader(load: Callable[[], Any], get: Callable[[Any, str], np.ndarray]) -> Callable:
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


def _unwrap(path: Path, loaded: Any, tensor: type) -> Mapping[str, Any]:
    """Find the dict of tensors in what a file holds."""
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: expected a dict of tensors, got {type(loaded).__name__}.")
    for key in _WRAPPERS:
        if isinstance(loaded.get(key), Mapping):
            return loaded[key]
    if not any(isinstance(value, tensor) for value in loaded.values()):
        raise UserError(
            f"{path}: expected tensors at the top or under one of {list(_WRAPPERS)}, found the "
            f"keys {sorted(map(str, loaded))[:10]}. Is it an optimizer's state?"
        )
    return loaded


def _check_dtypes(path: Path, dtypes: Mapping[str, str]) -> None:
    bad = {name: d for name, d in dtypes.items() if d not in _FLOATS and not _integer(d)}
    if bad:
        listed = "\n".join(f"  {name}: {dtype}" for name, dtype in sorted(bad.items())[:20])
        raise UserError(
            f"{path}: expected tensors of {', '.join(_FLOATS)} (and integer buffers), got\n{listed}"
            "\nSave them as float32."
        )


def _integer(dtype: str) -> bool:
    return bool(re.fullmatch(r"u?int(8|16|32|64)", dtype))


def _numpy(dtype: str) -> Any:
    return jnp.dtype(jnp.bfloat16) if dtype == "bfloat16" else dtype


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise UserError(
            f"Reading this file needs {name}, which is not installed: "
            "pip install 'unlearn_jax[convert]'."
        ) from error
