"""Shared parts of the pages: reading checked files, numbers in words, charts, the template."""

import base64
import dataclasses
import io
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from unlearn_jax import files
from unlearn_jax.registry import UserError, brief

MINUS = "\N{MINUS SIGN}"
NUMBER = int | float
COLOURS = {"original": "#2b83c6", "unlearned": "#d55e00", "retrained": "#009e73"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "unlearn_jax", "text.parse_math": False}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
STYLE |= {"axes.grid": True, "grid.color": "black", "grid.alpha": 0.12, "lines.linewidth": 1.3}
STYLE |= {"font.size": 8, "axes.titlelocation": "left", "axes.titlesize": 9}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One answer; `status` is "good" (of evidence only), "bad", "note" or "unclear"."""

    status: str
    text: str
    question: str
    word: str


def load(root: Path, name: str, parse: Any, schema: Any, maker: str = "pipeline") -> Any:
    """Parse a file's bytes with `parse` and check the result against `schema`; raise as `read`."""
    remedy = f"make it with: python -m unlearn_jax.{maker} --workdir={root} (and your --config)"
    if not (root / name).is_file():
        raise FileNotFoundError(f"{root / name} is missing; {remedy}")
    try:
        content = parse(files.regular(root / name).read_bytes())
        wrong = files.problems(content, schema)
    except Exception as error:  # json, numpy, zipfile and zlib each have errors of their own
        wrong = [brief(error)]
    if wrong:
        raise UserError("\n  ".join([f"{root / name} is damaged; {remedy}", *wrong]))
    return content


def unzip(content: bytes) -> dict[str, np.ndarray]:
    """Load the arrays of an .npz file; no pickle is ever opened."""
    return files.unzip(io.BytesIO(content))


def value(stat: dict[str, Any], number: int | float | None = None) -> str:
    """Format `number` (default: the mean) with the decimals that the interval of `stat` merits."""
    half = (stat["ci_high"] - stat["ci_low"]) / 2
    digits = ".4g"
    if 0 < half < math.inf:
        digits = f".{min(max(1 - math.floor(math.log10(half)), 0), 6)}f"
    return format(stat["mean"] if number is None else number, digits).replace("-", MINUS)


def interval(stat: dict[str, Any]) -> str:
    """Format the interval of `stat` as "[low, high]", or say that there is none."""
    if stat["ci_low"] == stat["ci_high"]:
        return "all alike" if stat.get("n", 2) > 1 else "no interval"
    return f"[{value(stat, stat['ci_low'])}, {value(stat, stat['ci_high'])}]"


def percent(ratio: int | float | None) -> str:
    """Format a ratio as "3.1 %", "31 %" or, from 2 on, "3.1 times"; None as "not counted"."""
    if ratio is None:
        return "not counted"
    if ratio >= 2:
        return f"{ratio:.1f} times"
    digits = f"{100 * ratio:.{0 if abs(ratio) >= 0.0995 else 1}f}".removesuffix(".0")
    return f"{digits.replace('-', MINUS)} %"


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Render a figure as inline SVG: ids unique, black as currentColor, no address of any kind."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    box = re.search(r'viewBox="([\d. ]+)"', svg)[1]
    body = svg[svg.index('<g id="figure_1"') : svg.rindex("</svg>")].replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body).replace("#000000", "currentColor")
    body = re.sub(r'font-family: [^;"<]*; ?', "", body)
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box}" fill="currentColor">'
    return Markup(head + body + "</svg>")


def panel(**labels: str) -> tuple[Figure, Axes]:
    """Make an empty chart with a title, xlabel or ylabel."""
    figure = Figure(figsize=(3.2, 2.2), layout="constrained")
    return figure, figure.subplots(subplot_kw=labels)


def png(image: UInt8[np.ndarray, "h w c=3"]) -> str:
    """Encode an image as the address of an inline PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def inline(path: Path) -> str:
    """Encode a PNG file as the address of an inline image.

    Raises:
        UserError: It is a link, or none: the page would show whatever is there to everybody.
    """
    content = b"" if path.is_symlink() else files.regular(path).read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError(f"{path}: expected a PNG file, and no link. Remove it.")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def render(template: str, names: dict[str, Any]) -> str:
    """Render a page from a template of this folder; every value is escaped."""
    return _templates().get_template(template).render(names)


@cache  # compiling them takes longer than rendering
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    pages.filters |= {"value": value, "interval": interval, "percent": percent, "png": png}
    return pages
