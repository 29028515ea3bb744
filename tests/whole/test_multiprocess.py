"""Jobs of several processes on this machine: same numbers, no hang, nothing left behind.

The gate runs the smallest jobs; `pytest -m full tests/whole/test_multiprocess.py` runs jobs of
four processes, whole requests and the certified phase too.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tests.helpers import binaries, sliced, tiny
from unlearn_jax import distributed, registry
from unlearn_jax.evaluate import results

TRAIN, DELETE = "unlearn_jax.train", "unlearn_jax.certify.exact.delete"
STEPS = 40
LONGER = (
    binaries.TINY, f"--config.phases.pretrain.steps={STEPS}", "--config.checkpoint.every=10",
    "--config.phases.pretrain.probe_every=20", "--config.request.fraction=0.02",
)  # fmt: skip


def sums(workdir):
    """Checksums of parameters, optimizer and key of the last checkpoint, and its step."""
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    meta = json.loads((workdir / "checkpoints" / str(newest) / "meta/metadata").read_text())
    return meta["step"], meta["checksums"]


def wait_until(job, ready):
    while all(process.poll() is None for process in job) and not ready():
        time.sleep(0.02)


def logged(workdir, after=0):
    log = workdir / "metrics.jsonl"
    return lambda: log.exists() and log.stat().st_size > after


def shared_memory():
    return set(os.listdir("/dev/shm"))


def descendants(pid):
    """Processes that this one has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found += [int(stat.parent.name)] if parent == pid else []
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with two devices makes without being disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "original"
    binaries.run(TRAIN, *LONGER, f"--workdir={workdir}")
    return workdir


def test_sigterm_a_dead_peer_and_other_process_counts_change_no_bit(alone, tmp_path):
    workdir, memory = tmp_path / "job", shared_memory()
    given = [*LONGER, f"--workdir={workdir}"]

    # One process is told to stop: both save the same step. They share one lease.
    job = binaries.start_job(TRAIN, *given, processes=2)
    wait_until(job, logged(workdir))
    assert [descendants(process.pid) for process in job] == [[], []]  # data comes from threads
    assert json.loads((workdir / "lease.json").read_text())[0][2] == job[0].pid
    job[1].send_signal(signal.SIGTERM)
    (first, _, err), (second, _, other) = binaries.ended(job)
    stopped, _ = sums(workdir)
    assert first == second == 75 and 0 < stopped < STEPS, err + other
    assert f"Stopped by another process, saved at step {stopped}" in err
    assert f"Stopped by SIGTERM, saved at step {stopped}" in other

    # One process dies: the other ends within seconds, with a code that tells of it.
    size = (workdir / "metrics.jsonl").stat().st_size
    job = binaries.start_job(TRAIN, *given, processes=2)
    wait_until(job, logged(workdir, after=size))
    job[1].kill()
    began = time.monotonic()
    (code, _, err), _ = binaries.ended(job, timeout=60)
    assert code not in (0, 1), err
    assert time.monotonic() - began < 30  # 10 s, on a busy machine

    # One process with the devices of both goes on, as if nothing had happened.
    binaries.run(TRAIN, *given)
    assert sums(workdir) == sums(alone) and sums(alone)[0] == STEPS
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS
    left = [list(workdir.rglob(name)) for name in ("*tmp*", "*.partial*", "lease*")]
    assert left == [[], [], []]
    assert shared_memory() <= memory


def test_all_hear_the_first_and_one_of_them_can_say_no():
    job = binaries.start_job("tests.helpers.agreement", processes=2)
    found = []
    for code, out, err in binaries.ended(job):
        assert code == 0, err
        found.append(json.loads(out.splitlines()[-1]))  # after what gloo says
    assert [one.pop("first") for one in found] == [True, False]
    expected = {"agreed": {"of": 0, "text": "ü"}, "everywhere": [True, False, False, False]}
    assert found == [expected | {"fetched": [0, 1]}] * 2


def test_two_processes_evaluate_as_one(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "original")
    given = (*LONGER, f"--workdir={tmp_path}")
    (_, out, _), (_, silent, bars) = binaries.run_job("unlearn_jax.evaluate", *given, processes=2)
    assert "Wrote" in out and "Wrote" not in silent and "evaluate" not in bars
    found, arrays = read(tmp_path)
    cfg = tiny.get_config()
    cfg.phases.pretrain.steps, cfg.request.fraction = STEPS, 0.02
    results.run(cfg, tmp_path)
    expected, others = read(tmp_path)
    assert found["stages"] == expected["stages"] and arrays.keys() == others.keys()
    for name, values in others.items():
        tolerance = 2 if values.dtype == np.uint8 else 1e-4  # other programs, other rounding
        np.testing.assert_allclose(arrays[name], values, atol=tolerance, rtol=1e-4)


