"""Families of checkpoints: how tensors are named, laid out, and what they tell of the model."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unlearn_jax.convert.reading import Tensors
from unlearn_jax.registry import UserError, unknown

_KINDS = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}  # that a default takes
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
class Published:
    """A published model, recognised by what tensors tell, and what they do not tell of it.

    Attributes:
      name: of the model.
      told: fields that are read off its tensors.
      known: fields that nothing in its file tells.
      file: regex on the name of its file; "": any.
    """

    name: str
    told: Mapping[str, Any]
    known: Mapping[str, Any]
    file: str = ""


@dataclass(frozen=True)
class Dialect:
    """Other names for the same tensors, such as those of a library.

    Attributes:
      library: whose names they are.
      about: what has them, for a table.
      verified: what --verify compares outputs with, for a table.
      needs: names by which they are known.
      rename: from tensors to the same under the published names.
      export: from (name, array) of the published names to those of the library.
      config: from a model to the library's config.json.
    """

    library: str
    about: str
    verified: str
    needs: Sequence[str]
    rename: Callable[[Tensors], Tensors]
    export: Callable[[Iterable[tuple[str, np.ndarray]]], Iterable[tuple[str, np.ndarray]]]
    config: Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One family of published checkpoints.

    Attributes:
      about: what it is, for a table.
      build: from the fields of a model to the model.
      read: from the shapes of a checkpoint's tensors to the fields that they tell. Raises UserError
        if the shapes make no sense.
      needs: names of tensors that every checkpoint of the family has.
      unsaid: {field that no shape tells: what --set could say of it}. They are never guessed.
      names: (regex, template) pairs from the path of a leaf, such as "encoder/block0/norm1", to the
        torch name; the first regex that fully matches the path *without its last part* gives
        the name without ".weight" or ".bias". A leaf called "kernel", "scale" or "embedding" is
        ".weight" there, "bias" is ".bias". For any other leaf the regex must match the whole path
        and the template gives the whole name.
      published: models whose unsaid fields are known.
      example: the name of a published file.
      verified: what --verify compares outputs with, for a table.
      layouts: (regex on the whole path, key of LAYOUTS), first match; without a match a kernel of
        two axes is "linear", one of four "conv", and everything else "same".
      wrapper: the key under which published files hold the state dict; "": at the top.
      dropped: regexes of torch names that are left out, as docs/parity.md says.
      buffers: what an export writes besides the leaves: from the model to {name: array}.
      dialect: other names under which its tensors come, or None.
      any_sides: whether image_size may be (height, width).
      resized: from (tensors, the model) to tensors for its image size, None if that cannot be.
    """

    about: str
    build: Callable[..., Any]
    read: Callable[[Shapes], dict[str, Any]]
    needs: Sequence[str]
    names: Sequence[tuple[str, str]]
    example: str
    verified: str
    unsaid: Mapping[str, str] = field(default_factory=dict)
    published: Sequence[Published] = ()
    layouts: Sequence[tuple[str, str]] = ()
    wrapper: str = ""
    dropped: Sequence[str] = ()
    buffers: Callable[[Any], Mapping[str, np.ndarray]] = field(default=lambda model: {})
    dialect: Dialect | None = None
    any_sides: bool = False
    resized: Callable[[Tensors, Any], Tensors] | None = None

    def model(self, shapes: Shapes, given: Mapping[str, Any]) -> Any:
        """Build the model of a checkpoint; see `settle`."""
        return self.settle(shapes, given)[0]

    def settle(
        self,
        shapes: Shapes,
        given: Mapping[str, Any],
        said: Mapping[str, Mapping[str, Any]] | None = None,
        file: str | None = "",
    ) -> tuple[Any, dict[str, str]]:
        """Build the model of a checkpoint; return (model, {field: where its value is from}).

        What is given wins. What two others say differently is an error. What nobody says is that of
        a published model with these sizes; of `unsaid` fields nothing else is taken.

        Args:
          shapes: of its tensors.
          given: fields that the user gives.
          said: fields by where they are said, such as "config.json". Unknown ones are passed over.
          file: name of the checkpoint, by which published ones are known; None: it is none.

        Raises:
          UserError: not of the family; a contradiction; unknown, missing or mistyped fields.
        """
        fields = {f.name: f.default for f in dataclasses.fields(self.build)}
        if wrong := [name for name in given if name not in fields]:
            raise UserError(f"--set: {unknown(wrong[0], fields)}.")
        values, origins = {}, {}
        for origin, part in {"the tensors": self.read(shapes), **(said or {})}.items():
            for name, value in part.items():
                if name not in fields:
                    continue
                if name in values and name not in given and not _same(values[name], value):
                    raise UserError(
                        f"{name} is {_text(values[name])} by {origins[name]} and {_text(value)} by "
                        f"{origin}. Say which it is: --set={name}=VALUE."
                    )
                if name not in values:
                    values[name], origins[name] = value, origin
        for model in self.published if file is not None else ():
            fits = all(_same(values.get(name), value) for name, value in model.told.items())
            if fits and re.fullmatch(model.file or ".*", file or ""):
                for name in model.known.keys() - values.keys():
                    values[name], origins[name] = model.known[name], f"published {model.name}"
        for name, value in given.items():
            merge = isinstance(value, Mapping) and isinstance(values.get(name), Mapping)
            values[name] = {**values[name], **value} if merge else value
            origins[name] = "--set"
        for name, value in values.items():
            kinds = _KINDS.get(type(fields[name]), (object,))
            sides = self.any_sides and name == "image_size" and type(value) is tuple
            if type(value) not in kinds and kinds != (object,) and not sides:
                raise UserError(
                    f"{name}: expected {kinds[-1].__name__}, got {_text(value)} by {origins[name]}."
                )
        if missing := [name for name in self.unsaid if name not in values]:
            say = " ".join(f"--set={name}={self.unsaid[name]}" for name in missing)
            raise UserError(
                f"The file does not say {' and '.join(missing)}, and its sizes "
                f"({', '.join(f'{k}={_text(v)}' for k, v in self.read(shapes).items())}) are of no "
                f"published model that would tell. Say it: {say}."
            )
        return self.build(**values), origins

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


def _same(a: Any, b: Any) -> bool:
    """Compare two values as they may come from a file: lists are tuples."""
    as_tuple = [tuple(x) if isinstance(x, list) else x for x in (a, b)]
    return as_tuple[0] == as_tuple[1]


def _text(value: Any) -> str:
    return repr(value).replace(" ", "")
