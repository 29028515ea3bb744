"""What the campaign knows of a format, and the table of all formats."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.fuzz.mutate import Codec, Tree


@dataclass(frozen=True)
class Format:
    """A kind of files that are handed over.

    Attributes:
      make: writes valid ones, each into a folder of its own in a folder.
      readers: what reads a folder with such files, by name.
      codecs: how files are mutated, by pattern of their path.
      seal: makes what files say of one another right again.
      alters: readers that change the folder, which come last.
      names: that a message may have instead of a file's.
      memory: bytes that a reader may need.
      modules: that read them, whose branches count.
    """

    make: Callable[[Path], None]
    readers: Mapping[str, Callable[[Path], Any]]
    codecs: Mapping[str, Codec]
    seal: Callable[[Tree], None] | None = None
    alters: tuple[str, ...] = ()
    names: frozenset[str] = field(default_factory=frozenset)
    memory: int = 2**30
    modules: tuple[str, ...] = ()


def tables(module: str = "") -> dict[str, Format]:
    """Return all formats by name; those of `module` alone, if that is a module with FORMATS."""
    own = "tools.fuzz.workdirs tools.fuzz.pages tools.fuzz.datasets tools.fuzz.weights"
    found = {}
    for name in (module or own).split():
        found |= importlib.import_module(name).FORMATS
    return found
