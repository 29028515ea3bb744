import json
import random
import re
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import binaries, tiny
from unlearn_jax import checkpoint, data, files, models, train
from unlearn_jax import methods as objectives

pytestmark = pytest.mark.long


def params_of(workdir):
    cfg = tiny.get_config()
    model = models.build(**cfg.model.to_dict())
    like = jax.eval_shape(model.init, jax.random.key(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), like)
    return jax.tree.map(np.asarray, checkpoint.load_params(workdir, like)[0])


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x != y).any()), a, b)))


@pytest.fixture(scope="module")
def original(tiny_original, tmp_path_factory):
    """A finished original: (workdir, record)."""
    workdir = tmp_path_factory.mktemp("runs") / "original"
    return shutil.copytree(tiny_original[0], workdir), tiny_original[1]


def unlearned(original, **changes):
    cfg = tiny.get_config()
    cfg.stage, cfg.init_from = "unlearned", str(original[0])
    cfg.update_from_flattened_dict(changes)
    return cfg


def test_a_finished_run_is_left_alone(original):
    workdir, meta = original
    assert meta["step"] == 24 and meta["done"]
    assert meta["phases"] == [
        {"name": "pretrain", "objective": "reconstruction", "first_step": 0, "last_step": 24,
         "stopped_by": "steps"}
    ]  # fmt: skip
    before = (workdir / "metrics.jsonl").read_bytes()
    again = train.run(tiny.get_config(), workdir)
    assert {key: again[key] for key in meta} == meta
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_two_runs_of_one_seed_are_bit_identical_and_another_seed_is_not(original, tmp_path):
    cfg = tiny.get_config()
    train.run(cfg, tmp_path / "same")
    assert_same(params_of(original[0]), params_of(tmp_path / "same"))
    cfg.seed = 1
    train.run(cfg, tmp_path / "other")
    assert differ(params_of(original[0]), params_of(tmp_path / "other"))


def test_phases_run_in_order_from_the_original(original, tmp_path):
    meta = train.run(unlearned(original), tmp_path / "run")
    assert [(p["name"], p["first_step"], p["last_step"]) for p in meta["phases"]] == [
        ("decouple", 0, 6),
        ("retain", 6, 12),
    ]
    assert meta["examples"] == 12 * 32
    lines = files.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == sorted({3, 4, 6, 8, 9, 12})
    for line in lines:
        # a phase computes no term whose weight is zero
        assert ("forget" in line) == (line["phase"] == "decouple")
        assert ("retain" in line) == (line["phase"] == "retain")
    probed = [line for line in lines if "displacement" in line]
    assert [line["step"] for line in probed] == [4, 8, 12]
    assert all(line["displacement"] > 0 for line in probed)
    before = files.read_jsonl(original[0] / "metrics.jsonl")[-1]["probe_forget"]
    assert (
        probed[0]["probe_forget"] > before
    )  # the ascent ascends, on rows that are always the same


@pytest.mark.parametrize("metric", ["displacement", "forget_over_holdout"])
def test_stop_rule_ends_the_phase_and_the_reason_is_kept(original, tmp_path, metric):
    cfg = unlearned(original)
    cfg.phases.decouple.steps = 40
    cfg.phases.decouple.stop = {"metric": metric, "at_least": 1e-6}
    meta = train.run(cfg, tmp_path / "run")
    assert meta["phases"][0]["last_step"] == 4  # the first probe
    assert re.fullmatch(rf"{metric} [\d.e-]+ >= 1e-06", meta["phases"][0]["stopped_by"])
    assert meta["phases"][1]["first_step"] == 4 and meta["step"] == 10


@pytest.mark.full
def test_one_and_eight_devices_agree(original, tmp_path):
    """The subprocess has two devices, this one eight."""
    binaries.run("unlearn_jax.train", binaries.TINY, f"--workdir={tmp_path / 'two'}")
    binaries.run(
        "unlearn_jax.train", binaries.TINY, f"--workdir={tmp_path / 'fsdp'}",
        "--config.mesh.fsdp=2", "--config.mesh.data=1", "--config.sharding.min_bytes=0",
    )  # fmt: skip
    for other in ("two", "fsdp"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
            params_of(original[0]),
            params_of(tmp_path / other),
        )


