"""The command that audits functions."""

import json

import pytest

from tests.audit.test_functions import drawn, write
from tests.helpers.binaries import run

pytestmark = pytest.mark.long
MODELS = "tests.helpers.inpainter"


def test_the_command(tmp_path):
    folders = {name: write(tmp_path / name, drawn(n, n)) for name, n in (("f", 6), ("u", 12))}
    flags = (f"--forget={folders['f']}", f"--unseen={folders['u']}", f"--out={tmp_path / 'out'}")
    out, _ = run("unlearn_jax", "audit", f"--candidate={MODELS}:grey", *flags)
    assert "Not tested" in out and "report.html" in out
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["settings"]["models"] == {"unlearned": f"--candidate={MODELS}:grey"}
    assert found["settings"]["task"] == {"name": "inpaint", "hole": 0.5}
    assert "The attacks, one by one" in (tmp_path / "out" / "report.html").read_text("utf-8")

    masks = ("--config=quickstart", "--config.task.name=left")
    out, _ = run("unlearn_jax", "audit", f"--candidate={MODELS}:dark", *flags, *masks)
    assert "Not tested" in out

    _, err = run("unlearn_jax", "audit", f"--candidate={MODELS}:broken", *flags, code=1)
    assert "no such weights" in err and f"--candidate={MODELS}:broken raised ValueError" in err
    assert "in broken" in err  # the traceback of the user's own code