def read(workdir):
    arrays = dict(np.load(workdir / "examples.npz")) | dict(np.load(workdir / "grids.npz"))
    return json.loads((workdir / "results.json").read_text()), arrays


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--coordinator=localhost:1"], "all of --coordinator=HOST:PORT --num_processes=N"),
        (["--distributed", "--process_id=0"], "either --distributed, or all of"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], r"expected 0\.\.1 of 2"),
        (["--coordinator=h", "--num_processes=2", "--process_id=0"], "HOST:PORT, got 'h'"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(given, message):
    values = flags.FlagValues()
    distributed.define_flags(values)
    values(["binary", *given])
    with pytest.raises(ValueError, match=message):
        distributed.start(values)


def test_a_lost_peer_is_no_mistake_of_the_user():
    gloo = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    wrapped = OSError("Could not write a checkpoint")
    wrapped.__cause__ = gloo
    assert distributed.exit_code(gloo) == distributed.exit_code(wrapped) == registry.AGAIN
    assert distributed.exit_code(ValueError("batch_size: UNKNOWN")) == 1
    assert distributed.exit_code(registry.DamagedError("of all processes")) == 4


@pytest.mark.full
def test_nobody_to_find_is_one_message(tmp_path):
    given = [binaries.TINY, f"--workdir={tmp_path}", "--distributed"]
    _, err = binaries.run(TRAIN, *given, code=1)
    assert "error: The processes of this job did not find each other" in err
    assert "Traceback" not in err


@pytest.mark.full
@pytest.mark.parametrize("layout", [(4, 1), (2, 2), (1, 4)])
def test_any_split_of_four_devices_gives_the_same_bits(layout, tmp_path_factory, tmp_path):
    """With --num_processes=1, too, as then the sums over devices are made by the same code."""
    processes, devices = layout
    workdir = tmp_path_factory.getbasetemp() / "four" / f"{processes}x{devices}"
    given = [*LONGER, f"--workdir={workdir}"]
    binaries.run_job(TRAIN, *given, processes=processes, devices=devices)
    assert sums(workdir) == sums(workdir.parent / "4x1")


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_peer_that_hangs_is_given_up(victim, tmp_path):
    """Its connections stay open, so only its silence tells."""
    job = binaries.start_job(TRAIN, *LONGER, f"--workdir={tmp_path}", processes=2)
    wait_until(job, logged(tmp_path))
    began = time.monotonic()
    job[victim].send_signal(signal.SIGSTOP)
    try:
        ((code, _, err),) = binaries.ended([job[1 - victim]], timeout=60)
    finally:
        job[victim].kill()
        job[victim].communicate()
    assert code not in (0, 1), err
    assert time.monotonic() - began < 40  # 10 s of silence, on a busy machine


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 3])
def test_any_of_four_may_die_and_another_number_goes_on(victim, alone, tmp_path):
    given = [*LONGER, f"--workdir={tmp_path}"]
    job = binaries.start_job(TRAIN, *given, processes=4)
    wait_until(job, logged(tmp_path))
    job[victim].kill()
    began = time.monotonic()
    found = binaries.ended(job, timeout=60)
    assert not {0, 1} & {code for code, *_ in found}, [(code, err) for code, _, err in found]
    assert time.monotonic() - began < 40
    binaries.run(TRAIN, *given, devices=2)
    step, _ = sums(tmp_path)
    assert step == STEPS  # with other devices, so with other rounding


@pytest.mark.full
def test_an_error_of_one_process_ends_all(tmp_path):
    port, wrong = binaries.free_port(), ["--config.data.data_dir=nowhere", "--config.data.name=x"]
    job = [
        binaries.start(
            TRAIN, *LONGER, f"--workdir={tmp_path}", f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2", f"--process_id={i}", *(wrong if i else []),
        )
        for i in range(2)
    ]  # fmt: skip
    (first, *_), (second, _, err) = binaries.ended(job, timeout=100)
    assert first not in (0, 1) and second == 1 and "error: " in err, err


@pytest.mark.full
def test_a_certified_phase_draws_one_secret(alone, tmp_path):
    config = f"--config={binaries.ROOT / 'tests/helpers/tiny_certified.py'}"
    from_ = f"--config.init_from={alone}"
    binaries.run_job(TRAIN, config, from_, f"--workdir={tmp_path / 'run'}", processes=2)
    assert not (tmp_path / "run/noise.key").exists()
    out, _ = binaries.run("unlearn_jax.certify", "verify", f"--workdir={tmp_path / 'run'}")
    assert "is missing" not in out


@pytest.mark.full
def test_a_whole_request_and_its_certificate(tmp_path):
    poisoned = (binaries.TINY, "--config.poison.fraction=0.25")
    found = binaries.run_job(
        "unlearn_jax.pipeline", *poisoned, f"--workdir={tmp_path / 'two'}", processes=2
    )
    assert "Report:" in found[0][1] and found[1][1] == ""
    binaries.run("unlearn_jax.pipeline", *poisoned, f"--workdir={tmp_path / 'one'}")
    two, one = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("two", "one"))
    assert two == one
    for name in ("examples.npz", "grids.npz"):
        two, one = (dict(np.load(tmp_path / folder / name)) for folder in ("two", "one"))
        assert two.keys() == one.keys()
        for key, values in one.items():
            np.testing.assert_array_equal(two[key], values, err_msg=key)
    for stage in ("original", "unlearned", "retrained", "shadow1"):
        assert sums(tmp_path / "two" / stage) == sums(tmp_path / "one" / stage), stage


@pytest.mark.full
def test_a_job_deletes_by_replay_and_verifies_what_a_job_has_computed(tmp_path):
    cfg = tiny.get_config()
    cfg.data.slices.count = 4
    listed = sliced.write_list(tmp_path / "ids.txt", sliced.ids_of(cfg, 2, 3))
    config = (binaries.TINY, "--config.data.slices.count=4")
    before, after = tmp_path / "before", tmp_path / "after"
    for module, *given in (
        (TRAIN, *config, f"--workdir={before}"),
        (DELETE, f"--model={before}", f"--request={listed}", f"--out={after}"),
        (TRAIN, *config, f"--workdir={tmp_path / 'without'}", "--config.stage=retrained",
         "--config.request.kind=ids", f"--config.request.file={listed}"),
    ):  # fmt: skip
        binaries.run_job(module, *given, processes=2)
    assert sums(after) == sums(tmp_path / "without") != sums(before)
    given = ("unlearn_jax.report.verify", f"--workdir={after}", "--replay=all")
    (_, out, _), (_, silent, _) = binaries.run_job(*given, processes=2)
    assert out.count("the same bits") == 5 and "ε = 0" in out and "Verified" not in silent
