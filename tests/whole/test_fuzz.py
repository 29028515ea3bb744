"""The fuzz campaign finds what is planted, and nothing in the readers of the package."""

import contextlib
import importlib.util
import json

import pytest

from tests.helpers import binaries, planted
from tools.fuzz import mutate, worker
from tools.fuzz.format import tables

KINDS = {name: name for name in planted.FORMATS} | {"lines": "message", "long": "message"}
KINDS |= {"exit": "exception", "fine": None}


def campaign(tmp_path, *flags, code):
    out = tmp_path / "fuzz.jsonl"
    said, _ = binaries.run("tools.fuzz", *flags, f"--out={out}", code=code)
    return said, [json.loads(line) for line in out.read_text().splitlines()]


def test_what_is_planted_is_found(tmp_path):
    flags = ("--formats=tests.helpers.planted", f"--format={','.join(KINDS)}", "--limit=12")
    said, found = campaign(tmp_path, *flags, "--cases=7:8", code=1)
    kinds = {name: {of["kind"] for of in found if of["format"] == name} for name in KINDS}
    wanted = {name: {kind} - {None} for name, kind in KINDS.items()}
    # Who opens what nobody may is seen by Python and by the system, who starts a shell once.
    assert kinds | {"touched": {"touched"}} == wanted
    assert {of["case"] for of in found} == {7}
    assert "fine" in said and said.count("findings") == len(KINDS)


def test_a_case_is_a_function_of_its_format_and_number(tmp_path):
    of, seeds = planted.FORMATS["fine"], [{"file": b"valid" * 9}]
    cases = [worker.case_of("fine", case, of, seeds) for case in range(50)]
    assert cases == [worker.case_of("fine", case, of, seeds) for case in range(50)]
    assert len({str(case) for case in cases}) > 30
    flags = ("--formats=tests.helpers.planted", "--format=fine", "--cases=3:5")
    binaries.run("tools.fuzz", *flags, f"--keep={tmp_path / 'kept'}")
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == {"fine-3", "fine-4"}


def test_what_is_sealed_is_sealed_again():
    """Else no mutation would reach what is behind the seal."""
    from unlearn_jax import files

    text = files.sealed({"a": 1, "b": [2, {"c": "x"}]}, "k").encode()
    codec, kept = mutate.sealed("k", files.sealed), 0
    for case in range(100):
        changed = mutate.mutated(mutate.random.Random(case), {"r": text}, {"r": codec})["r"]
        values = changed != text and isinstance(changed, bytes) and readable(changed)
        if values and values.get("format") == "k" and "sha256" in values:
            del values["sha256"], values["format"]
            with contextlib.suppress(ValueError):  # NaN cannot be sealed
                kept += files.sealed(values, "k").encode() == changed
    assert kept > 30


def readable(content):
    try:
        found = json.loads(content)
        return found if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None


@pytest.mark.long
@pytest.mark.parametrize("cases", [25, pytest.param(50, marks=pytest.mark.full)])
def test_every_reader_takes_any_file(cases, tmp_path):
    names = [n for n in tables() if n != "torch" or importlib.util.find_spec("torch")]
    said, found = campaign(tmp_path, f"--format={','.join(names)}", f"--cases=0:{cases}", code=0)
    assert found == [] and said.count(f"{cases} cases") == len(names) >= 13
