"""Vision transformer parts: timm's pre-norm block, fixed sine tables, images as patch vectors.

Names follow the published checkpoints: `blocks.3.attn.qkv` there is `blocks/block3/attn/qkv` here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_map_with_path
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from unlearn_jax.data.sizes import Size, sides
from unlearn_jax.models.layers import attention, gelu, one_pass, settle
from unlearn_jax.models.stacking import DEEP, STACK
from unlearn_jax.registry import UserError


class Attention(nn.Module):
    """Multi-head self-attention with one dense layer for q, k and v, in this order."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], visible: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Mix tokens; logits and softmax are float32. Nobody looks at tokens that are invisible."""
        b, n, d = x.shape
        qkv = dense(3 * d, self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, d // self.heads), 2, 0)
        return dense(d, self.dtype, name="proj")(attention(q, k, v, visible).reshape(b, n, d))


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Transform each token."""
        hidden = dense(self.hidden, self.dtype, name="fc1")(x)
        return dense(x.shape[-1], self.dtype, name="fc2")(gelu(hidden))


class Block(nn.Module):
    """x += attention(norm x); x += mlp(norm x). No dropout, no layer scale (timm 0.3.2)."""

    heads: int
    mlp_ratio: int = 4
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], visible: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Transform tokens, computed in `dtype`; norms are float32."""
        attn = Attention(self.heads, self.dtype, name="attn")
        x = settle(x + attn(self._norm("norm1")(x), visible))
        hidden = self.mlp_ratio * x.shape[-1]
        return settle(x + Mlp(hidden, self.dtype, name="mlp")(self._norm("norm2")(x)))

    def _norm(self, name: str) -> nn.Module:
        return layer_norm(name, self.epsilon, self.dtype)


class Blocks(nn.Module):
    """A stack of blocks, named block0, …; with `remat`, many are compiled as a loop over one.

    The loop reads a stack of their parameters: as `stacking.stack` has made it, else one made here,
    of kernels in `dtype`, in which they would be used anyway.
    """

    depth: int
    heads: int
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], visible: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Transform tokens in `dtype`. With `remat` the backward pass computes each block again."""
        x, options = x.astype(self.dtype), {"epsilon": self.epsilon, "dtype": self.dtype}
        names = [f"block{i}" for i in range(self.depth)]
        # Without remat a loop would keep all that a block computes for the backward pass.
        looped = (self.remat and self.depth >= DEEP) or self.has_variable("params", STACK)
        if self.is_initializing() or not looped:
            block = nn.remat(Block) if self.remat else Block
            for name in names:
                x = block(self.heads, **options, name=name)(x, visible)
            return x

        def stack(path, *leaves):
            dtype = self.dtype if path[-1].key == "kernel" else leaves[0].dtype
            return jnp.stack([leaf.astype(dtype) for leaf in leaves])

        def apply(x, params):
            block = Block(self.heads, **options, parent=None)
            return block.apply({"params": params}, x, visible), None

        params = self.variables["params"]
        stacked = params.get(STACK) or tree_map_with_path(stack, *(params[n] for n in names))
        apply = jax.checkpoint(apply, prevent_cse=False) if self.remat else apply
        return jax.lax.scan(apply, x, stacked)[0]


def dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """Make a dense layer that starts as in the published models: Glorot uniform, biases 0."""
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.glorot_uniform(), name=name)


def layer_norm(name: str, epsilon: float = 1e-6, dtype: DTypeLike = jnp.float32) -> nn.LayerNorm:
    """Make a float32 layer norm, for use between layers that compute in `dtype`."""
    return nn.LayerNorm(
        epsilon=epsilon, dtype=jnp.float32, use_fast_variance=one_pass(dtype), name=name
    )


def sincos_2d(dim: int, grid: Size) -> Float[np.ndarray, "n d"]:
    """Make fixed position embeddings [rows * columns, dim] float32 of a grid, row by row.

    The first half of the channels encodes the column, the second the row; each half is
    [sin | cos] over 10000 ** (-i / (dim / 4)), as in facebookresearch/mae.

    Raises:
      UserError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise UserError(f"sincos_2d: expected a multiple of 4 channels, got {dim}.")
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    rows, columns = sides(grid, "sincos_2d: grid")
    row, column = np.divmod(np.arange(rows * columns), columns)
    halves = [np.outer(position, omega) for position in (column, row)]
    table = np.concatenate([part(half) for half in halves for part in (np.sin, np.cos)], axis=1)
    return table.astype(np.float32)


def patchify(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n v"]:
    """Patch vectors, row by row; in a vector the row comes first, then the column, the channel."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(
    patches: Float[Array, "b n v"], patch: int, grid: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Join patch vectors of a grid, (rows, columns), to images: the inverse of `patchify`."""
    (b, _, v), (rows, columns) = patches.shape, grid
    x = patches.reshape(b, rows, columns, patch, patch, v // patch**2).swapaxes(2, 3)
    return x.reshape(b, rows * patch, columns * patch, -1)
