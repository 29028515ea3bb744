"""A process of its own for what libtpu compiles: it may end the process that it is in."""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from launch.aot.chips import Topology
from unlearn_jax.registry import UserError

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
_running: set[subprocess.Popen] = set()


def lines_of_child(argv: list[str], topology: Topology) -> Iterator[dict[str, Any]]:
    """Yield the dicts that `launch.aot` emits in its own process; "doing" says what it begins.

    Raises:
      UserError: that process failed, with what it said.
    """
    environment = dict(os.environ)
    if topology.name != "local":
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock is for those that use a TPU
            "TPU_LOG_DIR": "disabled",
            "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # these two only silence warnings
            "TPU_WORKER_HOSTNAMES": "localhost",
        }
    command = [sys.executable, "-m", "launch.aot", *argv, "--in_this_process"]
    doing = "starting"
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, env=environment, stderr=errors, **pipes) as child,
    ):
        _running.add(child)
        try:
            for line in child.stdout:
                if line.startswith("{"):
                    found = json.loads(line)
                    doing = found.get("doing", doing)
                    yield found
            child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            _running.discard(child)
        errors.seek(0)
        said = errors.read()
    if child.returncode:
        raise UserError(_failure(child.returncode, said, doing))


def kill_all() -> None:
    """End the processes of `lines_of_child`, in whichever threads they are waited for."""
    for child in list(_running):
        child.kill()


def _failure(code: int, said: str, doing: str) -> str:
    if "\nerror: " in f"\n{said}":  # a user's mistake, as cli.py says it
        message = f"\n{said}".rpartition("\nerror: ")[2]
        return message.partition("\n(--traceback")[0].strip()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = "\n".join(f"  {line}" for line in said.strip().splitlines()[-8:])
    return f"The compiling process ended with {how} while {doing}. It said last:\n{last}"


def emit(**values: Any) -> None:
    """Print facts for the process that waits."""
    print(json.dumps(values), flush=True)


def versions() -> dict[str, str | None]:
    """Return the versions of what compiles, None of what is not installed."""

    def version(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in PACKAGES}


def check_libtpu() -> None:
    """Raise ValueError, with the command that installs it, if libtpu is not there."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "Compiling for TPUs needs libtpu, which is not installed. It is in an extra: "
            "pip install 'unlearn_jax[tpu]'. (--topology=local needs nothing.)"
        )


def now() -> str:
    """Return the time, to the second, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
