"""Certified runs from end to end, and every way to tamper with them that we could think of."""

import json
import re
import shutil
import tarfile

import jax
import numpy as np
import pytest

from tests.helpers import binaries, wide
from tests.helpers.binaries import ROOT
from unlearn_jax import checkpoint, files, load_model, train
from unlearn_jax.certify import attack, certificate, guarantee, verify
from unlearn_jax.certify import stage as run
from unlearn_jax.models.params import overlay
from unlearn_jax.registry import UserError
from unlearn_jax.training import noisy, phases

pytestmark = pytest.mark.long

MECHANISMS = {
    "release": "output_perturbation",
    "noisy": "noisy_finetune",
    "clipped": "model_clipping",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with an original and one certified run of each mechanism."""
    folder = tmp_path_factory.mktemp("certified")
    train.run(wide.get_config(), folder / "original")
    for noised in MECHANISMS:
        cfg = wide.certified(wide.get_config(), folder / "original", ("decouple", noised, "retain"))
        train.run(cfg, folder / noised)
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the run of noisy fine-tuning, to tamper with."""
    shutil.copytree(runs / "noisy", tmp_path / "noisy")
    return tmp_path / "noisy"


def rewrite(folder, **changes):
    """The certificate with other values and a sha256 that fits, as a forger would make it."""
    values = json.loads((folder / "certificate.json").read_text())
    del values["sha256"], values["format"]
    (folder / "certificate.json").write_text(files.sealed(values | changes, certificate.FORMAT))


def rehash(folder):
    """The certificate of the files as they are now."""
    values = json.loads((folder / "certificate.json").read_text())
    parts = {"config": "config.json", "split": "split.json", "metrics": "metrics.jsonl"}
    hashes = {key: files.file_digest(folder / name) for key, name in parts.items()}
    rewrite(folder, hashes=values["hashes"] | hashes)


# ---- what is issued ----------------------------------------------------------------------------


@pytest.mark.parametrize("noised", MECHANISMS)
def test_a_certified_run_verifies(runs, noised):
    found = verify.verify(runs / noised)
    assert found.mechanism == MECHANISMS[noised] and found.parameters == 6144
    assert found.epsilon > 0 and not found.conditional
    assert f"({found.epsilon:.4g}, 1e-05)-unlearning" in verify.report(found)
    assert not (runs / noised / noisy.SECRET_FILE).exists()
    assert checkpoint.saved_steps(runs / noised) == [found.run["final_step"]]
    everything = b"".join(p.read_bytes() for p in (runs / noised).rglob("*") if p.is_file())
    assert b"secret" not in everything.replace(b"noise secret came", b"")


def test_the_binary_says_why_not(copy):
    """That it says yes is executed from the README."""
    rewrite(copy, epsilon=0.5)
    _, err = binaries.run("unlearn_jax.certify", "verify", str(copy), code=1)
    assert "certificate: epsilon: expected 28.37" in err and "got 0.5" in err


def test_a_run_without_noise_has_no_certificate(runs, tmp_path):
    cfg = wide.certified(wide.get_config(), runs / "original", ("decouple", "retain"), delta=0.0)
    train.run(cfg, tmp_path / "plain")
    assert not (tmp_path / "plain" / "certificate.json").exists()
    with pytest.raises(ValueError, match="expected a certificate"):
        verify.verify(tmp_path / "plain")


def test_a_finished_run_is_left_alone_and_a_lost_certificate_is_issued_again(copy, runs):
    cfg = wide.certified(wide.get_config(), runs / "original", ("decouple", "noisy", "retain"))
    before = (copy / "certificate.json").read_bytes()
    cfg.evaluation.resamples += 1  # which changes no number of the run
    train.run(cfg, copy)
    assert (copy / "certificate.json").read_bytes() == before
    verify.verify(copy)
    (copy / "certificate.json").unlink()  # killed between the last checkpoint and the certificate
    train.run(cfg, copy)
    assert (copy / "certificate.json").read_bytes() == before


def test_an_interrupted_run_ends_with_the_same_parameters(runs, tmp_path, monkeypatch):
    cfg = wide.certified(wide.get_config(), runs / "original", ("decouple", "noisy", "retain"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        (folder / noisy.SECRET_FILE).write_text(64 * "7")
    train.run(cfg, whole)
    saved, save = [], checkpoint.save

    def cut_off(*args):
        save(*args)
        saved.append(args[-1]["step"])
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train.run(cfg, cut)
    assert saved == [2, 3, 4]  # in the first phase, before and in the noised one
    assert (cut / noisy.SECRET_FILE).exists() and not (cut / "certificate.json").exists()
    monkeypatch.undo()
    train.run(cfg, cut)
    like = checkpoint.stored(whole)[0]
    a, b = (checkpoint.load_params(folder, like)[0] for folder in (whole, cut))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    verify.verify(cut)


def test_two_runs_draw_other_noise(runs, tmp_path):
    cfg = wide.certified(wide.get_config(), runs / "original", ("decouple", "release"))
    like = checkpoint.stored(runs / "original")[0]
    released = []
    for name in "ab":
        train.run(cfg, tmp_path / name)
        released.append(checkpoint.load_params(tmp_path / name, like)[0])
    difference = np.concatenate(
        [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, released), strict=True)]
    )
    expected = 0.5 * np.sqrt(2)  # the same start, two noises
    assert difference.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * difference.size))


