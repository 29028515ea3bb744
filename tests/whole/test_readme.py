"""Every command of the README is executed, with phases of a few steps."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

import unlearn_jax
from tests.helpers import binaries, photos
from unlearn_jax import convert, models

TEXT = (binaries.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)
COMMANDS = [
    line.strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
INSTALL = ["python3 -m venv .venv", "source .venv/bin/activate", "pip install -c constraints.txt"]
SHORT = [
    "--config.model.channels=4,8",
    "--config.evaluation.retain_rows=40",
    "--config.evaluation.resamples=50",
    "--config.audit.rows=40",
    "--config.audit.shadows=0",
    "--config.audit.resurfacing.steps=(1,)",
    "--config.audit.relearn.steps=0",
]


def short(flags):
    """The flags that make every phase of the command's config short; none without a config."""
    if flags[0] == "receipt":  # nobody is there to be asked
        return ["--yes"]
    if "--replay=all" in flags:  # tests/certify/exact/test_verify.py replays them all
        return ["--replay=1"]
    if "epsilon" in flags:  # a right mechanism fails its self-test this often
        return ["--significance=1e-6"]
    file = next((flag.removeprefix("--config=") for flag in flags if "--config=" in flag), "")
    if not file:
        return []
    name, _, argument = file.partition(":")
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(*filter(None, [argument]))
    few = ["--config.compare.seeds=(0,)", "--config.compare.only=shrink"]
    seeds = few if config.compare.methods else []
    most = 20 if any("slices.count" in flag for flag in flags) else 4  # ten segments
    steps = [f"--config.phases.{k}.steps={min(p.steps, most)}" for k, p in config.phases.items()]
    if flags[0] == "plan-deletion":
        return []
    return SHORT + seeds + steps


def test_the_readme_shows_every_command_and_how_to_install():
    assert {"make demo", "make test"} <= set(COMMANDS)
    first = COMMANDS.index("make demo") + 1
    for command, expected in zip(COMMANDS[first : first + 3], INSTALL, strict=True):
        assert command.startswith(expected)
    for name in importlib.import_module("unlearn_jax.__main__").COMMANDS:
        assert any(command.startswith(f"unlearn-jax {name} ") for command in COMMANDS), name
        assert re.search(rf"^\|.*`{name}`.*\|.*\|$", TEXT, flags=re.M), name


def test_every_command_is_executed_by_one_of_the_tests_here():
    known = ("make demo", "make test", "unlearn-jax ", "python -m benchmarks.")
    for command in COMMANDS:
        assert command.startswith((*known, *INSTALL)), command


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    photos.make(folder / "photos", 60)
    (folder / "forget.txt").write_text("".join(f"zoo/IMG_{i:04}.jpg\n" for i in range(0, 60, 6)))
    (folder / "ids.txt").write_text("train_04728\ntrain_42135\n")  # of the newest of ten slices
    return folder


PACKAGE = [command for command in COMMANDS if command.startswith("unlearn-jax ")]
CONVERT = [command for command in PACKAGE if " convert " in command]


ELSEWHERE = (  # what another test covers
    "request.classes=",  # the Python above asks for cats, test_sequence for what comes next
    "pipeline --config=quickstart --workdir=runs/quickstart",  # `make demo`, in .ci/run
    "compare --config",  # test_compare
    "leaderboard --workdir",  # tests/report/test_leaderboard
)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=pytest.mark.full) if any(x in c for x in ELSEWHERE) else c
        for c in PACKAGE
        if c not in CONVERT
    ],
)
def test_package_commands_in_their_order(command, runs):
    _, name, *flags = shlex.split(command)
    more = short([name, *flags])
    if name == "init":
        flags = [f"--photos={runs / flags[0]}", f"--out={runs}/forget_photos.py"]
    # The demo's original; the one that was made by hand has the same config.
    flags = [flag.replace("runs/quickstart/original", "runs/mine/original") for flag in flags]
    flags = [re.sub(r"(^|=)runs/", rf"\1{runs}/", flag) for flag in flags]
    flags = [
        re.sub(r"^(--[\w.]*(?:path|file|images|source|request))=", rf"\1={runs}/", f) for f in flags
    ]
    binaries.run("unlearn_jax", name, *flags, *more)


@pytest.mark.long
def test_the_last_of_them_left_what_they_say(runs):
    assert (runs / "mine/report.html").stat().st_size > 10_000
    assert (runs / "completed/sheet.png").exists() and (runs / "records/manifest.json").exists()


@pytest.mark.long
def test_own_photos_end_with_a_page_and_a_list_of_what_could_not_be_read(runs):
    split = json.loads((runs / "own/unlearned/split.json").read_text())
    assert split["counts"]["forget"] + len(split["withdrawn"]) == 10
    assert len(split["photos"]["bad"]) == len(photos.BAD) and split["photos"]["exif"]
    assert (runs / "own/unlearned/quarantine.csv").read_bytes().count(b"cannot be read") > 3
    assert (runs / "own/report.html").stat().st_size > 10_000


