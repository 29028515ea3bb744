"""Starting the package's binaries as a user does, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = f"--config={Path(__file__).parent / 'tiny.py'}"


def command(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", module, *flags]


def start(module: str, *flags: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(module, *flags), cwd=ROOT, env=environment, **(pipes | options))


def run(module: str, *flags: str, code: int = 0, **options) -> tuple[str, str]:
    """(stdout, stderr) of the binary; asserts its exit code."""
    process = start(module, *flags, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err
