import contextlib
import dataclasses
import json
import math

import pytest

from configs import quickstart_certified
from tests.helpers import binaries, wide
from unlearn_jax import files
from unlearn_jax.certify import bounds, certificate, plan
from unlearn_jax.config import certified, phase
from unlearn_jax.config.validation import validate
from unlearn_jax.models import MODELS

TUNE = {"init_radius": 0.5, "steps": 4, "step_size": 0.1, "clip_norm": 1.0, "noise_std": 2.0,
        "weight_decay": 0.5}  # fmt: skip


def example(**changes):
    numbers = certificate.account(
        "noisy_finetune", TUNE, certifier="retrain", accountant="gdp", delta=1e-5
    )
    return certificate.Certificate(
        **{
            "mechanism": "noisy_finetune", "certifier": "retrain", "delta": 1e-5,
            "conditional": False, "assumptions": certificate.assumptions("retrain", "gdp"),
            "arguments": TUNE, "parameters": 6144,
            "run": {"stage": "unlearned", "phase": "noisy", "first_step": 3, "last_step": 11,
                    "final_step": 14},
            "hashes": {name: 64 * "0" for name in certificate.HASHES},
            "versions": certificate.versions(), **numbers, **changes,
        }
    )  # fmt: skip


# ---- numbers -----------------------------------------------------------------------------------


def test_output_perturbation_is_two_radii_whatever_came_before():
    arguments = {"init_radius": 0.5, "noise_std": 4.0}
    found = certificate.account(
        "output_perturbation", arguments, certifier="retrain", accountant="gdp", delta=1e-5
    )
    assert (found["sensitivity"], found["mu"], found["steps"]) == (1.0, 0.25, 0)
    assert found["epsilon"] == pytest.approx(0.92634150399822944)
    weaker = certificate.account(
        "output_perturbation", arguments, certifier="reference", accountant="gdp", delta=1e-5
    )
    assert (weaker["sensitivity"], weaker["mu"]) == (0.5, 0.125)


@pytest.mark.long
def test_fine_tuning_is_accounted_from_two_radii_and_reflection_takes_the_smaller():
    settings = {"certifier": "retrain", "delta": 1e-3}
    found = certificate.account("noisy_finetune", TUNE, accountant="gdp", **settings)
    mu = bounds.noisy_finetune_mu(1.0, 4, 0.1, 1.0, 2.0, 0.5)
    assert (found["mu"], found["epsilon"]) == (mu, bounds.gaussian_epsilon(mu, 1e-3))
    tighter = certificate.account("noisy_finetune", TUNE, accountant="reflection", **settings)
    assert tighter["epsilon"] < 0.9 * found["epsilon"] and tighter["mu"] is None
    reached = bounds.reflection_delta(1.0, 0.95, 0.2, 2.0, 4, tighter["epsilon"])
    assert reached <= 1e-3 and tighter["accountant"] == "reflection"
    assert certificate.assumptions("retrain", "reflection")[-1].endswith("no outside review")


def test_model_clipping_has_no_mu():
    arguments = {"model_clip_norm": 1.0, "noise_std": 0.74877747369788558, "steps": 10,
                 "init_radius": None, "init_noise_std": None}  # fmt: skip
    found = certificate.account(
        "model_clipping", arguments, certifier="reference", accountant="gdp", delta=1e-5
    )
    assert found["epsilon"] == pytest.approx(1.0, rel=1e-6) and found["mu"] is None
    assert found["accountant"] == "dobrushin" and found["sensitivity"] == 2.0


