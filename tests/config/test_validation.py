from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from configs import quickstart
from unlearn_jax import models, train
from unlearn_jax.config import method
from unlearn_jax.config.load import load
from unlearn_jax.config.validation import validate
from unlearn_jax.registry import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("[!_]*.py"))


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_validates_and_its_model_can_be_built(path):
    cfg = load(str(path))
    validate(cfg)
    model = models.of(cfg)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert {"encoder", "decoder"} <= set(shapes)
    assert any(word in path.read_text() for word in ("make demo", "python -m unlearn_jax"))


def test_all_problems_are_reported_at_once():
    cfg = quickstart.get_config()
    cfg.batch_size = 0
    cfg.task.name = "inpant"
    cfg.model.latnt_dim = 3
    cfg.phases.decouple.objective = "gradient_asent"
    cfg.phases.retain.retain_weight = 0.0
    cfg.phases.pretrain.optimizer.name = "adma"
    cfg.stages.unlearned.phases = ("decuple", "retain")
    cfg.stages.original.rows = "all"
    cfg.evaluation.confidence = 95.0
    with pytest.raises(ValueError) as error:
        validate(cfg)
    for part in (
        "9 problem(s)",
        "config.batch_size: expected at least 1, got 0",
        "config.task.name: unknown 'inpant'",
        "did you mean 'inpaint'?",
        "config.model.latnt_dim: unknown",
        "did you mean 'latent_dim'?",
        "config.phases.decouple.objective: unknown 'gradient_asent'",
        "config.phases.retain: retain_weight and forget_weight are both 0",
        "config.phases.pretrain.optimizer.name: unknown 'adma'",
        "config.stages.unlearned.phases: unknown 'decuple'",
        "config.stages.original.rows: unknown 'all'",
        "config.evaluation.confidence: expected between 0 and 1, neither, got 95.0",
    ):
        assert part in str(error.value), part


