"""The quickstart with a model and phases small enough for tests."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.name = "tiny"
    config.batch_size = 32
    config.model = {"name": "autoencoder", "channels": (4, 8), "latent_dim": 16}
    config.stages.unlearned.phases = ("decouple", "retain")
    config.phases.pretrain.steps = 24
    config.phases.decouple.steps = 6
    config.phases.decouple.stop.metric = ""
    config.phases.retain.steps = 6
    config.probe_rows = 16
    for phase in config.phases.values():
        phase.probe_every = 4
    config.log_every = 3
    config.checkpoint.every = 2
    config.evaluation.retain_rows = 40
    config.evaluation.resamples = 50
    config.audit.rows, config.audit.batch_size = 60, 16
    config.audit.resurfacing.steps = (2,)
    config.audit.relearn = {"images": 16, "steps": 4, "every": 2}
    return config