def test_no_randomness_tells_how_long_the_ascent_was(runs, tmp_path, monkeypatch):
    """Keys and counts of the phases from the noise on are the same after 2 and after 3 steps."""
    seen = []
    make_step = phases.make_step

    def recorded(*args, **options):
        step_fn = make_step(*args, **options)

        class Recorded:
            def trace(self, state, *rest):
                seen[-1].append((int(state.step), jax.random.key_data(state.key).tolist()))
                return step_fn.trace(state, *rest)

        return Recorded()

    monkeypatch.setattr(phases, "make_step", recorded)
    for steps in (2, 3):
        cfg = wide.certified(wide.get_config(), runs / "original", ("decouple", "noisy", "retain"))
        cfg.phases.decouple.steps = steps
        seen.append([])
        train.run(cfg, tmp_path / str(steps))
    assert len(seen[0]) == 3 and seen[0][1:] == seen[1][1:]
    assert [step for step, _ in seen[0][1:]] == [0, 0]
    assert seen[0][1][1] != seen[0][2][1]


def test_a_radius_too_small_for_float32_is_refused(runs, tmp_path):
    cfg = wide.certified(wide.get_config(), runs / "original", ("noisy",))
    cfg.phases.noisy.noise.radius = 3e-6
    with pytest.raises(ValueError, match="too small for parameters this large"):
        train.run(cfg, tmp_path / "coarse")


# ---- how often the gradient was clipped --------------------------------------------------------


def test_how_often_the_gradient_was_clipped_is_logged(runs):
    lines = files.read_jsonl(runs / "noisy" / "metrics.jsonl")
    assert {line["phase"] for line in lines if "clipped" in line} == {"noisy"}
    assert all("clipped" in line for line in lines if line["phase"] == "noisy")
    assert max(line["grad_norm"] for line in lines if line["phase"] == "noisy") < 1.0  # the clip's
    assert run.clipped_share(runs / "noisy") == 0.0
    assert run.clipped_share(runs / "release") is None


@pytest.mark.parametrize(
    ("shares", "expected", "text"),
    [
        ((0.5, 1.0), 0.7, "clipped in 70 % of the noised steps."),
        ((0.0, 0.0), 0.0, "clipped in 0 % of the noised steps: a smaller clip norm"),
        ((1.0, 1.0), 1.0, "nearly all have the same length, which is another method"),
    ],
)
def test_a_clip_that_never_or_always_acts_is_said(copy, shares, expected, text):
    """Intervals of 3 and 2 steps."""
    lines = [{"step": 3, "phase": "decouple"}, {"step": 6, "phase": "noisy", "clipped": shares[0]},
             {"step": 8, "phase": "noisy", "clipped": shares[1]}]  # fmt: skip
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    share = run.clipped_share(copy)
    assert share == pytest.approx(expected)
    (line,) = run.clipping_text(share)
    assert text in line


# ---- what a report is told ---------------------------------------------------------------------


