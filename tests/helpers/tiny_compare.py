"""The comparison of methods with a model and phases small enough for tests."""

from ml_collections import ConfigDict

from tests.helpers import tiny
from unlearn_jax.config import method, phase


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.poison.fraction, config.poison.jitter = 0.2, 0.75
    config.audit.rows = 100
    joint = {"objective": "calibrated", "forget_weight": 0.1, "steps": 6, "probe_every": 0}
    config.phases.update(
        {
            "calibrated": phase(goal="views", **joint),
            "calibrated_reference": phase(goal="views+reference", **joint),
            "reference": phase(steps=4, probe_every=0),
        }
    )
    config.stages.reference = {"rows": "retain", "phases": ("reference",), "scratch": True}
    config.compare.seeds = (0, 1)
    config.compare.methods = {
        "calibrated": method("Calibrated", ["calibrated"]),
        "calibrated_reference": method("With a reference", ["calibrated_reference"]),
        "gradient_ascent": method("Ascent", ["decouple", "retain"]),
    }
    return config