@pytest.mark.parametrize("mechanism", certificate.MECHANISMS)
def test_a_plan_is_what_the_account_gives_back(mechanism):
    more = {"step_size": 0.05, "clip_norm": 1.0} if mechanism == "noisy_finetune" else {}
    found = plan.plan(mechanism, epsilon=2.0, delta=1e-5, parameters=400, radius=0.5, **more)
    noise, arguments = found["noise"], {"noise_std": found["noise_std"]}
    if mechanism == "model_clipping":
        arguments |= {"model_clip_norm": noise["model_clip"], "steps": found["steps"],
                      "init_radius": None, "init_noise_std": None}  # fmt: skip
    else:
        arguments |= {"init_radius": noise["radius"], "steps": found["steps"], **more}
        arguments |= {"weight_decay": 0.0} if more else {}
    again = certificate.account(
        mechanism, arguments, certifier="retrain", accountant="gdp", delta=1e-5
    )
    assert again["epsilon"] == pytest.approx(2.0, rel=1e-9)
    assert found["noise_norm"] == pytest.approx(20 * found["noise_std"])
    assert f"{found['noise_std']:.6g}" in plan.text(found, 400)
    if mechanism == "noisy_finetune":
        assert found["steps"] == 10
        one_shot = plan.plan(
            "output_perturbation", epsilon=2.0, delta=1e-5, parameters=400, radius=0.5
        )
        assert found["total_noise_norm"] == pytest.approx(2 * one_shot["noise_norm"])


@pytest.mark.parametrize("mechanism", certificate.MECHANISMS)
def test_a_trade_off_goes_through_its_own_point_and_the_plans_of_others(mechanism):
    more = {"step_size": 0.05, "clip_norm": 1.0} if mechanism == "noisy_finetune" else {}
    of = {"delta": 1e-5, "parameters": 400, "radius": 0.5, "certifier": "retrain", **more}
    made = plan.plan(mechanism, epsilon=3.0, steps=7, **of)
    arguments = {"noise_std": made["noise_std"], "steps": made["steps"], "weight_decay": 0.0} | more
    arguments |= {"model_clip_norm" if mechanism == "model_clipping" else "init_radius": 0.5}
    arguments |= {"init_radius": None} if mechanism == "model_clipping" else {}
    record = example(mechanism=mechanism, arguments=arguments, steps=made["steps"], epsilon=3.0,
                     noise_std=made["noise_std"], parameters=400)  # fmt: skip
    points = dict(plan.tradeoff(record))
    assert points.keys() == {3.0, *plan.EPSILONS}
    for epsilon, noise in points.items():
        again = plan.plan(mechanism, epsilon=epsilon, steps=made["steps"], **of)
        assert noise == pytest.approx(again["total_noise_norm"] / 0.5)
    values = [points[epsilon] for epsilon in sorted(points)]
    assert values == sorted(values, reverse=True)
    only = plan.tradeoff(dataclasses.replace(record, accountant="reflection"))
    assert only == [[3.0, points[3.0]]]
    if mechanism == "model_clipping":
        assert len(plan.tradeoff(dataclasses.replace(record, steps=plan.MOST + 1))) == 1


def test_the_binary_plans():
    """Without a config it is executed from the README."""
    flags = ["--epsilon=1", "--delta=1e-5", "--radius=0.5"]
    counted = "--config=configs/quickstart_certified.py:adapter"
    tune = ("--mechanism=noisy_finetune", "--step_size=0.05", "--clip_norm=1")
    out, _ = binaries.run("unlearn_jax.certify", "plan", *tune, *flags, counted)
    assert "noise 2.35946 per parameter in each of 10 steps" in out
    assert "on 1,539 parameters" in out
    _, err = binaries.run("unlearn_jax.certify", "plan", *tune, *flags, code=1)
    assert "--parameters=N, or --config=FILE" in err
    _, err = binaries.run("unlearn_jax.certify", "prove", code=1)
    assert "expected one of ('verify', 'plan'), got 'prove'" in err


def test_cautions_are_said_where_they_apply():
    assert certificate.cautions(example(epsilon=1.0), 100) == []
    alarming = example(
        epsilon=20.0, delta=0.1, certifier="reference", accountant="reflection", conditional=True
    )
    assert len(certificate.cautions(alarming, 100)) == 5
    assert "(1, 1e-05)-unlearning, certifier 'retrain'" in certificate.summary(example(epsilon=1.0))


# ---- the file ----------------------------------------------------------------------------------


def test_what_was_written_is_read_again(tmp_path):
    certificate.write(example(), tmp_path / "certificate.json")
    assert certificate.read(tmp_path / "certificate.json") == example()


