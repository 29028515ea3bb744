"""What tests of guarantees share: the tiny model that certificates and chains are of."""

import pytest

from tests.helpers import wide
from unlearn_jax.models import MODELS


@pytest.fixture(scope="module", autouse=True)
def _wide_is_a_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "wide", wide.Wide)
        yield
