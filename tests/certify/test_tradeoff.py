"""The measured trade-off: what is committed fits together, and its noise is what was asked for."""

import json

import jax
import numpy as np
import pytest

from experiments.certificate import __main__ as experiment
from experiments.certificate import settings as bench
from experiments.certificate import table as certificate_table
from tests.helpers import binaries
from unlearn_jax.certify import certificate
from unlearn_jax.config import certified as rules
from unlearn_jax.config.validation import validate
from unlearn_jax.data import slices
from unlearn_jax.request import Request

FOLDERS = ("certificate", "certificate_private")


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request):
    return binaries.ROOT / "results" / request.param


@pytest.fixture(scope="module")
def points(folder):
    return json.loads((folder / "points.json").read_text())


def certified(points):
    """(target, certificate) of every noised run."""
    for model in points["models"].values():
        for run in model["seeds"].values():
            if model.get("mechanism"):
                yield model["target_epsilon"], run["certificate"]
            else:
                assert run["certificate"] is None


def test_the_committed_table_is_that_of_the_committed_points(points, folder):
    assert (folder / "table.md").read_text() == certificate_table.markdown(points)


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


def test_exact_deletion_has_the_images_to_forget_in_its_last_slice(tmp_path):
    """The whole of it, on few images: what the experiment calls in the package is there."""
    rng, n = np.random.default_rng(0), 1000
    ids = np.array([f"i{k}" for k in range(n)])
    np.savez(tmp_path / "request.npz", split=np.array(["train"] * 600 + ["test"] * 400), id=ids,
             image=rng.integers(0, 256, (n, 32, 32, 3), np.uint8), label=np.arange(n) % 10,
             class_names=[f"c{k}" for k in range(10)])  # fmt: skip
    cfg = bench.base(tmp_path, "request", 0)
    request = Request(cfg)
    bench.plan_slices(request, tmp_path / "slices.csv")
    cfg = bench.sliced(cfg, tmp_path / "slices.csv")
    cfg.stage = "exact"
    validate(cfg)
    numbers = slices.assign(request.source, request.split.train, cfg.data.slices)
    forget = np.isin(request.split.train, request.split.forget)
    assert (numbers[forget] == bench.SLICES - 1).all() and forget.sum() == 60
    assert len(set(numbers[~forget].tolist())) == bench.SLICES
    measure = experiment.make_measure(request)
    errors = measure(request.model.init(jax.random.key(0)))
    unseen = len(request.split.calibration) + len(request.split.audit)
    expected = {"error/forget": 60, "error/retain": 60, "error/holdout": unseen}
    assert {k: len(v) for k, v in errors.items()} == expected and unseen > 300
