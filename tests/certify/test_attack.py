import json
import shutil
import types

import pytest

from unlearn_jax import files
from unlearn_jax.audit import __main__ as binary
from unlearn_jax.certify import attack, certificate

pytestmark = pytest.mark.long

CASES = {
    "output_perturbation": {"init_radius": 0.5, "noise_std": 0.5},
    "noisy_finetune": {"init_radius": 0.5, "steps": 3, "step_size": 0.1, "clip_norm": 1.0,
                       "noise_std": 0.4, "weight_decay": 0.5},
    "model_clipping": {"model_clip_norm": 0.5, "noise_std": 0.4, "steps": 3, "init_radius": None,
                       "init_noise_std": None},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _the_same_noise_every_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack, "os", types.SimpleNamespace(urandom=lambda n: bytes(range(n))))
        yield


def make(name, certifier="retrain", **changes):
    arguments = CASES[name]
    numbers = certificate.account(
        name, arguments, certifier=certifier, accountant="gdp", delta=1e-5
    )
    values = {"mechanism": name, "certifier": certifier, "delta": 1e-5, "conditional": False,
              "assumptions": certificate.assumptions(certifier, "gdp"), "arguments": arguments,
              "parameters": 320, "run": {}, "hashes": {}, "versions": {}}  # fmt: skip
    return certificate.Certificate(**values | numbers | changes)


def audit(found, *, runs, significance=1e-3):
    drawn = attack.draw(found, runs=runs, significance=significance)
    return attack.judge(found, drawn)


@pytest.mark.parametrize("name", CASES)
def test_the_code_withstands_the_worst_case_that_we_know(name):
    found = audit(make(name), runs=3000)
    assert found["self_test"]["passed"], found
    low, high = found["bounds"]["lower"], found["bounds"]["upper"]
    power = 0.1 if name == "model_clipping" else 0.3  # whose worst case needs another threshold
    assert power * high < low <= high and not found["bounds"]["refuted"]


def test_the_weaker_certifier_is_attacked_with_its_own_starts():
    found = audit(make("output_perturbation", "reference"), runs=3000)
    assert not found["bounds"]["refuted"] and "one at its centre" in found["repeated"]
    assert found["bounds"]["lower"] > 0.6 * found["bounds"]["upper"]
    tenth = make("output_perturbation", epsilon=1.0)
    refuted = audit(tenth, runs=500)["bounds"]
    assert refuted["refuted"] and "there is a bug" in refuted["text"]


def test_a_bug_in_the_noise_is_found_by_the_self_test(monkeypatch):
    right = attack.noisy.gaussian_noise
    monkeypatch.setattr(
        attack.noisy, "gaussian_noise", lambda like, std, key: right(like, std**2, key)
    )
    for name in ("output_perturbation", "noisy_finetune"):
        found = audit(make(name), runs=500)
        assert not found["self_test"]["passed"]
        assert found["bounds"]["refuted"] or name != "output_perturbation"


# ---- the file ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir with a certificate and its audit."""
    workdir = tmp_path_factory.mktemp("audited")
    certificate.write(make("output_perturbation"), workdir / "certificate.json")
    attack.run(workdir, runs=500, significance=1e-3)
    return workdir


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def forge(workdir, change):
    """The audit with other values and a sha256 that fits."""
    values = json.loads((workdir / "epsilon.json").read_text())
    del values["sha256"], values["format"]
    change(values)
    (workdir / "epsilon.json").write_text(files.sealed(values, attack.FORMAT))


def test_what_was_written_is_read_again(made):
    found = attack.read(made)
    assert found["bounds"]["n"] == [500, 500] and found["bounds"]["lower"] > 1
    assert found["self_test"]["passed"] and "no model and no data" in found["repeated"]


def test_any_altered_byte_of_an_audit_is_rejected(copy):
    content = (copy / "epsilon.json").read_bytes()
    for k in range(0, len(content), 7):
        altered = content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :]
        (copy / "epsilon.json").write_bytes(altered)
        with pytest.raises(ValueError, match="altered|expected"):
            attack.read(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["bounds"].update(lower=0.0),
        lambda v: v["bounds"].update(upper=0.1),
        lambda v: v["bounds"].update(refuted=True),
        lambda v: v["bounds"].update(text="certified"),
        lambda v: v["bounds"]["n"].append(500),
        lambda v: v.update(repeated="the whole pipeline"),
        lambda v: v["self_test"].update(passed=False),
        lambda v: v["drawn"].update(distance=0.6),
        lambda v: v["drawn"]["noise"]["p_values"].update(scale=1e-9),
        lambda v: v["drawn"]["two_worlds"].update(n=[5000, 5000]),
        lambda v: v["drawn"]["two_worlds"].update(significance=2.0),
        lambda v: v["drawn"]["two_worlds"].update(delta=1e-3),
        lambda v: v["drawn"]["two_worlds"]["counts"]["mu"].__setitem__(0, 251),
        lambda v: v["drawn"]["two_worlds"]["counts"]["mu"].__setitem__(2, 200),
        lambda v: v["drawn"].pop("two_worlds"),
        lambda v: v.update(certificate=64 * "0"),
    ],
)
def test_a_forged_audit_with_a_fitting_sha256_is_rejected(copy, change):
    forge(copy, change)
    with pytest.raises(ValueError, match="does not follow|damaged|another certificate"):
        attack.read(copy)


def test_an_audit_of_another_certificate_is_rejected(copy):
    certificate.write(make("output_perturbation", epsilon=1.0), copy / "certificate.json")
    with pytest.raises(ValueError, match="it is of another certificate"):
        attack.read(copy)


def test_the_binary_says_what_is_refuted(tmp_path, capsys):
    wrong = make("output_perturbation", epsilon=0.01)
    certificate.write(wrong, tmp_path / "certificate.json")
    with pytest.raises(ValueError, match="not what the certificate says"):
        binary.main_epsilon(tmp_path, 500, 1e-6)
    out = capsys.readouterr().out
    assert "self-test: passed" in out and "epsilon <= 0.01 (certificate)" in out
    assert "N = 500 and 500 runs" in out and "Assumed by the upper bound:" in out
    assert attack.read(tmp_path)["bounds"]["refuted"]
