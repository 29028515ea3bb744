"""The commands of docs/full_size.md, executed as they stand."""

import csv
import json
import re
import shlex

import pytest

from tests.helpers import binaries

pytest.importorskip("torch")
pytestmark = pytest.mark.full  # minutes
SECTION = re.search(
    r"^## All commands\n(.*?)^## ", (binaries.ROOT / "docs/full_size.md").read_text(), re.S | re.M
)[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", SECTION, flags=re.S)


def execute(folder, script):
    """The commands of a block, one after the other; all are Python's."""
    for line in script.replace("\\\n", " ").replace("$SIZE", "rehearsal").splitlines():
        name, *flags = shlex.split(line, comments=True)
        if name == "export":
            assert flags == ["SIZE=rehearsal"]
            continue
        if (name, flags[0]) == ("python", "-m"):
            module, *flags = flags[1:]
        else:
            assert name == "unlearn-jax"
            module = "unlearn_jax"
        binaries.run(module, *flags, devices=1, accelerator="none", cwd=folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "configs").symlink_to(binaries.ROOT / "configs")
    for block in BLOCKS[:2]:
        execute(folder, block)
    return folder


def test_unreadable_images_are_listed_and_the_others_are_there(prepared):
    for name, n in (("imagenet", 200), ("places365", 100)):
        records = prepared / f"data/{name}_records"
        with (records / "quarantine.csv").open() as file:
            (bad,) = csv.DictReader(file)
        assert bad["path"].endswith("broken.JPEG")
        manifest = json.loads((records / "manifest.json").read_text())
        assert len(manifest["class_names"]) == n


@pytest.mark.parametrize("number", range(2, len(BLOCKS)))
def test_models_are_converted_unlearned_evaluated_and_reported(prepared, number):
    execute(prepared, BLOCKS[number])
    for name in set(re.findall(r"--workdir=runs/(\w+)$", BLOCKS[number], flags=re.M)):
        found = prepared / f"runs/{name}/protocol"
        with (found / "rows.csv").open() as file:
            rows = list(csv.DictReader(file))
        tasks = {("inpaint", "8"), ("outpaint", "8")} - (
            {("outpaint", "8")} if name == "palette" else set()
        )
        assert {(row["task"], row["size"]) for row in rows} == tasks
        assert [row["model"] for row in rows] == sorted(["original", "unlearned"] * len(tasks))
        original, unlearned = rows[0], rows[len(tasks)]
        assert all(float(value) >= 0 for key, value in original.items() if "forget_" in key)
        assert original != unlearned | {"model": "original"}  # it did change
        page = (found / "report.html").read_text()
        assert page.count("<img") > 8 and "not the published weights" in page