def test_unknown_missing_and_mistyped_keys():
    cfg = quickstart.get_config().unlock()
    cfg.batchsize = 3
    del cfg["seed"]
    cfg.data = cfg.data.copy_and_resolve_references().to_dict() | {"cache": 1}
    with pytest.raises(ValueError) as error:
        validate(cfg)
    for part in (
        "config.batchsize: unknown key; did you mean 'batch_size'?",
        "config.seed: missing",
        "config.data.cache: expected bool like True, got 1",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "phases.decouple.objective_kw.forget_cap",
            float("nan"),
            "cap: .* a finite number, got nan",
        ),
        ("phases.decouple.objective_kw.forget_cap", -float("inf"), "a finite number, got -inf"),
        (
            "phases.decouple.objective_kw.forget_cap",
            -1.0,
            "forget_cap: expected at least 0, got -1",
        ),
        ("phases.calibrated.objective_kw.distance", 2, "distance: expected str, got 2"),
        ("phases.pretrain.optimizer.learning_rate", float("inf"), "learning_rate: .* got inf"),
        ("phases.calibrated.forget_weight", float("inf"), "forget_weight: .* finite .* got inf"),
        ("phases.calibrated.stop.at_least", float("nan"), "stop.at_least: .* finite .* got nan"),
        ("data.augment.ratio", (1.0, float("inf")), r"ratio\[1\]: expected a finite number"),
        ("model.visible_weight", float("nan"), "model.visible_weight: expected a finite number"),
        ("certificate.delta", float("nan"), "certificate.delta: expected a finite number, got nan"),
        ("task.hole", 2.0, "config.task: .*expected 0 < hole < 1"),
        ("task.hole", float("nan"), "config.task.hole: expected a finite number, got nan"),
        ("task.train", "random_mask", None),
        ("task.patch", 5, None),
        ("request.fraction", 1.5, "request.fraction: expected 0 < f < 1, got 1.5"),
        ("seed", 2**70, "config.seed: expected whole numbers from 0 to"),
        ("compare.seeds", (0, -1), "compare.seeds: expected whole numbers"),
        ("mesh.fsdp", 0, "mesh.fsdp: expected at least 1, got 0"),
        ("audit.learning_rate", -1.0, "audit.learning_rate: expected above 0"),
        ("protocol.inpaint", (4, 16), "protocol.inpaint: expected whole numbers from 1 to 15"),
        ("model.image_size", 64, "model.image_size: expected config.data.image_size, 32, got 64"),
        ("data.image_size", 30, "config.model: .*divisible by 8"),
        ("data.image_size", 64, None),
        ("phases.decouple.forget_weight", -1.0, "expected weights of at least 0"),
        ("phases.decouple.forget_fraction", 1.0, "expected 0 < f < 1"),
        ("phases.decouple.optimizer.learning_rate", 0.0, "expected above 0"),
        ("phases.decouple.optimizer.clip_norm_l2", -1.0, "expected at least 0"),
        ("phases.decouple.stop.metric", "displacment", "did you mean 'displacement'"),
        ("phases.decouple.stop.at_least", 0.0, "needs at_least above 0"),
        ("phases.decouple.probe_every", 0, "needs at_least above 0 and probe_every"),
        ("phases.pretrain.stop.metric", "displacement", "from scratch, does not have"),
        ("phases.decouple.steps", -1, "expected at least 0"),
        ("phases.decouple.objective_kw.cap", 1.0, "unknown 'cap', expected one of"),
        ("phases.decouple.combine", "orthogonl", "did you mean 'orthogonal'"),
        ("phases.decouple.combine", "orthogonal", "needs both gradients, so both weights above 0"),
        ("phases.retain.combine", "epsilon_constrained", "combine_kw.epsilon: missing"),
        ("phases.decouple.combine_kw.beta", 1.0, "combine_kw.beta: unknown 'beta'"),
        ("phases.decouple.saliency", 1.5, "saliency: expected between 0 and 1, got 1.5"),
        ("phases.pretrain.goal", "views", "goal: needs an original, which the stage"),
        ("phases.pretrain.goal", "veiws", "did you mean 'views'"),
        ("phases.calibrated.goal", "", "'calibrated' needs one of"),
        ("compare.only", ("calibratd",), "unknown .calibratd."),
        ("compare.methods.nothing", method("Nothing", ()), "at least one phase"),
        ("phases.retain.shrink.alpha", 1.5, "shrink.alpha: expected 0 to 1, got 1.5"),
        ("phases.retain.shrink.towards", "nothing", "shrink.towards: unknown 'nothing'"),
        ("phases.pretrain.shrink.alpha", 0.5, "shrink.alpha: needs an original, which the stage"),
        ("phases.retain.shrink.by", "leaf", "shrink.by: unknown 'leaf'"),
        ("phases.retain.rewind", 1.0, "rewind: expected 0 up to, but not 1, got 1.0"),
        ("phases.pretrain.rewind", 0.5, "rewind: needs an original, which the stage"),
        ("phases.retain.teacher", "after", "teacher: unknown 'after'"),
        ("phases.pretrain.teacher", "before", "teacher: needs an original, which the stage"),
        ("phases.pretrain.saliency", 0.5, "saliency: needs an original, which the stage"),
        ("model.channels", (), "config.model: "),
        ("model.name", "autoencodr", "did you mean 'autoencoder'"),
        ("stage", "retraind", "did you mean 'retrained'"),
        ("data.resize", "corp", "did you mean 'crop'"),
        ("data.augment.name", "random_crop", "did you mean 'random_resized_crop'"),
        ("data.augment.scale", (0.5, 1.2), "expected 0 < least <= largest <= 1, got"),
        ("data.augment.scale", (0.5,), "augment.scale: expected 0 < least"),
        ("data.augment.ratio", (2.0, 0.5), "augment.ratio: expected 0 < least"),
        ("data.path", "gs://bucket/records", "data.path: expected a path, got the URL"),
        ("request.pick", "last", "config.request.pick: unknown 'last'"),
        ("request.per_class", -1, "at least 0, got -1"),
        ("retain.kind", "other_clases", "did you mean 'other_classes'"),
        ("stages.retrained.phases", (), "at least one phase"),
    ],
)
def test_values_are_checked(path, value, message):
    cfg = quickstart.get_config().unlock()
    *parents, key = path.split(".")
    section = cfg
    for parent in parents:
        section = section[parent]
    section[key] = value
    if message is None:
        return validate(cfg)
    with pytest.raises(ValueError, match=message):
        validate(cfg)