def test_both_bounds_of_a_run_and_what_is_said_if_either_cannot_be_believed(copy, runs):
    """Tampering with the audit itself: tests/certify/test_attack.py."""
    original = runs / "original"
    assert guarantee.of_run(original, original) is None
    found = guarantee.of_run(copy, original)
    assert found["upper"]["verified"] and found["upper"]["record"]["mechanism"] == "noisy_finetune"
    assert "is above 10 and says next to nothing" in found["upper"]["cautions"][0]
    assert "no audit; make it with" in found["lower"]["reason"]
    assert found["clipping"].startswith("The gradient was clipped in ")
    attack.run(copy, runs=300, significance=1e-6)
    found = guarantee.of_run(copy, original)
    lower = found["lower"]
    assert 0 < lower["epsilon"] < found["upper"]["record"]["epsilon"] and not lower["refuted"]
    assert lower["n"] == [300, 300] and lower["self_test"] and lower["delta"] == wide.DELTA

    text = (copy / "epsilon.json").read_text()
    (copy / "epsilon.json").write_text(text.replace('"upper": ', '"upper": 0'))
    found = guarantee.of_run(copy, original)
    assert set(found["lower"]) == {"reason"} and found["upper"]["verified"]
    (copy / "epsilon.json").write_text(text)
    rewrite(copy, epsilon=0.5)  # of which the audit is not, and which does not follow
    found = guarantee.of_run(copy, original)
    assert not found["upper"]["verified"] and "expected 28.37" in found["upper"]["reason"]
    assert "it is of another certificate" in found["lower"]["reason"]
    (copy / "certificate.json").write_text("[]")
    found = guarantee.of_run(copy, original)
    assert found["upper"]["record"] is None and not found["upper"]["verified"]
    assert set(found["lower"]) == {"reason"}


# ---- tampering ---------------------------------------------------------------------------------


