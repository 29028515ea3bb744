"""Feature towers against torch.

`python -m tests.evaluate.towers.test_towers_torch` writes the golden.
"""

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from tests.evaluate.towers import test_towers as made
from tests.reference import towers

torch.set_num_threads(1)


def arrays(size):
    return np.asarray(made.images(size))


REFERENCES = {
    "inception_fid": lambda: towers.inception("fid", arrays(107), made.tensor),
    "inception_torchvision": lambda: towers.inception("torchvision", arrays(107), made.tensor),
    "resnet50": lambda: towers.resnet50(arrays(64), made.tensor),
    "clip": lambda: towers.clip("gelu", arrays(24), made.tensor),
    "clip_quick_gelu": lambda: towers.clip("quick_gelu", arrays(24), made.tensor),
}


@cache
def reference(name):
    if not name.startswith("inception"):
        pytest.importorskip("transformers")
    return REFERENCES[name]()


def golden(name):
    return {f"{name}/{key}": value.numpy() for key, value in reference(name)[0].items()}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_golden_features_are_what_torch_gives(name):
    with np.load(made.GOLDEN) as stored:
        for key, value in golden(name).items():
            np.testing.assert_allclose(
                stored[key], value, rtol=1e-5, atol=1e-5 * np.abs(value).max()
            )


@pytest.mark.parametrize("name", REFERENCES)
def test_every_tensor_of_torch_is_used_and_every_leaf_filled(name):
    family, tower = made.TOWERS[name]
    _, tensors = reference(name)
    made.fill(family, tower, tensors)
    shapes = made.torch_shapes(family, tower)
    assert shapes == {key: value.shape for key, value in tensors.items()}


if __name__ == "__main__":
    np.savez(made.GOLDEN, **{k: v for name in REFERENCES for k, v in golden(name).items()})