def test_any_single_altered_byte_is_rejected(tmp_path):
    path = tmp_path / "certificate.json"
    certificate.write(example(), path)
    content = path.read_bytes()
    accepted = []
    for k, byte in enumerate(content):
        altered = 13 if byte == 10 else (byte ^ 1, byte ^ 32, 32, 10, byte + 1)[k % 5]
        path.write_bytes(content[:k] + bytes([altered]) + content[k + 1 :])
        with contextlib.suppress(ValueError):
            certificate.read(path)
            accepted += [k] if altered != byte else []
    assert not accepted
    for other in (content[:-1], content + b"\n", b"", b"[]", b"{}"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="altered|expected|missing"):
            certificate.read(path)


def test_every_field_must_be_there_and_of_its_type(tmp_path):
    path = tmp_path / "certificate.json"
    values = dataclasses.asdict(example())
    for name in values:
        for changed in ({k: v for k, v in values.items() if k != name}, values | {name: object}):
            if changed.get(name) is object:
                changed = values | {name: [1] if name != "assumptions" else "text"}
            path.write_text(files.sealed(changed, certificate.FORMAT))
            with pytest.raises(ValueError, match=name):
                certificate.read(path)
    path.write_text(files.sealed(values | {"more": 1}, certificate.FORMAT))
    with pytest.raises(ValueError, match=r"\['more'\]"):
        certificate.read(path)
    with pytest.raises(ValueError, match="JSON"):
        files.sealed(values | {"epsilon": math.nan}, certificate.FORMAT)
    assert json.loads(files.sealed(values, certificate.FORMAT))["format"] == certificate.FORMAT


# ---- what a config must be ---------------------------------------------------------------------


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(MODELS, "wide", wide.Wide)

    def make(*phases, **settings):
        return wide.certified(wide.get_config(), "runs/original", phases, **settings)

    return make


@pytest.mark.parametrize("noised", ["release", "noisy", "clipped"])
def test_three_mechanisms_are_sound(config, noised):
    cfg = config("decouple", noised, "retain")
    validate(cfg)
    assert certified.position(cfg) == 1
    expected = {"release": "output_perturbation", "noisy": "noisy_finetune",
                "clipped": "model_clipping"}  # fmt: skip
    mechanism, arguments = certified.mechanism(cfg.phases[noised])
    assert mechanism == expected[noised]
    certificate.account(mechanism, arguments, certifier="retrain", accountant="gdp", delta=1e-5)


@pytest.mark.parametrize("mechanism", ["release", "noisy", "clipped", "adapter"])
def test_the_quickstart_asks_for_the_noise_of_its_target(mechanism):
    cfg = quickstart_certified.get_config(mechanism)
    validate(cfg)
    cfg.stage = "unlearned"
    name = cfg.stages.unlearned.phases[certified.position(cfg)]
    found = certificate.account(
        *certified.mechanism(cfg.phases[name]),
        certifier=cfg.certificate.certifier, accountant="gdp", delta=cfg.certificate.delta,
    )  # fmt: skip
    assert found["epsilon"] == pytest.approx(quickstart_certified.EPSILON, rel=1e-9)