def leaves(values, path=()):
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def altered(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (1 if isinstance(value, int) else max(abs(value) * 1e-6, 1e-9))
    return value[:-1] + ("0" if value[-1] != "0" else "1") if value else "x"


def test_any_altered_field_is_rejected_also_with_a_fitting_sha256(copy, runs):
    text = (copy / "certificate.json").read_text()
    original = json.loads(text)
    count = 0
    for path, value in leaves(original):
        values = json.loads(text)
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = altered(value)
        (copy / "certificate.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
        with pytest.raises(ValueError):
            certificate.read(copy / "certificate.json")
        if path[0] in ("sha256", "format"):
            continue
        count += 1
        rewrite(copy, **{k: v for k, v in values.items() if k not in ("sha256", "format")})
        if path == ("hashes", "code"):  # other code may have issued it, and the reader is told
            verify.verify(copy)
            continue
        with pytest.raises(ValueError, match=r"certificate|certified|expected|arguments"):
            verify.verify(copy)
    assert count > 30
    (copy / "certificate.json").write_text(text)
    verify.verify(copy)


@pytest.mark.parametrize("name", ["config.json", "split.json", "metrics.jsonl"])
def test_an_altered_file_is_rejected(copy, name):
    content = (copy / name).read_bytes()
    for k in np.linspace(0, len(content) - 1, 7).astype(int):
        (copy / name).write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
        with pytest.raises(ValueError, match=f"{name} is not the file that was certified"):
            verify.verify(copy)
    (copy / name).unlink()
    with pytest.raises(ValueError, match="is missing"):
        verify.verify(copy)


def test_other_parameters_are_rejected(copy):
    like, meta = checkpoint.stored(copy)
    params, _ = checkpoint.load_params(copy, like)
    params = overlay(params, {"decoder": {"bias": params["decoder"]["bias"].at[0, 0, 0].add(1e-6)}})
    shutil.rmtree(copy / "checkpoints")
    with checkpoint.open_manager(copy) as manager:  # with checksums that fit
        checkpoint.save(manager, params, {"step": np.int32(0)}, meta)
    with pytest.raises(
        ValueError, match="released parameters .* are not those that were certified"
    ):
        verify.verify(copy)


def test_any_altered_byte_of_the_released_parameters_is_rejected(copy):
    """Of their files on disk; or it is one, such as padding, without which they are the same."""
    like, meta = checkpoint.stored(copy)
    before = run.params_hash(checkpoint.load_params(copy, like)[0])
    files = [p for p in (copy / f"checkpoints/{meta['step']}/params").rglob("*") if p.is_file()]
    rejected = 0
    for file in sorted(files):
        content = file.read_bytes()
        places = np.linspace(0, len(content) - 1, 8 if len(content) > 10_000 else 1)
        for k in places.astype(int):
            file.write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
            try:
                verify.verify(copy)
            except ValueError:
                rejected += 1
            else:
                assert run.params_hash(checkpoint.load_params(copy, like)[0]) == before
        file.write_bytes(content)
    assert rejected >= 8
    verify.verify(copy)


def test_another_original_is_rejected(copy, runs, tmp_path):
    with pytest.raises(ValueError, match="original parameters .* are not those"):
        verify.verify(copy, runs / "clipped")
    with pytest.raises(ValueError, match="say where: --original=DIR"):
        verify.verify(copy, tmp_path / "nowhere")
    verify.verify(copy, runs / "original")


def test_a_run_whose_updates_were_not_noised_is_rejected(copy):
    lines = files.read_jsonl(copy / "metrics.jsonl")
    for line in lines:
        line["update_norm"] = min(line["update_norm"], 0.1)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rehash(copy)
    with pytest.raises(ValueError, match="have a mean norm of 0.1 .* make 39.19"):
        verify.verify(copy)


def test_a_consistent_claim_of_more_noise_is_rejected_by_the_record(copy):
    path = copy / "config.json"
    recorded = json.loads(path.read_text())
    like, meta = checkpoint.stored(copy)
    params, _ = checkpoint.load_params(copy, like)
    for part in ("config", "relevant"):
        recorded[part]["phases"]["noisy"]["noise"]["std"] = 5.0
    path.write_text(json.dumps(recorded, indent=1))
    shutil.rmtree(copy / "checkpoints")
    with checkpoint.open_manager(copy) as manager:
        meta["of"] = checkpoint.run_of(recorded["relevant"])
        checkpoint.save(manager, params, {"step": np.int32(0)}, meta)
    values = json.loads((copy / "certificate.json").read_text())
    arguments = values["arguments"] | {"noise_std": 5.0}
    numbers = certificate.account(
        "noisy_finetune", arguments, certifier="retrain", accountant="gdp", delta=wide.DELTA
    )
    rewrite(copy, arguments=arguments, **numbers)
    rehash(copy)
    with pytest.raises(ValueError, match="mean norm of .* make 391.9"):
        verify.verify(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["phases"][1].update(last_step=7), "its last step: expected 8, got 7"),
        (lambda m: m["phases"].pop(), "phases of the run"),
        (lambda m: m["phases"][2].update(stopped_by="displacement"), "why it ended"),
        (lambda m: m["phases"][2].update(objective="gradient_ascent"), "its objective"),
        (lambda m: m.update(done=False), "has not finished"),
    ],
)
def test_a_run_that_took_another_course_is_rejected(copy, change, message):
    like, meta = checkpoint.stored(copy)
    params, _ = checkpoint.load_params(copy, like)
    change(meta)
    shutil.rmtree(copy / "checkpoints")
    with checkpoint.open_manager(copy) as manager:
        checkpoint.save(manager, params, {"step": np.int32(0)}, meta)
    with pytest.raises(ValueError, match=message):
        verify.verify(copy)


def test_what_is_left_lying_about_is_rejected(copy):
    (copy / noisy.SECRET_FILE).write_text(64 * "0")
    with pytest.raises(ValueError, match="the noise can be subtracted"):
        verify.verify(copy)
    (copy / noisy.SECRET_FILE).unlink()
    (copy / "checkpoints" / "4").mkdir()
    with pytest.raises(ValueError, match=r"earlier checkpoints: expected \[11\], got \[4, 11\]"):
        verify.verify(copy)


def test_code_that_changed_is_named_and_the_numbers_are_recomputed(copy, monkeypatch):
    text = verify.report(verify.verify(copy))
    assert "Issued by and recomputed with unlearn_jax" in text
    then = certificate.code_hash()[:12]
    monkeypatch.setattr(certificate, "code_hash", lambda: 64 * "0")
    text = verify.report(verify.verify(copy))
    assert f"(source {then}); recomputed with" in text and f"(source {12 * '0'})" in text
    monkeypatch.setattr(certificate.bounds, "gaussian_epsilon", lambda *_: 1.0)
    with pytest.raises(ValueError, match=r"epsilon: expected 1\.0"):
        verify.verify(copy)


