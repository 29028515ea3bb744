import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.helpers import binaries
from unlearn_jax import __main__ as commands
from unlearn_jax import cli
from unlearn_jax.config import load

COMMANDS = tuple(commands.COMMANDS)


def call(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["unlearn-jax", *argv])
    commands.main()


@pytest.mark.parametrize("argv", [(), ("--help",)])
def test_it_lists_the_commands_with_what_they_are_for(argv, monkeypatch, capsys):
    call(monkeypatch, *argv)
    out = capsys.readouterr().out
    for name, (_, text) in commands.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.M)


def test_every_command_is_a_module_that_starts():
    for name, (module, _) in commands.COMMANDS.items():
        file = importlib.util.find_spec(module).origin.replace("/__init__.py", "/__main__.py")
        with open(file) as source:
            assert 'if __name__ == "__main__":' in source.read(), name
        assert (
            cli.program_of(module) == cli.program_of(f"{module}.__main__") == f"unlearn-jax {name}"
        )


def test_a_command_that_there_is_not_is_one_line_with_the_nearest(monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, "trian")
    assert re.fullmatch(r"error: expected one of .*; got 'trian': did you mean 'train'\?",
                        stopped.value.code)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("bach_size", "Did you mean --config.batch_size?"),
        ("learning_rate", "Did you mean --config.audit.learning_rate"),
        ("request.clases", "Did you mean --config.request.classes"),
        ("phases.pretain.steps", "Did you mean --config.phases.pretrain.steps"),
        ("model.dtype", "A field of the model is set in the config's file."),
        ("seed.more", "expected a key that the config has, got 'seed.more'."),
    ],
)
def test_a_key_that_there_is_not_is_said_with_the_nearest(key, guess, monkeypatch):
    parser = cli._ConfigParser()
    for flag in (f"--config.{key}=1", f"-config.{key}", f"--noconfig.{key}"):
        monkeypatch.setattr(sys, "argv", ["train", "--config=quickstart", flag])
        with pytest.raises(ValueError, match=re.escape(guess)) as raised:
            parser.parse("quickstart")
        assert str(raised.value).startswith(f"--config.{key}: ")


def test_keys_that_there_are_pass(monkeypatch):
    flags = ("--config.seed=1", "--config.data.cache=False", "--noconfig.data.cache",
             "--config.phases.pretrain.optimizer.learning_rate", "0.1")  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train", "--config=quickstart", *flags])
    config = cli._ConfigParser().parse("quickstart")
    assert config.is_locked and config.name == "quickstart"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_commands_own_flags_with_defaults_and_succeeds(name):
    out, _ = binaries.run("unlearn_jax", name, "--help")
    assert len(out.splitlines()) < 70 and "--stderrthreshold" not in out and "grain" not in out
    if name == "certify":
        assert "verify" in out and "plan --help" in out
        out, _ = binaries.run("unlearn_jax", name, "plan", "--help")
        assert "--certifier=retrain" in out
    elif "--config=…" in out:
        assert "--config.KEY=VALUE" in out
    assert re.search(r"^  --traceback=false  +Show where", out, re.M)
    assert f"Example:\n  unlearn-jax {name} " in out


def test_importing_the_package_or_listing_its_commands_does_not_bring_jax():
    code = "import sys, unlearn_jax.__main__ as m; m.main(); print('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(binaries.ROOT)}
    out = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert out.splitlines()[-1] == "False"


def test_a_flag_that_there_is_not_is_said_with_the_nearest():
    _, err = binaries.run("unlearn_jax", "train", binaries.TINY, "--wrkdir=x", code=1)
    assert "error: Unknown command line flag 'wrkdir'. Did you mean: workdir ?" in err


def test_the_wheel_has_the_configs_and_its_commands_work_in_an_empty_folder(tmp_path):
    pytest.importorskip("setuptools")
    source, empty = tmp_path / "source", tmp_path / "empty"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("unlearn_jax", "configs"):
        shutil.copytree(binaries.ROOT / folder, source / folder, ignore=ignored)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(binaries.ROOT / file, source)
    code = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {*archive.namelist()}
        archive.extractall(tmp_path / "installed")
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "unlearn-jax = unlearn_jax.__main__:main" in archive.read(entry).decode()
    wanted = [p for p in (binaries.ROOT / "unlearn_jax").rglob("*") if p.is_file()]
    wanted = {
        p.relative_to(binaries.ROOT).as_posix() for p in wanted if "__pycache__" not in p.parts
    }
    wanted |= {f"unlearn_jax/configs/{p.name}" for p in load.folder().iterdir() if p.is_file()}
    assert wanted <= names
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    flags = ["--config=quickstart_certified:noisy", "--out=page"]
    command = [sys.executable, "-m", "unlearn_jax", "request", *flags]
    process = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "Forget 250 of 2,500" in process.stdout and (empty / "page/request.html").exists()


def test_a_list_that_nobody_reads_to_its_end_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "unlearn_jax"]
    done = subprocess.run(
        command, cwd=binaries.ROOT, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
