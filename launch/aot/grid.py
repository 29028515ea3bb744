"""The grid of the scale table: which calls of `launch.aot`, and their results so far."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from launch.aot.chips import Topology

LINES = Path("results/scale/aot.jsonl")
MODELS = {  # config, rows per chip of the step, of the evaluation
    "mage": ("configs/imagenet_mage.py", 8, 4),
    "mae": ("configs/imagenet_mae.py", 8, 4),
    "palette": ("configs/places365_palette.py", 2, 1),
}
FLAT = {4: "2x2", 16: "4x4", 64: "8x8", 256: "16x16"}
CUBE = {4: "2x2x1", 16: "2x2x4", 64: "4x4x4", 256: "4x8x8", 512: "8x8x8"}
SHAPES = {"v5e": FLAT, "v6e": FLAT, "v5p": CUBE, "v4": CUBE}


class Point(NamedTuple):
    """One call of `launch.aot`."""

    model: str
    topology: str
    mesh: str = "-1:1"
    programs: str = "step"
    quick: bool = True
    search: bool = False

    def command(self) -> list[str]:
        """Return the command line of the point."""
        config, rows, eval_rows = MODELS[self.model]
        chips = Topology(self.topology).chips
        return [
            *(sys.executable, "-m", "launch.aot", "--json", f"--config={config}"),
            *(f"--topology={self.topology}", f"--mesh={self.mesh}", f"--batch={rows * chips}"),
            *(f"--programs={self.programs}", f"--eval_batch={eval_rows * chips}"),
            *(["--quick"] if self.quick else []),
            "--search" if self.search else "--nosearch",
        ]


def grid() -> list[Point]:
    """List all points, what matters most first."""
    small = {name: f"{name}:{shapes[16]}" for name, shapes in SHAPES.items()}
    points = [Point(model, small["v5e"]) for model in MODELS]
    points += [Point("mage", f"v5e:{FLAT[chips]}") for chips in (256, 4)]
    points += [Point(model, small["v5p"]) for model in MODELS]
    for model in MODELS:  # sharded parameters; the largest batch; the other programs
        points.append(Point(model, small["v5e"], mesh="1:16"))
        points.append(Point(model, small["v5e"], search=True))
        points.append(Point(model, small["v5e"], programs="evaluation,sampler"))
    for chips in (16, 256, 4, 64, 512):
        for name, shapes in SHAPES.items():
            points += [Point(m, f"{name}:{shapes[chips]}") for m in MODELS if chips in shapes]
    points += [Point(model, "v5e:16x16", mesh="16:16") for model in MODELS]
    points += [Point(model, small["v5e"], quick=False) for model in MODELS]
    for name in ("v6e", "v5p", "v4"):
        points += [Point(m, small[name], programs="evaluation,sampler") for m in MODELS]
        points += [Point(m, small[name], search=True) for m in MODELS]
    return list(dict.fromkeys(points))


def done() -> dict[Point, dict[str, Any]]:
    """Read the report, or {"error": …}, of each point that was tried."""
    if not LINES.exists():
        return {}
    lines = (json.loads(line) for line in LINES.read_text().splitlines())
    return {Point(**line["point"]): line for line in lines}
