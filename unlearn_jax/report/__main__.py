"""Write the pages of a request: report.html, and that of the published evaluation.

python -m unlearn_jax.report --workdir=runs/quickstart
"""

from pathlib import Path

from unlearn_jax import cli
from unlearn_jax.report import protocol_page, results_page


def main(workdir: Path) -> None:
    """Run the command."""
    published = (workdir / protocol_page.FOLDER / "results.json").exists()
    if (workdir / "results.json").exists() or not published:
        summary = results_page.summary(results_page.read(workdir)[0])
        print(summary, f"Report: {results_page.write(workdir)}", sep="\n\n")
    if published:
        print(f"Published evaluation: {protocol_page.write(workdir)}")


if __name__ == "__main__":
    cli.start(main, needs=("workdir",))
