"""A training by four slices in two phases that takes a second, and deletions from it."""

import numpy as np

from tests.helpers import wide
from unlearn_jax.config import phase
from unlearn_jax.data import slices
from unlearn_jax.request import Request

ENTRANCES = [0, 7, 14, 20, 24]


def get_config(**changes):
    """The config with `wide`, which models.MODELS must have; slices enter at ENTRANCES."""
    config = wide.get_config()
    config.data.slices.count, config.data.train_rows = 4, 200
    config.phases.pretrain.steps = 16
    rate = {"learning_rate": 1e-2, "schedule": "late_cosine"}
    config.phases.more = phase(steps=8, optimizer=rate, batch_size=16, probe_every=4)
    for stage in (config.stages.original, config.stages.retrained):
        stage.phases = ("pretrain", "more")
    config.update_from_flattened_dict(changes)
    return config


def ids_of(cfg, s, n):
    """The ids of n images of slice s."""
    request = Request(cfg)
    rows = request.split.train
    rows = rows[slices.assign(request.source, rows, cfg.data.slices) == s]
    return [request.source.ids[row] for row in np.random.default_rng(0).permutation(rows)[:n]]


def write_list(path, ids):
    path.write_text("".join(f"{id}\n" for id in ids))
    return str(path)
