"""The VQ-GAN against one written in torch from its description, with the published names.

`python -m tests.models.test_vqgan_torch` writes golden/vqgan.npz anew.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.long
torch = pytest.importorskip("torch")

import jax.numpy as jnp
from torch.nn import functional as F

from tests.models.test_vqgan import (
    FAMILY,
    GOLDEN,
    MODEL,
    SMALL,
    close,
    fill,
    filled,
    flat,
    images,
    numbers,
    published,
)
from tests.reference.vqgan import Tokenizer, nchw, nhwc

torch.set_num_threads(1)


def load(module):
    """Fill a module; buffers stay."""
    names = dict(module.named_parameters())
    state = module.state_dict()
    state |= {k: torch.tensor(fill(k, v.shape)) for k, v in state.items() if k in names}
    module.load_state_dict(state, strict=True)
    return module


def of_torch():
    """(golden arrays, gradients by name, state dict)."""
    module = load(Tokenizer(**SMALL))
    image = nchw(images())
    z = module.encoder((image + 1) / 2)
    ids = module.tokens(z)
    decoded, code = module.decode(ids)
    output = 2 * module.decoder(z + (code - z).detach()) - 1
    errors = [F.mse_loss(a, b, reduction="none").mean((1, 2, 3)) for a, b in (
        (output, image), (code, z.detach()), (code.detach(), z))]  # fmt: skip
    loss = errors[0] + errors[1] + 0.25 * errors[2]
    loss.sum().backward()
    grads = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return {
        "latent": nhwc(z),
        "tokens": ids.numpy().astype(np.int32),
        "decoded": nhwc(decoded),
        "loss": loss.detach().numpy(),
        "names": np.array(sorted(grads)),
        "gradient": np.array(
            [np.vdot(grads[k], fill("direction." + k, grads[k].shape)) for k in sorted(grads)],
            np.float32,
        ),
    }, grads, {k: v.numpy() for k, v in module.state_dict().items()}  # fmt: skip


def test_golden_file_is_what_torch_gives():
    want, _, _ = of_torch()
    with np.load(GOLDEN / "vqgan.npz") as file:
        assert set(file) == set(want)
        for name in want:
            if want[name].dtype == np.float32:
                close(file[name], want[name], 1e-5)
            else:
                np.testing.assert_array_equal(file[name], want[name])


def test_gradients_of_every_parameter():
    _, grads, state = of_torch()
    shapes = published(SMALL["ch"], SMALL["ch_mult"], SMALL["z_dim"], SMALL["codebook"])
    assert {k: v.shape for k, v in state.items()} == shapes
    params = filled(FAMILY, MODEL, state)
    for path, grad in flat(numbers(params)[0]).items():
        want = FAMILY.layout(path, grad.ndim).to_leaf(grads[FAMILY.torch_name(path)])
        assert np.abs(want).max() > 1e-6
        close(grad, want)


def test_bare_values_go_there_and_back():
    state = {k: v.numpy() for k, v in load(Tokenizer(**SMALL)).state_dict().items()}
    params = filled(FAMILY, MODEL, state)
    for path, leaf in flat(params).items():
        back = FAMILY.layout(path, jnp.ndim(leaf)).to_torch(np.asarray(leaf))
        np.testing.assert_array_equal(back, state[FAMILY.torch_name(path)])


if __name__ == "__main__":
    np.savez_compressed(GOLDEN / "vqgan.npz", **of_torch()[0])
