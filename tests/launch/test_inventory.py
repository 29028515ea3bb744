"""What is compiled ahead of time is what runs, and all of it; which programs are distinct."""

import re

import pytest

from launch import aot_formula, inventory
from tests import binaries
from unlearn_jax import sharding

OVERRIDES = (
    *("--config.phases.pretrain.steps=4", "--config.phases.calibrated.steps=4"),
    *("--config.phases.retain.saliency=0.5", "--config.poison.fraction=0.2"),
    "--config.stages.unlearned.phases=decouple,retain,calibrated",
)


def plain(text):
    """Without where it was written, and with every key alike."""
    text = re.sub(r"^#loc.*\n", "", text, flags=re.M)
    text = re.sub(r' loc\((?:#loc\d*|unknown|"[^"]*"(?:\([^)]*\))?)\)', "", text)
    return re.sub(r"dense<\S+ \S+> : tensor<2xui32>", "dense<KEY> : tensor<2xui32>", text).strip()


def multiplies(text):
    return "stablehlo.dot_general" in text or "stablehlo.convolution" in text


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Every program that a whole request compiled."""
    folder = tmp_path_factory.mktemp("ir")
    binaries.run(
        "unlearn_jax.pipeline", binaries.TINY, f"--workdir={folder / 'run'}", *OVERRIDES,
        devices=8, environment={"JAX_DUMP_IR_TO": str(folder / "dumped")},
    )  # fmt: skip
    return {path.name: plain(path.read_text()) for path in (folder / "dumped").iterdir()}


@pytest.fixture(scope="module")
def made():
    cfg = aot_formula.load("tests/tiny.py")
    cfg.phases.pretrain.steps = cfg.phases.calibrated.steps = 4
    cfg.phases.retain.saliency = 0.5
    cfg.stages.unlearned.phases = ("decouple", "retain", "calibrated")
    return inventory.programs_of(cfg, sharding.make_mesh())