def test_a_certificate_of_an_earlier_version_verifies(tmp_path):
    """Issued before the package's modules were moved and before later keys came."""
    with tarfile.open(ROOT / "tests/golden/certified.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / "certified"
    found = verify.verify(folder / "noisy", folder / "original")
    assert found.hashes["code"].startswith("f408c44f50dd")
    assert re.search(r"Issued by unlearn_jax \S+ \(source f408c44f50dd\); recomputed with",
                     verify.report(found))  # fmt: skip
    model = load_model(folder / "noisy")
    made = model.complete(np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), bool))
    assert made.shape == (32, 32, 3) and made.any()
    recorded = json.loads((folder / "noisy" / "config.json").read_text())
    assert "accumulate" in recorded["config"]
    for part in recorded["config"], recorded["relevant"]:  # as of before there was that key
        part.pop("accumulate", None)
    (folder / "noisy" / "config.json").write_text(json.dumps(recorded))
    rehash(folder / "noisy")
    assert verify.verify(folder / "noisy", folder / "original").epsilon == found.epsilon
    recorded["config"]["phases"]["noisy"]["noise"].pop("std")  # what is left out is no noise
    (folder / "noisy" / "config.json").write_text(json.dumps(recorded))
    rehash(folder / "noisy")
    with pytest.raises(ValueError, match="noise"):
        verify.verify(folder / "noisy", folder / "original")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("model", "name"), "hostile:Bad"),
        (("phases", "noisy", "objective"), "hostile:bad"),
        (("data", "kind"), "hostile:bad"),
        (("audit", "own"), ["hostile:bad"]),
    ],
)
def test_nothing_that_a_run_names_is_imported(copy, tmp_path, monkeypatch, path, name):
    """Whoever verifies has not written config.json."""
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    recorded = json.loads((copy / "config.json").read_text())
    for section in (recorded["config"], recorded["relevant"]):  # or they would not agree
        for key in path[:-1]:
            section = section.get(key, {})
        if section:
            section[path[-1]] = name
    (copy / "config.json").write_text(json.dumps(recorded))
    rehash(copy)
    with pytest.raises(ValueError, match="no record may import a module"):
        verify.verify(copy)
    assert not (tmp_path / "touched").exists()


def test_the_hash_of_parameters_sees_names_types_shapes_and_bits():
    base = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"], "b": -base["b"]},  # -0.0
        {"a": base["a"], "b": base["b"].view(np.int32)},
        {"a": base["a"]},
    ]
    for k in range(base["a"].nbytes):  # any single byte
        content = bytearray(base["a"].tobytes())
        content[k] ^= 1 << k % 8
        others.append(base | {"a": np.frombuffer(content, np.float32).reshape(2, 3)})
    hashes = [run.params_hash(tree) for tree in (base, *others)]
    assert len(set(hashes)) == len(hashes)
    assert run.params_hash(dict(reversed(base.items()))) == hashes[0]


@pytest.mark.parametrize("line", ['{"step": 1}', "[1]", '{"step": "x", "phase": "noisy"}', "\xff"])
def test_steps_that_mean_nothing_are_an_error_that_names_the_run(copy, line):
    (copy / "metrics.jsonl").write_bytes(f"{line}\n".encode("latin-1"))
    rehash(copy)
    with pytest.raises(UserError, match=str(copy)):
        verify.verify(copy)
    if line != '{"step": "x", "phase": "noisy"}':  # which has nothing of clipping
        with pytest.raises(UserError, match=r"metrics\.jsonl"):
            run.clipped_share(copy)


def test_every_error_names_the_run(copy):
    rewrite(copy, epsilon=0.5)
    with pytest.raises(UserError, match=f"^{copy}: certificate: epsilon: expected 28"):
        verify.verify(copy)


@pytest.mark.parametrize(
    ("change", "most"),
    [
        ({}, "1,000,000"),
        ({"mechanism": "model_clipping", "accountant": "dobrushin"}, "100,000"),
        ({"accountant": "reflection"}, "10,000"),
    ],
)
def test_a_bound_that_would_take_hours_is_not_recomputed(copy, change, most):
    steps = int(most.replace(",", "")) + 1
    rewrite(
        copy,
        arguments=certificate.read(copy / "certificate.json").arguments | {"steps": steps},
        **change,
    )
    with pytest.raises(UserError, match=f"at most {most} steps"):
        verify.verify(copy)
