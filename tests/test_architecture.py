"""The house: what is where, and that no import runs up; see docs/architecture.md."""

import ast
from pathlib import Path

import pytest

import unlearn_jax

ROOT = Path(unlearn_jax.__file__).parent
# From the ground up. What is in one line may not import each other.
LAYERS = (
    ("registry",),
    ("files",),
    ("sharding",),
    ("distributed",),
    ("checkpoint",),
    ("cli",),
    ("data",),
    ("models",),
    ("methods",),
    ("config",),
    ("request",),
    ("training",),
    ("certify",),
    ("train",),
    ("audit",),
    ("evaluate",),
    ("convert",),
    ("report",),
    ("complete", "compare", "pipeline"),
    ("leaderboard", "prepare", "__init__", "__main__"),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def room_of(module):
    """The room of "unlearn_jax.data.splits": "data"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path):
    """The modules of this package that a file imports when it is imported."""
    tree = ast.parse(path.read_text("utf-8"))
    later = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if node in later:  # when it is called: a command that Python asks for
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "unlearn_jax":
            yield from (f"unlearn_jax.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unlearn_jax."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "unlearn_jax")


def arrows():
    found = set()
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        for module in imports(path):
            if parts[0] != room_of(module):
                found.add((parts[0], room_of(module), str(path.relative_to(ROOT))))
    return found


def test_every_module_at_the_root_and_every_folder_has_its_place():
    modules = {p.stem for p in ROOT.glob("*.py")}
    folders = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    assert modules | folders == set(RANK)
    assert len(modules) <= 15 and len(folders) <= 11
    text = (ROOT.parent / "docs" / "architecture.md").read_text("utf-8")
    for name in modules - {"__init__", "__main__"}:
        assert f"`{name}.py`" in text, name
    for name in folders:
        assert f"`{name}/`" in text, name


def test_no_import_runs_up():
    names = set(RANK) | {"__version__"}
    up = {a for a in arrows() if a[1] in names and RANK.get(a[1], -1) >= RANK[a[0]]}
    assert not {a for a in up if a[1] != "__init__"}, up


def test_what_a_user_can_mend_is_a_user_error():
    """A command shows the traceback of any other ValueError: it is a bug."""
    for path in ROOT.rglob("*.py"):
        raised = [
            node.exc.func.id
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and isinstance(node.exc.func, ast.Name)
        ]
        assert "ValueError" not in raised, path


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.name)
def test_functions_are_short(path):
    """At most 90 lines, docstring not counted; the literal of defaults is data."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name != "default":
            doc = node.body[0] if ast.get_docstring(node) else None
            lines = node.end_lineno - node.lineno + 1
            lines -= doc.end_lineno - doc.lineno + 1 if doc else 0
            assert lines <= 90, f"{path.name}: {node.name} has {lines} lines"
