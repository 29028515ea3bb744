"""Formats whose readers do what no reader may, for the test of the fuzz campaign."""

import os
import sys
import time
from pathlib import Path

from tools.fuzz.format import Format
from tools.fuzz.mutate import BYTES
from unlearn_jax.registry import UserError


def make(made):
    (made / "a").mkdir()
    (made / "a" / "file").write_bytes(b"valid")


def valid(folder):
    """Whether it is the file as it was made; what is planted is done to others only."""
    return (folder / "file").is_file() and (folder / "file").read_bytes() == b"valid"


def planted(does):
    return Format(make, {"read": lambda folder: valid(folder) or does(folder)}, {"file": BYTES})


def message(text, kind=UserError):
    def refuse(folder):
        raise kind(text)

    return planted(refuse)


def allocate(folder):
    bytearray(5 * 2**28)[::4096] = bytes(5 * 2**28 // 4096)  # all of its pages


FORMATS = {
    "crash": planted(lambda folder: os.abort()),
    "hang": planted(lambda folder: time.sleep(60)),
    "memory": planted(allocate),
    "opened": planted(lambda folder: Path("/etc/hostname").open().close()),
    "touched": planted(lambda folder: os.open("/proc/self/cwd/../outside/secret", os.O_RDONLY)),
    "import": planted(lambda folder: __import__("fuzz_evil")),
    "process": planted(lambda folder: os.system("true")),
    "exec": planted(lambda folder: exec(compile("1", "file", "exec"))),
    "exception": planted(lambda folder: {}[3]),
    "message": message("something is wrong"),
    "lines": message("file is\nwrong"),
    "long": message("file" + 9999 * " is wrong", OSError),
    "exit": planted(lambda folder: sys.exit(0)),
    "fine": planted(lambda folder: None),
}