@pytest.mark.long
def test_the_certified_request_was_verified_and_attacked(runs):
    """By the pipeline above, before the commands after it."""
    found = json.loads((runs / "certified" / "results.json").read_text())["certificate"]
    assert found["upper"]["verified"], found["upper"]["reason"]
    assert found["upper"]["record"]["epsilon"] == pytest.approx(8)
    assert 3 < found["lower"]["epsilon"] < 9 and found["lower"]["n"] == [4000, 4000]
    page = (runs / "certified" / "report.html").read_text()
    assert f"ε ≥ {found['lower']['epsilon']:.3g}<" in page


@pytest.mark.long
def test_its_python_runs(tmp_path, monkeypatch):
    """With phases of a few steps, and a photo of 40 x 56 pixels."""
    load = unlearn_jax.load_config

    def few_steps(name, changes):
        phases = {f"phases.{k}.steps": min(p.steps, 4) for k, p in load(name).phases.items()}
        flags = [flag.removeprefix("--config.").split("=") for flag in SHORT]
        return load(name, {k: ast.literal_eval(v) for k, v in flags} | phases | changes)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unlearn_jax, "load_config", few_steps, raising=False)
    image = np.zeros((40, 56, 3), np.uint8)
    mask = np.zeros((40, 56), bool)
    mask[10:20, 10:20] = True
    names = {"image": image, "mask": mask}
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.S):
        exec(block, names)
    assert (tmp_path / "runs/cats/report.html").exists()
    assert names["picture"].shape == image.shape and (names["picture"][~mask] == 0).all()
    assert names["picture"][mask].any()


def test_convert_commands_in_their_order(tmp_path):
    torch = pytest.importorskip("torch")
    model = models.MAE(image_size=16, patch=4, dim=64, depth=1, heads=1, decoder_dim=16,
                       decoder_depth=1, decoder_heads=2)  # fmt: skip
    shapes = dict(convert.mapping(convert.find("mae"), model).values())
    file = tmp_path / "mae_visualize_vit_large.pth"
    torch.save({"model": {name: torch.randn(shape) for name, shape in shapes.items()}}, file)
    assert len(CONVERT) == 2
    for command in CONVERT:
        _, name, *flags = shlex.split(command)
        flags = [re.sub(r"=(runs/|\w+\.pth)", rf"={tmp_path}/\1", flag) for flag in flags]
        unsaid = ("heads=1", "decoder_heads=2", "epsilon=1e-6", "norm_pix_loss=false")
        out, _ = binaries.run("unlearn_jax", name, *flags, *(f"--set={x}" for x in unsaid))
        if "--verify" in flags:
            assert f"{len(shapes)} tensors are bit for bit those of the file." in out
            folder = tmp_path / "runs/mae"
            shutil.copytree(folder / "original", folder / "unlearned")
    assert (tmp_path / "unlearned.pth").stat().st_size > 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m benchmarks.")])
def test_benchmarks_print_one_line_of_json(command):
    _, _, module, *_ = shlex.split(command)
    out, _ = binaries.run(module, "--seconds=0.5", "--batch_size=16")
    found = json.loads(out)
    assert set(found) == {"name", "ours_images_per_s", "torch_images_per_s", "ratio"}
    assert found["ours_images_per_s"] > 0
    if found["torch_images_per_s"]:
        ratio = found["ours_images_per_s"] / found["torch_images_per_s"]
        assert found["ratio"] == pytest.approx(ratio, rel=0.01)  # speeds are rounded, too


@pytest.mark.parametrize("target", ["demo", "test", "quick"])
def test_make_runs_what_the_tests_run(target, tmp_path):
    """`make demo` itself runs in .ci/run; here its recipe is compared with a command run above."""
    recipe = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target, f"VENV={tmp_path}/venv"],
        cwd=binaries.ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    last = recipe.strip().splitlines()[-1].replace(f"{tmp_path}/venv/bin/", "")
    demo = "python -m unlearn_jax.pipeline --config=configs/quickstart.py"
    last = last.replace(demo, "unlearn-jax pipeline --config=quickstart")  # the same, by its module
    expected = {
        "demo": COMMANDS,
        "test": ["python -m pytest -n 2"],
        "quick": ["python -m pytest -n 2 --quick"],
    }
    assert last in expected[target]
    assert "-m venv" in recipe and "--constraint constraints.txt --editable" in recipe


def test_makefile_refuses_an_old_python(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\nexit 1\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={fake}", f"VENV={tmp_path}/venv"],
        cwd=binaries.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr and "Python 3.9.1" in done.stderr
    assert sys.version_info >= (3, 11)
