"""The table of docs/accelerator.md, of the lines of `python -m benchmarks.accelerator`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn_jax.registry import UserError

DOCUMENT = Path(__file__).parents[2] / "docs" / "accelerator.md"
MARK = "<!-- {}: made by `python -m benchmarks.accelerator --out=FILE --render` -->"
COLUMNS = {
    "images/s": "images_per_s",
    "ms per step": "ms_per_step",
    "s per sampling step": "s_per_step",
    "MFU": "mfu",
    "GiB": "peak_memory_gib",
    "s to the first": "first_step_s",
    "trace, lower, compile s": "",
}


def write(lines: Sequence[Mapping[str, Any]]) -> None:
    """Put the table between its marks in the document.

    Raises:
      UserError: a mark is missing.
    """
    text = DOCUMENT.read_text()
    begin, end = MARK.format("figures"), MARK.format("end of figures")
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UserError(f"Expected {begin} and {end} in {DOCUMENT}.")
    DOCUMENT.write_text(f"{before}{begin}\n\n{render(lines)}\n\n{end}{after}")


def render(lines: Sequence[Mapping[str, Any]]) -> str:
    """Write Markdown: where it was measured, then a row for each line, errors as what they are."""
    places = dict.fromkeys(_place(line) for line in lines)
    rows = [["point", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    rows += [[line["point"], *_cells(line)] for line in lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n\n".join([*places, table])


def _place(line: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    return f"{line['device']}; {versions}; commit {line['commit']}."


def _cells(line: Mapping[str, Any]) -> list[str]:
    if "error" in line:
        text = line["error"].splitlines()[0].replace("|", "/")
        return [f"error: {text}", *[""] * (len(COLUMNS) - 1)]
    values = line["figures"] | {k: line[k] for k in ("first_step_s", "peak_memory_gib")}
    cells = [_number(values.get(name)) for name in list(COLUMNS.values())[:-1]]
    parts = [values.get(f"{stage}_s") for stage in ("trace", "lower", "compile")]
    return [*cells, ", ".join(map(_number, parts)) if None not in parts else "–"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
