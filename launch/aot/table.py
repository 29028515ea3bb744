"""The scale table: `launch.aot` on a grid of models, chips and sizes, as JSON lines and Markdown.

    python -m launch.aot.table              # compiles what is missing; hours of CPU time in all
    python -m launch.aot.table --minutes=5  # as many as are begun within 5 minutes
    python -m launch.aot.table --render     # writes the tables of docs/scale.md and the plot

Each point is a line of results/scale/aot.jsonl as soon as it is done, so an interrupted run goes on
where it was. What fails is a line too, with the error.
"""

import json
import subprocess
import sys
import time

from absl import flags

from launch.aot.grid import LINES, MODELS, done, grid
from unlearn_jax import cli
from unlearn_jax.registry import UserError

flags.DEFINE_float("minutes", 0, "Begin no further point after that time; 0: all missing ones.")
flags.DEFINE_bool("render", False, "Write the tables and the plot instead.")


def compile_missing(minutes: float) -> None:
    """Compile what is missing; append lines, in the order of the grid."""
    before = done()
    missing = [point for point in grid() if point not in before]
    LINES.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for number, point in enumerate(missing, start=1):
        if minutes and time.monotonic() - began > 60 * minutes:
            break
        print(f"{number} of {len(missing)}: {point}", file=sys.stderr)
        ran = subprocess.run(point.command(), capture_output=True, text=True)
        if ran.returncode and "The compiling process ended" not in ran.stderr:
            raise UserError(f"{' '.join(point.command())} said:\n{ran.stderr.strip()}")
        result = json.loads(ran.stdout) if not ran.returncode else {"error": ran.stderr.strip()}
        with LINES.open("a") as file:
            file.write(json.dumps({"point": point._asdict()} | result) + "\n")


def main() -> None:
    """Run the command."""
    if flags.FLAGS.render:
        from launch.aot import all_programs, all_render, formula, render

        configs = {render.TITLES[name]: path for name, (path, *_) in MODELS.items()}
        found = {title: formula.facts(formula.load(path)) for title, path in configs.items()}
        programs = all_render.tables(all_programs.done(), all_programs.points())
        render.write(done(), formula=formula.table(found), **programs)
    else:
        compile_missing(flags.FLAGS.minutes)


if __name__ == "__main__":
    cli.start(main, needs=(), example="--minutes=5")
