import types

import pytest

from tests import binaries
from unlearn_jax.audit import mechanism
from unlearn_jax.certify import certificate

CASES = {
    "output_perturbation": {"init_radius": 0.5, "noise_std": 0.5},
    "noisy_finetune": {"init_radius": 0.5, "steps": 3, "step_size": 0.1, "clip_norm": 1.0,
                       "noise_std": 0.4, "weight_decay": 0.5},
    "model_clipping": {"model_clip_norm": 0.5, "noise_std": 0.4, "steps": 3, "init_radius": None,
                       "init_noise_std": None},
}  # fmt: skip


SURE = "--significance=1e-6"  # its process draws other noise every time


@pytest.fixture(autouse=True)
def _the_same_noise_every_time(monkeypatch):
    fixed = types.SimpleNamespace(urandom=lambda n: bytes(range(n)))
    monkeypatch.setattr(mechanism, "os", fixed)


def make(name, certifier="retrain", **changes):
    arguments = CASES[name]
    numbers = certificate.account(
        name, arguments, certifier=certifier, accountant="gdp", delta=1e-5
    )
    values = {"mechanism": name, "certifier": certifier, "delta": 1e-5, "conditional": False,
              "assumptions": certificate.assumptions(certifier, "gdp"), "arguments": arguments,
              "parameters": 320, "run": {}, "hashes": {}, "versions": {}}  # fmt: skip
    return certificate.Certificate(**values | numbers | changes)


@pytest.mark.parametrize("name", CASES)
def test_the_code_withstands_the_worst_case_that_we_know(name):
    found = mechanism.audit(make(name), runs=3000, significance=1e-3)
    assert found["self_test"]["passed"], found
    low, high = found["bounds"]["lower"], found["bounds"]["upper"]
    power = 0.1 if name == "model_clipping" else 0.3  # whose worst case needs another threshold
    assert power * high < low <= high and not found["bounds"]["refuted"]


def test_the_weaker_certifier_is_attacked_with_its_own_starts():
    found = mechanism.audit(make("output_perturbation", "reference"), runs=3000, significance=1e-3)
    assert not found["bounds"]["refuted"]
    assert found["bounds"]["lower"] > 0.6 * found["bounds"]["upper"]
    tenth = make("output_perturbation", epsilon=1.0)
    refuted = mechanism.audit(tenth, runs=500, significance=1e-3)["bounds"]
    assert refuted["refuted"] and "there is a bug" in refuted["text"]


def test_a_bug_in_the_noise_is_found_by_the_self_test(monkeypatch):
    right = mechanism.noisy.gaussian_noise
    monkeypatch.setattr(
        mechanism.noisy, "gaussian_noise", lambda like, std, key: right(like, std**2, key)
    )
    for name in ("output_perturbation", "noisy_finetune"):
        found = mechanism.audit(make(name), runs=500, significance=1e-3)
        assert not found["self_test"]["passed"]
        assert found["bounds"]["refuted"] or name != "output_perturbation"


def test_the_binary(tmp_path):
    wrong = make("output_perturbation", epsilon=0.01)
    certificate.write(wrong, tmp_path / "certificate.json")
    flags = (f"--workdir={tmp_path}", "--runs=500", SURE)
    out, err = binaries.run("unlearn_jax.audit.mechanism", *flags, code=1)
    assert "self-test: passed" in out and "epsilon <= 0.01 (certificate)" in out
    assert "N = 500 and 500 runs" in out and "Assumed by the upper bound:" in out
    assert "not what the certificate says" in err
