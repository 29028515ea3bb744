"""Parts that are fast on accelerators and the CPU alike: convolutions, attention, gathers.

The convolutions halve and double an image, with kernels in HWIO layout. They are plain `jax.lax`
ones, except where XLA is slow to differentiate them on the CPU: there the same sums are written in
another order, the gradient with respect to a kernel as four matrix products over shifted views of
the image, and the transposed convolution without the zeros that dilation inserts. What is lowered
follows the target platform, also when compiling ahead of time for another one. Reverse mode only
(`custom_vjp`), as `gelu`, `settle`, `pick` and `spread`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

Masking = tuple[Int[Array, "b k"], Int[Array, "b n"], Bool[Array, "b n"]]
"""(kept, place, hidden): the tokens that are not hidden, each once; where each is among these, any
number if it is hidden; whether it is."""

DTYPES = ("float32", "bfloat16")
"""Types that a model may compute in."""

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def dtype_problem(dtype: str) -> str:
    """Say what is wrong with a model's dtype, to be read after its name; "" if nothing is."""
    hint = "; it overflows above 65,504, bfloat16 has the range of float32" * (dtype == "float16")
    return "" if dtype in DTYPES else f"must be one of {DTYPES}, got {dtype!r}{hint}"


@jax.custom_vjp
def conv_down(
    x: Float[Array, "b h w c"], kernel: Float[Array, "4 4 c o"]
) -> Float[Array, "b h2 w2 o"]:
    """Halve the resolution: 4x4 convolution, stride 2, padding 1. Height and width must be even."""
    return lax.platform_dependent(x, kernel, cpu=_down_cpu, default=_down)


@jax.custom_vjp
def conv_up(
    x: Float[Array, "b h w c"], kernel: Float[Array, "4 4 c o"]
) -> Float[Array, "b h2 w2 o"]:
    """Double the resolution: `lax.conv_transpose`, 4x4, stride 2, padding "SAME".

    It is the adjoint of `conv_down` with the kernel flipped and its channel axes swapped.
    """
    return lax.platform_dependent(x, kernel, cpu=_up_cpu, default=_up)


def _conv_down_backward(saved, g):
    x, kernel = saved
    return conv_up(g, _adjoint(kernel)), _kernel_gradient(x, g)


def _conv_up_backward(saved, g):
    x, kernel = saved
    return conv_down(g, _adjoint(kernel)), _adjoint(_kernel_gradient(g, x))


conv_down.defvjp(lambda x, kernel: (conv_down(x, kernel), (x, kernel)), _conv_down_backward)
conv_up.defvjp(lambda x, kernel: (conv_up(x, kernel), (x, kernel)), _conv_up_backward)


def _adjoint(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _down(x, kernel):
    return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _down_cpu(x, kernel):
    pad = -x.shape[-1] % 4  # three channels take four times as long as four
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, pad)))
    return _down(x, jnp.pad(kernel, ((0, 0), (0, 0), (0, pad), (0, 0))))


def _up(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_LAYOUT)


def _up_cpu(x, kernel):
    """Compute `_up` as a 2x2 convolution that yields the four pixels (r, s) of an output block."""
    c, o = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, c, o)[:, ::-1, :, ::-1]  # window, r, window, s
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * o)
    y = lax.conv_general_dilated(x, blocks, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)
    b, h, w, _ = y.shape
    y = y.reshape(b, h, w, 2, 2 * o).swapaxes(2, 3).reshape(b, 2 * h, 2 * w, o)
    return y[:, 1:-1, 1:-1]


def _kernel_gradient(x, g):
    """Compute the gradient of <g, conv_down(x, kernel)> with respect to the kernel."""
    return lax.platform_dependent(x, g, cpu=_kernel_gradient_cpu, default=_kernel_gradient_xla)


