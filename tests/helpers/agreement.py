"""What the processes of a job tell each other, as one line of JSON from each, for the tests.

python -m tests.helpers.agreement --coordinator=… --num_processes=2 --process_id=…
"""

import json

import jax
import numpy as np

from unlearn_jax import cli, distributed, sharding


def main() -> None:
    """The binary."""
    own, mesh = jax.process_index(), sharding.make_mesh()
    split = sharding.global_batch({"rows": np.full(len(mesh.local_devices), own)}, mesh)
    found = {
        "first": distributed.first(),
        "agreed": distributed.agreed({"of": own, "text": "ü" * (own + 1)}),
        "everywhere": [distributed.everywhere(good) for good in (True, own == 0, own == 1, False)],
        "fetched": distributed.fetch(split)["rows"].tolist(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    cli.start(main, needs=(), example="--coordinator=… --num_processes=2 --process_id=0",
              several=True)  # fmt: skip
