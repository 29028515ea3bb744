"""The measured trade-off: what is committed fits together, and its noise is what was asked for."""

import json

import numpy as np
import pytest

from experiments.certificate import settings as bench
from experiments.certificate import table as certificate_table
from tests.helpers import binaries
from unlearn_jax.certify import certificate
from unlearn_jax.config import certified as rules
from unlearn_jax.config.validation import validate

FOLDER = binaries.ROOT / "results" / "certificate"


@pytest.fixture(scope="module")
def points():
    return json.loads((FOLDER / "points.json").read_text())


def certified(points):
    """(target, certificate) of every noised run."""
    for model in points["models"].values():
        for run in model["seeds"].values():
            if model.get("mechanism"):
                yield model["target_epsilon"], run["certificate"]
            else:
                assert run["certificate"] is None


def test_the_committed_table_is_that_of_the_committed_points(points):
    assert (FOLDER / "table.md").read_text() == certificate_table.markdown(points)


def test_every_committed_certificate_follows_from_its_arguments(points):
    found = list(certified(points))
    assert len(found) >= 14
    again = {}
    for target, c in found:
        key = json.dumps([c["mechanism"], c["arguments"], c["certifier"]])
        if key not in again:
            again[key] = certificate.account(
                c["mechanism"], c["arguments"], certifier=c["certifier"], accountant="gdp",
                delta=c["delta"],
            )  # fmt: skip
        assert again[key]["epsilon"] == pytest.approx(c["epsilon"], rel=1e-9)
        assert c["epsilon"] == pytest.approx(target, rel=1e-6)
        assert c["delta"] == points["delta"] and c["conditional"] is False


@pytest.mark.parametrize("name", bench.MECHANISMS)
def test_a_phase_is_noised_for_the_epsilon_that_was_asked_for(name, tmp_path):
    np.savez(tmp_path / "request.npz", split=np.array(["train"] * 640))
    mechanism = bench.MECHANISMS[name]
    cfg = bench.of_world(bench.base(tmp_path, "request", 0), mechanism)
    cfg = bench.noised(cfg, mechanism, 2.0, tmp_path / "public")
    for stage in ("released", "repaired"):
        cfg.stage = stage
        validate(cfg)
        kind, arguments = rules.mechanism(cfg.phases.noised)
        found = certificate.account(
            kind, arguments, certifier=mechanism.certifier, accountant="gdp", delta=bench.DELTA
        )
        assert found["epsilon"] == pytest.approx(2.0, rel=1e-6)
    assert cfg.certificate.centre_from == (str(tmp_path / "public") if mechanism.public else "")