def _kernel_gradient_xla(x, g):
    shape = jax.ShapeDtypeStruct((4, 4, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _down(x, kernel), shape)(g)[0]


def _kernel_gradient_cpu(x, g):
    b, h, w, o = g.shape
    c = x.shape[-1]
    # Padded image as blocks of 2x2 pixels: the kernel becomes 2x2 over 4c channels, stride 1.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(b, h + 1, 2, w + 1, 2 * c)
    x = x.swapaxes(2, 3).reshape(b, h + 1, w + 1, 4 * c)

    def tap(shift):
        view = lax.dynamic_slice(x, (0, shift[0], shift[1], 0), (b, h, w, 4 * c))
        # In this order: the other one, view^T g, runs at half the speed.
        return lax.dot_general(g, view, (((0, 1, 2), (0, 1, 2)), ((), ())))

    # A loop, so that the views share one buffer: above 32 MB of temporaries in all, the allocator
    # maps the memory anew in every step, which costs more than the loop.
    taps = lax.map(tap, jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    return taps.reshape(2, 2, o, 2, 2, c).transpose(0, 3, 1, 4, 5, 2).reshape(4, 4, c, o)


class GroupNorm(nn.Module):
    """`nn.GroupNorm` in float32, summed in another order; its variance as `one_pass` says.

    Sums over places come first, then those over the few channels of a group: on the CPU, XLA takes
    several times as long for both at once, and for what is fused with them.
    """

    groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Normalise features in float32, then scale and shift them by channel."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        once, x = one_pass(x.dtype), x.astype(jnp.float32)
        mean = self._mean(x)
        centred = x - mean
        if once:
            variance = jnp.maximum(self._mean(jnp.square(x)) - jnp.square(mean), 0)
        else:
            variance = self._mean(jnp.square(centred))
        return centred * (lax.rsqrt(variance + self.epsilon) * scale) + bias

    def _mean(self, x):
        """Average over each group, for each of its channels [b 1 1 c]."""
        b, _, _, c = x.shape
        of_channels = x.mean((1, 2)).reshape(b, self.groups, c // self.groups)
        of_groups = of_channels.mean(-1, keepdims=True)
        return jnp.broadcast_to(of_groups, of_channels.shape).reshape(b, 1, 1, c)


class Down(nn.Module):
    """Half the height and width: `conv_down` plus bias, computed in `dtype`."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        """Compute features, before the nonlinearity; parameters are float32."""
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return conv_down(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Up(nn.Module):
    """Twice the height and width: `conv_up` plus bias, computed in `dtype`."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        """Compute features, before the nonlinearity; parameters are float32."""
        # He's rule with the true fan-in: a pixel sees 2x2 of the 4x4 taps.
        initializer = nn.initializers.variance_scaling(8.0, "fan_in", "truncated_normal")
        kernel = self.param("kernel", initializer, (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return conv_up(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


def attention(
    q: Float[Array, "b n h c"],
    k: Float[Array, "b n h c"],
    v: Float[Array, "b n h c"],
    visible: Bool[Array, "b n"] | None = None,
) -> Float[Array, "b n h c"]:
    """Apply softmax attention, its logits in float32; nobody looks at tokens that are not visible.

    On a GPU in half precision with all tokens visible it is cuDNN's, which writes no logits.
    """
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() != "gpu" or not half or visible is not None or q.shape[-1] % 8:
        mask = None if visible is None else visible[:, None, None, :]
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    b, n = q.shape[:2]
    if not n % 2:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # Of odd lengths it takes those that are said to be padded.
    q, k, v = (jnp.pad(x, ((0, 0), (0, -n % 8), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(b, n, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )[:, :n]


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute x Phi(x), with the exact (erf) normal distribution function, in float32 or more.

    For the backward pass nothing but x is kept.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x, g):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * math.pi) ** -0.5
    return ((g * (_normal_cdf(wide) + wide * density)).astype(x.dtype),)


def _normal_cdf(x):
    return 0.5 * (1 + lax.erf(x * 0.5**0.5))


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def settle(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute numbers once where they would be computed twice; their gradient, too.

    On the CPU, XLA computes what is cheap again wherever it is used: a residual sum as often as
    there are layers after it, from all that was added before. Neither its optimization barrier nor
    a loop keeps it from that. What a condition yields it computes once.
    """
    if jax.device_count() > 1:  # all would have to be told what the condition is
        return x
    return lax.platform_dependent(x, cpu=_settle_cpu, default=lambda x: x)


def _settle_cpu(x):
    always = ~(x[(0,) * x.ndim] > jnp.inf)  # also if it is NaN; the compiler does not see it
    return lax.cond(always, lambda x: x, jnp.negative, x)


settle.defvjp(lambda x: (settle(x), None), lambda _, g: (settle(g),))


def one_pass(dtype: DTypeLike) -> bool:
    """Tell whether a norm may read its input once for both moments: if that is in half precision.

    What cancels in float32 is then less than what the input was rounded by; in float32 the variance
    is that of the differences from the mean, as in torch.
    """
    return jnp.dtype(dtype).itemsize < 4


@jax.custom_vjp
def pick(x: Float[Array, "b n d"], masking: Masking) -> Float[Array, "b k d"]:
    """Pick the rows x[kept]; the gradient is `spread`, where that of a gather were a scatter."""
    kept, _, _ = masking
    return jnp.take_along_axis(x, kept[..., None], axis=1)


@jax.custom_vjp
def spread(x: Float[Array, "b k d"], masking: Masking) -> Float[Array, "b n d"]:
    """Undo `pick`, with zeros for hidden tokens; it is also the adjoint of `pick`."""
    _, place, hidden = masking
    rows = jnp.take_along_axis(x, place[..., None], axis=1, mode="clip")
    return jnp.where(hidden[..., None], 0, rows)


def _spread_backward(masking, g):
    return pick(jnp.where(masking[2][..., None], 0, g), masking), None


pick.defvjp(lambda x, masking: (pick(x, masking), masking), lambda m, g: (spread(g, m), None))
spread.defvjp(lambda x, masking: (spread(x, masking), masking), _spread_backward)
