"""What is compiled ahead of time is what runs, and all of it; which programs are distinct."""

import re

import pytest

from launch.aot import formula, inventory
from tests.helpers import binaries
from unlearn_jax import sharding

OVERRIDES = (
    *("--config.phases.pretrain.steps=4", "--config.phases.calibrated.steps=4"),
    *("--config.phases.retain.saliency=0.5", "--config.poison.fraction=0.2"),
    "--config.stages.unlearned.phases=decouple,retain,calibrated",
)


def plain(text):
    """Without where it was written, and with every key alike."""
    text = re.sub(r"^#loc.*\n", "", text, flags=re.M)
    text = re.sub(r" loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "", text)
    return re.sub(r"dense<\S+ \S+> : tensor<2xui32>", "dense<KEY> : tensor<2xui32>", text).strip()


def multiplies(text):
    return "stablehlo.dot_general" in text or "stablehlo.convolution" in text


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Every program that a whole request compiled."""
    folder = tmp_path_factory.mktemp("ir")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DUMP_IR_TO", str(folder / "dumped"))
        workdir = f"--workdir={folder / 'run'}"
        binaries.run("unlearn_jax.pipeline", binaries.TINY, workdir, *OVERRIDES, devices=8)
    return {path.name: plain(path.read_text()) for path in (folder / "dumped").iterdir()}


@pytest.fixture(scope="module")
def made():
    cfg = formula.load("tests/helpers/tiny.py")
    cfg.phases.pretrain.steps = cfg.phases.calibrated.steps = 4
    cfg.phases.retain.saliency = 0.5
    cfg.stages.unlearned.phases = ("decouple", "retain", "calibrated")
    made = inventory.programs_of(cfg, sharding.make_mesh())
    return {name: plain(of().lower().as_text()) for name, of in made.items()}


@pytest.mark.full
def test_what_a_request_runs_is_what_is_compiled_ahead_of_time(ran, made):
    have = set(ran.values())
    missing = {
        name
        for name in (
            *("step: pretrain", "step: decouple", "step: retain", "step: calibrated", "init"),
            *("goals: views and outputs", "saliency: gradient", "probe", "probe from scratch"),
            *("probe: mean loss", "probe: original's output", "completion", "pixel metrics"),
            *("audit: errors", "audit: losses", "audit: losses of views"),
            *("audit: losses of noisy copies", "audit: losses with other masks"),
            "audit: relearning",
        )
        if made[name] not in have
    }
    assert not missing


@pytest.mark.full
def test_nothing_that_multiplies_runs_without_being_listed(ran, made):
    listed = set(made.values())
    assert sum(map(multiplies, ran.values())) > 12
    assert [name for name, text in ran.items() if multiplies(text) and text not in listed] == []


def test_only_numbers_may_differ_within_a_kind():
    cfg = formula.load("tests/helpers/tiny.py")
    for name, more in {
        "slower": {"optimizer": {"learning_rate": 1e-9}},  # a number
        "larger": {"batch_size": 64},
        "clipped_more": {"optimizer": {"clip_norm_l2": 1.0}},
        "cheaper": {"forget_weight": 0.0},
    }.items():
        phase = cfg.phases.calibrated.copy_and_resolve_references()
        phase.update({"batch_size": 32} | more)
        cfg.phases[name] = phase
        cfg.stages.unlearned.phases += (name,)
    cfg.stages.unlearned.phases = ("calibrated", *cfg.stages.unlearned.phases)
    found = inventory.distinct_phases(cfg)
    assert "slower" not in found
    assert {"calibrated", "larger", "clipped_more", "cheaper"} <= set(found)
