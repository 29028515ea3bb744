"""What interrupts a run, refuses it or takes its workdir: nothing is lost, nothing is claimed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import binaries, tiny, tiny_compare
from unlearn_jax import checkpoint, cli, compare, files, pipeline, train
from unlearn_jax.registry import UserError
from unlearn_jax.training import lease

pytestmark = pytest.mark.long


def refused(model, params, target, batch, key):
    """An objective that has something against the config, once the first step is traced."""
    raise UserError("not with this config")


def terminated(monkeypatch, module, name, when=lambda *args: True):
    """Let SIGTERM come while this function runs."""
    function = getattr(module, name)

    def then(*args, **options):
        if when(*args):
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **options)

    monkeypatch.setattr(module, name, then)


def original_alone(workdir):
    return [path.name for path in workdir.iterdir()] == ["original"]


def test_a_signal_in_a_last_save_or_while_a_finished_stage_is_restored_ends_the_pipeline(
    tmp_path, monkeypatch
):
    for module, name, when in (
        (checkpoint, "save", lambda manager, params, opt, meta: meta["done"]),
        (checkpoint, "restore_latest", lambda *args: True),
    ):
        with monkeypatch.context() as patched, pytest.raises(cli.Interrupted, match="SIGTERM"):
            terminated(patched, module, name, when)
            pipeline.run(tiny.get_config(), tmp_path / "run")
        assert checkpoint.is_done(tmp_path / "run/original")
        assert original_alone(tmp_path / "run")  # no later stage, no lease is left


def test_a_signal_between_two_phases_loses_no_step(tmp_path, monkeypatch):
    original = tmp_path / "original"
    train.run(tiny.get_config(), original)
    cfg = tiny.get_config()
    cfg.stage, cfg.init_from, cfg.checkpoint.every = "unlearned", str(original), 100
    train.run(cfg, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(cli.Interrupted):
        terminated(patched, train, "prepare", lambda run, phase, noise: phase.index == 1)
        train.run(cfg, tmp_path / "run")
    assert checkpoint.saved_steps(tmp_path / "run") == [6]
    train.run(cfg, tmp_path / "run")
    whole, again = (checkpoint.read_meta(tmp_path / name) for name in ("whole", "run"))
    assert whole["checksums"] == again["checksums"] and again["done"]


def test_a_refused_config_claims_nothing(tmp_path):
    cfg = tiny.get_config()
    cfg.phases.pretrain.objective = "tests.whole.test_runs:refused"
    with pytest.raises(UserError, match="not with this config"):
        train.run(cfg, tmp_path / "runs/original")
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(UserError, match="not with this config"):
        train.run(cfg, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    train.run(tiny.get_config(), tmp_path / "mine")


@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "split.json"])
def test_a_workdir_that_is_taken_away_ends_the_run(how, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    save = checkpoint.save

    def then(manager, params, opt, meta):
        save(manager, params, opt, meta)
        if meta["step"] != 4:
            return
        manager.wait_until_finished()
        if how == "split.json":
            (workdir / how).unlink()
        else:
            workdir.rename(tmp_path / "moved")
        if how == "removed":
            shutil.rmtree(tmp_path / "moved")
        elif how == "replaced":
            shutil.copytree(tmp_path / "moved", workdir)
            (workdir / lease.FILE).unlink()

    monkeypatch.setattr(checkpoint, "save", then)
    with pytest.raises(UserError, match="not the folder any more|lacks split.json"):
        train.run(tiny.get_config(), workdir)
    assert not workdir.exists() or max(checkpoint.saved_steps(workdir)) == 4


def test_a_job_that_lost_its_workdir_deletes_nothing_of_the_next_one(tmp_path, monkeypatch):
    """It slept before its first step; the other job has begun there meanwhile."""

    def sleep(*args):
        (tmp_path / "checkpoints" / "2").mkdir(parents=True)
        (tmp_path / lease.FILE).write_text("of another job")
        raise UserError("awake")

    monkeypatch.setattr(train, "train_phase", sleep)
    with pytest.raises(UserError, match="awake"):
        train.run(tiny.get_config(), tmp_path)
    kept = {"config.json", "split.json", "checkpoints/2", lease.FILE}
    assert not [name for name in kept if not (tmp_path / name).exists()]


def test_a_model_without_its_split_is_not_from_elsewhere(tmp_path):
    train.run(tiny.get_config(), tmp_path / "original")
    for name in ("split.json", "config.json"):
        (tmp_path / "original" / name).unlink()
    cfg = tiny.get_config()
    cfg.stage, cfg.init_from = "unlearned", str(tmp_path / "original")
    with pytest.raises(UserError, match=r"split.json is missing: the model was trained with this"):
        train.run(cfg, tmp_path / "unlearned")
    train.run(tiny.get_config(), tmp_path / "original")  # its own command mends it
    train.run(cfg, tmp_path / "unlearned")


def test_checkpoints_of_another_seed_are_not_resumed(tmp_path):
    for seed in (0, 1):
        cfg = tiny.get_config()
        cfg.seed = seed
        train.run(cfg, tmp_path / str(seed))
    shutil.rmtree(tmp_path / "1/checkpoints")
    shutil.copytree(tmp_path / "0/checkpoints", tmp_path / "1/checkpoints")
    with pytest.raises(UserError, match="was saved by another run"):
        train.run(cfg, tmp_path / "1")


def test_what_another_job_has_is_refused(tmp_path):
    """Each command, and the shared models of a comparison; a finished model is only read."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = lease.this_process()._replace(process=other.pid, began=lease._began(other.pid))
    held = json.dumps(lease.Held(holder, "other", time.time(), time.time()))
    said = f"in use by process {other.pid} of "
    cfg = tiny_compare.get_config()
    cfg.compare.models = str(tmp_path / "models")
    try:
        for name, command in (("run", train.run), ("all", pipeline.run), ("all", compare.run)):
            files.write_text(tmp_path / name / lease.FILE, held)
            with pytest.raises(UserError, match=said):
                command(cfg, tmp_path / name)
            (tmp_path / name / lease.FILE).unlink()
        cfg.compare.seeds = (0,)
        with pytest.MonkeyPatch.context() as patched, pytest.raises(cli.Interrupted):
            terminated(patched, checkpoint, "save", lambda *args: args[-1]["done"])
            compare.run(cfg, tmp_path / "all")
        (shared,) = (tmp_path / "models").iterdir()
        files.write_text(shared / lease.FILE, held)
        assert train.run(tiny_part(cfg), shared)["done"]
        shutil.rmtree(shared / "checkpoints")
        with pytest.raises(UserError, match=f"models/original-.* is {said}"):
            compare.run(cfg, tmp_path / "all")
    finally:
        other.communicate(b"\n")


def tiny_part(cfg):
    """The config of the first shared model of a comparison."""
    part = cfg.copy_and_resolve_references()
    part.stage, part.seed = "original", 0
    return part


def test_a_killed_job_leaves_a_lease_and_the_same_command_goes_on(tmp_path):
    """The first Ctrl-C is answered, the second ends it; both with the code to start again."""
    given = (binaries.TINY, f"--workdir={tmp_path}", "--config.phases.pretrain.steps=100000")
    job = binaries.start("unlearn_jax.train", *given)
    while job.poll() is None and not checkpoint.saved_steps(tmp_path):
        time.sleep(0.01)
    job.kill()
    job.communicate()
    assert (tmp_path / lease.FILE).exists()
    job = binaries.start("unlearn_jax.train", *given)
    while job.poll() is None and f", {job.pid}," not in (tmp_path / lease.FILE).read_text():
        time.sleep(0.01)
    for _ in range(2):  # the first may be all that is needed
        job.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 75 and "Traceback" not in err, err
    assert "is taken over from process" in err
    assert "SIGINT: stopping" in err or "Stopped by SIGINT" in err