SGD = {"name": "sgd", "learning_rate": 0.1, "clip_norm_l2": 1.0}


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("noisy", {"optimizer": SGD | {"name": "adam"}}, r"noisy.optimizer.name: .* got 'adam'"),
        ("noisy", {"optimizer": SGD | {"clip_norm_l2": 0.0}}, r"clip_norm_l2: .* got 0.0"),
        ("noisy", {"optimizer": SGD | {"schedule": "cosine"}}, r"schedule: .* got 'cosine'"),
        ("noisy", {"optimizer": SGD | {"warmup_steps": 2}}, r"warmup_steps: expected 0, got 2"),
        ("noisy", {"optimizer": SGD | {"no_decay": ("x",)}}, r"no_decay: .* got \('x',\)"),
        ("noisy", {"optimizer": SGD | {"weight_decay": 10.0}}, r"weight_decay: .* got 1.0"),
        ("noisy", {"objective": "noisy_label"}, r"noisy.objective: .* got 'noisy_label'"),
        ("noisy", {"objective": "gradient_ascent"}, r"noisy.objective: .* got 'gradient_ascent'"),
        ("noisy", {"forget_weight": 0.5}, r"noisy.forget_weight: expected 0, got 0.5"),
        ("noisy", {"saliency": 0.5}, r"noisy.saliency: expected 0, got 0.5"),
        ("noisy", {"shrink": {"alpha": 0.5}}, r"noisy.shrink.alpha: expected 0, got 0.5"),
        ("noisy", {"rewind": 0.5}, r"noisy.rewind: expected 0, got 0.5"),
        ("noisy", {"teacher": "before"}, r"noisy.teacher: expected 'original', got 'before'"),
        ("noisy", {"goal": "views"}, r"noisy.goal: expected '', got 'views'"),
        ("noisy", {"noise": {"std": 1.0}}, r"noisy.noise.radius: .* got 0.0"),
        ("noisy", {"noise": {"std": -1.0, "radius": 1.0}}, r"noise.std: .* got -1.0"),
        ("noisy", {"noise": {"std": 1.0, "initial_std": 1.0, "radius": 1.0}}, "noise.initial_std"),
        ("noisy", {"steps": 0, "noise": {"std": 1.0, "radius": 1.0}}, "steps: expected at least 1"),
        ("release", {"steps": 3}, r"release.steps: expected 0, .* got 3"),
        ("retain", {"objective": "l2_encoder"}, r"retain.objective: .* got 'l2_encoder'"),
        (
            "retain",
            {"stop": {"metric": "forget_over_holdout", "at_least": 1.0}},
            r"retain.stop.metric: expected '', got 'forget_over_holdout'",
        ),
        ("retain", {"forget_weight": 0.1}, r"retain.forget_weight: expected 0, got 0.1"),
    ],
)
def test_what_would_void_a_certificate_is_a_config_problem(config, where, change, message):
    cfg = config("decouple", "release" if where == "release" else "noisy", "retain")
    base = {"noise": {"std": 0.5, "radius": 2.0}, "optimizer": SGD, "steps": 5}
    base = {"noisy": base, "retain": {"steps": 3}}.get(
        where, {"noise": {"initial_std": 0.5, "radius": 2.0}}
    )
    cfg.phases[where] = phase(**base | change)
    with pytest.raises(ValueError, match=message):
        validate(cfg)


def test_before_the_noise_anything_goes(config):
    cfg = config("decouple", "calibrated", "noisy", "retain")
    cfg.phases.decouple.stop.metric = "forget_over_holdout"
    validate(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.certificate.update({"delta": 0.0}), "say at which delta"),
        (lambda c: c.certificate.update({"delta": 1.0}), r"certificate.delta: .* got 1.0"),
        (lambda c: c.certificate.update({"certifier": "me"}), r"certifier: .* got 'me'"),
        (lambda c: c.certificate.update({"accountant": "rdp"}), r"accountant: .* got 'rdp'"),
        (
            lambda c: c.stages.unlearned.update({"phases": ("retain",)}),
            "no stage has a noised phase",
        ),
        (lambda c: c.stages.unlearned.update({"phases": ("noisy", "clipped")}), "one noised phase"),
        (lambda c: c.stages.unlearned.update({"rows": "train"}), "'train', which has the forget"),
        (lambda c: c.stages.retrained.update({"phases": ("noisy",)}), "from scratch needs no"),
        (
            lambda c: (
                c.certificate.update({"accountant": "reflection"}),
                c.stages.unlearned.update({"phases": ("clipped",)}),
            ),
            "'reflection' is for noisy fine-tuning",
        ),
    ],
)
def test_what_is_wrong_with_a_certificates_settings(config, change, message):
    cfg = config("decouple", "noisy", "retain")
    change(cfg)
    with pytest.raises(ValueError, match=message):
        validate(cfg)


@pytest.mark.parametrize("field", ["hashes", "versions"])
@pytest.mark.parametrize("value", [3, None, ["x"], "a\r\nb", "\x1b[31m"])
def test_hashes_and_versions_are_texts_of_one_line(tmp_path, field, value):
    found = example()
    changed = dataclasses.replace(found, **{field: getattr(found, field) | {"jax": value}})
    certificate.write(changed, tmp_path / "certificate.json")
    with pytest.raises(ValueError, match=f"of another type: .'{field}'"):
        certificate.read(tmp_path / "certificate.json")
