import json

import pytest

from configs.quickstart import get_config as quickstart
from tests.helpers import tiny
from unlearn_jax.config import identity
from unlearn_jax.registry import UserError


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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("config",), None),
        (("config", "phases"), {"pretrain": 3}),
        (("config", "stages"), []),
        (("config", "stage"), ["original"]),
        (("config", "data"), "x"),
        (("relevant",), []),
    ],
)
def test_a_record_of_a_run_that_means_nothing_is_named(tmp_path, path, value):
    identity.claim(tmp_path, tiny.get_config(), rows="r")
    recorded = json.loads((tmp_path / "config.json").read_text())
    section = recorded
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=f"{tmp_path / 'config.json'}: "):
        identity.of_run(tmp_path)
