"""What the loop costs beside its steps: no waiting for the device, and where its time went."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from unlearn_jax import metrics, sharding, train
from unlearn_jax.tokens import check_frozen
from unlearn_jax.validation import validate


@pytest.fixture
def fetches(monkeypatch):
    """[(values that the host fetched from the device, or waited for)], as they happen."""
    found, array = [], type(jnp.zeros(()))
    fetch, wait = array._value, jax.block_until_ready

    def fetching(self):
        found.append("fetch")
        return fetch.fget(self)

    def waiting(tree):
        found.append("wait")
        return wait(tree)

    monkeypatch.setattr(array, "_value", property(fetching))
    monkeypatch.setattr(jax, "block_until_ready", waiting)
    value = jax.device_put(1.0, sharding.replicated(sharding.make_mesh()))  # as metrics are
    for way in (float, np.asarray, jax.device_get, jax.block_until_ready):
        before = len(found)
        way(value + 1)
        assert len(found) > before, f"{way} is not noticed"
    found.clear()
    return found


def test_the_host_waits_for_the_device_only_where_it_must(tmp_path, monkeypatch, fetches):
    cfg = tiny.get_config()
    cfg.log_every, cfg.checkpoint.every = 8, 12
    cfg.phases.pretrain.probe_every = 8  # what is probed is fetched with the metrics
    seen, add = [], metrics.IntervalLog.add

    def spy(log, values):
        add(log, values)
        seen.append(len(fetches))  # of all that happened until this step was queued

    monkeypatch.setattr(metrics.IntervalLog, "add", spy)
    train.run(cfg, tmp_path / "run", profile=str(tmp_path / "trace"))
    new = {step for step in range(1, 24) if seen[step] > seen[step - 1]}
    # 5, 10: the trace; 12: a checkpoint; 16: metrics, one interval late. 24: after the last step.
    assert new == {5, 10, 12, 16}

    lines = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [8, 16, 24]
    for line in lines:
        parts = [line[f"{part}_s"] for part in metrics.PARTS]
        assert min(parts) >= 0
        np.testing.assert_allclose(sum(parts), 32 / line["examples_per_s"], rtol=1e-4)
    assert [line["save_s"] > 0 for line in lines] == [False, True, False]
    (trace,) = (tmp_path / "trace").glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    calls = [
        e for e in events if "PjitFunction" in e.get("name", "") or "Execute" in e.get("name", "")
    ]
    assert calls
    assert list((tmp_path / "trace").glob("plugins/profile/*/*.xplane.pb"))


def tiny_mage():
    cfg = tiny.get_config()
    cfg.model = {
        "name": "mage", "image_size": 32, "dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16,
        "decoder_depth": 1, "decoder_heads": 2, "class_slots": 4,
        "tokenizer": {"ch": 8, "ch_mult": (1, 1, 1), "res_blocks": 1, "z_dim": 4, "codebook": 16,
                      "groups": 4},
    }  # fmt: skip
    cfg.phases.calibrated.objective_kw.direction = 0.0
    cfg.phases.pretrain.update({"steps": 3, "probe_every": 0})
    cfg.batch_size, cfg.log_every, cfg.checkpoint.every = 8, 1, 100
    return cfg


def test_cached_codes_train_the_same_model_without_the_tokenizer(tmp_path):
    cfg, found = tiny_mage(), {}
    for cached in (False, True):
        cfg.phases.pretrain.cache_tokens = cached
        folder = tmp_path / str(cached)
        meta = train.run(cfg, folder)
        losses = [line["loss"] for line in metrics.read_jsonl(folder / "metrics.jsonl")]
        found[cached] = losses, meta["flops"]
    assert len(found[True][0]) == 3 and len(set(found[True][0])) == 3
    np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-4)
    cfg.phases.pretrain.steps = 4  # a run that cached is another run than one that did not
    with pytest.raises(ValueError, match="steps: 3 -> 4"):
        train.run(cfg, tmp_path / "True")
    cfg.phases.pretrain.steps = 3
    with pytest.raises(ValueError, match="cache_tokens: '.absent.' -> True"):
        train.run(cfg, tmp_path / "False")


def test_codes_are_cached_only_where_they_stay_right():
    cfg = tiny_mage()
    trained = {"vqgan": {"encoder": {"kernel": 0}}, "encoder": {"kernel": 0}}
    phase = cfg.phases.pretrain
    check_frozen(trained, phase)
    phase.optimizer.weight_decay = 0.1
    with pytest.raises(ValueError, match=r"moves the tokenizer \(1 leaves such as 'vqgan/encoder"):
        check_frozen(trained, phase)
    check_frozen({"encoder": trained["encoder"]}, phase)
    phase.optimizer.no_decay = ("vqgan/.*",)
    check_frozen(trained, phase)
    phase.noise.std = 0.1
    with pytest.raises(ValueError, match="no_decay"):
        check_frozen(trained, phase)

    cfg = tiny_mage()
    cfg.phases.pretrain.cache_tokens = True
    validate(cfg)
    cfg.phases.pretrain.objective = "tokenizer"
    cfg.data.augment.name, cfg.data.cache = "random_resized_crop", False
    with pytest.raises(ValueError) as error:
        validate(cfg)
    assert "pretrain.cache_tokens: the objective trains the tokenizer" in str(error.value)
    assert "pretrain.cache_tokens: data.augment makes another view" in str(error.value)
    cfg = tiny.get_config()
    cfg.phases.pretrain.cache_tokens = True
    with pytest.raises(ValueError, match="cache_tokens: 'autoencoder' has no tokenizer"):
        validate(cfg)
