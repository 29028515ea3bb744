"""What the loop costs beside its steps: no waiting for the device, and where its time went."""

import gzip
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unlearn_jax.request
from tests.helpers import tiny
from unlearn_jax import data, files, models, sharding, train
from unlearn_jax.config.validation import validate
from unlearn_jax.methods import tokens
from unlearn_jax.methods.tokens import check_frozen
from unlearn_jax.request import Request
from unlearn_jax.training import log as metrics

pytestmark = pytest.mark.long


def tiny_mage():
    cfg = tiny.get_config()
    cfg.model = {
        "name": "mage", "image_size": 32, "dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16,
        "decoder_depth": 1, "decoder_heads": 2, "class_slots": 4,
        "tokenizer": {"ch": 8, "ch_mult": (1, 1, 1), "res_blocks": 1, "z_dim": 4, "codebook": 16,
                      "groups": 4},
    }  # fmt: skip
    cfg.batch_size, cfg.data.train_rows = 8, 200
    cfg.phases.calibrated.objective_kw.direction = 0.0
    cfg.phases.pretrain.cache_tokens = True
    return cfg


def watch_the_host(patch):
    """A list that grows whenever the host fetches from the device or waits for it."""
    found, array = [], type(jnp.zeros(()))
    fetch, wait = array._value, jax.block_until_ready

    def fetching(self):
        found.append("fetch")
        return fetch.fget(self)

    def waiting(tree):
        found.append("wait")
        return wait(tree)

    patch.setattr(array, "_value", property(fetching))
    patch.setattr(jax, "block_until_ready", waiting)
    value = jax.device_put(1.0, sharding.replicated(sharding.make_mesh()))  # as metrics are
    for way in (float, np.asarray, jax.device_get, jax.block_until_ready):
        before = len(found)
        way(value + 1)
        assert len(found) > before, f"{way} is not noticed"
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run of 24 steps and what was seen of it. Its model has no codes, and compiles quickly."""
    cfg, folder = tiny.get_config(), tmp_path_factory.mktemp("loop")
    cfg.log_every, cfg.checkpoint.every = 8, 12
    cfg.phases.pretrain.update({"probe_every": 8, "cache_tokens": True})
    seen = SimpleNamespace(cfg=cfg, workdir=folder / "run", trace=folder / "trace", fetches=[])
    add, make_train = metrics.IntervalLog.add, data.make_train
    with pytest.MonkeyPatch.context() as patch:
        fetches = watch_the_host(patch)

        def spy_add(log, values):
            add(log, values)
            seen.fetches.append(len(fetches))  # of all that happened until this step was queued

        def spy_make_train(source, *, columns, **options):
            seen.columns, seen.source = columns, source
            return make_train(source, columns=columns, **options)

        def made(request, params, rows):
            seen.rows, seen.split = rows, request.split
            return {"tokens": np.zeros((len(request.source), 4), np.int32)}, 1e9

        patch.setattr(metrics.IntervalLog, "add", spy_add)
        patch.setattr(data, "make_train", spy_make_train)
        patch.setattr(tokens, "make", made)
        patch.setattr(unlearn_jax.request, "validate", lambda cfg: None)
        seen.meta = train.run(cfg, seen.workdir, profile=str(seen.trace))
    return seen


def test_the_host_waits_for_the_device_only_where_it_must(watched):
    counts = watched.fetches
    assert len(counts) == 24
    # 5, 10: the trace; 12: a checkpoint; 16: metrics, one interval late, and what was probed. 24:
    # after the last step.
    assert {step for step in range(1, 24) if counts[step] > counts[step - 1]} == {5, 10, 12, 16}


def test_the_time_of_a_step_is_told_by_part(watched):
    lines = files.read_jsonl(watched.workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [8, 16, 24]
    for line in lines:
        parts = [line[f"{part}_s"] for part in metrics.PARTS]
        assert min(parts) >= 0 and line["dispatch_s"] > 0
        np.testing.assert_allclose(sum(parts), 32 / line["examples_per_s"], rtol=1e-4)
    assert [line["save_s"] > 0 for line in lines] == [False, True, False]


def test_profile_writes_a_trace(watched):
    (trace,) = watched.trace.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert "ThunkExecutor::Execute" in {event.get("name") for event in events}  # XLA ran something
    assert list(watched.trace.glob("plugins/profile/*/*.xplane.pb"))


def test_a_phase_gets_codes_of_the_rows_that_it_uses(watched):
    assert watched.columns["tokens"].shape == (len(watched.source), 4)
    np.testing.assert_array_equal(watched.rows, watched.split.train)  # no forget rows: weight 0
    assert watched.meta["flops"] > 1e9
    watched.cfg.phases.pretrain.cache_tokens = False  # another run than one that caches
    with pytest.raises(ValueError, match="cache_tokens: True -> '.absent.'"):
        train.run(watched.cfg, watched.workdir)


def test_codes_are_those_that_the_model_would_make():
    request = Request(tiny_mage())
    params = jax.jit(request.model.init)(jax.random.key(0))
    rows = request.split.train[:21]  # two batches and a part of one
    columns, flops = tokens.make(request, params, rows)
    images = jnp.asarray(request.source.fetch(rows) / 127.5 - 1, jnp.float32)
    batch = {"image": images}
    codes = jax.jit(request.model.tokens)(params, batch)
    np.testing.assert_array_equal(columns["tokens"][rows], codes)
    assert len(np.unique(codes)) > 1 and flops > 0
    assert not np.delete(columns["tokens"], rows, axis=0).any()
    given = jnp.zeros_like(codes)
    assert request.model.tokens(params, {**batch, "tokens": given}) is given
    assert "tokens" not in models.with_image({**batch, "tokens": given}, -images)


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
    validate(cfg)
    cfg.phases.pretrain.objective = "tokenizer"
    cfg.data.augment.name, cfg.data.cache = "random_resized_crop", False
    with pytest.raises(ValueError) as error:
        validate(cfg)
    assert "pretrain.cache_tokens: the objective trains the tokenizer" in str(error.value)
    assert "pretrain.cache_tokens: data.augment makes another view" in str(error.value)
    cfg = tiny.get_config()
    cfg.phases.pretrain.cache_tokens = True
    with pytest.raises(ValueError, match="cache_tokens: 'autoencoder' computes from images"):
        validate(cfg)
