"""Whose tensors these are: prefixes, several candidates, and refusals that show what was found."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unlearn_jax.convert.family import Family
from unlearn_jax.convert.reading import Tensors
from unlearn_jax.registry import UserError

# (regexes of which each fits some name, what has such names). The first that fits is named.
_OTHERS = (
    ((r"model\.diffusion_model\..*",), "a latent diffusion checkpoint (Stable Diffusion)"),
    ((r"(.*\.)?down_blocks\.\d+\..*\.attn2\..*",), "diffusers' UNet2DConditionModel"),
    ((r"encoder\.down_blocks\..*", r"quantize\.embedding.*"), "diffusers' VQModel"),
    ((r"encoder\.down_blocks\..*",), "diffusers' AutoencoderKL"),
    ((r"down_blocks\.\d+\..*",), "diffusers' UNet2DModel"),
    ((r"(loss|encoder\.mid\.attn_1|encoder\.down\.\d\.attn)\..*", r"post_quant_conv\..*"),
     "VQGAN of taming-transformers"),
    ((r"((vit|deit|beit)\.)?embeddings\.cls_token", r"(classifier|pooler|layernorm)\..*"),
     "an encoder of transformers, without ViTMAE's decoder"),
    ((r"(.*\.)?blocks\.\d+\.attn\.qkv\.weight", r"(head|fc_norm|norm_pre)\..*"),
     "a classifier of timm"),
)  # fmt: skip
_SHOWN = 3


def fitted(
    families: Mapping[str, Family], family: str, tensors: Tensors, path: Path, key: str
) -> Tensors:
    """Return the tensors under the names of a family, `key` says where they were in the file.

    A prefix that all of them have, such as "module." or "model.net.", is taken off. If only some
    have it, or if there are several sets that would do, the user's key says which ones.

    Args:
      families: all, by name.
      family: which of them it should be.
      tensors: of the file.
      path: of the file, for messages.
      key: what the user said.

    Raises:
      UserError: there are none, several, or some beside them that would be left out in silence.
    """
    rules, at = families[family], tensors.key
    inside = key.removeprefix(at).strip(".") if f"{key}.".startswith(f"{at}.") else key
    inside = "" if f"{at}.".startswith(f"{key}.") else inside  # all of the set that was chosen
    names = [name for name in tensors.shapes if not rules.drops(name)]
    found = sorted({p for needs in _signatures(rules) for p in _prefixes(names, needs)})
    if inside or key == ".":
        # What is under the key, or, of ".", what is under no other one.
        wanted = [p for p in found if p.startswith(f"{inside}.")] if inside else [""]
        if not set(wanted) & set(found) or len(wanted) != 1:
            raise UserError(f"{path}: there is no {family} under --key={key}; {_listed(found, at)}")
        others = [p for p in found if p] if wanted == [""] else []
        taken = [n for n in tensors.shapes if n.startswith(wanted[0])
                 and not (others and n.startswith(tuple(others)))]  # fmt: skip
    elif not found:
        raise UserError(refusal(families, family, tensors, path))
    else:
        wanted, taken = found, list(tensors.shapes)
    prefix = wanted[0]
    beside = [name for name in names if not name.startswith(prefix)]
    if not inside and (len(wanted) > 1 or beside):
        shown = f", beside {len(beside)} others such as {beside[0]}" if len(wanted) == 1 else ""
        raise UserError(
            f"{path} holds more than one model: {_listed(found, at)}{shown}. Choose what is "
            f"converted, the rest is left out: --key=NAME, such as --key={_where(prefix, at)}."
        )
    left = len(tensors.shapes) - len(taken)
    more = (f"{left} tensors that are not under {_where(prefix, at)}",) if left else ()
    tensors = tensors.renamed(
        {name.removeprefix(prefix): name for name in taken},
        key=_where(prefix, at),
        left_out=(*tensors.left_out, *more),
    )
    if rules.dialect and set(rules.dialect.needs) <= tensors.shapes.keys():
        return dataclasses.replace(rules.dialect.rename(tensors), library=rules.dialect.library)
    if foreign(tensors.shapes) or nearest(families, tensors.shapes) != family:
        raise UserError(refusal(families, family, tensors, path))
    return tensors


def _where(prefix: str, at: str) -> str:
    return f"{at}.{prefix}".strip(".") or "."


def _listed(prefixes: Iterable[str], at: str) -> str:
    return f"candidates are {', '.join(_where(p, at) for p in prefixes) or 'none'}"


def _prefixes(names: Iterable[str], needs: Iterable[str]) -> set[str]:
    """Find what stands before all names that a model needs: "", or what ends with a dot."""
    names, (first, *others) = set(names), needs
    before = {name.removesuffix(first) for name in names if name.endswith(first)}
    return {
        p for p in before if p[-1:] in ("", ".") and all(p + other in names for other in others)
    }


def nearest(families: Mapping[str, Family], names: Iterable[str]) -> str:
    """Name the family that has such tensors, the one that needs most, or "" if there is none."""
    names = set(names)
    fits = {
        name: max(len(needs) for needs in _signatures(family) if _prefixes(names, needs))
        for name, family in families.items()
        if any(_prefixes(names, needs) for needs in _signatures(family))
    }
    return max(fits, key=fits.__getitem__, default="")


def _signatures(family: Family) -> list[Sequence[str]]:
    return [family.needs, *([family.dialect.needs] if family.dialect else [])]


def foreign(names: Iterable[str]) -> str:
    """Name the model of others that has such tensors, or "" if it is not known."""
    names = list(names)
    for regexes, what in _OTHERS:
        if all(any(re.fullmatch(regex, name) for name in names) for regex in regexes):
            return what
    return ""


def refusal(families: Mapping[str, Family], family: str, tensors: Tensors, path: Path | str) -> str:
    """Say in four lines what a file has, what was expected, and what it may be."""
    names = list(tensors.shapes)
    shown = ", ".join(f"{name} {list(tensors.shapes[name])}" for name in names[:_SHOWN])
    other, what = nearest(families, names), foreign(names)
    if what:
        hint = f"These are the names of {what}, which is not supported; --list shows what is."
    elif other and other != family:
        hint = f"These are names of the family {other}: --family={other}."
    elif other:
        hint = "The names are those of the family, the sizes or numbers of layers are not."
    else:
        hint = "No family here has such names: it is not supported; --list shows what is."
    about = f"no {families[family].about}" if family else "of no family that is supported"
    lines = [f"{path} is {about}."]
    lines += [f"It has {len(names)} tensors: {shown}{', …' if len(names) > _SHOWN else ''}"]
    lines += [f"Expected: {', '.join(families[family].needs[: _SHOWN + 1])}, …"] if family else []
    return "\n  ".join([*lines, hint])
