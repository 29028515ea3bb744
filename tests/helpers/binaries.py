"""Starting the package's binaries as a user does, in a process of their own."""

import atexit
import functools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = f"--config={Path(__file__).parent / 'tiny.py'}"


def command(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", module, *flags]


def start(
    module: str, *flags: str, devices: int = 2, accelerator: str = "", **options
) -> subprocess.Popen:
    """The process; accelerator: "none" or "raises", see accelerator/sitecustomize.py."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    if accelerator:
        environment |= like_accelerator(accelerator)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(module, *flags), cwd=ROOT, env=environment, **(pipes | options))


def like_accelerator(answers: str) -> dict[str, str]:
    """What a process's environment needs besides, for the stand-in."""
    return {"PYTHONPATH": f"{ROOT / 'tests/helpers/accelerator'}:{ROOT}", "ACCELERATOR": answers}


def run(module: str, *flags: str, code: int = 0, **options) -> tuple[str, str]:
    """(stdout, stderr) of the binary; asserts its exit code.

    It begins with the libraries imported, see preloaded.py, unless there are options of a Popen.
    """
    if options.keys() - {"devices", "accelerator", "cwd"}:
        process = start(module, *flags, **options)
        out, err = process.communicate(timeout=300)
        found = process.returncode
    else:
        found, out, err = _forked(module, *flags, **options)
    assert found == code, f"exit code {found}\n{out}\n{err}"
    return out, err


def _forked(module, *flags, devices=2, accelerator="", cwd=ROOT):
    sys.audit("subprocess.Popen", sys.executable, [module, *flags], cwd, None)
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    env |= like_accelerator(accelerator) if accelerator else {}
    asked = {"module": module, "flags": flags, "cwd": str(cwd), "env": env}
    asked["path"] = ["", *env["PYTHONPATH"].split(":")]
    parent = _preloaded(tuple((k, v) for k, v in os.environ.items() if re.match("JAX_|XLA_", k)))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        for file, name in zip(files, ("out", "err"), strict=True):
            file.touch()
            asked[name] = str(file)
        print(json.dumps(asked), file=parent.stdin, flush=True)
        if not select.select([parent.stdout], [], [], 300)[0]:
            os.killpg(parent.pid, signal.SIGKILL)
            _preloaded.cache_clear()
            raise subprocess.TimeoutExpired([module, *flags], 300)
        return int(parent.stdout.readline()), *(file.read_text() for file in files)


@functools.cache
def _preloaded(environment):
    """The process that forks itself, one for each of what jax reads when it is imported."""
    process = subprocess.Popen(
        command("tests.helpers.preloaded"), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    atexit.register(lambda: (process.stdin.close(), process.wait()))
    return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_job(
    module: str, *flags: str, processes: int, devices: int = 1, **options
) -> list[subprocess.Popen]:
    """The processes of one job, that many devices each."""
    job = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
    return [
        start(module, *flags, *job, f"--process_id={i}", devices=devices, **options)
        for i in range(processes)
    ]


def ended(job: list[subprocess.Popen], timeout: float = 300) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of every process of a job; one that hangs says where."""
    with ThreadPoolExecutor(len(job)) as pool:
        try:
            outputs = list(pool.map(lambda p: p.communicate(timeout=timeout), job))
        except subprocess.TimeoutExpired:
            for process in job:
                process.send_signal(signal.SIGABRT)
            outputs = list(pool.map(lambda p: p.communicate(), job))
            raise AssertionError(f"hung for {timeout} s: {[err for _, err in outputs]}") from None
    return [(p.returncode, *output) for p, output in zip(job, outputs, strict=True)]


def run_job(module: str, *flags: str, **options) -> list[tuple[int, str, str]]:
    """What `ended` returns of a job; asserts that all of its processes succeed."""
    found = ended(start_job(module, *flags, **options))
    assert [code for code, *_ in found] == [0] * len(found), "\n".join(err for *_, err in found)
    return found
