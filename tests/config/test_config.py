import pytest

from configs.quickstart import get_config as quickstart
from unlearn_jax.config import identity


def test_relevant_ignores_where_and_how_fast_but_nothing_else():
    base = identity.relevant(quickstart())
    for path, value, same in (
        ("log_every", 7, True),
        ("mesh.fsdp", 2, True),
        ("data.num_threads", 1, True),
        ("checkpoint.every", 1, True),
        ("phases.retain.steps", 3, True),  # not a phase of the original
        ("phases.pretrain.steps", 3, False),
        ("seed", 5, False),
        ("batch_size", 64, False),
        ("request.fraction", 0.2, True),  # the rows that it leads to are in the hash of the data
        ("poison.fraction", 0.2, True),
        ("model.latent_dim", 64, False),
    ):
        cfg = quickstart()
        *parents, key = path.split(".")
        section = cfg
        for parent in parents:
            section = section[parent]
        section[key] = value
        assert (identity.relevant(cfg) == base) == same, path


def test_claim_refuses_another_run_and_says_what_changed(tmp_path):
    cfg = quickstart()
    identity.claim(tmp_path, cfg, rows="abc")
    identity.claim(tmp_path, cfg, rows="abc")
    cfg.seed = 3
    with pytest.raises(ValueError, match=r"config.rows: 'abc' -> 'abd'\n.*config.seed: 0 -> 3"):
        identity.claim(tmp_path, cfg, rows="abd")
