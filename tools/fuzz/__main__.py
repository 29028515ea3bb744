"""The fuzz campaign: no file that somebody hands over may run code, leave its folder, or crash.

    python -m tools.fuzz --list
    python -m tools.fuzz --format=all --cases=0:10000 --out=fuzz.jsonl
    python -m tools.fuzz --format=torch --cases=417:418 --keep=DIR  # writes the files of a case

A case is a valid file that the package itself has made, mutated by a generator seeded with the
format and the number of the case: bits, lengths, keys, types, numbers, nesting, paths, links and
pipes, before and after checksums and seals are made right again. One process reads many cases. A
reader must return, or raise UserError or OSError with a message of one line, perhaps with a list,
that names the file. Each of these is a finding, a line of JSON in --out:

* exception, crash; hang: more than --limit seconds; memory: 1 GiB more than before the case;
* message: of several lines, too long, without the file's name, with control characters;
* import, exec, process, network: of what a file names, seen by Python's audit events;
* opened, touched: a file outside of the case's folder, by Python or by anything else.

--cover=DIR counts the branches of the readers that are taken, with the package `coverage`. It exits
with 1 if there are findings.
"""

import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from tools.fuzz.format import Format, tables

ROOT = Path(__file__).resolve().parents[2]


class Campaign:
    """Runs cases in one process after the other, and collects findings."""

    def __init__(self, first: int, last: int, limit: float, cover: str, module: str, out: Any):
        """Prepare a campaign of the cases first .. last - 1; `out` is a file for its findings."""
        self.first, self.last, self.out = first, last, out
        self._flags = [str(limit), cover, module]
        self.findings: collections.Counter = collections.Counter()
        self.seconds: collections.Counter = collections.Counter()

    def run(self, names: list[str]) -> None:
        """Run all cases of these formats."""
        position: list[Any] | None = [names[0], self.first]
        while position:
            left = names[names.index(position[0]) :]
            if position[1] >= self.last:
                left, position[1] = left[1:], self.first
            position = self._process(left, position[1]) if left else None

    def _process(self, names: list[str], begin: int) -> list[Any] | None:
        """Run a process until it ends; return where the next one begins, None if all is done."""
        with tempfile.NamedTemporaryFile("r") as log:
            cases = [str(self.first), str(self.last), str(begin)]
            command = [sys.executable, "-m", "tools.fuzz.worker", ",".join(names), *cases]
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "FUZZ_LOG": log.name}
            # As in the tests, of which some seeds are: parameters are drawn to the last bit.
            environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
            environment["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
            worker = subprocess.Popen(
                [*command, *self._flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE
            )
            at, ended, began = None, None, 0.0
            with worker.stdout as lines:
                for fact, value in _facts(lines):
                    now = time.monotonic()
                    if at:
                        self.seconds[at[0]] += now - began
                    began = now
                    if fact == "begun":
                        at = value
                    elif fact == "finding":
                        self.note(value)
                    else:
                        ended = fact, value
            code = worker.wait()
            if ended:
                return ended[1] if ended[0] == "again" else None
            if at is None:
                raise SystemExit(f"error: no case was run, exit code {code}; see above")
            text = log.read()
        kind = "hang" if "Timeout" in text else "crash"
        stack = [line.strip() for line in text.splitlines() if "unlearn_jax" in line][:4]
        what = f"exit code {code}; {text.strip().splitlines()[:1]}"
        self.note({"format": at[0], "case": at[1], "reader": "", "kind": kind, "what": what,
                   "frames": stack})  # fmt: skip
        return [at[0], at[1] + 1]

    def note(self, finding: dict[str, Any]) -> None:
        """Write a finding."""
        where = finding["frames"][-1] if finding["frames"] else finding["what"][:60]
        self.findings[finding["format"], finding["reader"], finding["kind"], where] += 1
        self.out.write(json.dumps(finding) + "\n")
        self.out.flush()


def _facts(lines: Any) -> Iterator[tuple[str, Any]]:
    for line in lines:
        yield next(iter(json.loads(line).items()))


def keep(of: Format, name: str, cases: range, folder: Path) -> None:
    """Write the files of cases into folders."""
    from tools.fuzz import worker

    with tempfile.TemporaryDirectory() as made:
        of.make(Path(made))
        seeds = [worker.read_tree(path) for path in sorted(Path(made).iterdir()) if path.is_dir()]
    for case in cases:
        worker.write(folder / f"{name}-{case}", worker.case_of(name, case, of, seeds))


def branches(folder: str, formats: dict[str, Format]) -> None:
    """Print which share of the branches of the readers' modules was taken, and which lines not."""
    import coverage

    found = coverage.Coverage(f"{folder}/.coverage", branch=True)
    found.combine([folder], keep=True)
    found.save()
    modules = sorted(
        {str(ROOT / f"unlearn_jax/{m}") for of in formats.values() for m in of.modules}
    )
    found.report(include=modules, show_missing=True)


def main(argv: list[str]) -> None:
    """Run the command."""
    given, formats = flags.FLAGS, tables(flags.FLAGS.formats)
    if given.list:
        for name, of in formats.items():
            print(f"{name:12} {', '.join(of.readers)}")
        return
    names = list(formats) if given.format == "all" else given.format.split(",")
    if unknown := [name for name in names if name not in formats]:
        raise SystemExit(f"error: --format: expected of {list(formats)} or all, got {unknown}")
    first, _, last = given.cases.partition(":")
    if given.keep:
        for name in names:
            keep(formats[name], name, range(int(first), int(last)), Path(given.keep))
        return
    if given.cover:
        try:
            __import__("coverage")
        except ImportError:
            raise SystemExit("error: --cover needs: python -m pip install coverage") from None
    with open(given.out or os.devnull, "a") as out:
        flags_ = given.limit, given.cover and str(Path(given.cover).absolute()), given.formats
        campaign = Campaign(int(first), int(last), *flags_, out)
        campaign.run(names)
    count = int(last) - int(first)
    for name in names:
        n = sum(k for key, k in campaign.findings.items() if key[0] == name)
        print(f"{name:12} {count:7} cases {campaign.seconds[name]:7.1f} s {n:6} findings")
    for key, n in campaign.findings.most_common():
        print(f"  {n:6} {' | '.join(key)}")
    if given.cover:
        branches(given.cover, {name: formats[name] for name in names})
    sys.exit(1 if campaign.findings else 0)


if __name__ == "__main__":
    flags.DEFINE_string("format", "all", "Which formats, or all.")
    flags.DEFINE_string("cases", "0:1000", "FIRST:END, numbers of cases; each can be run again.")
    flags.DEFINE_string("out", "", "File that findings are appended to.")
    flags.DEFINE_string("keep", "", "Folder to write the files of the cases to; nothing is read.")
    flags.DEFINE_float("limit", 10, "Seconds that a case may take.")
    flags.DEFINE_string("cover", "", "Folder for counts of branches.")
    flags.DEFINE_string("formats", "", "A module with FORMATS, in place of those here.")
    flags.DEFINE_bool("list", False, "List formats and their readers.")
    app.run(main)
