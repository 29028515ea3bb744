"""Every path, link and import that a page names is there."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.binaries import ROOT

LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
PAGES = [name for name in LISTED.stdout.split() if name != "CHANGELOG.md"]  # of what is gone, too
PACKAGES = "unlearn_jax|configs|launch|benchmarks|experiments|tools|tests"
FOLDERS = f"{PACKAGES}|docs|examples"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page):
    text = (ROOT / page).read_text()
    inside = re.findall(rf"(?<![\w./$])(?:{FOLDERS})/[\w./-]*\w", text)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [name for name in inside if not (ROOT / name).exists()]
    missing += [name for name in links if not (ROOT / page).parent.joinpath(name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_import_and_module_is_there(page):
    text = (ROOT / page).read_text()
    for module, names in re.findall(r"^ *from (unlearn_jax[\w.]*) import ([\w, ]+)$", text, re.M):
        for name in names.split(", "):
            name = name.partition(" as ")[0]
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.import_module(f"{module}.{name}"), name
    for name in re.findall(rf"(?:python -m |`)((?:{PACKAGES})\.[\w.]+\w)(?=[` ])", text):
        path = ROOT / name.replace(".", "/")
        parent = path.parent
        options = path.with_suffix(".py"), path / "__init__.py", parent.with_suffix(".py")
        assert any(map(Path.exists, (*options, parent / "__init__.py"))), name
