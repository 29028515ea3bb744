"""Starting the package's binaries as a user does, in a process of their own."""

import os
import signal
import socket
import subprocess
import sys
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
    """(stdout, stderr) of the binary; asserts its exit code."""
    process = start(module, *flags, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err


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
