"""The process of one point: `python -m benchmarks.accelerator.child SPEC FILE`.

It appends what it finds to the file as it comes, so that what is known stays known if it is ended.
"""

import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

Say = Callable[..., None]
# The modules that are imported define flags of the same names.
KINDS = {
    "training": "steps", "unlearning": "steps", "sampling": "sampling", "device": "feeds",
    "quickstart": "feeds", "tests": "feeds", "fid": "feeds", "loader": "feeds", "feed": "feeds",
}  # fmt: skip


def main(spec: str, file: str) -> int:
    """Run a point; return the exit code; an error becomes part of what the file says."""
    given = json.loads(spec)

    def say(**values: Any) -> None:
        values = {k: _plain(v) for k, v in values.items()}
        with Path(file).open("a") as opened:
            opened.write(json.dumps(values) + "\n")

    say(stage="import")
    try:
        module = importlib.import_module(f"benchmarks.accelerator.{KINDS[given['kind']]}")
        flags.FLAGS(sys.argv[:1])
        more = {"say": say, "cached": given["cached"], "platform": given["platform"]}
        getattr(module, given["kind"])(**given["options"], **more)
    except Exception as error:
        traceback.print_exc()
        say(error=f"{type(error).__name__}: {error}"[:2000])
        return 1
    return 0


def _plain(value: Any) -> Any:
    """Make a value fit for JSON, to four digits; what is not finite becomes null."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