@pytest.mark.parametrize("change", [{"task.hole": 2.0}, {"task.hole": float("nan")}, {"seed": -1}])
def test_a_refused_config_claims_nothing(tmp_path, change):
    cfg = quickstart.get_config()
    cfg.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=f"config.{next(iter(change)).partition('.')[0]}"):
        train.run(cfg, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_the_model_has_the_size_of_the_images():
    cfg = quickstart.get_config()
    assert models.of(cfg).image_size == 32 and models.of(cfg) == models.build(**cfg.model.to_dict())
    cfg.data.image_size = 64
    assert models.of(cfg).image_size == models.of(cfg.to_dict()).image_size == 64


def test_random_views_need_the_original_images():
    cfg = quickstart.get_config()
    cfg.data.update({"resize": "crop", "cache": True})
    validate(cfg)
    cfg.data.augment.name = "random_resized_crop"
    with pytest.raises(ValueError, match="config.data.augment: .* set data.cache to False"):
        validate(cfg)
    cfg.data.cache = False
    validate(cfg)


def test_what_a_model_does_not_have_is_reported():
    cfg = quickstart.get_config()
    cfg.phases.pretrain.objective = "tokenizer"
    with pytest.raises(ValueError, match="pretrain.objective: 'autoencoder' has no tokenizer"):
        validate(cfg)
    cfg = quickstart.get_config()
    cfg.model = {"name": "mae", "image_size": 32, "patch": 8}
    validate(cfg)  # no stage has the phase
    cfg.stages.unlearned.phases = ("calibrated",)
    with pytest.raises(ValueError, match="calibrated.objective_kw.direction: the loss of 'mae'"):
        validate(cfg)


def test_optimizer_values_are_checked():
    cfg = quickstart.get_config()
    cfg.phases.pretrain.optimizer.update({"b2": 1.0, "no_decay": ("(",)})
    cfg.task.train = "hybird"
    with pytest.raises(ValueError) as caught:
        validate(cfg)
    for text in ("optimizer.b2: expected 0 <= x < 1", "'(' is no regex", "mean 'hybrid'"):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages", {"original": 3}),
        ("stages", {"original": {"rows": "train", "phases": 3, "scratch": True}}),
        ("phases", {"pretrain": 3}),
        ("compare.seeds", ({"a": 1},)),
        ("audit.resurfacing.learning_rates", (("a",),)),
        ("sharding.rules", ((1, 2),)),
        ("data.splits", ({},)),
    ],
)
def test_whatever_a_value_is_it_is_a_problem_and_no_traceback(path, value):
    cfg = quickstart.get_config().unlock()
    section = cfg
    *folders, key = path.split(".")
    for name in folders:
        section = section[name]
    with section.ignore_type():
        section[key] = ConfigDict(value) if isinstance(value, dict) else value
    try:
        validate(cfg)
    except UserError as error:
        assert "problem(s)" in str(error)


def test_a_billion_slices_are_refused_at_once():
    cfg = quickstart.get_config()
    cfg.data.slices.count = 10**9
    with pytest.raises(UserError, match=r"data.slices.count: expected whole numbers from 0 to 10"):
        validate(cfg)
