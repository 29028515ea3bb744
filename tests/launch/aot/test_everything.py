"""All programs of all models: the list, what is missing, and going on after a failure."""

import json

import pytest

from launch.aot import all_programs, all_render, child
from launch.aot import everything as aot_all
from launch.aot.all_programs import Point
from tests.helpers import binaries
from tests.launch.aot.test_aot import HAS_LIBTPU

FITS = {"fits": True, "peak_bytes": 2**30, "cpu_s": 12.4, "versions": {"jax": "0.10.2"},
        "created": "2026-11-28T22:31:24+00:00"}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def two(monkeypatch):
    """A made-up child: it compiles a, dies at b, and says what is wrong with c."""
    calls = []

    def lines(argv, topology):
        names = next(a for a in argv if a.startswith("--only=")).removeprefix("--only=").split(",")
        calls.append(names)
        for name in names:
            yield {"doing": name}
            if name == "b":
                raise ValueError("The compiling process ended with SIGABRT while b.")
            yield {"error": "TypeError: no"} if name == "c" else FITS

    monkeypatch.setattr(child, "lines_of_child", lines)
    return calls


def test_a_process_that_dies_costs_one_program_and_is_not_forgotten(folder, two):
    todo = [Point("mae-small", name) for name in "abcd"]
    aot_all.compile_all(todo, all_programs.LINES, 0, jobs=1)
    assert two == [["a", "b", "c", "d"], ["c", "d"]]
    found = {p.program: line for p, line in all_programs.done().items()}
    assert found["a"]["fits"] and found["d"]["fits"]
    assert "SIGABRT" in found["b"]["error"] and found["c"]["error"] == "TypeError: no"
    assert all_programs.missing(todo) == [todo[1], todo[2]]


def test_it_goes_on_where_it_was_and_the_last_line_counts(folder, two):
    point = Point("mae-small", "a")
    all_programs.LINES.parent.mkdir(parents=True)
    lines = [{"point": point._asdict(), "error": "x"}, {"point": point._asdict(), **FITS}]
    all_programs.LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert all_programs.missing([point]) == []
    too_large = {"point": point._asdict(), "fits": False, "peak_bytes": 2**40}
    with all_programs.LINES.open("a") as file:
        file.write(json.dumps(too_large) + "\n")
    assert all_programs.missing([point]) == [point]  # what does not fit is not done


def test_no_program_begins_after_the_time(folder, two):
    aot_all.compile_all([Point("mae-small", "a")], all_programs.LINES, 1e-9, jobs=1)
    assert two == [] and not all_programs.LINES.exists()


def test_every_objective_combination_and_metric_is_listed_for_every_model(monkeypatch):
    monkeypatch.setattr(all_programs, "MODELS", {
        name: of for name, of in all_programs.MODELS.items() if name in ("mage-small", "mae-small")
    })  # fmt: skip
    points = all_programs.points()
    assert len(points) == len(set(points))
    of = {m: {p.program for p in points if p.model == m} for m in all_programs.MODELS}
    for model, programs in of.items():
        steps = {name.removeprefix("step: ") for name in programs if name.startswith("step")}
        assert {"pretrain", "decouple", "calibrated", "l2_encoder", "noisy", "clipped", "salun",
                "orthogonal", "epsilon_constrained", "noisy_label", "retain_label", "max_loss",
                "random_encoder", "gradient_difference"} <= steps, model  # fmt: skip
        assert {"init", "probe", "completion", "pixel metrics", "audit: errors", "saliency: mask",
                "audit: relearning", "goals: quantiles", "noise: once"} <= programs  # fmt: skip
    assert {"step: tokenizer", "step: cached_tokens", "tokens"} <= of["mage-small"]
    shared = [p for p in points if p.program.startswith(all_programs.OF_NO_MODEL)]
    assert {p.model for p in shared} == {"mae-small"}  # once for both


def test_lines_become_tables():
    every = [Point("mae-small", "init"), Point("mae", "init"), Point("mae", "probe"),
             Point("mae", "tokens")]  # fmt: skip
    lines = {every[0]: FITS, every[1]: {"error": "x", "cpu_s": 2.0},
             every[2]: {"fits": False, "cpu_s": 3.0}}  # fmt: skip
    made = all_render.tables(lines, every)
    assert made["all"].startswith("1 of 4 programs; jax 0.10.2; 2026-11-28.")
    assert "| mae-small | v5e:2x2 | 1 | 1 | 1.00 | init | 12 |" in made["all"]
    assert "| mae | v5e:4x4 | 3 | 0 | – | – | 5 |" in made["all"]
    assert "| init |  | 1.00, 12 s |  |  |" in made["small"]
    assert "| init |  |  | **failed** |  |" in made["full"]
    assert "**too large**" in made["full"] and "**missing**" in made["full"]


def test_what_is_not_known_is_refused():
    _, err = binaries.run("launch.aot", "--all", "--models=mea", code=1)
    assert "Expected --models among autoencoder-small" in err and "mea" in err


@pytest.mark.full
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu, of the extra tpu, is not installed")
def test_all_programs_of_a_small_model_compile_for_a_tpu(tmp_path):
    _, err = binaries.run(
        "launch.aot", "--all", "--models=autoencoder-small", f"--out={tmp_path / 'lines'}"
    )
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert len(lines) > 30 and all(line["fits"] for line in lines), err
