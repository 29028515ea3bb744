"""Write results.json for a request: every model on every set, with intervals, and the costs.

    python -m unlearn_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

The workdir holds original/, unlearned/ and, if there is one, retrained/, as `pipeline` leaves them.
Beside results.json it writes examples.npz (every metric of every example) and grids.npz (images).

    python -m unlearn_jax.evaluate --config=configs/imagenet_mage.py --workdir=runs/mage \\
        --checkpoints=original=runs/mage/original,unlearned=runs/mage/unlearned

is the published evaluation instead: FID, Inception Score and CLIP of completed validation images,
in workdir/protocol; see evaluate/protocol/. Several processes share the work, see `distributed`.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from unlearn_jax import cli, distributed
from unlearn_jax.evaluate import results
from unlearn_jax.evaluate.protocol import evaluation as protocol
from unlearn_jax.evaluate.protocol import tables
from unlearn_jax.training import lease


def main(cfg: ConfigDict, workdir: Path) -> None:
    """Run the command."""
    if flags.FLAGS.checkpoints is None:
        results.run(cfg, workdir)
        if distributed.first():
            print(f"Wrote {workdir / 'results.json'}.")
        return
    pairs = [text.partition("=") for text in flags.FLAGS.checkpoints]
    with lease.take(workdir):
        found = protocol.run(cfg, {name: Path(folder) for name, _, folder in pairs}, workdir)
    if distributed.first():
        print(tables.text(found), f"Wrote {workdir / protocol.FOLDER}/results.json.", sep="\n\n")


if __name__ == "__main__":
    flags.DEFINE_list("checkpoints", None, "NAME=WORKDIR,…: the published evaluation of these.")
    cli.start(main, needs=("config", "workdir"), several=True)
