"""Compiled programs are kept where the user says, and are found the second time."""

import os
import subprocess
import sys

import pytest

from tests.helpers.binaries import ROOT

SCRIPT = """
import sys
if {first!r} == "jax": import jax
from unlearn_jax import cli
cli.keep_compiled({where!r})
import jax
found = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
print(*found, sep="|")
seen = []
jax.monitoring.register_event_listener(lambda name, **_: seen.append(name))
print(float(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64)))))
print(sum(name.endswith("cache_hits") for name in seen))
"""


def run(where="", first="", **environment):
    """(folder, enabled, hits, stderr) of a process that compiles one program of its own."""
    known = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    known |= {"PYTHONPATH": str(ROOT)} | environment
    code = "import unlearn_jax.cli as c; c.MIN_SECONDS = 0\n"
    script = [sys.executable, "-c", code + SCRIPT.format(where=where, first=first)]
    done = subprocess.run(script, env=known, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr
    (folder, enabled), (_,), (hits,) = (line.split("|") for line in done.stdout.split("\n")[:3])
    return folder, enabled, int(hits), done.stderr


@pytest.mark.parametrize("first", ["jax", ""])
def test_programs_are_found_the_second_time_in_the_users_cache_folder(tmp_path, first):
    for hits in (0, 1):
        folder, enabled, found, _ = run(first=first, XDG_CACHE_HOME=str(tmp_path))
        assert folder.startswith(f"{tmp_path}/unlearn_jax/compiled/") and enabled == "True"
        assert (found > 0) == (hits > 0)
    assert any(os.scandir(folder))


def test_who_says_where_decides(tmp_path):
    folder, *_ = run(str(tmp_path / "mine"), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert folder.startswith(str(tmp_path / "mine")) and not (tmp_path / "cache").exists()
    folder, *_ = run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jaxs"))
    assert folder == str(tmp_path / "jaxs")
    assert run("off", XDG_CACHE_HOME=str(tmp_path / "cache"))[1:3] == ("False", 0)
    folder, enabled, *_ = run(JAX_ENABLE_COMPILATION_CACHE="false", XDG_CACHE_HOME=str(tmp_path))
    assert enabled == "False"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    folder, _, hits, said = run(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert (folder, hits) == ("None", 0) and "warning: compiled programs cannot be kept" in said
    assert "UserError: --compilation_cache: compiled programs cannot" in run(str(tmp_path / "file"))


def test_a_damaged_program_is_compiled_again(tmp_path):
    folder, *_ = run(XDG_CACHE_HOME=str(tmp_path))
    for file in os.scandir(folder):
        if file.name.endswith("-cache"):
            with open(file, "r+b") as opened:
                opened.truncate(file.stat().st_size // 2)  # as a killed process leaves it
    assert run(XDG_CACHE_HOME=str(tmp_path))[2] == 0


def test_after_a_full_disk_programs_are_kept_again(tmp_path):
    folder, *_ = run(XDG_CACHE_HOME=str(tmp_path))
    for file in os.scandir(folder):
        if file.name.endswith("-atime"):
            os.unlink(file)
        elif file.name.endswith("-cache"):
            os.truncate(file, 10)
    assert run(XDG_CACHE_HOME=str(tmp_path))[2:] == (0, "")  # no warning of jax's
    assert run(XDG_CACHE_HOME=str(tmp_path))[2] > 0
