"""What is measured, against numpy on the toy model."""

import jax
import numpy as np
import pytest

from configs import quickstart
from tests.helpers.toy import Toy
from unlearn_jax.audit import judge, measure
from unlearn_jax.data import poison, transforms
from unlearn_jax.request import Request


@pytest.fixture(scope="module")
def measured():
    cfg = quickstart.get_config()
    cfg.poison.fraction = 0.2
    cfg.batch_size = 64
    cfg.audit.rows, cfg.audit.batch_size, cfg.audit.finetune_steps = 90, 8, 3
    cfg.audit.relearn = {"images": 16, "rows": 40, "steps": 6, "every": 2, "seeds": 2}
    request = Request(cfg, model=Toy())
    source, split, model = request.source, request.split, request.model
    run = measure.make_measure(request)
    params, target = (model.init(jax.random.key(k)) for k in (1, 2))
    return cfg, source, split, params, target, run(params, target, of_views=True), run


def output(params, images):
    x = transforms.to_float(images)
    mask = np.zeros((32, 32, 1), np.float32)
    mask[8:24, 8:24] = 1
    y = x * (1 - mask) * np.asarray(params["encoder"]["scale"]) + 0.25
    return x, np.clip(y, -1, 1), mask[..., 0] > 0


def test_errors_and_displacement_are_those_of_the_hole(measured):
    _, source, split, params, _target, found, _ = measured
    for name in measure.SETS:
        x, y, hole = output(params, source.fetch(found[f"index/{name}"]))
        np.testing.assert_allclose(
            found[f"error/{name}"], np.square(y - x)[:, hole].mean((1, 2)), rtol=1e-4
        )
        assert len(found[f"error/{name}"]) == 90
    np.testing.assert_allclose(found["displacement"], 0, atol=1e-6)  # the toy's hole is its bias
    assert not np.isin(found["index/forget"], split.poisoned).any()
    assert np.isin(found["index/retain"], split.remaining).all()


def test_view_errors_are_those_of_mirrored_and_turned_images(measured):
    _, source, _, params, _, found, _ = measured
    x, y, hole = output(params, np.rot90(source.fetch(found["index/holdout"]), 2, (1, 2)))
    turned = np.square(y - x)[:, hole].mean((1, 2))
    assert found["views/holdout"].shape == (7, 90)
    assert any(np.allclose(row, turned, rtol=1e-4) for row in found["views/holdout"])


def test_payload_errors_of_a_model_that_knows_no_backdoor(measured):
    cfg, _, _, _params, _, found, _ = measured
    payload = transforms.to_float(poison.design(cfg.task.to_dict(), 32).pattern())
    np.testing.assert_array_equal(found["payload"], payload)
    for variant in ("as planted", "contrast 0.5", "shifted 2 px"):
        np.testing.assert_array_equal(found[f"region/{variant}"], np.full((90, 8, 8, 3), 0.25))
    expected = np.full(90, np.square(0.25 - payload).mean())
    np.testing.assert_allclose(judge.payload_error(found, "region/as planted"), expected, rtol=1e-6)
    tuned = found["region/after fine-tuning"]
    assert tuned.shape == (90, 8, 8, 3) and not np.allclose(tuned, 0.25, rtol=1e-4)


def test_relearning_starts_at_the_models_own_error_and_changes_it(measured):
    *_, _params, _target, found, _ = measured
    np.testing.assert_array_equal(found["relearn/steps"], [0, 2, 4, 6])
    for seed in (0, 1):
        curve = found[f"relearn/{seed}"]
        assert curve.shape == (4,)
        assert abs(curve[0] - found["error/forget"].mean()) < 0.05
        assert curve[-1] != curve[0]
    assert found["relearn/0"][0] != found["relearn/1"][0]  # other rows are held back


def test_measuring_changes_nothing_and_is_repeatable(measured):
    *_, params, target, found, run = measured
    again = run(params, target, of_views=True)
    assert again.keys() == found.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
