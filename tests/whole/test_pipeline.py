import json

import numpy as np
import pytest

from tests.helpers import binaries
from unlearn_jax.data import splits

LIKE = {"devices": 8, "accelerator": "raises"}  # what no plug-in of a GPU or TPU tells


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, stdout, stderr) of a pipeline."""
    workdir = tmp_path_factory.mktemp("pipeline") / "run"
    flags = (binaries.TINY, f"--workdir={workdir}")
    out, err = binaries.run("unlearn_jax.pipeline", *flags, **LIKE)
    return workdir, out, err


def test_ends_with_a_table_and_the_path_of_the_report(finished):
    workdir, out, err = finished
    assert (workdir / "report.html").stat().st_size > 10_000
    assert out.rstrip().endswith(f"Report: {workdir / 'report.html'}")
    for model in ("original", "unlearned", "retrained"):
        assert model in out
    for stage in ("original: pretrain", "unlearned: decouple", "unlearned: retain",
                  "retrained: pretrain", "audit", "evaluate"):  # fmt: skip
        assert stage in err  # progress bars
    assert "Traceback" not in err


def test_results_have_every_model_set_and_metric_with_interval_and_n(finished):
    workdir, _, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    split = splits.load(workdir / "original" / "split.json")
    n = {"forget": len(split.forget), "retain": 40, "holdout": len(split.audit)}
    assert results["split"]["n"]["forget"] == n["forget"] == 250
    examples = np.load(workdir / "examples.npz")
    for model in ("original", "unlearned", "retrained"):
        for name in ("forget", "retain", "holdout"):
            metrics = results["evaluation"][model][name]
            expected = {"mse_hole", "mse_visible", "psnr", "ssim", "displacement"}
            assert set(metrics) == expected - ({"displacement"} if model == "original" else set())
            for metric, value in metrics.items():
                column = examples[f"{model}/{name}/{metric}"]
                assert value["n"] == len(column) == n[name]
                assert value["mean"] == pytest.approx(column.mean(dtype=float), rel=1e-5)
                assert value["ci_low"] < value["mean"] < value["ci_high"]
    for name in n:
        rows = examples[f"{name}/index"]
        allowed = {"retain": split.remaining, "holdout": split.audit}.get(name, split.forget)
        assert len(set(rows)) == n[name] and np.isin(rows, allowed).all()
    gap = results["gaps"]["forget"]["mse_hole"]["mean"]
    a, b = (
        results["evaluation"][m]["forget"]["mse_hole"]["mean"] for m in ("unlearned", "retrained")
    )
    assert gap == pytest.approx(a - b, abs=1e-9)
    assert results["cost"]["steps_ratio"] == 12 / 24
    assert results["certificate"] is None
    for model in ("unlearned", "retrained"):
        for name in n:
            of = results["displacement"]["models"][model][name]
            assert of["held"] == of["n"] == n[name]
            error = np.sqrt(examples[f"{model}/{name}/mse_hole"])
            rise = error - np.sqrt(examples[f"original/{name}/mse_hole"])
            assert of["example"]["lower"] == pytest.approx(abs(rise).mean(), rel=1e-4)
            assert of["example"]["measured"] > of["example"]["lower"]


def test_the_cost_is_counted_where_no_plug_in_counts_it(finished):
    workdir, out, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    assert 0.3 < results["cost"]["flops_ratio"] < 0.7  # 12 of 24 steps, of a loss or two
    assert all(stage["flops"] > 1e8 for stage in results["stages"].values())
    assert "not counted" not in (workdir / "report.html").read_text() + out


@pytest.mark.full
def test_a_certified_request_ends_with_a_report_and_a_receipt_where_no_plug_in_counts(tmp_path):
    config = f"--config={binaries.ROOT / 'tests/helpers/tiny_certified.py'}"
    out, _ = binaries.run("unlearn_jax.pipeline", config, f"--workdir={tmp_path}", **LIKE)
    assert out.rstrip().endswith(f"Report: {tmp_path / 'report.html'}")
    binaries.run("unlearn_jax.report.issue", f"--workdir={tmp_path}", "--purge", "--yes")
    out, _ = binaries.run("unlearn_jax.report.verify", str(tmp_path), **LIKE)
    assert "what had to go is gone" in out and not (tmp_path / "original").exists()


def test_the_audits_are_in_the_results_and_on_the_page(finished):
    workdir, _, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    audit = json.loads((workdir / "audit.json").read_text())
    assert results["audit"] == audit and audit["shadows"] == 1
    assert audit["models"] == ["original", "unlearned", "retrained", "shadow1"]
    for model in ("original", "unlearned", "retrained"):
        error = audit["witnesses"]["forget_error"]["models"][model]
        assert error["ci_low"] < error["value"] < error["ci_high"] and error["n"] == 60
    assert "set poison.fraction" in audit["witnesses"]["backdoor"]["reason"]
    assert len(audit["witnesses"]["resurfacing"]["variants"]) == 2
    # 24 steps of a tiny model: there is nothing to forget, and nobody may say that it is forgotten
    assert audit["conclusion"]["word"] == "not tested" and not audit["gate"]["passed"]
    page = (workdir / "report.html").read_text()
    assert "Not tested: there is nothing to forget that we could measure" in page
    assert "Membership, own views" in page and "set poison.fraction" in page


def test_the_three_models_share_one_split(finished):
    workdir, _, _ = finished
    texts = {
        (workdir / m / "split.json").read_text() for m in ("original", "unlearned", "retrained")
    }
    assert len(texts) == 1


def test_given_again_it_does_nothing_twice(finished):
    workdir, _, _ = finished
    before = json.loads((workdir / "results.json").read_text())
    flags = (binaries.TINY, f"--workdir={workdir}", "--fail_unless=not_refuted")
    _, err = binaries.run("unlearn_jax.pipeline", *flags, code=3, **LIKE)
    assert "pretrain" not in err and "decouple" not in err
    assert err.rstrip().endswith("--fail_unless=not_refuted: not tested.")
    after = json.loads((workdir / "results.json").read_text())
    assert before | {"created": 0} == after | {"created": 0}


@pytest.mark.full
def test_an_original_trained_elsewhere_is_used_and_not_trained(finished, tmp_path):
    workdir, _, _ = finished
    elsewhere = f"--config.init_from={workdir / 'original'}"
    _, err = binaries.run("unlearn_jax.pipeline", binaries.TINY, f"--workdir={tmp_path}", elsewhere)
    assert "original: pretrain" not in err and not (tmp_path / "original").exists()
    before = json.loads((workdir / "results.json").read_text())
    after = json.loads((tmp_path / "results.json").read_text())
    assert set(after["stages"]) == {"unlearned", "retrained"}
    assert after["evaluation"] == before["evaluation"]


def test_models_of_another_request_are_not_evaluated(finished):
    workdir, _, _ = finished
    flags = (binaries.TINY, f"--workdir={workdir}", "--config.request.seed=5")
    _, err = binaries.run("unlearn_jax.evaluate", *flags, code=1)
    assert "unlearned/split.json is not the split of this config's request" in err


def test_evaluate_without_models_says_what_is_missing(tmp_path):
    _, err = binaries.run("unlearn_jax.evaluate", binaries.TINY, f"--workdir={tmp_path}", code=1)
    assert "error: Expected a trained model in" in err and "Traceback" not in err
