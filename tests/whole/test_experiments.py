"""The experiments of docs/ still run: what they call in the package is there."""

import importlib
import json
import pkgutil

import pytest

import experiments
from tests.helpers import binaries
from unlearn_jax.audit import conclusion

NAMES = [of.name for of in pkgutil.iter_modules(experiments.__path__)]
SLICED = (
    "--config.data.slices.count=4", "--config.phases.pretrain.optimizer.schedule=late_cosine",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_imports(name):
    module = importlib.import_module(f"experiments.{name}")
    assert f"python -m experiments.{name}" in (module.__doc__ or "") or module.__path__


@pytest.mark.full
def test_a_deletion_is_judged_by_the_panel(tmp_path):
    given = (binaries.TINY, f"--workdir={tmp_path / 'run'}", "--images=60", *SLICED)
    out, _ = binaries.run("experiments.deletion", *given, cwd=tmp_path)
    found = json.loads((tmp_path / "results/deletion/tiny.json").read_text())
    assert found["conclusion"]["word"] in conclusion.WORDS and found["conclusion"]["text"] in out
    moved = found["witnesses"]["displacement"]
    assert moved["word"] == "not measured"  # in 24 steps nothing is memorised


@pytest.mark.full
def test_slices_are_compared_with_training_without(tmp_path):
    given = (binaries.TINY, f"--workdir={tmp_path / 'run'}", *SLICED)
    out, _ = binaries.run("experiments.slices", *given, cwd=tmp_path)
    (run,) = json.loads((tmp_path / "results/slices/tiny.json").read_text())["runs"]
    assert run["sliced"]["n_unseen"] == run["unsliced"]["n_classes"] == 479
    assert out.count("with / without slices") == 4
