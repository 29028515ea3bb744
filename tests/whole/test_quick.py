"""What `make quick` leaves out."""

import subprocess
import sys

from tests.helpers import binaries

MADE = """
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest

@pytest.mark.long
def test_long(): pass

def test_in_process(): pass

@pytest.mark.parametrize("child", [
    lambda: os.fork() or os._exit(0),
    lambda: os.system("true"),
    lambda: os.posix_spawn("/bin/true", ["true"], {}),
    lambda: subprocess.run("true", check=True),
    lambda: ThreadPoolExecutor().submit(subprocess.run, "true").result(),
])
def test_a_child(child):
    child()
    Path(__file__).with_name("started").touch()
"""


def counts(tmp_path, *flags):
    (tmp_path / "test_made.py").write_text(MADE)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml", "-q"]
    done = subprocess.run(
        [*command, *flags, str(tmp_path)], cwd=binaries.ROOT, capture_output=True, text=True
    )
    return done.stdout.splitlines()[-1].rpartition(" in ")[0]


def test_what_starts_a_process_and_what_is_long(tmp_path):
    assert counts(tmp_path, "--quick") == "1 passed, 5 skipped, 1 deselected"
    assert not (tmp_path / "started").exists()


def test_all_is_run_otherwise(tmp_path):
    assert counts(tmp_path) == "7 passed"
    assert (tmp_path / "started").exists()
