"""Writes audit.json for a request: membership inference, backdoor, relearning, and verdicts.

    python -m unlearn_jax.audit --config=configs/quickstart.py --workdir=runs/quickstart

The workdir holds original/, unlearned/ and retrained/, as `pipeline` leaves them.
"""

from pathlib import Path

from ml_collections import ConfigDict

from unlearn_jax import cli, distributed
from unlearn_jax.audit import request


def main(cfg: ConfigDict, workdir: Path) -> None:
    """The binary."""
    found = request.run(cfg, workdir)
    if not distributed.first():
        return
    for name, verdict in found["verdicts"].items():
        for variant, of in verdict.items() if name == "backdoor" else [("", verdict)]:
            reasons = "; ".join(of["reasons"])
            print(f"{name} {variant}: {of['word']}{' (' if reasons else ''}{reasons}"
                  f"{')' if reasons else ''}")  # fmt: skip
    print(f"Wrote {workdir / 'audit.json'}.")


if __name__ == "__main__":
    cli.start(main, needs=("config", "workdir"), several=True)
