"""Eight fake CPU devices, and run-time checks of shapes and types, for every test."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from importlib.metadata import version

os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8")
# Fake devices share threads: collectives of two programs in flight could wait for each other.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"
# Tests compile for longer than they compute. Eight devices share two cores with another worker: one
# that is late by XLA's default of 40 seconds would end the process.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        # Without them a step for eight devices compiles in a third of the time. Later there is no
        # way without.
        "--xla_cpu_use_fusion_emitters=false" * (version("jaxlib") < "0.11"),
        "--xla_cpu_collective_call_terminate_timeout_seconds=300",
    ]
)
# Many tests compile the same programs, some in processes of their own, small ones included: without
# those, a process that trains takes a quarter longer to start. The workers of a run share a folder,
# which its first process makes; nothing in it is of another day, hashes of images neither.
if "PYTEST_XDIST_WORKER" not in os.environ:
    cache = tempfile.mkdtemp(prefix="unlearn_jax_compiled_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=cache,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="0",
        XDG_CACHE_HOME=f"{cache}/user",
    )

gc.set_threshold(100_000, 50, 50)  # tracing makes many objects and little garbage

import pytest
from jaxtyping import install_import_hook

install_import_hook("unlearn_jax", "beartype.beartype")

LONGEST = ("rehearsal", "train", "readme", "compare", "meshes", "multiprocess", "pipeline")
LONGEST += ("sequence",)


PROCESS = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system")  # audit events


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="leave out what is marked long or starts a process"
    )


def pytest_collection_modifyitems(config, items):
    """The longest files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)
    if config.option.quick:
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("long")])
        items[:] = [i for i in items if not i.get_closest_marker("long")]


@pytest.fixture(scope="session", autouse=True)
def without_processes(pytestconfig):
    """With --quick, a test is skipped where it would start a process: none needs to be named."""

    def skip(event, _):
        if event in PROCESS:
            pytest.skip("starts a process")

    if pytestconfig.option.quick:
        sys.addaudithook(skip)


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory):
    """(workdir, record) of a finished original of helpers/tiny.py, which each worker trains once.

    Who goes on in its folder copies it.
    """
    from tests.helpers import tiny  # after the hook above
    from unlearn_jax import train

    workdir = tmp_path_factory.mktemp("tiny") / "original"
    return workdir, train.run(tiny.get_config(), workdir)
