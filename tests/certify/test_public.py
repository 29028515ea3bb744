"""Which models may be the centre of a certificate: those that can be told to be public."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests.helpers import wide
from unlearn_jax import checkpoint, train
from unlearn_jax.certify import public, verify
from unlearn_jax.data import splits
from unlearn_jax.registry import UserError

pytestmark = pytest.mark.long


def get_config(stage, **values):
    config = wide.get_config()
    config.phases.pretrain.steps = 1
    config.stage = stage
    config.update(values)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with an original, a retrained model, and one derived from either, on kept rows."""
    folder = tmp_path_factory.mktemp("runs")
    for name, stage, parent in (
        ("original", "original", ""),
        ("retrained", "retrained", ""),
        ("of_original", "retrained", "original"),
        ("of_retrained", "retrained", "retrained"),
    ):
        parent = str(folder / parent) if parent else ""
        train.run(get_config(stage, init_from=parent), folder / name)
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the model derived from the retrained one, to tamper with."""
    shutil.copytree(runs / "of_retrained", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def split(runs):
    return splits.load(runs / "original" / "split.json")


def rewrite(folder, change):
    path = folder / "config.json"
    recorded = json.loads(path.read_text())
    change(recorded)
    path.write_text(json.dumps(recorded))


def test_a_model_trained_without_the_forget_rows_is_public(runs, split):
    public.check(runs / "retrained", split)
    public.check(runs / "of_retrained", split)


def test_a_model_from_elsewhere_is_an_assumption(runs, split, tmp_path):
    checkpoint.save_params(tmp_path / "elsewhere", wide.Wide().init(jax.random.key(0)))
    public.check(tmp_path / "elsewhere", split)


def test_a_model_trained_on_the_forget_rows_is_refused_and_so_is_its_child(runs, split):
    with pytest.raises(ValueError, match=r"original was trained on 250 of the 250 .* such as row"):
        public.check(runs / "original", split)
    with pytest.raises(
        ValueError, match=r"of_original, which was derived from .*original, was tra"
    ):
        public.check(runs / "of_original", split)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.update(forget_weight=0.5),
        lambda p: p.update(goal="views"),
        lambda p: p.update(saliency=0.5),
        lambda p: p["stop"].update(metric="displacement"),
    ],
)
def test_rows_that_something_was_chosen_by_count_as_seen(runs, tmp_path, split, change):
    copy = tmp_path / "retrained"
    shutil.copytree(runs / "retrained", copy)
    rewrite(copy, lambda recorded: change(recorded["config"]["phases"]["pretrain"]))
    with pytest.raises(ValueError, match="was trained on 250 of the 250"):
        public.check(copy, split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"].pop("stage"), "config.json does not say"),
        (lambda r: r["relevant"].update(rows="0"), "it is of another run than split.json"),
        (lambda r: r["config"].update(stage="original"), "it is of another run than split.json"),
        (lambda r: r["config"].update(init_from=""), "derived from '', where there is no model"),
        (lambda r: r["config"].update(init_from="gone"), "derived from 'gone', where there is no"),
        (lambda r: r["relevant"].update(init_from=[None, None]), "is not the one that .*copy was"),
        (lambda r: r["config"].update(reference_from="gone"), "derived from 'gone'"),
        (
            lambda r: (
                r["config"]["certificate"].update(centre_from="there"),
                r["config"]["phases"]["pretrain"]["noise"].update(std=1.0),
            ),
            "was noised around another model, there",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(copy, split, change, message):
    rewrite(copy, change)
    with pytest.raises(
        ValueError, match=f"can be told to never have seen the forget set.*{message}"
    ):
        public.check(copy, split)


def test_records_that_are_missing_or_go_in_circles_are_refused(copy, split, runs):
    like, meta = checkpoint.stored(copy)
    params, _ = checkpoint.load_params(copy, like)
    shutil.rmtree(copy / "checkpoints")
    with checkpoint.open_manager(copy) as manager:  # as of a version that did not bind it
        del meta["of"]
        checkpoint.save(manager, params, {"step": np.int32(0)}, meta)
    own = checkpoint.stored(copy)[1]["checksums"]
    rewrite(copy, lambda r: r["config"].update(init_from=str(copy)))
    rewrite(copy, lambda r: r["relevant"].update(init_from=[own, None]))
    with pytest.raises(ValueError, match="copy was derived from itself"):
        public.check(copy, split)
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="has split.json, but not both"):
        public.check(copy, split)


def test_rows_of_another_version_of_the_data_cannot_be_compared(runs, split):
    """Fewer rows of one data set, or the set within another, have other numbers."""
    for name, message in (
        (split.manifest["dataset"]["name"], "other examples of"),
        ("one+" + split.manifest["dataset"]["name"], "other examples of"),
        ("one", ""),
    ):
        dataset = split.manifest["dataset"] | {"name": name, "fingerprint": "other"}
        other = dataclasses.replace(split, manifest=split.manifest | {"dataset": dataset})
        if message:
            with pytest.raises(ValueError, match=message):
                public.check(runs / "retrained", other)
        else:  # that it is another one is an assumption
            public.check(runs / "retrained", other)


# ---- certified around a public model -----------------------------------------------------------


def test_an_adapter_around_public_weights(runs, tmp_path):
    """(d): all leaves but the adapter's are public, and stay so; certifier 'reference'."""
    public = wide.Wide().init(jax.random.key(99))
    past = {"requests": [], "claim": "the test"}
    checkpoint.save_params(tmp_path / "public", public, served=past)
    base = wide.get_config()
    base.model.trainable = ("decoder/.*",)
    base.stages.original.scratch = False
    base.init_from = str(tmp_path / "public")
    train.run(base, tmp_path / "original")
    settings = {"centre_from": str(tmp_path / "public"), "certifier": "reference"}
    cfg = wide.certified(base, tmp_path / "original", ("decouple", "release", "retain"), **settings)
    train.run(cfg, tmp_path / "unlearned")
    found = verify.verify(tmp_path / "unlearned")
    assert found.parameters == 3072 and found.sensitivity == 2.0
    assert "weaker" in verify.report(found)
    released = checkpoint.load_params(
        tmp_path / "unlearned", checkpoint.stored(runs / "original")[0]
    )
    np.testing.assert_array_equal(released[0]["encoder"]["scale"], public["encoder"]["scale"])

    cfg.init_from = str(runs / "original")  # whose encoder was trained on the forget set
    with pytest.raises(ValueError, match="1 leaves .* encoder/scale: .* without noise"):
        train.run(cfg, tmp_path / "leak")


