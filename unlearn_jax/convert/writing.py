"""Tensors into PyTorch and safetensors files."""

from collections.abc import Mapping
from pathlib import Path

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
            from safetensors.numpy import save_file

            save_file(dict(tensors), partial)
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
