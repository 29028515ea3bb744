"""The receipt: complete, bound to every file; what must go goes, and nothing else."""

import json
import os
import shutil
import time

import jax
import numpy as np
import pytest

from tests.helpers import made_request, wide
from tests.helpers.pages import Page, assert_self_contained
from unlearn_jax import checkpoint, complete, files, pipeline, train
from unlearn_jax.certify import certificate
from unlearn_jax.config import identity
from unlearn_jax.data import splits
from unlearn_jax.models import MODELS
from unlearn_jax.registry import UserError
from unlearn_jax.report import issue, purge, receipt, results_page, verify
from unlearn_jax.training import start

PHASES = ("decouple", "noisy", "retain")


@pytest.fixture(scope="module", autouse=True)
def _wide_is_a_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "wide", wide.Wide)
        yield


def results_of(root, cfg, tmp):
    """The files of an evaluation and an audit, made by hand, of this config."""
    results = made_request.make_results() | {"config": json.loads(identity.to_json(cfg))}
    made = made_request.make_workdir(tmp, results, rows=2)
    for name in ("results.json", "examples.npz", "grids.npz"):
        shutil.copy(made / name, root / name)
    verdict = {"word": "unlearned", "reasons": ["n = 60"]}
    files.write_json(root / "audit.json", {"verdicts": {"ood": verdict}})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished request with a certificate and its receipt."""
    root = tmp_path_factory.mktemp("made") / "run"
    cfg = wide.get_config()
    cfg.request.case, cfg.request.due = "C-17 <b>", "2026-12-31"
    train.run(cfg, root / "original")
    train.run(wide.certified(cfg, root / "original", PHASES), root / "unlearned")
    for name in ("retrained", "shadow1"):
        shutil.copytree(root / "original", root / name)
    (root / "unlearned" / "damaged" / "4").mkdir(parents=True)
    (root / "unlearned" / "damaged" / "4" / "params").write_bytes(b"1")
    results_of(root, cfg, tmp_path_factory.mktemp("results") / "run")
    issue.write(root)
    return root


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_try(made, copy):
    print((copy / "receipt.txt").read_text())
    t = time.time()
    with pytest.raises(UserError) as e:
        verify.verify(copy)
    print(e.value, time.time() - t)
    purge.run(copy, sure=True)
    verify.verify(copy)
    complete.load_model(copy / "unlearned")
    print(sorted(p.relative_to(copy) for p in copy.rglob("*") if p.is_file()))
    print((copy / "receipt.txt").read_text())