def test_a_centre_trained_without_the_forget_set_is_accepted(runs, tmp_path):
    shutil.copytree(runs / "retrained", tmp_path / "retrained")
    around = {"centre_from": str(tmp_path / "retrained"), "certifier": "reference"}
    cfg = wide.certified(wide.get_config(), runs / "original", ("noisy",), **around)
    train.run(cfg, tmp_path / "unlearned")
    assert verify.verify(tmp_path / "unlearned").certifier == "reference"
    (tmp_path / "retrained" / "config.json").unlink()
    with pytest.raises(ValueError, match="can be told to never have seen the forget set"):
        verify.verify(tmp_path / "unlearned")


def test_a_centre_that_has_seen_the_forget_set_is_refused(runs, tmp_path):
    cfg = wide.certified(
        wide.get_config(), runs / "original", ("noisy",), centre_from=str(runs / "original")
    )
    with pytest.raises(ValueError, match="was trained on 250 of the 250 examples to forget"):
        train.run(cfg, tmp_path / "void")


@pytest.mark.parametrize("text", ['{"config": 3}', "[" * 100_000, "{", '{"config": {"stage": []}}'])
def test_a_record_that_does_not_say_is_a_mistake_in_words(runs, tmp_path, text):
    shutil.copy(runs / "original" / "split.json", tmp_path / "split.json")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json does not say"):
        public.check(tmp_path, splits.load(tmp_path / "split.json"))
