import numpy as np
import pytest
from ml_collections import ConfigDict

from unlearn_jax.config import default, phase
from unlearn_jax.evaluate.metrics import displacement

RNG = np.random.default_rng(0)


def measured(n=200, size=30):
    """(squared errors of the model, of the original, displacement) of made-up outputs."""
    truth, original = RNG.normal(0, 1, (2, n, size))
    output = original + RNG.uniform(0, 1, (n, 1)) * RNG.normal(0, 1, (n, size))

    def mean(a, b):
        return np.square(a - b).mean(1).astype(np.float32)

    return mean(output, truth), mean(original, truth), np.sqrt(mean(output, original))


def test_every_output_is_displaced_within_its_bounds():
    mse, original_mse, moved = measured()
    found = displacement.bounds(mse, original_mse, moved)
    assert found["held"] == found["n"] == 200
    for kind in ("example", "rms"):
        assert 0 < found[kind]["lower"] < found[kind]["measured"] < found[kind]["upper"]
    e, e_0 = np.sqrt(mse.astype(float)), np.sqrt(original_mse.astype(float))
    assert found["example"]["lower"] == pytest.approx(abs(e - e_0).mean(), rel=1e-6)
    assert found["example"]["measured"] == pytest.approx(moved.mean(), rel=1e-6)
    assert found["example"]["upper"] == pytest.approx((e + e_0).mean(), rel=1e-6)
    rms = [np.sqrt(np.square(x).mean()) for x in (e, e_0, moved.astype(float))]
    assert list(found["rms"].values()) == pytest.approx(
        [abs(rms[0] - rms[1]), rms[2], rms[0] + rms[1]], rel=1e-6
    )


def test_the_bounds_are_attained():
    """Outputs on one line with the image: beyond the original's, and on the other side of it."""
    mse, original_mse = np.array([4.0, 4.0]), np.array([1.0, 1.0])
    found = displacement.bounds(mse, original_mse, np.array([1.0, 3.0]))
    assert found["held"] == 2
    assert found["example"] == {"lower": 1.0, "measured": 2.0, "upper": 3.0}


@pytest.mark.parametrize("errors", [(4.0, 1.0), (1.0, 4.0)])
@pytest.mark.parametrize("wrong", [0.99, 3.01, np.nan])
def test_what_no_outputs_can_have_is_counted(wrong, errors):
    moved = np.array([1.0, wrong, 2.0])
    found = displacement.bounds(*(np.full(3, error) for error in errors), moved)
    assert (found["held"], found["n"]) == (2, 3)


def test_lambda_is_that_of_the_phase_that_stops_at_it():
    examples = {}
    for name in ("forget", "retain", "holdout"):
        mse, original_mse, moved = measured(50)
        examples |= {f"unlearned/{name}/mse_hole": mse, f"unlearned/{name}/displacement": moved}
        examples[f"original/{name}/mse_hole"] = original_mse
    config = default()
    config.phases = ConfigDict({"decouple": phase(), "retain": phase()})
    found = displacement.of_request(examples, config, ["original", "unlearned"])
    assert found["wanted"] is None and set(found["models"]) == {"unlearned"}
    config.phases.decouple.stop = ConfigDict({"metric": "displacement", "at_least": 0.5})
    found = displacement.of_request(examples, config, ["original", "unlearned"])
    count = int((examples["unlearned/forget/displacement"] >= 0.5).sum())
    assert 0 < count < 50
    assert found["wanted"] == {"lambda": 0.5, "phase": "decouple", "moved": {"unlearned": count}}