def test_resume_continues_bit_for_bit_in_the_middle_of_a_phase(original, tmp_path):
    # A phase that starts elsewhere (shrink) must not start there a second time.
    reference, shrunk = tmp_path / "whole", {"phases.retain.shrink.alpha": 0.3}
    train.run(unlearned(original, **shrunk), reference)
    for stop_at in (2, 6, 8):  # in decouple, at its end, in retain
        part = tmp_path / f"part{stop_at}"
        shutil.copytree(reference, part)
        run_until(unlearned(original, **shrunk), part, stop_at)
        meta = train.run(unlearned(original, **shrunk), part)
        assert meta["step"] == 12 and meta["examples"] == 12 * 32
        assert [p["name"] for p in meta["phases"]] == ["decouple", "retain"]
        assert_same(params_of(reference), params_of(part))
        steps = [line["step"] for line in files.read_jsonl(part / "metrics.jsonl")]
        assert steps == sorted(set(steps)) and steps[-1] == 12


def test_a_teacher_is_what_the_phase_began_with_and_is_kept_while_it_runs(original, tmp_path):
    """Distilling from itself moves nothing; resumed, from the very same model."""
    own = {"phases.retain.objective": "distil", "phases.retain.teacher": "before"}
    own |= {"phases.decouple.steps": 4}
    train.run(unlearned(original, **own), tmp_path / "itself")
    decoupled = {"stages.unlearned.phases": ("decouple",), "phases.decouple.steps": 4}
    train.run(unlearned(original, **decoupled), tmp_path / "decoupled")
    assert_same(params_of(tmp_path / "itself"), params_of(tmp_path / "decoupled"))
    assert not (tmp_path / "itself" / "teacher").exists()
    own |= {"phases.retain.shrink.alpha": 0.3}
    train.run(unlearned(original, **own), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    run_until(unlearned(original, **own), tmp_path / "part", 6)
    assert (tmp_path / "part" / "teacher").exists()
    train.run(unlearned(original, **own), tmp_path / "part")
    assert_same(params_of(tmp_path / "whole"), params_of(tmp_path / "part"))
    assert differ(params_of(tmp_path / "whole"), params_of(tmp_path / "decoupled"))


def test_rewinding_starts_from_an_earlier_checkpoint_of_the_original(original, tmp_path):
    cfg = unlearned(original, **{"stages.unlearned.phases": ("retain",), "phases.retain.steps": 0})
    cfg.phases.retain.rewind = 0.92  # the tiny original keeps those of steps 22 and 24
    train.run(cfg, tmp_path / "run")
    assert differ(params_of(tmp_path / "run"), params_of(original[0]))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
                        params_of(original[0]))  # fmt: skip
    assert_same(
        params_of(tmp_path / "run"),
        jax.tree.map(np.asarray, checkpoint.load_params(original[0], like, step=22)[0]),
    )
    cfg.phases.retain.rewind = 0.5
    with pytest.raises(ValueError, match=r"expected a checkpoint of .* near step 12.*\[22, 24\]"):
        train.run(cfg, tmp_path / "other")


@pytest.mark.full
def test_saliency_and_combine_resume_bit_for_bit_and_keep_the_frozen_weights(original, tmp_path):
    cfg = unlearned(original)
    for phase in cfg.phases.decouple, cfg.phases.retain:
        phase.saliency = 0.3
        phase.optimizer.weight_decay = 0.1
    cfg.phases.decouple.update(retain_weight=1.0, combine="orthogonal")
    train.run(cfg, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    run_until(cfg, tmp_path / "part", 4)
    train.run(cfg, tmp_path / "part")
    assert_same(params_of(tmp_path / "whole"), params_of(tmp_path / "part"))
    before, after = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params_of(workdir))])
        for workdir in (original[0], tmp_path / "whole")
    )
    assert 0.25 < (before != after).mean() <= 0.3 + 1 / len(before)


