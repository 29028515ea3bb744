"""Tensors into PyTorch and safetensors files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_jax.registry import UserError


def write(path: Path, tensors: Mapping[str, np.ndarray], wrapper: str) -> None:
    """Write the tensors to `path`, whole or not at all.

    Args:
      path: ends in .pth, .pt, .ckpt (PyTorch) or .safetensors.
      tensors: by name.
      wrapper: the key that a PyTorch file of this family has them under; "": at the top.

    Raises:
      UserError: another ending; torch or safetensors is not installed.
    """
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".safetensors":
            _save(tensors, partial)
        elif path.suffix in (".pth", ".pt", ".ckpt"):
            import torch

            # Arrays of jax are read-only, which torch.from_numpy warns about; nothing writes here.
            state = {
                name: torch.from_numpy(array if array.flags.writeable else array.copy())
                for name, array in tensors.items()
            }
            torch.save({wrapper: state} if wrapper else state, partial)
        else:
            raise UserError(
                f"--out: expected a name ending in .pth, .pt, .ckpt or .safetensors, got {path}."
            )
        partial.replace(path)
    except ImportError as error:
        raise UserError(
            f"Writing {path} needs {error.name}, which is not installed: "
            "pip install 'unlearn_jax[convert]'."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_folder(
    folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> None:
    """Write a folder as `save_pretrained` of transformers does, whole or not at all.

    Args:
      folder: must not exist.
      tensors: by name.
      config: its config.json.

    Raises:
      UserError: safetensors is not installed.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _save(tensors, partial / "model.safetensors")
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        partial.rename(folder)
    except ImportError as error:
        raise UserError(
            f"Writing {folder} needs {error.name}, which is not installed: "
            "pip install 'unlearn_jax[convert]'."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tensors), path, metadata={"format": "pt"})  # transformers asks for the format
