"""Tensors out of PyTorch files: checksums first, then the restricted unpickler; nothing is run."""

import argparse
import contextlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unlearn_jax.convert.reading import Tensors, package, reader
from unlearn_jax.registry import UserError, brief

_NAME = 255  # letters of the name of a class
_DEEP = 4  # how far down in a file tensors may be


class _Inert:
    """Stands for a path or a numpy scalar beside the weights: nothing of what it says is kept."""

    def __new__(cls, *_: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any):
        """Take anything."""

    def __setstate__(self, _: Any) -> None:
        """Take anything."""


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_ARRAYS = ("scalar", "_reconstruct")
# Training arguments are read; what else files have beside weights is named, and never imported.
_ALLOWED = (
    argparse.Namespace,
    *((_Inert, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *((_Inert, f"numpy.{at}.multiarray.{name}") for at in ("core", "_core") for name in _ARRAYS),
    *((_Inert, f"numpy.{name}") for name in ("dtype", "ndarray")),
)


def open_tensors(path: Path, key: str) -> Tensors:
    """Open the tensors of a PyTorch file that are under a key, see `reading.open_tensors`.

    Raises:
      UserError: the file is damaged, holds code, no tensors, or several sets of them and no key
        says which.
    """
    torch = package("torch")
    zipped = _check_zip(path)  # files from before torch 1.6 are none, and read as a whole

    if _has_long_name(path, zipped):
        raise UserError(f"{path} is refused: it asks for a class of more than {_NAME} letters.")

    def load() -> Any:
        with torch.serialization.safe_globals(list(_ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)

    try:
        loaded = load()
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|class|function) [`'\"]?([\w.]+)", str(error))
        what = f"It asks for {asked[1]}. " if asked else ""
        raise UserError(
            f"{path} is refused: it is not a plain state dict. Reading it would mean to run code "
            f"that it names, and nothing of it was run. {what}Load it where you trust it and save "
            "the weights alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except Exception as error:  # damage shows up as almost any exception type
        raise UserError(f"{path} is damaged or no PyTorch checkpoint: {brief(error)}.") from error
    sets = _sets(loaded, torch.Tensor)
    chosen = _choose(path, loaded, sets, key)
    state = sets[chosen]
    for name, value in state.items():
        if value.layout != torch.strided:
            raise UserError(f"{path}: {name!r} is a sparse tensor. Save it as a dense one.")
    dtypes = {name: str(t.dtype).removeprefix("torch.") for name, t in state.items()}

    def get(state: Mapping[str, Any], name: str) -> np.ndarray:
        tensor = state[name].detach()
        if dtypes[name] == "bfloat16":
            return tensor.view(torch.int16).numpy().view(jnp.dtype(jnp.bfloat16))
        return tensor.numpy()

    def again() -> Mapping[str, Any]:
        return _sets(load(), torch.Tensor)[chosen] if zipped else state

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    others = [name for name in sets if name != chosen]
    beside = {str(k): v for k, v in loaded.items()} if isinstance(loaded, Mapping) else {}
    others += [k for k, v in beside.items() if k not in sets and k != chosen.split(".")[0]
               and not (chosen == "" and isinstance(v, torch.Tensor))]  # fmt: skip
    arguments = {k: vars(v) if isinstance(v, argparse.Namespace) else v for k, v in beside.items()}
    arguments = {
        k: {str(n): x for n, x in v.items() if isinstance(x, bool | int | float | str)}
        for k, v in arguments.items()
        if isinstance(v, Mapping) and k not in sets
    }
    return Tensors(shapes, dtypes, reader(again, get), chosen, arguments, tuple(others))


def _check_zip(path: Path) -> bool:
    """Tell whether a file is a zip; its checksums (CRC-32) are right then.

    Raises:
      UserError: one is not.
    """
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            packed = [i.filename for i in archive.infolist() if i.compress_type or i.flag_bits & 1]
            bad = packed[0] if packed else archive.testzip()
    except Exception as error:  # damage shows up as almost any exception type
        raise UserError(f"{path} is damaged: {brief(error)}. Get the file again.") from error
    if bad:
        raise UserError(
            f"{path} is damaged: the checksum (CRC-32) of {bad} in it is wrong, so its values are "
            "not those that were written. Nothing of it was taken. Get the file again."
        )
    return True


def _has_long_name(path: Path, zipped: bool) -> bool:
    """Tell whether a pickle in a file asks for a class of a long name, in which torch gets lost.

    What is no pickle has none; torch then says so.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(Exception))  # as many types as in torch
        if zipped:
            archive = stack.enter_context(zipfile.ZipFile(path))
            streams = [archive.open(i) for i in archive.infolist() if i.filename.endswith(".pkl")]
        else:  # several, one after the other
            streams = [stack.enter_context(path.open("rb"))] * 5
        for stream in streams:
            for opcode, name, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and len(name) > _NAME:
                    return True
    return False


def _sets(loaded: Any, tensor: type, at: str = "", depth: int = _DEEP) -> dict[str, dict]:
    """Find the sets of tensors in what a file holds: {where: {name: tensor}}."""
    if isinstance(loaded, list | tuple):  # as averages of weights are kept
        loaded = dict(enumerate(loaded)) if all(isinstance(v, tensor) for v in loaded) else {}
    if not isinstance(loaded, Mapping) or not depth:
        return {}
    own = {str(name): value for name, value in loaded.items() if isinstance(value, tensor)}
    found = {at: own} if any(value.ndim for value in own.values()) else {}
    for name, value in loaded.items():
        if isinstance(name, str):
            found |= _sets(value, tensor, f"{at}.{name}" if at else name, depth - 1)
    return found


def _choose(path: Path, loaded: Any, sets: Mapping[str, Mapping], key: str) -> str:
    """Choose a set of tensors: the one that the key names, or the only one."""
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: expected a dict of tensors, got {type(loaded).__name__}.")
    if not sets:
        empty = [k for k, v in loaded.items() if isinstance(v, Mapping) and not v]
        raise UserError(
            f"{path} holds no tensors{f' under {empty[0]}' if empty else ''}; expected tensors at "
            f"the top or in a dict, found the keys {sorted(map(str, loaded))[:10]}."
        )
    named = [where for where in sets if where and f"{key}.".startswith(f"{where}.")]
    under = [where for where in sets if key and where.startswith(f"{key}.")]
    if named or len(under) == 1:
        return max(named or under, key=len)
    if key == "." and "" in sets:
        return ""
    if len(sets) == 1:  # the key may be a prefix of the names in it
        return next(iter(sets))
    listed = ", ".join(f"{where or '.'} ({len(state)} tensors)" for where, state in sets.items())
    raise UserError(
        f"{path} holds several sets of tensors: {listed}. "
        f"{f'There is no {key!r} among them. ' if key else ''}Choose one: --key=NAME."
    )