def run_until(cfg, workdir, step):
    """Leaves workdir as if the run had been killed after its checkpoint of this step."""
    shutil.rmtree(workdir / "checkpoints")

    class Killed(Exception):
        pass

    save = checkpoint.save

    def save_and_die(manager, params, opt, meta):
        save(manager, params, opt, meta)
        if meta["step"] >= step:
            raise Killed

    checkpoint.save = save_and_die
    try:
        train.run(cfg, workdir)
    except Killed:
        return
    finally:
        checkpoint.save = save
    raise AssertionError("was not killed")


@pytest.mark.full
def test_sigkill_at_random_instants_changes_nothing(original, tmp_path):
    """Kills land in start-up, steps, background saves and renames: a save is due every 2 steps."""
    flags = [
        binaries.TINY,
        f"--workdir={tmp_path / 'killed'}",
        "--config.phases.pretrain.steps=200",
    ]
    binaries.run("unlearn_jax.train", flags[0], f"--workdir={tmp_path / 'whole'}", flags[2])
    rng = random.Random(0)
    resumed_at = []
    for _ in range(7):
        process = binaries.start("unlearn_jax.train", *flags)
        before = newest(tmp_path / "killed")
        while process.poll() is None and newest(tmp_path / "killed") <= before:
            time.sleep(0.002)  # until it makes progress, then strike within a few steps
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        resumed_at.append(newest(tmp_path / "killed"))
    assert resumed_at[-1] > 0 and resumed_at == sorted(resumed_at)
    binaries.run("unlearn_jax.train", *flags)
    assert_same(params_of(tmp_path / "whole"), params_of(tmp_path / "killed"))
    left = [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in left), left  # no temporary folders


def newest(workdir):
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    forever = ("--config.phases.pretrain.steps=100000", "--config.checkpoint.every=100000")
    workdir = f"--workdir={tmp_path / 'run'}"
    process = binaries.start("unlearn_jax.train", binaries.TINY, workdir, *forever)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    step = newest(tmp_path / "run")
    assert step > 0
    assert f"Stopped by SIGTERM, saved at step {step}" in err
    assert "The same command resumes" in err


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(original, tmp_path):
    cfg = unlearned(original)
    cfg.phases.decouple.steps = 400
    cfg.phases.decouple.objective_kw.forget_cap = 0.0
    cfg.phases.decouple.optimizer.update({"learning_rate": 1e4, "clip_norm_l2": 0.0})
    cfg.checkpoint.every = 1
    with pytest.raises(FloatingPointError, match=r"diverged at step \d+.*forget_cap"):
        train.run(cfg, tmp_path / "run")
    with checkpoint.open_manager(tmp_path / "run") as manager:
        steps = manager.all_steps()
    assert steps and max(steps) < 400
    finite = json.loads(
        (tmp_path / "run/checkpoints" / str(max(steps)) / "meta/metadata").read_text()
    )
    assert finite["step"] == max(steps)


def test_full_disk_is_a_clear_error_and_the_run_can_be_resumed(tmp_path):
    limit = 64 * 1024  # a file may not grow beyond it, as on a full disk

    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    wide = ["--config.model.channels=32,64,128", "--config.phases.pretrain.steps=4"]
    workdir = f"--workdir={tmp_path / 'run'}"
    wide.append("--compilation_cache=off")  # it is on a full disk, too
    _, err = binaries.run(
        "unlearn_jax.train", binaries.TINY, workdir, *wide, code=1, preexec_fn=no_large_files
    )
    assert "error: Could not write a checkpoint under" in err
    assert "checkpoints: File too large\n(" in err and "MiB are free" in err
    assert "Traceback" not in err
    binaries.run("unlearn_jax.train", binaries.TINY, workdir, *wide)


