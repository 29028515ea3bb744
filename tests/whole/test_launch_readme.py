"""The copy-paste paths of launch/README.md, with stand-ins for what is outside the repository."""

import os
import re
import subprocess

import pytest

from tests.helpers.binaries import ROOT
from tests.whole.test_launch import LAUNCH, NEEDS, VERBS

TEXT = (LAUNCH / "README.md").read_text()
FIRST, *SECTIONS = re.split(r"^### ", TEXT.partition("## Data on object storage")[0], flags=re.M)
BLOCK = r"```bash\n(.*?)```"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_a_platform_from_zero(section, tmp_path):
    """Dry runs of its script, in one shell with the commands of "From zero" before them."""
    for name in ("gcloud", "docker", "kubectl", "python"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/called\necho 17\n')
        (tmp_path / name).chmod(0o755)
    script = "\n".join(re.findall(BLOCK, FIRST, re.S) + re.findall(BLOCK, section, re.S))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, text=True, capture_output=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/nowhere", "DRY_RUN": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    asked = re.findall(r"^launch/(\w+)\.sh (\w+)", section, re.M)
    assert done.stdout.count("dry run, nothing was executed: ") == len(asked)
    for name, verb in asked:
        assert verb in VERBS[name]
    called = (tmp_path / "called").read_text()
    assert "--member=serviceAccount:17-compute@developer.gserviceaccount.com" in called
    for module in re.findall(r"python -m unlearn_jax\.(\w+)", done.stdout):
        assert list((ROOT / "unlearn_jax").glob(f"{module}*"))
    for config in re.findall(r"--config=(\S+?\.py)", done.stdout):
        assert (ROOT / config).exists()


def test_every_script_has_its_section():
    assert {name for s in SECTIONS for name in re.findall(r"^launch/(\w+)\.sh", s, re.M)} == (
        set(NEEDS)
    )


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((\.\./[^)#]+)", TEXT):
        if target != "../docs/scale.md":  # made by launch.aot
            assert (LAUNCH / target).exists(), target
