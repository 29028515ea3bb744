"""Families of checkpoints: how tensors are named there, and how they are laid out."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unlearn_jax.registry import UserError

Shapes = Mapping[str, tuple[int, ...]]  # of a checkpoint's tensors, by torch name


@dataclass(frozen=True)
class Layout:
    """How a torch tensor becomes one of our leaves, and back."""

    to_leaf: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


LAYOUTS = {
    "same": Layout(lambda x: x, lambda x: x),
    "linear": Layout(lambda x: x.T, lambda x: x.T),  # [out in] <-> [in out]
    "conv": Layout(  # [out in h w] <-> [h w in out]
        lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),
    "conv1d": Layout(lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None]),  # [out in 1] <-> [in out]
}


@dataclass(frozen=True)
class Family:
    """One family of published checkpoints.

    Attributes:
      model: the model of a checkpoint, from the shapes of its tensors and from what the user says
        (fields of the model, which win). Raises ValueError if the shapes make no sense.
      names: (regex, template) pairs from the path of a leaf, such as "encoder/block0/norm1", to the
        torch name; the first regex that fully matches the path *without its last part* gives
        the name without ".weight" or ".bias". A leaf called "kernel", "scale" or "embedding" is
        ".weight" there, "bias" is ".bias". For any other leaf the regex must match the whole path
        and the template gives the whole name.
      layouts: (regex on the whole path, key of LAYOUTS), first match; without a match a kernel of
        two axes is "linear", one of four "conv", and everything else "same".
      wrapper: the key under which published files hold the state dict; "": at the top.
      dropped: regexes of torch names that are left out, as docs/parity.md says.
      buffers: what an export writes besides the leaves: from the model to {name: array}.
    """

    model: Callable[[Shapes, Mapping[str, Any]], Any]
    names: Sequence[tuple[str, str]]
    layouts: Sequence[tuple[str, str]] = ()
    wrapper: str = ""
    dropped: Sequence[str] = ()
    buffers: Callable[[Any], Mapping[str, np.ndarray]] = field(default=lambda model: {})

    def torch_name(self, path: str) -> str:
        """Name the tensor in the checkpoint of the leaf at this path.

        Raises:
          UserError: no rule names it.
        """
        folder, _, leaf = path.rpartition("/")
        suffix = {"kernel": ".weight", "scale": ".weight", "embedding": ".weight", "bias": ".bias"}
        for where, end in ((path, ""), (folder, suffix.get(leaf))):
            if end is None:
                continue
            for regex, template in self.names:
                if found := re.fullmatch(regex, where):
                    return found.expand(template) + end
        raise UserError(f"convert: no rule names the leaf {path!r}.")

    def layout(self, path: str, ndim: int) -> Layout:
        """Return how the leaf at this path, of so many axes, is laid out."""
        for regex, name in self.layouts:
            if re.fullmatch(regex, path):
                return LAYOUTS[name]
        kernel = path.endswith("/kernel")
        return LAYOUTS[{2: "linear", 4: "conv"}[ndim] if kernel and ndim in (2, 4) else "same"]

    def drops(self, name: str) -> bool:
        """Tell whether a tensor of that name is left out."""
        return any(re.fullmatch(regex, name) for regex in self.dropped)
