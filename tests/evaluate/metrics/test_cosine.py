import numpy as np
import pytest

from unlearn_jax.evaluate.metrics import cosine


def test_pairs_and_interval():
    rng = np.random.default_rng(0)
    a = np.float32(rng.standard_normal((200, 8)))
    b = a + np.float32(0.5 * rng.standard_normal((200, 8)))
    values = cosine.paired(a, b)
    expected = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    np.testing.assert_allclose(cosine.paired(a, 3 * a), 1, rtol=1e-12)
    np.testing.assert_allclose(cosine.paired(a, -a), -1, rtol=1e-12)
    found = cosine.summary(values, confidence=0.95, resamples=500, seed=0)
    assert found["mean"] == pytest.approx(np.mean(expected), rel=1e-6) and found["n"] == 200
    half_width = 1.96 * values.std() / 200**0.5
    assert found["ci_high"] - found["ci_low"] == pytest.approx(2 * half_width, rel=0.2)
    assert found == cosine.summary(values, confidence=0.95, resamples=500, seed=0)


def test_embeddings_without_direction_are_refused():
    a = np.ones((4, 3))
    for bad in (0.0, np.nan, np.inf):
        b = a.copy()
        b[2] = bad
        with pytest.raises(ValueError, match="1 of 4 pairs .* first in row 2"):
            cosine.paired(a, b)