def test_what_a_user_gets_wrong_is_one_message_without_a_traceback(original, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    for flags, message in (
        ([workdir], "missing: ['--config=…']"),
        ([binaries.TINY, workdir, "--config.bach_size=8"], "Did you mean --config.batch_size?"),
        ([binaries.TINY, workdir, "--config.model.dtype=a"], "the config has, got 'model.dtype'"),
        ([binaries.TINY, workdir, "--config.batch_size=31"], "batch_size=30 or 32"),
        (["--config=nowhere.py", workdir], "nowhere.py"),
        (["--config=configs/imagenet_mage.py:rehersal", workdir], "got 'rehersal'"),
        ([binaries.TINY, "--wrkdir=runs"], "Unknown command line flag"),
        ([binaries.TINY, "--workdir=gs://bucket/run"], "--workdir: expected a path, got the URL"),
    ):  # fmt: skip
        _, err = binaries.run("unlearn_jax.train", *flags, code=1)
        assert "error: " in err and message in err, err
        assert "Traceback" not in err, err
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_it_raises_says_what_to_do(tmp_path):
    for changes, message in (
        ({"stage": "unlearned"}, "--config.init_from=WORKDIR"),
        ({"request.kind": "classes", "request.classes": ("catt",)}, "Did you mean 'cat'"),
    ):
        cfg = tiny.get_config()
        cfg.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=message):
            train.run(cfg, tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_objectives_are_told_where_the_forget_rows_are(original, tmp_path, monkeypatch):
    build, make, parts, rows = objectives.build, data.make_train, [], []

    def told(name, *, forget_part, **options):
        parts.append(np.asarray(forget_part(jnp.arange(32))))
        return build(name, forget_part=forget_part, **options)

    def made(*args, **kwargs):
        rows.append(np.flatnonzero(next(iter(make(*args, **kwargs)))["is_forget"]))
        return make(*args, **kwargs)

    monkeypatch.setattr(objectives, "build", told)
    monkeypatch.setattr(data, "make_train", made)
    train.run(unlearned(original), tmp_path / "run")
    assert rows and any(len(found) for found in rows)
    for part, found in zip(parts, rows, strict=True):
        assert set(found) <= set(part) and len(part) < len(found) + jax.device_count()


def test_another_config_in_the_same_workdir_is_refused(original):
    cfg = tiny.get_config()
    cfg.phases.pretrain.steps = 30
    with pytest.raises(ValueError, match=r"phases.pretrain.steps: 24 -> 30"):
        train.run(cfg, original[0])


def test_another_original_is_noticed(original, tmp_path):
    train.run(unlearned(original), tmp_path / "run")
    cfg = tiny.get_config()
    cfg.seed = 1
    train.run(cfg, tmp_path / "other")
    changed = unlearned(original)
    changed.init_from = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"config.init_from"):
        train.run(changed, tmp_path / "run")


def test_an_original_may_be_of_another_request_but_not_have_seen_the_holdout(original, tmp_path):
    cfg = unlearned(original)
    cfg.request.seed = 5  # other images of the same training split
    train.run(cfg, tmp_path / "run")
    cfg.holdout.split = ""  # reserved from what this original was trained on
    with pytest.raises(ValueError, match=r"was trained on \d+ of the \d+ holdout examples"):
        train.run(cfg, tmp_path / "other")
    reserved = tiny.get_config()
    reserved.holdout.split = ""
    train.run(reserved, tmp_path / "reserved")
    cfg = unlearned(original)
    cfg.init_from, cfg.request.seed = str(tmp_path / "reserved"), 5
    with pytest.raises(ValueError, match="was never trained on"):
        train.run(cfg, tmp_path / "again")
    # The pool depends on ids only: it is the same for another request, and without the test split.
    cfg.data.splits = ("train",)
    cfg.holdout.split = ""
    train.run(cfg, tmp_path / "again")


def test_config_claims_before_training(tmp_path):
    cfg = tiny.get_config()
    cfg.phases.pretrain.optimizer.name = "adma"
    with pytest.raises(ValueError, match="adma"):
        train.run(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()
