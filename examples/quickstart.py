"""Forget every cat of a small CIFAR-10, and look at what is left. About three minutes on 2 cores.

python examples/quickstart.py [FOLDER]
"""

import sys
from pathlib import Path

import unlearn_jax as uj


def main(folder: Path, changes: dict | None = None) -> None:
    """Train, unlearn, retrain, audit; leave pictures and a report in the folder."""
    changes = {"request.kind": "classes", "request.classes": "cat", **(changes or {})}
    request = uj.Request(uj.load_config("quickstart", changes))
    print(request)

    original = request.train("original", folder / "original")
    unlearned = request.train("unlearned", folder / "unlearned", start=original)
    retrained = request.train("retrained", folder / "retrained")

    for name in ("forget", "retain"):
        batch = request.batch(name, n=8)
        picture = uj.show(batch, original(batch), unlearned(batch), retrained(batch))
        picture.save(folder / f"{name}.png")

    print(request.audit(folder))
    request.evaluate(folder)
    print("Look at:", request.report(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
