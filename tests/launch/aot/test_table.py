"""The scale table: the grid, its lines, and the document they become."""

import json

import pytest

from launch.aot import chips, formula, grid, render, table
from launch.aot.grid import Point
from tests.launch.aot.test_cost import V5E

STEP = {
    "batch": 128, "batch_per_chip": 8.0, "argument_bytes": 2**30, "state_bytes": 2**29,
    "fits": True, "peak_bytes": 3 * 2**30, "flops": 5e12, "model_flops": 4e12, "moved_bytes": 2e9,
    "wire_bytes": 1e9, "compile_s": 60.0, "compile_cpu_s": 33.0, "collectives": {},
    "bound_s": 2e-3, "bound_by": "memory", "mfu_bound": 0.25,
}  # fmt: skip
REPORT = {
    "chips": 16, "mesh": {"data": 16, "fsdp": 1}, "chip": V5E._replace(shapes=())._asdict(),
    "versions": {"jax": "0.10.2", "libtpu": "0.0.42.1"}, "created": "2026-11-26T06:00:00+00:00",
}  # fmt: skip
TOO_LARGE = {"fits": False, "peak_bytes": 50 * 2**30, "error": "RESOURCE_EXHAUSTED: …"}


def test_the_grid_has_only_topologies_that_exist_and_no_point_twice():
    points = grid.grid()
    assert len(set(points)) == len(points)
    for point in points:
        topology = chips.parse_topology(point.topology)
        chips.parse_mesh(point.mesh, topology.chips)
    sizes = {
        (p.model, p.topology.partition(":")[0], chips.Topology(p.topology).chips) for p in points
    }
    for model in grid.MODELS:
        assert {(model, chip, n) for chip in chips.TPUS for n in (4, 16, 64, 256)} <= sizes
        assert {(model, "v5p", 512), (model, "v4", 512)} <= sizes


def test_the_batch_grows_with_the_chips():
    small, large = (Point("mage", f"v5e:{shape}").command() for shape in ("2x2", "16x16"))
    assert "--batch=32" in small and "--batch=2048" in large
    assert {"--quick", "--nosearch", "--programs=step"} <= set(small)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/scale").mkdir(parents=True)
    lines = [
        (Point("mage", "v5e:4x4"), REPORT | {"programs": {"step": STEP}}),
        (Point("mage", "v5e:4x4", quick=False), REPORT | {"programs": {"step": STEP}}),
        (Point("palette", "v5e:4x4"), REPORT | {"programs": {"step": STEP | TOO_LARGE}}),
        (Point("mae", "v5e:4x4", programs="evaluation,sampler"),
         REPORT | {"programs": {"evaluation": STEP, "sampler": STEP}}),
        (Point("mae", "v5e:4x4", search=True),
         REPORT | {"programs": {"step": STEP},
                   "largest": {"batch_per_chip": 30, "peak_bytes": 15 * 2**30, "too_large": 31,
                               "compiles": 2}}),
        (Point("mae", "v4:2x2x1"), {"error": "error: it went wrong"}),
    ]  # fmt: skip
    text = "".join(json.dumps({"point": p._asdict()} | line) + "\n" for p, line in lines)
    (tmp_path / grid.LINES).write_text(text)
    return tmp_path


@pytest.mark.long
def test_lines_become_tables_and_a_plot(folder):
    names = [f"{end}{name}" for name in (*render.tables({}), "formula")
             for end in ("", "end of ")]  # fmt: skip
    marks = [render.MARK.format(name) for name in names]
    (folder / "docs").mkdir()
    (folder / render.DOCUMENT).write_text("Before\n" + "\nold\n".join(marks) + "\nAfter\n")
    for _ in range(2):  # the second time over the first
        render.write(grid.done(), formula="by formula")
    text = (folder / render.DOCUMENT).read_text()
    assert text.startswith("Before\n") and text.endswith("After\n") and text.count("MAGE-B") > 2
    for part in (
        "| MAGE-B | v5e:4x4 | 16 | 16 × 1 | 8 | 0.50 | 3.00 | 2 | 1,000 | 2 | memory | 25 % | 33 |",
        "**50.0: too large**",
        "| MAE-L | v5e:4x4 | 30 | 480 | 15.00 of 15.75 | 31 | 3 |",
        "5 of ",
        "by formula",
        "MAE-L v4:2x2x1: error: it went wrong",
        "jax 0.10.2, libtpu 0.0.42.1; 2026-11-26.",
        "\n- MAE-L: v5e:4x4, v5p:2x2x4, v5e:4x4 (mesh 1:16)",
    ):
        assert part in text
    assert (folder / render.PLOT).stat().st_size > 1000


def test_a_document_without_marks_is_left_alone(folder):
    (folder / "docs").mkdir()
    (folder / render.DOCUMENT).write_text("Other\n")
    with pytest.raises(ValueError, match="Expected <!-- steps"):
        render.write(grid.done(), formula="by formula")
    assert (folder / render.DOCUMENT).read_text() == "Other\n"


def test_only_what_is_missing_is_compiled(folder, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(table.subprocess, "run", run)
    monkeypatch.setattr(table, "grid", lambda: [*grid.done(), Point("mae", "v6e:4x4")])
    with pytest.raises(KeyboardInterrupt):
        table.compile_missing(0)
    assert len(asked) == 1 and "--topology=v6e:4x4" in asked[0]


def test_what_needs_no_compiler(monkeypatch):
    monkeypatch.setattr(formula, "WAYS", (1, 2))
    found = formula.facts(formula.load("tests/helpers/tiny.py"))
    assert found["parameters"] == found["trained"] == 18_403
    assert found["state_bytes"][1] == 2 * 4 * 18_403 + 16
    assert found["flops"] == found["model_flops"] > 2 * 18_403
    assert "| tiny | 0.0 | 0.0 |" in formula.table({"tiny": found})
