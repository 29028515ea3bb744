"""Writes results.json for a request: every model on every set, with intervals, and the costs.

    python -m unlearn_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

The workdir holds original/, unlearned/ and, if there is one, retrained/, as `pipeline` leaves them.
Beside results.json it writes examples.npz (every metric of every example) and grids.npz (images).
"""

from pathlib import Path

from ml_collections import ConfigDict

from unlearn_jax import cli
from unlearn_jax.evaluate import results


def main(cfg: ConfigDict, workdir: Path) -> None:
    """The binary."""
    results.run(cfg, workdir)
    print(f"Wrote {workdir / 'results.json'}.")


if __name__ == "__main__":
    cli.start(main, needs=("config", "workdir"))
