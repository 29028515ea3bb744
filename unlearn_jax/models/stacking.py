"""Equal blocks as one: parameters in stacks, through which a loop over a single block goes.

A training step is then compiled for one block, with its part of the optimizer, and not for each of
32. On disk, and wherever parameters have names, every block has its own, as in published files.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unlearn_jax.sharding import STACK

DEEP = 8
"""From so many blocks on. A loop over fewer saves nothing, and on a CPU its steps are slower."""


def stack(tree: Any) -> Any:
    """Make {STACK: stacked leaves} of {"block0": …, "block1": …}, wherever that is in a tree.

    The tree may be an optimizer's state. Leaves get an axis in front, one place for each block.
    """

    def joined(node):
        if not _is_chain(node):
            return node
        blocks = (node[f"block{i}"] for i in range(len(node)))
        return {STACK: jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

    return jax.tree.map(joined, tree, is_leaf=_is_chain)


def unstack(tree: Any) -> Any:
    """Undo `stack`."""

    def apart(node):
        if not _is_stack(node):
            return node
        depth = len(jax.tree.leaves(node)[0])
        return {f"block{i}": jax.tree.map(lambda x, i=i: x[i], node[STACK]) for i in range(depth)}

    return jax.tree.map(apart, tree, is_leaf=_is_stack)


def alike(tree: Any, patterns: Sequence[str], match: Callable[..., Any] = re.fullmatch) -> bool:
    """Tell whether no pattern tells blocks of a chain apart: else they cannot be treated as one.

    Args:
      tree: of parameters, not stacked.
      patterns: regexes on paths such as "encoder/blocks/block0/attn/qkv/kernel".
      match: how they are compared.
    """
    seen: dict[str, tuple[bool, ...]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(key.key for key in path)
        found = tuple(bool(match(pattern, name)) for pattern in patterns)
        if seen.setdefault(re.sub(r"/block\d+/", "/block/", name), found) != found:
            return False
    return True


def _is_chain(node: Any) -> bool:
    if not isinstance(node, Mapping) or len(node) < DEEP:
        return False
    return all(re.fullmatch(r"block\d+", name) for name in node)


def _is_stack(node: Any) -> bool:
    return isinstance(node, Mapping) and STACK in node
