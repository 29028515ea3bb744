"""The binary: for the devices that are here, and what it says where it cannot."""

import importlib.util
import json

import pytest

from launch.aot import __main__ as aot
from launch.aot import child
from tests.helpers import binaries

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def test_a_report_for_this_machines_devices():
    out, err = binaries.run(
        "launch.aot", binaries.TINY, "--topology=local", "--mesh=1:2", "--batch=16", "--json"
    )
    found = json.loads(out)
    assert "compiling sampler, batch 64, for local" in err
    assert (found["chips"], found["mesh"]) == (2, {"data": 1, "fsdp": 2})
    assert found["phase"] == "decouple" and found["parameters"] == found["trained"] == 18_403
    step, evaluation, sampler = (found["programs"][name] for name in aot.PROGRAMS)
    # Parameters and their target (SGD has no moments), two counters and the key.
    assert step["state_bytes"] == 2 * 4 * 18_403 + 4 + 4 + 8
    assert step["batch_per_chip"] == 8 and sampler["batch_per_chip"] == 32
    assert step["collectives"]["all-reduce"]["bytes"] >= 4 * 18_403  # the gradient
    assert step["flops"] > evaluation["flops"] * 16 / 64 > 0
    for program in (step, evaluation, sampler):
        assert program["peak_bytes"] >= program["argument_bytes"] > 0
        assert program["fits"] and program["moved_bytes"] > 0 and not program["unknown_loops"]
    assert "largest" not in found and found["chip"] is None  # a CPU's memory is anybody's guess


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_what_is_missing_is_said():
    _, err = binaries.run("launch.aot", binaries.TINY, "--topology=v5e:4x4", code=1)
    assert "pip install 'unlearn_jax[tpu]'" in err and "Traceback" not in err


@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu, of the extra tpu, is not installed")
def test_a_report_for_a_tpu_slice():
    out, _ = binaries.run(
        *("launch.aot", binaries.TINY, "--topology=v5e:2x2", "--batch=16", "--json", "--quick"),
        *("--programs=step", "--nosearch"),
    )
    found = json.loads(out)
    assert found["device_kind"] == "TPU v5 lite" and found["chips"] == 4
    step = found["programs"]["step"]
    assert step["fits"] and step["bound_by"] and 0 < step["mfu_bound"] < 1


def test_a_process_that_died_is_named():
    said = "noise\n" * 20 + "F0000 check failed"
    text = child._failure(-6, said, "compiling step, batch 8, for v5e:4x4")
    assert "SIGABRT while compiling step, batch 8" in text and text.endswith("check failed")


def test_a_users_mistake_in_the_child_is_the_message():
    said = "W noise\nerror: Expected a batch_size divisible by 2.\nSet it.\n(--traceback shows …)"
    assert child._failure(1, said, "starting") == "Expected a batch_size divisible by 2.\nSet it."
