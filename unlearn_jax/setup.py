"""What every binary makes of a config before it does its own work."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unlearn_jax import data, models, sharding
from unlearn_jax.data.splits import Split
from unlearn_jax.models import Model, Params


class Setup(NamedTuple):
    """A config resolved: devices, images, the request's rows, the architecture."""

    cfg: ConfigDict
    mesh: Mesh
    source: data.Source
    split: Split
    model: Model

    def like(self) -> Params:
        """The model's parameters as ShapeDtypeStructs with their shardings."""
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        shardings = sharding.params_sharding(shapes, self.mesh, **self.cfg.sharding)
        return sharding.abstract(shapes, shardings)


def resolve(cfg: ConfigDict) -> Setup:
    """The setup of a config that has been validated.

    Raises:
      ValueError: the mesh, the data or the request are not what they must be.
    """
    mesh = sharding.make_mesh(**cfg.mesh)
    source, split = data.load(cfg)
    return Setup(cfg, mesh, source, split, models.build(**cfg.model.to_dict()))
