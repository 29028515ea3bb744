"""One process of the campaign: reads mutated files, case after case, and tells what was wrong.

It writes a line of JSON for each case that begins and each finding. Whoever reads these lines knows
which case a crash, or the end by `faulthandler` after a hang, is of.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.fuzz import watch
from tools.fuzz.format import Format, tables
from tools.fuzz.mutate import Tree, mutated

WARMED = 0.5 * watch.MEMORY  # that it may grow by, over all cases, before another takes its place
ENOUGH = 20  # findings of a case that are told
TELLING = os.dup(1)  # libraries in C print, too


def case_of(name: str, case: int, of: Format, seeds: Sequence[Tree]) -> Tree:
    """Return the files of a case: a function of the format and the number."""
    rng = random.Random(f"{name} {case}")
    return mutated(rng, rng.choice(seeds), of.codecs, of.seal)


def write(folder: Path, tree: Tree) -> None:
    """Write the files of a case into a folder, in place of what is there."""
    for path in folder.iterdir() if folder.exists() else ():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case bytes():
                path.write_bytes(content)
            case ("link", target):
                path.symlink_to(os.path.abspath(folder / target) if "/" in target else target)
            case ("pipe", _):
                os.mkfifo(path)
            case _:
                path.mkdir()


def read_tree(folder: Path) -> Tree:
    """Return the files of a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def tell(**facts: Any) -> None:
    """Write a line."""
    os.write(TELLING, json.dumps(facts).encode() + b"\n")


class Worker:
    """Folders, seeds and the watch of a process."""

    def __init__(self, formats: Mapping[str, Format]):
        """Make seeds of these formats, and read each, so that all is imported and compiled."""
        fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="fuzz_", dir=fast)).resolve()
        self.case, outside = self.root / "case", self.root / "outside"
        outside.mkdir()
        (self.root / "linked").write_text("linked")
        for name in ("secret", "secret.array_record", "secret.json"):
            (outside / name).write_text("secret")
        (self.root / "modules").mkdir()
        (self.root / "modules/fuzz_evil.py").write_text("run = fly = 1\n")
        os.environ |= {"XDG_CACHE_HOME": str(self.case / ".cache")}
        self.formats, self.seeds = formats, {}
        for name, of in formats.items():
            made = self.root / f"seeds_{name}"
            made.mkdir()
            of.make(made)
            folders = sorted(path for path in made.iterdir() if path.is_dir())
            self.seeds[name] = [read_tree(folder) for folder in folders]
            self._warm(name, of)
        os.chdir(self.case)
        sys.path += [str(self.root / "modules")]
        gc.collect()
        gc.freeze()
        watch.limit_memory()
        self.watch, self.start = watch.Watch(self.root / "case", outside), watch.resident()

    def _warm(self, name: str, of: Format) -> None:
        """Read the valid files; raise SystemExit if there is a reader that takes none of them."""
        failed = {reader: "" for reader in of.readers}
        for tree in self.seeds[name]:
            for reader, read in of.readers.items():
                write(self.case, tree)
                with open(os.devnull, "w") as none, contextlib.redirect_stderr(none):
                    try:
                        read(self.case)
                        failed.pop(reader, None)
                    except Exception as error:
                        if reader in failed:
                            failed[reader] += f"{type(error).__name__}: {error}\n"
        if failed:
            told = "\n".join(f"{reader}: {text}" for reader, text in failed.items())
            raise SystemExit(f"{name}: readers that refuse all valid files:\n{told}")

    def run(self, name: str, case: int, limit: float, log: Any) -> bool:
        """Run a case; tell whether this process may go on.

        A reader that takes longer than the limit ends it; where it was is written to the log.
        """
        of = self.formats[name]
        tree = case_of(name, case, of, self.seeds[name])
        parts = {part for path in tree for part in path.split("/")}
        names = parts | {Path(part).stem for part in parts} | {str(self.case)} | of.names
        found = []
        for i, (reader, read) in enumerate(of.readers.items()):
            if not i or reader in of.alters:
                write(self.case, tree)
            faulthandler.dump_traceback_later(limit, exit=True, file=log)
            wrong = watch.outcome(self.watch, lambda: read(self.case), names, of.memory)  # noqa: B023
            faulthandler.cancel_dump_traceback_later()
            found += [{"format": name, "case": case, "reader": reader, **of} for of in wrong]
        for finding in found[:ENOUGH]:
            tell(finding=finding)
        large = watch.resident() > self.start + WARMED
        return not large and not any(of["kind"] == "memory" for of in found)


def main(
    names: str, first: str, last: str, begin: str, limit: str, cover: str, module: str
) -> None:
    """Run cases of formats, from `begin` of the first format on."""
    os.dup2(none := os.open(os.devnull, os.O_WRONLY), 1)
    covered = _cover(cover)
    formats = {name: of for name, of in tables(module).items() if name in names.split(",")}
    log = open(os.environ["FUZZ_LOG"], "w")
    faulthandler.enable(log)
    worker = Worker(formats)
    os.dup2(none, 2)
    try:
        for i, name in enumerate(formats):
            for case in range(int(begin) if not i else int(first), int(last)):
                tell(begun=[name, case])
                if not worker.run(name, case, float(limit), log):
                    tell(again=[name, case + 1])
                    return
        tell(done=True)
    except BaseException:
        traceback.print_exc(file=log)
        raise
    finally:
        os.chdir("/")
        shutil.rmtree(worker.root, ignore_errors=True)
        if covered:
            covered.stop()
            covered.save()


def _cover(folder: str) -> Any:
    """Count the branches that are taken, into a file in a folder."""
    if not folder:
        return None
    coverage = importlib.import_module("coverage")
    found = coverage.Coverage(f"{folder}/.coverage", data_suffix=True, branch=True,
                              source=["unlearn_jax"])  # fmt: skip
    found.start()
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
