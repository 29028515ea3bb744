"""Training with equal blocks as one is training, and its checkpoints are everyone's."""

import shutil

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from unlearn_jax import checkpoint, cli, distributed, train
from unlearn_jax.models import stacking, vit
from unlearn_jax.request import Request
from unlearn_jax.training import phases

pytestmark = pytest.mark.long
MODEL = {
    **{"name": "mae", "image_size": 32, "patch": 8, "dim": 8, "depth": 3, "heads": 2},
    **{"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.5, "remat": True},
}


@pytest.fixture(scope="module", autouse=True)
def deep():
    """Three blocks are deep here: eight would be compiled one by one to compare with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacking, "DEEP", 3)
        patch.setattr(vit, "DEEP", 3)
        yield


def settings(**changes):
    cfg = tiny.get_config()
    cfg.model = MODEL
    cfg.mesh = {"data": -1, "fsdp": 2}
    cfg.sharding.min_bytes = 500
    cfg.phases.calibrated.objective_kw.direction = 0.0
    cfg.phases.pretrain.steps = 6
    cfg.phases.pretrain.optimizer.weight_decay = 0.1
    cfg.phases.pretrain.optimizer.no_decay = (r".*/bias", r".*/blocks/block\d+/norm\d/.*")
    cfg.update_from_flattened_dict(changes)
    return cfg


def trained(cfg, workdir, until=0):
    """The parameters after a run, or the run stopped at a step."""
    if until:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "make_asker", lambda mesh: lambda step, _: step >= until)
            with pytest.raises(cli.Interrupted):
                train.run(cfg, workdir)
        return None
    train.run(cfg, workdir)
    return jax.tree.map(np.asarray, checkpoint.load_params(workdir, Request(cfg).like())[0])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "original"
    return folder, trained(settings(), folder)


def apart(monkeypatch):
    monkeypatch.setattr(phases.stacking, "alike", lambda *_: False)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5), a, b)


@pytest.mark.full
def test_parameters_are_those_of_blocks_apart(original, tmp_path, monkeypatch):
    apart(monkeypatch)
    other = trained(settings(), tmp_path / "apart")
    assert jax.tree.structure(other) == jax.tree.structure(original[1])
    close(original[1], other)
    start = Request(settings()).model.init(jax.random.split(jax.random.key(0), 3)[0])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), original[1], start)
    assert moved["encoder"]["blocks"]["block2"]["mlp"]["fc1"]["kernel"] > 1e-3


def test_a_run_goes_on_in_either_layout_and_bit_for_bit_in_its_own(original, tmp_path, monkeypatch):
    trained(settings(), tmp_path / "stopped", until=2)
    shutil.copytree(tmp_path / "stopped", tmp_path / "copy")
    jax.tree.map(
        np.testing.assert_array_equal, trained(settings(), tmp_path / "stopped"), original[1]
    )
    apart(monkeypatch)
    close(trained(settings(), tmp_path / "copy"), original[1])


SALIENCY = {"phases.decouple.saliency": 0.5}
COMBINED = {"phases.decouple.combine": "orthogonal", "phases.decouple.retain_weight": 1.0}
ATTENTION = {"model.trainable": (r"encoder/blocks/block\d+/attn/.*",)}


@pytest.mark.parametrize(
    "changes",
    [
        SALIENCY | COMBINED | ATTENTION,  # all that looks at layouts in one run
        {"model.trainable": (r"encoder/blocks/block2/.*",)},
        *(SALIENCY, COMBINED, ATTENTION),
    ],
)
@pytest.mark.full
def test_unlearning_is_that_of_blocks_apart(changes, original, tmp_path, monkeypatch):
    cfg = settings(**changes)
    cfg.stage, cfg.init_from = "unlearned", str(original[0])
    cfg.stages.unlearned.phases = ("decouple",)
    cfg.phases.decouple.steps = 4
    found = trained(cfg, tmp_path / "one")
    moved = set()
    for half, blocks in ((half, found[half]["blocks"]) for half in found):
        for name, block in blocks.items():
            before = original[1][half]["blocks"][name]
            same = jax.tree.map(np.array_equal, block, before)
            moved |= set() if all(jax.tree.leaves(same)) else {f"{half}/{name}"}
    assert "encoder/block2" in moved
    if "block2" in str(changes):
        assert moved == {"encoder/block2"}
    apart(monkeypatch)
    close(found, trained(cfg, tmp_path / "apart"))


def test_what_tells_blocks_apart_keeps_them_apart():
    cfg = settings()
    like = Request(cfg).like()
    mesh = Request(cfg).mesh

    def packed(cfg, trainable=(".*",)):
        pack, _ = phases.make_layout(cfg, cfg.stages.original, like, trainable, mesh)
        return stacking.STACK in str(jax.tree.structure(jax.eval_shape(pack, like)))

    assert packed(cfg)
    assert not packed(cfg, (r"encoder/blocks/block1/.*",))
    decays = settings(**{"phases.pretrain.optimizer.no_decay": (r".*/block0/.*",)})
    assert not packed(decays)
    rules = settings(**{"sharding.rules": ((r"block[01]/", "replicate"), (".*", "fsdp"))})
    assert not packed(rules)
    assert not packed(settings(**{"model.remat": False}))
    noised = settings(**{"phases.pretrain.noise.std": 0.1})
    assert not packed(noised)
