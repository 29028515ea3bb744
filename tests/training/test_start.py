"""What a stage refuses to start from."""

import jax
import jax.numpy as jnp
import pytest

from tests.helpers import tiny
from unlearn_jax import checkpoint, models
from unlearn_jax.request import Request
from unlearn_jax.training.start import load_start


@pytest.mark.long
@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_weights_that_are_no_numbers_are_blamed_on_their_checkpoint(tmp_path, value):
    cfg = tiny.get_config()
    params = models.of(cfg).init(jax.random.key(0))
    params["decoder"]["up0"] = jax.tree.map(lambda x: x.at[0].set(value), params["decoder"]["up0"])
    checkpoint.save_params(tmp_path, params, served={"requests": [], "claim": ""})
    cfg.stage, cfg.init_from, cfg.data.cache = "unlearned", str(tmp_path), False
    request = Request(cfg)
    with pytest.raises(ValueError) as error:
        load_start(request, request.like())
    assert str(error.value).startswith("config.init_from: 2 of ")
    assert f"the model in {tmp_path} have NaN or infinite weights, such as decoder/up0/" in (
        str(error.value)
    )
